"""What the training loop needs from a framework: one network with its optimizer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.stored import stack_chunks
from fracture_lib.errors import InvalidArgument, UnknownModel
from fracture_lib.labels import CLASSES
from fracture_lib.registry import MODELS
from fracture_lib.training.recipes import Recipe

__all__ = [
    "Learner",
    "Logits",
    "build_learner",
    "check_name_and_seed",
    "check_pretrained",
    "check_seed",
    "compute_features",
    "compute_logits",
    "compute_view_logits",
    "pixels_to_logits",
]

Logits: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # inputs [B, ...] -> [B, K]


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


def check_pretrained(name: str, recipe: Recipe, pretrained: Path) -> None:
    """Raise InvalidModel if the model `name` cannot start from the file `pretrained`."""
    build_learner(name, recipe, 0, pretrained)


def compute_features(
    learner: Learner, pixels: Iterable[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of any number of views, each float32 [1, 128, 128]."""
    for chunk in stack_chunks(pixels):
        yield from learner.features(chunk)


def compute_logits(logits: Logits, inputs: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return logits float32 [N, K] for any number of inputs, computed in chunks to bound memory."""
    return np.concatenate([logits(chunk) for chunk in stack_chunks(inputs)])


def pixels_to_logits(learner: Learner) -> Logits:
    """Return the function of the whole network."""
    return lambda pixels: learner.logits(learner.features(pixels))


def compute_view_logits(
    logits: Logits, images: Iterable[NDArray[np.float32]], n_views: int
) -> NDArray[np.float32]:
    """Return the logits float32 [N, V, K] of each view of any number of images, [V, 128, 128] each."""
    views = (view[None] for image in images for view in image)
    flat = compute_logits(logits, views)
    return flat.reshape(-1, n_views, flat.shape[-1])
