"""Run every model on one image, sharing decoding and out-of-distribution features.

The page, its API, the batch, the command line and `Classifier` all predict through an InferencePipeline.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from os import PathLike
from pathlib import Path
from threading import Lock
from time import monotonic
from traceback import clear_frames

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.errors import FractureError, InvalidArgument, InvalidImage, ModelUnavailable, UnknownModel
from fracture_lib.hub import BUNDLE, HUB_PREFIX, Reference, Runtime
from fracture_lib.inference.fracture import FractureResult, to_fracture_result
from fracture_lib.inference.ood import OODResult, detect_ood
from fracture_lib.inference.prediction import ComparisonResult, to_prediction
from fracture_lib.io.image import ImageSource, LoadedImage, load_image, trim
from fracture_lib.io.views import (
    FAST_VIEWS,
    INPUT_SIZE,
    VIEWS,
    View,
    make_detector_input,
    make_views,
    project_maps,
)
from fracture_lib.labels import CLASSES
from fracture_lib.models.detector import Detector, read_detector
from fracture_lib.models.model import BaseModel, EnsembleModel, ModelOutput, read_model
from fracture_lib.registry import ALL_MODELS, ENSEMBLE, ENSEMBLE_MEMBERS, MODELS

__all__ = ["InferencePipeline", "check_ood", "compare", "detect_fracture"]

logger = logging.getLogger(__name__)

OOD_BACKBONE = "resnet50"
NO_MAPS = np.empty((len(CLASSES), 0, 0), np.float32)
PREVIEW_SIDE = 1024  # pixels; large enough to zoom in
# Seconds before a model that failed to load is loaded again: a batch must not ask the Hub for every image.
RETRY_INTERVAL = 60


class InferencePipeline:
    """Models that are loaded when they are first used and then kept. Safe to share between threads."""

    def __init__(self, runtime: Runtime = "onnx", fast: bool = False) -> None:
        """`fast` answers from one view of each image instead of the mean over several."""
        self.runtime: Runtime = runtime
        self.views: tuple[View, ...] = FAST_VIEWS if fast else VIEWS
        self.ready = False  # whether `warm_up` has finished
        self._models: dict[Reference, BaseModel] = {}
        self._failures: dict[Reference, tuple[float, type[FractureError], str]] = {}  # when, and why
        self._locks: dict[Reference, Lock] = {}  # one per model: loading one does not block another

    def get_model(self, reference: Reference) -> BaseModel:
        """Return a model by name, or by any other reference that `read_model` takes.

        Raises FractureError; for a model that comes from the Hub, the same one again for RETRY_INTERVAL.
        """
        with self._locks.setdefault(reference, Lock()):  # setdefault is atomic
            if reference not in self._models:
                self._raise_recent_failure(reference)
                try:
                    with _only_fracture_errors(reference, "load"):
                        self._models[reference] = self._read_model(reference)
                except FractureError as error:
                    if reference in MODELS or str(reference).startswith(HUB_PREFIX):
                        self._failures[reference] = monotonic(), type(error), str(error)
                    raise
            return self._models[reference]

    def _raise_recent_failure(self, reference: Reference) -> None:
        """Raise the error of a model that failed to load less than RETRY_INTERVAL ago."""
        if reference in self._failures:
            failed_at, kind, message = self._failures[reference]
            if monotonic() - failed_at < RETRY_INTERVAL:
                raise kind(message)

    def _read_model(self, reference: Reference) -> BaseModel:
        if reference != ENSEMBLE:
            return read_model(reference, self.runtime)
        return EnsembleModel({name: self.get_model(name) for name in ENSEMBLE_MEMBERS})

    def ood_backbone(self) -> BaseModel:
        """Return the bundled ResNet50, whose features the out-of-distribution thresholds were fitted to.

        This is the pipeline's own resnet50 if that is loaded from the bundle, and otherwise a copy that
        all pipelines share. It always runs on ONNX Runtime, so that the check needs no framework. Raises
        FractureError.
        """
        own = self._models.get(OOD_BACKBONE)
        if own and own.source.kind == "bundle" and own.runtime == "onnx":
            return own
        with _backbone_lock:  # several pipelines may need the first copy at once
            return _read_backbone(BUNDLE / OOD_BACKBONE)

    def warm_up(self) -> None:
        """Load every model that can be loaded and run each once, as a first run takes longer.

        A model that fails to load is reported when it is used.
        """
        try:
            self.predict(np.eye(INPUT_SIZE), name="warm-up", skip_ood_check=True)
        except Exception as error:  # whatever happened, the page must not wait for it
            logger.error("Warming up failed: %s", error)
        finally:
            self.ready = True

    def predict(
        self,
        source: ImageSource,
        models: Reference | Iterable[Reference] = ALL_MODELS,
        name: str | None = None,
        skip_ood_check: bool = False,
        visuals: bool = True,
    ) -> ComparisonResult:
        """Classify one image, given as `load_image` takes it, with one model or each of several.

        `name` is shown for the image; the default is its file name. An out-of-distribution image gets
        neither the fracture detector's result nor predictions unless `skip_ood_check`. Without
        `visuals`, the preview and the class activation maps are empty, which saves their time. A model that
        fails is listed in `failures` and the others still answer; if out-of-distribution detection or the
        fracture detector fails, a warning says so. Raises InvalidImage, also when memory runs out,
        UnknownModel, and InvalidArgument if `models` is empty.
        """
        references = (models,) if isinstance(models, str | Path) else tuple(models)
        if not references:
            raise InvalidArgument(f"There is no model. Choose from {', '.join(ALL_MODELS)}.")
        members = ENSEMBLE_MEMBERS if ENSEMBLE in references else ()
        loaded, failures = self._load(r for r in (*members, *references) if r != ENSEMBLE)
        image, preview = _read(source, visuals)
        pixels = make_views(image.pixels, self.views)
        ood, outputs, ood_warnings = self._try_detect_ood(image, pixels)
        is_rejected = not skip_ood_check and ood is not None and ood.is_ood
        fracture, fracture_warnings = (None, []) if is_rejected else self._try_detect_fracture(image)
        warnings = (*image.warnings, *ood_warnings, *fracture_warnings)
        results: dict[Reference, tuple[BaseModel, ModelOutput, NDArray[np.float32]]] = {}
        if not is_rejected:
            for reference, model in loaded.items():
                try:
                    with _only_fracture_errors(reference, "run"):
                        output = outputs.get(model) or model.forward(pixels[None])
                        cam = self._project(output, image) if visuals else NO_MAPS
                    results[reference] = model, output, cam
                except FractureError as error:
                    failures[reference] = str(error)
            if ENSEMBLE in references:
                try:
                    with _only_fracture_errors(ENSEMBLE, "run"):
                        ensemble, output = self._combine({r: output for r, (_, output, _) in results.items()})
                        cam = self._project(output, image) if visuals else NO_MAPS
                    results[ENSEMBLE] = ensemble, output, cam
                except FractureError as error:
                    failures[ENSEMBLE] = str(error)
        return ComparisonResult(
            name=name if name is not None else _file_name(source),
            preview=preview,
            pixels=pixels,
            warnings=warnings,
            ood=ood,
            fracture=fracture,
            predictions={
                str(r): to_prediction(model.info, output, cam, warnings, ood, fracture)
                for r in references
                if r in results
                for model, output, cam in [results[r]]
            },
            failures={str(r): failures[r] for r in references if r in failures},
            skip_ood_check=skip_ood_check,
        )

    def check_ood(self, source: ImageSource) -> OODResult:
        """Return whether an image looks like a bone X-ray. Raises FractureError."""
        image, _ = _read(source, with_preview=False)
        return self._detect_ood(image, make_views(image.pixels, FAST_VIEWS))[0]

    def detect_fracture(self, source: ImageSource) -> FractureResult:
        """Return whether a fracture is visible; does not check whether this is an X-ray.

        Raises FractureError.
        """
        image, _ = _read(source, with_preview=False)
        return self._detect_fracture(image)

    def _project(self, output: ModelOutput, image: LoadedImage) -> NDArray[np.float32]:
        """Return the class activation maps of one image, [10, 32, 32] over all of it."""
        return project_maps(output.cam[0], image.pixels.shape, self.views)

    def _detect_ood(
        self, image: LoadedImage, pixels: NDArray[np.float32]
    ) -> tuple[OODResult, BaseModel, ModelOutput]:
        """Return the result and, for reuse, the backbone and its output. Raises FractureError."""
        with _only_fracture_errors("The out-of-distribution check", "run"):
            backbone = self.ood_backbone()
            output = backbone.forward(pixels[None])
            assert output.features is not None  # only an ensemble has none
            return detect_ood(image, pixels[0], output.features[0, 0]), backbone, output

    def _try_detect_ood(
        self, image: LoadedImage, pixels: NDArray[np.float32]
    ) -> tuple[OODResult | None, dict[BaseModel, ModelOutput], list[str]]:
        """Return the result, the outputs computed on the way, and warnings; None if it cannot be checked."""
        try:
            ood, backbone, output = self._detect_ood(image, pixels)
        except FractureError as error:
            return None, {}, [f"Could not check whether this is an X-ray: {error}"]
        return ood, {backbone: output}, [ood.message] if ood.is_ood else []

    def _detect_fracture(self, image: LoadedImage) -> FractureResult:
        with _only_fracture_errors("The fracture detector", "run"):
            detector = _load_detector()
            output = detector.forward(make_detector_input(image.pixels)[None])
            return to_fracture_result(output, detector.report, image.pixels.shape)

    def _try_detect_fracture(self, image: LoadedImage) -> tuple[FractureResult | None, list[str]]:
        """Return the detector's result, None if it fails, and warnings."""
        try:
            return self._detect_fracture(image), []
        except FractureError as error:
            return None, [f"Could not check whether a fracture is visible: {error}"]

    def _load(
        self, references: Iterable[Reference]
    ) -> tuple[dict[Reference, BaseModel], dict[Reference, str]]:
        """Return the models that load, and why the others do not."""
        loaded: dict[Reference, BaseModel] = {}
        failures: dict[Reference, str] = {}
        for reference in references:
            try:
                loaded[reference] = self.get_model(reference)
            except UnknownModel:  # a mistake of the caller, not a failure of the model
                raise
            except FractureError as error:
                failures[reference] = str(error)
        return loaded, failures

    def _combine(self, outputs: Mapping[Reference, ModelOutput]) -> tuple[BaseModel, ModelOutput]:
        """Return the ensemble and its output from its members' outputs. Raises FractureError."""
        if missing := [name for name in ENSEMBLE_MEMBERS if name not in outputs]:
            raise ModelUnavailable(f"It needs all of its members, but {', '.join(missing)} failed.")
        ensemble = self.get_model(ENSEMBLE)
        assert isinstance(ensemble, EnsembleModel)
        return ensemble, ensemble.combine({name: outputs[name] for name in ENSEMBLE_MEMBERS})


