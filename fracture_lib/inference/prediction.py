"""What a prediction is: the records that the page, the command line, the API and the library return."""

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.errors import InvalidArgument
from fracture_lib.hub import ModelSource, Reference, Runtime
from fracture_lib.inference.fracture import FractureResult
from fracture_lib.inference.ood import OODResult
from fracture_lib.labels import CLASSES, ID2LABEL
from fracture_lib.models.model import ModelInfo, ModelOutput
from fracture_lib.registry import ENSEMBLE

__all__ = [
    "CONFIDENCE_NOTE",
    "CONFIDENT",
    "ComparisonResult",
    "Prediction",
    "Score",
    "Status",
    "check_top_k",
    "summarize",
    "summarize_types",
    "to_prediction",
]

# Calibrated probabilities of the top class. Above one half it is more likely right than wrong.
CONFIDENT, LOW_CONFIDENCE = 0.5, 0.25
CONFIDENCE_NOTE = (
    f"Uncertain means under {100 * CONFIDENT:.0f} %, low confidence under {100 * LOW_CONFIDENCE:.0f} %: such "
    "answers are more often wrong than right."
)
# A hit rate is stated if it fits a bin of the report's calibration, of which there are 15 equal ones.
N_BINS = 15
MIN_BIN_SIZE = 20  # images; the interval of fewer would fit nearly any rate
MAX_GAP = 0.1  # between the rate and the bin's accuracy

# At least one model answered; the image was out of distribution and not classified; no model answered.
Status: TypeAlias = Literal["answered", "rejected", "failed"]


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
    fracture: FractureResult | None  # None if the fracture detector failed
    # float32 [10, 32, 32] over the whole image: what each place adds to a class's log-probability; [10, 0, 0]
    # if it was not computed
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
            "is_ood": self.ood.is_ood if self.ood else None,  # None: it could not be checked
            "warnings": list(self.warnings),
            "source": str(self.source),
            "runtime": self.runtime,
            "milliseconds": round(self.milliseconds, 2),
        }


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """The predictions of several models for one image. Keeps no file and no DICOM tag but a small preview."""

    name: str  # of the file, without folders
    preview: Image.Image = field(repr=False)  # the image as read, 8-bit grayscale
    pixels: NDArray[np.float32] = field(repr=False)  # [V, 128, 128], the model inputs
    warnings: tuple[str, ...]
    ood: OODResult | None  # None if it could not be checked
    fracture: FractureResult | None  # None for a rejected image, or if the fracture detector failed
    predictions: Mapping[str, Prediction]  # all ten classes each; empty for a rejected image
    failures: Mapping[str, str]  # models that failed, and why
    skip_ood_check: bool = False  # whether it was to be classified even if out of distribution

    @property
    def top_prediction(self) -> Prediction | None:
        """The ensemble's prediction, or else that of the model with the highest measured accuracy."""
        return _headline(self.predictions)

    @property
    def is_rejected(self) -> bool:
        """Whether the image was out of distribution and therefore not classified."""
        return self.status == "rejected"

    @property
    def status(self) -> Status:
        if self.predictions:
            return "answered"
        return "rejected" if self.ood and self.ood.is_ood and not self.skip_ood_check else "failed"

    @property
    def summary(self) -> str:
        return summarize(self)

    def to_dict(self, top_k: int | None = None) -> dict[str, Any]:
        """Return JSON-ready values: at most `top_k` scores per model, no images."""
        return {
            "image": self.name,
            "status": self.status,
            "is_ood": self.ood.is_ood if self.ood else None,  # None: it could not be checked
            "fracture": self.fracture.to_dict() if self.fracture else None,
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
    info: ModelInfo,
    output: ModelOutput,
    cam: NDArray[np.float32],
    warnings: tuple[str, ...],
    ood: OODResult | None,
    fracture: FractureResult | None,
) -> Prediction:
    """Return the Prediction, with all ten classes, for the first image of `output`, whose map is `cam`."""
    probabilities = output.probabilities[0]
    order = probabilities.argsort(kind="stable")[::-1]
    scores = tuple(Score(ID2LABEL[int(i)], float(probabilities[i])) for i in order)
    return Prediction(info, scores, output.milliseconds, warnings, ood, fracture, cam)


