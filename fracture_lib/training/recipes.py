"""How each model is built and trained: the one place to change a hyperparameter."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fracture_lib.errors import InvalidArgument
from fracture_lib.training.augment import Augmentation

__all__ = ["PRETRAINING", "RECIPES", "Recipe", "one_cycle"]


class OneCycle(Protocol):
    """The part of a recipe that a schedule needs."""

    @property
    def learning_rate(self) -> float: ...  # at the peak

    @property
    def warmup_fraction(self) -> float: ...


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

    @property
    def freezes_trunk(self) -> bool:
        """Whether only the head is trained, on the features of a pretrained trunk."""
        return self.architecture.get("tuned_stages") == 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise InvalidArgument(f"{name} is {value}; use 1 or more.")


def one_cycle(progress: float, recipe: OneCycle) -> float:
    """Return the learning rate at `progress` 0..1: cosine up to the peak, cosine down to nearly zero.

    Source: Smith and Topin, Super-Convergence, https://arxiv.org/abs/1708.07120.
    """
    peak, warmup = recipe.learning_rate, recipe.warmup_fraction
    if progress < warmup:
        start, end, share = peak / 25, peak, progress / warmup
    else:
        start, end, share = peak, peak / 1e4, (progress - warmup) / (1 - warmup)
    return float(start + (end - start) * (1 - np.cos(np.pi * share)) / 2)


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
    "pytorch-cnn": Recipe(architecture=_CNN, epochs=110, muon_lr_scale=20.0),
    "tensorflow-cnn": Recipe(architecture=_CNN, epochs=180, muon_lr_scale=20.0),
    "resnet50": Recipe(
        architecture={
            "family": "resnet50",
            "n_stages": 3,
            "hidden": 128,
            "head_dropout": 0.5,
            "n_heads": 4,
            "tuned_stages": 0,
        },
        epochs=80,
        learning_rate=1e-3,
        n_cached_views=16,
    ),
}

# How the layers before the head are first trained to recognize what FracAtlas labels.
PRETRAINING = {
    "pytorch-cnn": Recipe(architecture=_CNN, epochs=20, muon_lr_scale=20.0, label_smoothing=0.0),
    "resnet50": Recipe(
        architecture={**RECIPES["resnet50"].architecture, "tuned_stages": 1},
        epochs=3,
        learning_rate=3e-4,
        label_smoothing=0.0,
    ),
}
PRETRAINING["tensorflow-cnn"] = PRETRAINING["pytorch-cnn"]
