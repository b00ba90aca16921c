"""The models by name: what each is, which framework trains it, where it may be published."""

import os
from dataclasses import dataclass

__all__ = [
    "ALL_MODELS",
    "DETECTOR",
    "ENSEMBLE",
    "ENSEMBLE_MEMBERS",
    "MODELS",
    "ModelSpec",
    "list_models",
    "model_title",
    "short_model_title",
]

ENSEMBLE = "ensemble"  # the weighted mean of ENSEMBLE_MEMBERS
DETECTOR = "fracture-detector"  # whether a fracture is visible; it names no type, so MODELS lacks it


@dataclass(frozen=True)
class ModelSpec:
    name: str
    title: str
    short_title: str  # above a narrow column
    summary: str
    framework: str  # the module of fracture_lib.models that builds, trains and loads it natively
    library_name: str  # the framework's name on the Hub
    reference_accuracy: float | None = None  # test accuracy of the original project, on its own split
    pretrained: str | None = None  # where training starts from, as `hub.resolve_pretrained` takes it
    in_ensemble: bool = True

    @property
    def hub_variable(self) -> str:
        """Environment variable that names the Hub repository: FRACTURE_HUB_PYTORCH_CNN and so on."""
        return "FRACTURE_HUB_" + self.name.upper().replace("-", "_")

    @property
    def configured_repo(self) -> str | None:
        """The "owner/name@revision" to download, if one is configured."""
        return os.environ.get(self.hub_variable) or None


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="pytorch-cnn",
            title="Custom CNN in PyTorch",
            short_title="PyTorch CNN",
            summary="Three convolution blocks, first trained on FracAtlas, and a fully connected head.",
            framework="pytorch",
            library_name="pytorch",
            reference_accuracy=0.1718,
        ),
        ModelSpec(
            name="tensorflow-cnn",
            title="Custom CNN in TensorFlow",
            short_title="TensorFlow CNN",
            summary="The same three blocks and head in Keras on TensorFlow, trained with another seed.",
            framework="keras",
            library_name="keras",
            reference_accuracy=0.2978,
        ),
        ModelSpec(
            name="resnet50",
            title="ResNet50 in TensorFlow",
            short_title="ResNet50",
            summary="A ResNet50 up to its third stage, pretrained on photographs, with a new head.",
            framework="keras",
            library_name="keras",
            reference_accuracy=0.4157,
            pretrained="hf-hub:timm/resnet50.tv_in1k",
        ),
    )
}
ENSEMBLE_MEMBERS = tuple(name for name, spec in MODELS.items() if spec.in_ensemble)
ALL_MODELS = (*MODELS, ENSEMBLE)


def list_models() -> list[str]:
    """Return the names that `load_model` accepts: the models and their ensemble."""
    return list(ALL_MODELS)


def model_title(name: str) -> str:
    """Return the title that visitors see for a model's name."""
    if name == DETECTOR:
        return "Fracture detector"
    return MODELS[name].title if name in MODELS else "Ensemble of all three"


def short_model_title(name: str) -> str:
    """Return the title of a model that fits above a narrow column."""
    return MODELS[name].short_title if name in MODELS else "Ensemble"
