"""What a training step sees: augmented images, or features of augmented images that are cached on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fracture_lib.training.augment import Augmentation, augment
from fracture_lib.training.learner import Learner, compute_features
from fracture_lib.training.recipes import Recipe

__all__ = ["Sampler", "make_sampler"]

# (indices int64 [B], generator) -> features float32 [B, ...] of one random view per image
Sampler: TypeAlias = Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.float32]]


def make_sampler(
    learner: Learner, recipe: Recipe, pixels: NDArray[np.float32], seed: int, cache: Path
) -> Sampler:
    """Return the sampler of a recipe for `pixels`, float32 [N, 1, 128, 128].

    With `recipe.n_cached_views`, the features are computed by the learner's frozen trunk, which is the
    same in every fit, and kept in the file `cache`.
    """
    if not recipe.n_cached_views:
        return lambda indices, rng: _augment_all(pixels[indices], recipe.augmentation, rng)
    if not cache.exists():
        _write_views(learner, recipe, pixels, seed, cache)
    views = np.load(cache, mmap_mode="r")  # float16 [V, N, ...]
    return lambda indices, rng: views[rng.integers(len(views), size=len(indices)), indices].astype(np.float32)


def _augment_all(
    pixels: NDArray[np.float32], strength: Augmentation, rng: np.random.Generator
) -> NDArray[np.float32]:
    return np.stack([augment(image[0], strength, rng) for image in pixels])[:, None]


def _write_views(
    learner: Learner, recipe: Recipe, pixels: NDArray[np.float32], seed: int, path: Path
) -> None:
    """Write the features of `n_cached_views` views of every image: float16 [V, N, ...]."""
    shape = (recipe.n_cached_views, len(pixels), *learner.features(pixels[:1]).shape[1:])
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:  # not a memory map: on a full disk, that kills the process
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for view in tqdm(range(recipe.n_cached_views), desc="frozen features", unit="view"):
            rng = np.random.default_rng((seed, view))
            features = compute_features(learner, _augment_all(pixels, recipe.augmentation, rng))
            file.write(features.astype("<f2").tobytes())
    partial.replace(path)
