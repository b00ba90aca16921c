"""A loaded model: preprocessed pixels in, calibrated probabilities and class activation maps out.

`fracture_lib.inference` puts images in front of this and predictions behind it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from fracture_lib.errors import InvalidArgument, InvalidModel, ModelUnavailable
from fracture_lib.hub import BUNDLE, NATIVE_WEIGHTS, ModelSource, Reference, Runtime, resolve_model
from fracture_lib.models.cam import ClassifierHead, check_head, class_activation_maps, combine_cams, read_head
from fracture_lib.models.config import read_config
from fracture_lib.models.forward import Forward
from fracture_lib.models.functional import Floats, linear_pool_logits, softmax
from fracture_lib.models.report import CalibrationBin, EvaluationReport, Interval
from fracture_lib.registry import ENSEMBLE, ENSEMBLE_MEMBERS, MODELS, model_title

__all__ = ["BaseModel", "EnsembleModel", "Model", "ModelInfo", "ModelOutput", "read_model"]


@dataclass(frozen=True)
class ModelOutput:
    """One forward pass on N images."""

    probabilities: Floats  # [N, 10], calibrated
    milliseconds: float
    compute_cam: Callable[[], NDArray[np.float32]]
    features: NDArray[np.float32] | None = None  # [N, V, C, h, w], last feature maps; None for an ensemble

    @cached_property  # large batches of images are classified without maps
    def cam(self) -> NDArray[np.float32]:
        """Class activation maps [N, V, 10, 8, 8], see `models.cam.class_activation_maps`."""
        return self.compute_cam()


@dataclass(frozen=True)
class ModelInfo:
    """What to show beside a model's predictions."""

    name: str
    title: str
    source: ModelSource
    runtime: Runtime
    size_bytes: int  # of the graphs that serve
    accuracy: Interval
    n: int  # images that the accuracy was measured on
    calibration: tuple[CalibrationBin, ...] = ()  # empty if these weights' calibration was not measured


class BaseModel(ABC):
    """What a single model and the ensemble have in common."""

    name: str
    source: ModelSource
    runtime: Runtime
    report: EvaluationReport

    @abstractmethod
    def forward(self, pixels: NDArray[np.float32]) -> ModelOutput:
        """Run on V views of N images, float32 [N, V, 128, 128] in 0..1, as `io.image.preprocess` gives them.

        The answer is the softmax of the mean over the views' logits.
        """

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Size of the graphs that serve."""

    def predict_proba(self, pixels: NDArray[np.float32]) -> Floats:
        """Return calibrated probabilities [N, 10] for V views of N images, [N, V, 128, 128] in 0..1."""
        return self.forward(pixels).probabilities

    @cached_property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name=self.name,
            title=model_title(self.name),
            source=self.source,
            runtime=self.runtime,
            size_bytes=self.size_bytes,
            accuracy=self.report.accuracy,
            n=self.report.n,
            calibration=tuple(self.report.calibration or ()),
        )


class Model(BaseModel):
    """One network with its temperature and head. Build it with `read_model`."""

    def __init__(
        self,
        name: str,
        source: ModelSource,
        runtime: Runtime,
        report: EvaluationReport,
        network: Forward,
        head: ClassifierHead,
        temperature: float,
    ) -> None:
        self.name = name
        self.source = source
        self.runtime = runtime
        self.report = report
        self._network = network
        self._head = head
        self._temperature = temperature

    def forward(self, pixels: NDArray[np.float32]) -> ModelOutput:
        n, n_views, *size = pixels.shape
        start = perf_counter()
        view_logits, view_features = self._network(pixels.reshape(n * n_views, 1, *size))
        milliseconds = 1000 * (perf_counter() - start)
        logits = view_logits.reshape(n, n_views, -1).mean(axis=1, dtype=np.float64)
        features = view_features.reshape(n, n_views, *view_features.shape[1:])
        probabilities = softmax(logits, self._temperature)
        compute_cam = partial(class_activation_maps, features, self._head, probabilities, self._temperature)
        return ModelOutput(probabilities, milliseconds, compute_cam, features)

    @cached_property  # the folder may be deleted while the model serves
    def size_bytes(self) -> int:
        return (self.source.folder / "model.onnx").stat().st_size


class EnsembleModel(BaseModel):
    """The weighted mean of its members' probabilities, calibrated again."""

    def __init__(self, members: Mapping[str, BaseModel]) -> None:
        """`members` by name must be the models that the ensemble was fitted on. Raises InvalidModel."""
        folder = BUNDLE / ENSEMBLE
        self.name = ENSEMBLE
        self.members = members
        self.report = EvaluationReport.read(folder)
        weights, temperature = self.report.weights, self.report.temperature
        if temperature is None or weights is None or set(weights) != set(members):
            measured = ", ".join(weights or ()) or "no model"
            raise InvalidModel(
                f"{folder.name}/evaluation.json has weights for {measured}, but the members are "
                f"{', '.join(members)}. Measure them together with `fracture ensemble`."
            )
        self._weights, self._temperature = weights, temperature
        self.runtime = next(iter(members.values())).runtime
        bundled = all(member.source.kind == "bundle" for member in members.values())
        if not bundled:  # the calibration of other weights is not known
            self.report = replace(self.report, calibration=None, test=None)
        note = "" if bundled else "; ".join(f"{name}: {m.source}" for name, m in members.items())
        self.source = ModelSource(folder, "bundle", note=note)

    def forward(self, pixels: NDArray[np.float32]) -> ModelOutput:
        return self.combine({name: member.forward(pixels) for name, member in self.members.items()})

    def combine(self, outputs: Mapping[str, ModelOutput]) -> ModelOutput:
        """Return the ensemble's output from its members', without another forward pass."""
        weights = [self._weights[name] for name in outputs]
        members = [output.probabilities for output in outputs.values()]
        probabilities = softmax(linear_pool_logits(members, weights), self._temperature)

        def compute_cam() -> NDArray[np.float32]:
            cams = [output.cam for output in outputs.values()]
            return combine_cams(cams, members, weights, probabilities, self._temperature)

        milliseconds = sum(output.milliseconds for output in outputs.values())
        return ModelOutput(probabilities, milliseconds, compute_cam)

    @property
    def size_bytes(self) -> int:
        return sum(member.size_bytes for member in self.members.values())


