"""What a prediction is: the records that the page, the command line, the API and the library return."""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.errors import InvalidArgument
from fracture_lib.hub import ModelSource, Runtime
from fracture_lib.inference.ood import OODResult
from fracture_lib.labels import CLASSES, ID2LABEL
from fracture_lib.models.model import ModelInfo, ModelOutput
from fracture_lib.registry import ENSEMBLE

__all__ = ["ComparisonResult", "Prediction", "Score", "check_top_k", "summarize", "to_prediction"]

# Calibrated probabilities of the top class. Above one half it is more likely right than wrong.
CONFIDENT, LOW_CONFIDENCE = 0.5, 0.25


@dataclass(frozen=True)
class Score:
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction of one model for one image."""

    info: ModelInfo
    scores: tuple[Score, ...]  # the top k, most probable first
    milliseconds: float = field(compare=False)  # of the network alone
    warnings: tuple[str, ...]  # from reading the image and from out-of-distribution detection
    ood: OODResult | None  # None if it could not be checked
    # float32 [10, h, w]: what each position of the model input adds to a class's log-probability
    cam: NDArray[np.float32] = field(compare=False, repr=False)

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.scores[0].label

    @property
    def probability(self) -> float:
        """The calibrated probability of `label`."""
        return self.scores[0].probability

    @property
    def model(self) -> str:
        return self.info.name

    @property
    def source(self) -> ModelSource:
        """Where the weights came from."""
        return self.info.source

    @property
    def runtime(self) -> Runtime:
        return self.info.runtime

    def __repr__(self) -> str:
        scores = ", ".join(f"{s.label} {s.probability:.1%}" for s in self.scores)
        warnings = f", warnings={list(self.warnings)}" if self.warnings else ""
        return f"Prediction({self.model}: {scores}{warnings})"

    def to_dict(self, top_k: int | None = None) -> dict[str, Any]:
        """Return JSON-ready values: at most `top_k` scores, no map."""
        return {
            "model": self.model,
            "scores": [{"label": s.label, "probability": s.probability} for s in self.scores[:top_k]],
            "source": str(self.source),
            "runtime": self.runtime,
            "milliseconds": round(self.milliseconds, 2),
        }


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """The predictions of several models for one image. Keeps no file and no DICOM tag but a small preview."""

    name: str  # of the file, without folders
    preview: Image.Image = field(repr=False)  # the image as read, 8-bit greyscale
    pixels: NDArray[np.float32] = field(repr=False)  # [128, 128], the model input
    content_box: tuple[slice, slice] = field(repr=False)  # rows and columns of `pixels` that the image fills
    warnings: tuple[str, ...]
    ood: OODResult | None  # None if it could not be checked
    predictions: Mapping[str, Prediction]  # all ten classes each; empty for a rejected image
    failures: Mapping[str, str]  # models that failed, and why

    @property
    def top_prediction(self) -> Prediction | None:
        """The ensemble's prediction, or that of the first model if it has none."""
        return self.predictions.get(ENSEMBLE) or next(iter(self.predictions.values()), None)

    @property
    def is_rejected(self) -> bool:
        """Whether the image was out of distribution and therefore not classified."""
        return self.ood is not None and self.ood.is_ood and not self.predictions

    @property
    def summary(self) -> str:
        return summarize(self)

    def to_dict(self, top_k: int | None = None) -> dict[str, Any]:
        """Return JSON-ready values: at most `top_k` scores per model, no images."""
        return {
            "image": self.name,
            "is_ood": self.ood.is_ood if self.ood else None,  # None: it could not be checked
            "warnings": list(self.warnings),
            "predictions": [p.to_dict(top_k) for p in self.predictions.values()],
            "failures": dict(self.failures),
            "summary": self.summary,
        }


def check_top_k(top_k: SupportsIndex) -> int:
    """Return `top_k` as an int. Raises InvalidArgument unless it is a whole number in 1..10."""
    try:
        k = operator.index(top_k)  # also a NumPy integer, but no float
    except TypeError:
        k = 0
    if isinstance(top_k, bool | np.bool_) or not 1 <= k <= len(CLASSES):
        raise InvalidArgument(f"top_k is {top_k!r}; use a whole number from 1 to {len(CLASSES)}.")
    return k


def to_prediction(
    info: ModelInfo, output: ModelOutput, warnings: tuple[str, ...], ood: OODResult | None
) -> Prediction:
    """Return the Prediction, with all ten classes, for the first image of `output`."""
    probabilities = output.probabilities[0]
    order = probabilities.argsort(kind="stable")[::-1]
    scores = tuple(Score(ID2LABEL[int(i)], float(probabilities[i])) for i in order)
    return Prediction(info, scores, output.milliseconds, warnings, ood, output.cam[0])


def summarize(result: ComparisonResult) -> str:
    """Return one or two sentences: how confident the answer is and whether the models agree."""
    top = result.top_prediction
    if top is None:
        return ""
    label, percent = top.label, f"{top.probability:.0%}".replace("%", " %")
    if top.probability >= CONFIDENT:
        tenths = round(10 * top.probability)
        confidence = (
            f"Most likely {label} ({percent}): about {tenths} in 10 such answers were right in testing."
        )
    elif top.probability >= LOW_CONFIDENCE:
        confidence = f"Uncertain: {label} is most likely ({percent})."
    else:
        confidence = f"Low confidence: {label} is the top guess ({percent})."
    labels = [p.label for name, p in result.predictions.items() if name != ENSEMBLE]
    if len(labels) < 2:
        return confidence
    majority, votes = Counter(labels).most_common(1)[0]
    if votes == len(labels):
        return f"All {len(labels)} models agree on {majority}. {confidence}"
    if votes == 1:
        return f"The models disagree. {confidence}"
    return f"{votes} of {len(labels)} models agree on {majority}. {confidence}"
