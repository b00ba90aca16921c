"""The models by name: what each is, which backend runs it, where it lives. One row a model."""

import os
from dataclasses import dataclass

__all__ = ["ENSEMBLE", "MODELS", "ModelSpec"]

ENSEMBLE = "ensemble"  # the name of all of MODELS together


@dataclass(frozen=True)
class ModelSpec:
    name: str
    title: str
    summary: str
    backend: str  # module of fracture_lib.backends that builds, trains and loads it natively
    library_name: str  # as the Hub names the framework
    reference_accuracy: float  # test accuracy of the work that the model reimplements
    pretrained: str | None = None  # Hub id of the weights that training starts from
    hub: str | None = None  # "owner/name@revision", once published

    @property
    def hub_variable(self):
        """Environment variable that overrides `hub`: FRACTURE_HUB_PYTORCH_CNN and so on."""
        return "FRACTURE_HUB_" + self.name.upper().replace("-", "_")

    def configured_hub(self):
        """The "owner/name@revision" to pull from, or None."""
        return os.environ.get(self.hub_variable) or self.hub


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="pytorch-cnn",
            title="Custom CNN in PyTorch",
            summary="Three convolution blocks and a fully connected head, trained from scratch.",
            backend="pytorch",
            library_name="pytorch",
            reference_accuracy=0.1718,
        ),
        ModelSpec(
            name="tensorflow-cnn",
            title="Custom CNN in TensorFlow",
            summary="The same three-block architecture in Keras on TensorFlow, trained from scratch.",
            backend="keras",
            library_name="keras",
            reference_accuracy=0.2978,
        ),
        ModelSpec(
            name="resnet50",
            title="ResNet50 in TensorFlow",
            summary="A ResNet50 pretrained on photographs, its last stage tuned on radiographs.",
            backend="keras",
            library_name="keras",
            reference_accuracy=0.4157,
            pretrained="timm/resnet50.tv_in1k",
        ),
    )
}
