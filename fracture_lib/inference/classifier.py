"""`load_model` returns a Classifier: the library's front door."""

from collections import deque
from collections.abc import Iterator, Mapping, MappingView, Sequence, Set
from dataclasses import replace
from typing import SupportsIndex, cast, overload

import numpy as np

from fracture_lib.errors import InvalidArgument, ModelUnavailable
from fracture_lib.hub import ModelSource, Reference, Runtime
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import Prediction, check_top_k
from fracture_lib.io.image import ImageSource, preprocess
from fracture_lib.labels import CLASSES
from fracture_lib.models.functional import Floats
from fracture_lib.models.model import ModelInfo

__all__ = ["Classifier", "load", "load_model"]


class Classifier:
    """A model that takes images. Build it with `load_model` once and keep it, as loading is slow."""

    def __init__(self, reference: Reference, pipeline: InferencePipeline) -> None:
        self._reference = reference
        self._pipeline = pipeline
        self._model = pipeline.get_model(reference)

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def classes(self) -> list[str]:
        """The ten labels, in the order of `predict_proba`'s columns."""
        return [c.label for c in CLASSES]

    @property
    def source(self) -> ModelSource:
        """Where the weights came from."""
        return self._model.source

    @property
    def info(self) -> ModelInfo:
        """Title, source, size and measured accuracy."""
        return self._model.info

    def __repr__(self) -> str:
        return (
            f"Classifier({self.name}, {self.info.runtime}, {self.source}, "
            f"accuracy {self.info.accuracy.percent()}, n = {self.info.n})"
        )

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence too; the first match wins
        self, images: ImageSource, top_k: SupportsIndex = 3
    ) -> Prediction: ...
    @overload
    def predict(self, images: Sequence[ImageSource], top_k: SupportsIndex = 3) -> list[Prediction]: ...

    def predict(
        self, images: ImageSource | Sequence[ImageSource], top_k: SupportsIndex = 3
    ) -> Prediction | list[Prediction]:
        """Classify one image, or each image of a list or tuple; return one Prediction per image.

        An image is anything that `load_image` takes. One that does not look like a bone X-ray is
        classified too: check `Prediction.ood` and `.warnings`. Raises InvalidImage, InvalidArgument if
        `top_k` is not in 1..10 or `images` is another collection, and ModelUnavailable.
        """
        k = check_top_k(top_k)
        predictions = [self._predict_one(image, k) for image in _as_list(images)]
        return predictions if isinstance(images, list | tuple) else predictions[0]

    def _predict_one(self, image: ImageSource, top_k: int) -> Prediction:
        result = self._pipeline.predict(image, [self._reference], skip_ood_check=True)
        for failure in result.failures.values():
            raise ModelUnavailable(failure)
        (prediction,) = result.predictions.values()
        return replace(prediction, scores=prediction.scores[:top_k])

    def predict_proba(self, images: ImageSource | Sequence[ImageSource]) -> Floats:
        """Return calibrated probabilities [N, 10] for one image (N = 1) or a list or tuple of N images.

        Does not check whether an image looks like an X-ray. Raises InvalidImage, ModelUnavailable, and
        InvalidArgument if `images` is another collection.
        """
        pixels = [preprocess(image, self._pipeline.views)[None] for image in _as_list(images)]
        if not pixels:
            return np.empty((0, len(CLASSES)))
        return np.concatenate([self._model.predict_proba(image) for image in pixels])


def _as_list(images: ImageSource | Sequence[ImageSource]) -> Sequence[ImageSource]:
    if isinstance(images, list | tuple):
        return images
    # A file is an iterator, too.
    if isinstance(images, Iterator | Set | Mapping | MappingView | deque) and not hasattr(images, "read"):
        kind = type(images).__name__
        raise InvalidArgument(f"images is a {kind}; pass one image, or a list or tuple of images.")
    return [cast(ImageSource, images)]


def load_model(reference: Reference, runtime: Runtime = "onnx", fast: bool = False) -> Classifier:
    """Load a model and return its Classifier.

    `reference` is a name of `list_models()`, "hf-hub:owner/name[@revision]", "local-dir:path" or a
    pathlib.Path. `runtime` is "onnx" (ONNX Runtime, imports no framework) or "native" (the framework
    that trained the model). `fast` answers from one view of each image instead of the mean over several.

    Raises UnknownModel, ModelUnavailable, InvalidModel or UnknownLabel; all are FractureError.
    """
    return Classifier(reference, InferencePipeline(runtime, fast))


load = load_model