def summarize(result: ComparisonResult, models: Iterable[Reference] | None = None) -> str:
    """Return the fracture detector's sentence and then those of `summarize_types`; empty without these."""
    types = summarize_types(result, models)
    return f"{result.fracture.message} {types}" if result.fracture and types else types


def summarize_types(result: ComparisonResult, models: Iterable[Reference] | None = None) -> str:
    """Return one or two sentences: how confident the answer is and whether the models agree.

    They are about the answers of `models` alone, by default all of the result; empty if there is none.
    """
    names = result.predictions if models is None else map(str, models)
    shown = {name: result.predictions[name] for name in names if name in result.predictions}
    top = _headline(shown)
    if top is None:
        return ""
    percent = f"{100 * top.probability:.0f} %"
    if len(shown) > 1 and ENSEMBLE not in shown:
        percent += f" according to {top.info.title}"
    labels = [prediction.label for name, prediction in shown.items() if name != ENSEMBLE]
    return f"{_confidence(top, percent, result.ood)} {_agreement(top.label, labels)}".rstrip()


def _headline(predictions: Mapping[str, Prediction]) -> Prediction | None:
    """Return the ensemble's prediction, or else that of the model with the highest measured accuracy.

    Not the most confident one: picked that way, a probability is no longer calibrated.
    """
    best = max(predictions.values(), key=lambda p: p.info.accuracy.value or 0, default=None)
    return predictions.get(ENSEMBLE) or best


def _confidence(top: Prediction, percent: str, ood: OODResult | None) -> str:
    if ood and ood.is_ood:
        return f"{top.label} is the top guess ({percent}), but the models were not tested on such images."
    if top.probability < LOW_CONFIDENCE:
        return f"Low confidence: {top.label} is the top guess ({percent})."
    if top.probability < CONFIDENT:
        return f"Uncertain: {top.label} is most likely ({percent})."
    tenths = round(10 * top.probability)
    if ood is None or not _is_hit_rate(tenths / 10, top):
        return f"Most likely {top.label} ({percent})."
    return f"Most likely {top.label} ({percent}): about {tenths} in 10 such answers were right in testing."


def _is_hit_rate(rate: float, prediction: Prediction) -> bool:
    """Return whether a rate fits the measured accuracy of the model's answers that were as confident."""
    return any(
        b.n >= MIN_BIN_SIZE and b.low <= rate <= b.high and abs(b.accuracy - rate) <= MAX_GAP
        for b in prediction.info.calibration
        if _bin_number(b.confidence) == _bin_number(prediction.probability)
    )


def _bin_number(confidence: float) -> int:
    return min(int(N_BINS * confidence), N_BINS - 1)


def _agreement(label: str, labels: Sequence[str]) -> str:
    """Return a sentence on how many of the models, which name `labels`, name `label` or another class."""
    n, votes = len(labels), Counter(labels)
    if n < 2:
        return ""
    own = votes.pop(label, 0)
    (other, most), *rest = [*votes.most_common(), ("", 0)]
    if own > most:
        return f"{_count(own, n)} agree."
    if most == n:
        return f"However, {_count(n, n).lower()} name {other}."
    if most > max(own, 1) and all(count < most for _, count in rest):
        return f"The models disagree: {most} of {n} name {other}."
    return "The models disagree."


def _count(part: int, n: int) -> str:
    """Return a number of n models: "Both models", "All 3 models" or "2 of 3 models"."""
    if part < n:
        return f"{part} of {n} models"
    return "Both models" if n == 2 else f"All {n} models"
