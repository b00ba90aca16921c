"""What the training loop needs from a framework: one network with its optimizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fracture_lib.errors import InvalidArgument, UnknownModel
from fracture_lib.labels import CLASSES
from fracture_lib.registry import MODELS
from fracture_lib.training.recipes import Recipe

__all__ = [
    "Learner",
    "build_learner",
    "check_name_and_seed",
    "check_seed",
    "compute_features",
    "compute_logits",
    "compute_view_logits",
    "in_chunks",
]

CHUNK_SIZE = 64  # images


class Learner(Protocol):
    """One network in training, with its optimizer.

    Features are what enters the trained layers: the output [B, ...] of a frozen trunk, or the pixels
    [B, 1, 128, 128] if all layers are trained.
    """

    def features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of float32 [B, 1, 128, 128] in 0..1."""

    def step(
        self,
        features: NDArray[np.float32],
        targets: NDArray[np.float32],
        learning_rate: float,
        dropout_seed: int,
    ) -> float:
        """Make one optimizer step on soft targets float32 [B, K]; return the loss before it.

        All randomness comes from `dropout_seed`, so a resumed fit repeats an uninterrupted one.
        """

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits float32 [B, K] in inference mode."""

    def get_weights(self) -> list[NDArray[Any]]:
        """Return copies of the trained layers' weights and statistics."""

    def set_weights(self, weights: Sequence[NDArray[Any]]) -> None:
        """Restore what `get_weights` returned."""

    def get_optimizer_state(self) -> list[NDArray[Any]]:
        """Return a copy of the optimizer's moments and counters."""

    def set_optimizer_state(self, state: Sequence[NDArray[Any]]) -> None:
        """Restore what `get_optimizer_state` returned."""

    def save_trunk(self, path: Path, source: str) -> None:
        """Write all layers before the head to a safetensors file, from which a learner can start.

        A CNN reads the file of either framework. `source` is stored in its metadata.
        """

    def save(self, folder: Path) -> None:
        """Write the native weights, head.safetensors and model.onnx. Ends the training."""


def check_name_and_seed(name: str, seed: int) -> None:
    """Raise UnknownModel or InvalidArgument unless `build_learner` knows the model and the seed is valid."""
    if name not in MODELS:
        raise UnknownModel(f'Unknown model "{name}". Choose from {", ".join(MODELS)}.')
    check_seed(seed)


def check_seed(seed: int) -> None:
    """Raise InvalidArgument unless all frameworks take the seed."""
    if not 0 <= seed < 2**32:
        raise InvalidArgument(f"seed is {seed}; use 0 to 2**32 - 1.")


def build_learner(
    name: str, recipe: Recipe, seed: int, pretrained: Path | None, n_outputs: int = len(CLASSES)
) -> Learner:
    """Return a new network of the model `name`, initialized from `seed` and, if given, pretrained weights.

    It is trained on classes or, if `n_outputs` is another number than theirs, on that many labels of which
    any may apply. Imports the model's framework. Raises InvalidModel if the pretrained weights do not fit.
    """
    if MODELS[name].framework == "pytorch":
        from fracture_lib.models import pytorch

        return pytorch.Learner(
            recipe.architecture,
            seed,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            muon_lr_scale=recipe.muon_lr_scale,
            pretrained=pretrained,
            n_outputs=n_outputs,
        )
    from fracture_lib.models import keras

    return keras.Learner(
        recipe.architecture,
        seed,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        muon_lr_scale=recipe.muon_lr_scale,
        pretrained=pretrained,
        n_outputs=n_outputs,
    )


def compute_features(learner: Learner, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features of any number of images, computed in chunks to bound memory."""
    return in_chunks(learner.features, pixels)


def compute_logits(learner: Learner, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return logits float32 [N, 10] for any number of features, computed in chunks to bound memory."""
    return in_chunks(learner.logits, features)


def compute_view_logits(learner: Learner, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits float32 [N, V, 10] of each view, for model inputs [N, V, 128, 128]."""
    n, n_views, height, width = pixels.shape
    views = pixels.reshape(n * n_views, 1, height, width)
    logits = in_chunks(lambda chunk: learner.logits(learner.features(chunk)), views)
    return logits.reshape(n, n_views, -1)


def in_chunks(
    function: Callable[[NDArray[np.float32]], NDArray[np.float32]], inputs: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return `function(inputs)`, computed for 64 images at a time."""
    chunks = [inputs[i : i + CHUNK_SIZE] for i in range(0, len(inputs), CHUNK_SIZE)]
    return np.concatenate([function(chunk) for chunk in chunks])