@contextmanager
def _only_fracture_errors(name: Reference, action: str) -> Iterator[None]:
    """Turn any other exception into ModelUnavailable, so that one model's fault does not stop the others."""
    try:
        yield
    except FractureError:
        raise
    except Exception as error:
        logger.error("%s failed to %s: %r", name, action, error)
        reason = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
        raise ModelUnavailable(f"{name} failed to {action} ({reason}). Try again, or report it.") from error


_backbone_lock = Lock()


@cache
def _read_backbone(folder: Path) -> BaseModel:
    return read_model(folder)


_detector_lock = Lock()


def _load_detector() -> Detector:
    """Return the fracture detector, which all pipelines share. Raises InvalidModel."""
    with _detector_lock:  # several requests may need it first
        return _read_detector()


@cache
def _read_detector() -> Detector:
    return read_detector()


@cache
def _shared_pipeline() -> InferencePipeline:
    return InferencePipeline()


def compare(
    image: ImageSource, models: Reference | Iterable[Reference] = ALL_MODELS, skip_ood_check: bool = False
) -> ComparisonResult:
    """Classify one image with several models: `InferencePipeline.predict` on a shared pipeline.

    The models stay loaded for the next call. Raises InvalidImage, UnknownModel and InvalidArgument.
    """
    return _shared_pipeline().predict(image, models, skip_ood_check=skip_ood_check)


