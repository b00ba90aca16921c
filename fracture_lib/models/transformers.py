"""transformers: the Auto classes and `pipeline("image-classification")` for the model in PyTorch.

Call `register_auto_classes` once before loading a model with transformers.
"""

import warnings
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
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

from fracture_lib.errors import InvalidArgument
from fracture_lib.io.image import ImageSource, preprocess
from fracture_lib.models.pytorch import apply_cnn, build

__all__ = [
    "FractureConfig",
    "FractureForImageClassification",
    "FractureImageProcessor",
    "register_auto_classes",
]


CONVERTED = (
    "The image was converted to 8-bit RGB before it arrived here. If its file has 16 bits, the answer is "
    "wrong: pass fracture_lib.load_image(file).pixels instead."
)


class FractureConfig(PreTrainedConfig):
    """config.json, as `models.config.write_config` writes it."""

    model_type = "fracture-classifier"

    architecture: dict | None = None
    temperature: float = 1.0


class FractureImageProcessor(BaseImageProcessor):
    """`io.image.preprocess` for one image or a list of them; preprocessor_config.json describes it.

    Its steps are fixed: it raises InvalidArgument for options of other processors, such as `size`.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012, the base class declares it so

    def preprocess(
        self,
        images: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        if unknown := [name for name, value in options.items() if value is not None]:
            raise InvalidArgument(f"The preprocessing is fixed; leave out {', '.join(unknown)}.")
        sources = images if isinstance(images, list | tuple) else [images]
        if any(_is_converted(source) for source in sources):
            warnings.warn(CONVERTED, stacklevel=2)
        pixels = np.stack([preprocess(source) for source in sources])  # [N, V, 128, 128]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


def _is_converted(source: ImageSource) -> bool:
    """Return whether a gray image was converted to RGB after it was read, as `pipeline` converts files."""
    if not isinstance(source, Image.Image) or source.mode != "RGB" or source.format:
        return False
    red, green, blue = source.split()
    return red == green == blue


class FractureForImageClassification(PreTrainedModel):
    """`ThreeBlockCNN` under its own parameter names, with calibrated logits.

    Pixel values are V views of each image, [N, V, 128, 128]. The softmax of its logits equals
    `fracture_lib`'s probabilities.
    """

    config_class = FractureConfig
    main_input_name = "pixel_values"

    def __init__(self, config: FractureConfig) -> None:
        super().__init__(config)
        network = build(config.architecture or {})
        self.blocks, self.head = network.blocks, network.head
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any
    ) -> ImageClassifierOutput:
        views = pixel_values.flatten(0, 1)[:, None]  # [N * V, 1, 128, 128]
        logits, _ = apply_cnn(self.blocks, self.head, views)
        logits = logits.unflatten(0, pixel_values.shape[:2]).mean(1) / self.config.temperature
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def register_auto_classes() -> None:
    """Register the classes above with AutoConfig, AutoImageProcessor and AutoModelForImageClassification."""
    AutoConfig.register(FractureConfig.model_type, FractureConfig, exist_ok=True)
    AutoImageProcessor.register(
        FractureConfig, image_processor_classes={"pil": FractureImageProcessor}, exist_ok=True
    )
    AutoModelForImageClassification.register(FractureConfig, FractureForImageClassification, exist_ok=True)
