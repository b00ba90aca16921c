"""How each model is built and trained: the one place to change a hyperparameter."""

from dataclasses import dataclass, field

from fracture_lib.augment import Augmentation

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    architecture: dict  # "family" and the keyword arguments of the backend's builder
    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3  # AdamW's, at the peak of the one-cycle schedule
    # Rate of Muon, which then trains the convolution kernels, as a multiple of AdamW's, which trains
    # the rest. 0: AdamW trains all.
    muon: float = 0.0
    warm_up: float = 0.15  # fraction of all steps before the peak
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    mixup: float = 0.0  # each batch is mixed with its shuffle, with a share from Beta(mixup, mixup)
    clip_norm: float = 5.0
    average: float = 0.95  # decay, an epoch, of the moving average of weights that is kept
    augmentation: Augmentation = field(default_factory=Augmentation)
    # 0: augment anew at every step. N: draw from N views a film whose frozen-trunk features are
    # computed once and shared by all folds.
    cached_views: int = 0


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
    "pytorch-cnn": Recipe(architecture=_CNN, epochs=220, muon=20.0),
    "tensorflow-cnn": Recipe(architecture=_CNN, epochs=220, muon=20.0),
    "resnet50": Recipe(
        architecture={"family": "resnet50", "hidden": 256, "head_dropout": 0.5, "tuned_stages": 1},
        epochs=24,
        learning_rate=3e-4,
        cached_views=16,
    ),
}
