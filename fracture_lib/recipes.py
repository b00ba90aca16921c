"""How each model is built and trained: the one place to change a hyperparameter."""

from dataclasses import dataclass, field

from fracture_lib.augment import Augmentation

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    architecture: dict  # "family" and the keyword arguments of the backend's builder
    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3  # peak of the one-cycle schedule
    warm_up: float = 0.15  # fraction of all steps before the peak
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    clip_norm: float = 5.0
    average: float = 0.95  # decay, an epoch, of the moving average of weights that is kept
    # Epochs without a better monitored Brier score before training stops. Long, since most of the
    # gain of a one-cycle schedule comes near its end.
    patience: int = 200
    augmentation: Augmentation = field(default_factory=Augmentation)
    # 0: augment anew at every step. N: draw from N views a film whose frozen-trunk features are
    # computed once and shared by all folds.
    cached_views: int = 0


_CNN = {
    "family": "cnn",
    "channels": [32, 64, 128],
    "strides": [2, 1, 1],
    "pools": [4, 2, 2],
    "dropouts": [0.05, 0.1, 0.15],
    "hidden": 128,
    "head_dropout": 0.2,
}

RECIPES = {
    "pytorch-cnn": Recipe(architecture=_CNN, epochs=240),
    "tensorflow-cnn": Recipe(architecture=_CNN, epochs=240),
    "resnet50": Recipe(
        architecture={"family": "resnet50", "hidden": 256, "head_dropout": 0.5, "tuned_stages": 1},
        epochs=30,
        learning_rate=3e-4,
        cached_views=8,
        patience=25,
    ),
}