def read_model(reference: Reference, runtime: Runtime = "onnx") -> BaseModel:
    """Load a model from a name, "hf-hub:owner/name[@revision]", "local-dir:path" or a Path.

    `runtime` is "onnx" (ONNX Runtime, imports no framework) or "native" (the framework that trained it).
    Raises UnknownModel, ModelUnavailable, InvalidModel or UnknownLabel.
    """
    if runtime not in ("onnx", "native"):
        raise InvalidArgument(f'Unknown runtime "{runtime}". Use "onnx" or "native".')
    if reference == ENSEMBLE:
        return EnsembleModel({name: read_model(name, runtime) for name in ENSEMBLE_MEMBERS})
    source = resolve_model(reference, runtime)
    config = read_config(source.folder)
    name = config.model_name
    if name not in MODELS:
        raise InvalidModel(f'The config names the model "{name}"; expected one of {", ".join(MODELS)}.')
    if isinstance(reference, str) and reference in MODELS and name != reference:
        variable = MODELS[reference].hub_variable
        raise InvalidModel(f"{source} holds {name}, not {reference}. Correct {variable}.")
    if runtime == "native" and not any((source.folder / file).exists() for file in NATIVE_WEIGHTS):
        raise InvalidModel(
            f"{source.folder.name} has no native weights, which a wheel and a Space leave out. "
            'Use runtime "onnx", or a checkout of the repository.'
        )
    module = "onnx" if runtime == "onnx" else MODELS[name].framework
    try:
        network: Forward = import_module(f"fracture_lib.models.{module}").load(source.folder)
    except ModuleNotFoundError as error:
        raise ModelUnavailable(
            f"The native runtime of {name} needs {error.name}. "
            'Run: pip install "fracture-classification[train]", or use runtime "onnx".'
        ) from error
    report = EvaluationReport.read(source.folder)
    head = read_head(source.folder)
    check_head(network, head, source.folder)
    return Model(name, source, runtime, report, network, head, config.temperature)
