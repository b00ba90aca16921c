"""How each model is built and trained: the one place to change a hyperparameter."""

from dataclasses import dataclass, field
from typing import Any

from fracture_lib.errors import InvalidArgument
from fracture_lib.training.augment import Augmentation

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one model. Raises InvalidArgument if `epochs` or `batch_size` is below 1."""

    architecture: dict[str, Any]  # "family" and the keyword arguments of its builder
    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3  # of AdamW, at the peak of the one-cycle schedule
    # Learning rate of Muon, as a multiple of AdamW's. Muon then trains the convolution kernels and AdamW
    # the rest; with 0, AdamW trains everything.
    muon_lr_scale: float = 0.0
    warmup_fraction: float = 0.15  # of all steps, before the peak
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    clip_norm: float = 5.0
    ema_decay: float = 0.95  # per epoch, of the moving average of weights that is kept
    augmentation: Augmentation = field(default_factory=Augmentation)
    # With 0, every step augments anew. With N, the frozen trunk's features of N views per image are computed
    # once, and every step draws from these; all folds share them.
    n_cached_views: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise InvalidArgument(f"{name} is {value}; use 1 or more.")


_CNN = {
    "family": "cnn",
    "channels": [16, 64, 128],
    "strides": [2, 1, 1],
    "pools": [4, 2, 2],
    "dropouts": [0.05, 0.1, 0.15],
    "hidden": 128,
    "head_dropout": 0.2,
}

RECIPES = {
    "pytorch-cnn": Recipe(architecture=_CNN, epochs=220, muon_lr_scale=20.0),
    "tensorflow-cnn": Recipe(architecture=_CNN, epochs=220, muon_lr_scale=20.0),
    "resnet50": Recipe(
        architecture={"family": "resnet50", "hidden": 256, "head_dropout": 0.5, "tuned_stages": 1},
        epochs=24,
        learning_rate=3e-4,
        n_cached_views=16,
    ),
}
