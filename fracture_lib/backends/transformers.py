"""transformers: `pipeline("image-classification")` and the Auto classes for the models in PyTorch.

`import fracture_lib` sees to it that `register` runs when, and only when, somebody imports transformers.
"""

import numpy as np
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput

from fracture_lib.backends.pytorch import ThreeBlockCNN, build
from fracture_lib.preprocess import preprocess

__all__ = ["FractureConfig", "FractureForImageClassification", "FractureImageProcessor", "register"]


class FractureConfig(PreTrainedConfig):
    """config.json as `fracture_lib.config` writes it."""

    model_type = "fracture-classifier"

    architecture: dict | None = None
    temperature: float = 1.0


class FractureImageProcessor(BaseImageProcessor):
    """`fracture_lib.preprocess` for one film or a list of them; preprocessor_config.json describes it."""

    model_input_names = ("pixel_values",)

    def preprocess(self, images, return_tensors=None, **options):
        films = images if isinstance(images, (list, tuple)) else [images]
        pixels = np.stack([preprocess(film) for film in films])[:, None]  # [N, 1, 128, 128]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


class FractureForImageClassification(PreTrainedModel):
    """`ThreeBlockCNN` under its own parameter names. Its logits are calibrated: their softmax is what
    `fracture_lib` answers."""

    config_class = FractureConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        network = build(config.architecture)
        self.blocks, self.head = network.blocks, network.head
        self.post_init()

    def forward(self, pixel_values, labels=None, **options):
        logits, _ = ThreeBlockCNN.forward(self, pixel_values)
        logits = logits / self.config.temperature
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def register():
    """Make the Auto classes know the three above."""
    AutoConfig.register(FractureConfig.model_type, FractureConfig, exist_ok=True)
    AutoImageProcessor.register(
        FractureConfig, image_processor_classes={"pil": FractureImageProcessor}, exist_ok=True
    )
    AutoModelForImageClassification.register(FractureConfig, FractureForImageClassification, exist_ok=True)