def check_ood(image: ImageSource) -> OODResult:
    """Return whether an image looks like a bone X-ray: `InferencePipeline.check_ood` on a shared pipeline.

    Raises InvalidImage, InvalidModel and ModelUnavailable.
    """
    return _shared_pipeline().check_ood(image)


def detect_fracture(image: ImageSource) -> FractureResult:
    """Return whether a fracture is visible: `InferencePipeline.detect_fracture` on a shared pipeline.

    Does not check whether the image looks like a bone X-ray. Raises InvalidImage, InvalidModel and
    ModelUnavailable.
    """
    return _shared_pipeline().detect_fracture(image)


def _read(source: ImageSource, with_preview: bool) -> tuple[LoadedImage, Image.Image]:
    """Return the image without flat borders, and an 8-bit preview or else an empty image."""
    try:
        image = trim(load_image(source))
        return image, _preview(image.pixels) if with_preview else Image.new("L", (0, 0))
    except InvalidImage as error:
        _clear_frames(error)
        raise
    except MemoryError as error:
        _clear_frames(error)
        raise InvalidImage("The image needs more memory than is available. Scale it down first.") from error


def _preview(pixels: NDArray[np.float32]) -> Image.Image:
    gray = np.empty(pixels.shape, np.uint8)
    np.multiply(255, pixels, out=gray, casting="unsafe")  # avoids a float copy of a large image
    preview = Image.fromarray(gray)
    preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return preview


def _clear_frames(error: BaseException | None) -> None:
    """Clear traceback frames so they don't keep image arrays alive; servers hold errors for a while."""
    while error:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _file_name(source: ImageSource) -> str:
    return Path(source).name if isinstance(source, str | PathLike) else type(source).__name__
