"""What a training step sees: augmented images, or features of augmented images that are cached on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fracture_lib.training.augment import Augmentation, augment
from fracture_lib.training.learner import Learner, compute_features
from fracture_lib.training.recipes import Recipe

__all__ = ["Images", "Sampler", "make_sampler"]

Images: TypeAlias = Sequence[NDArray[np.float32]]  # [h, w] each, as `io.image.content` returns them
# (indices int64 [B], generator) -> features float32 [B, ...] of one random view per image
Sampler: TypeAlias = Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.float32]]


def make_sampler(learner: Learner, recipe: Recipe, images: Images, seed: int, cache: Path) -> Sampler:
    """Return the sampler of a recipe for `images`.

    With `recipe.n_cached_views`, the features are computed by the learner's frozen trunk, which is the
    same in every fit, and kept in the file `cache`.
    """
    if not recipe.n_cached_views:
        return lambda indices, rng: learner.features(
            _augment_all([images[i] for i in indices], recipe.augmentation, rng)
        )
    if not cache.exists():
        _write_views(learner, recipe, images, seed, cache)
    views = np.load(cache, mmap_mode="r")  # float16 [V, N, ...]
    return lambda indices, rng: views[rng.integers(len(views), size=len(indices)), indices].astype(np.float32)


def _augment_all(images: Images, strength: Augmentation, rng: np.random.Generator) -> NDArray[np.float32]:
    return np.stack([augment(image, strength, rng) for image in images])[:, None]


def _write_views(learner: Learner, recipe: Recipe, images: Images, seed: int, path: Path) -> None:
    """Write the features of `n_cached_views` views of every image: float16 [V, N, ...]."""
    one = _augment_all(images[:1], recipe.augmentation, np.random.default_rng(seed))
    shape = (recipe.n_cached_views, len(images), *learner.features(one).shape[1:])
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:  # not a memory map: on a full disk, that kills the process
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for view in tqdm(range(recipe.n_cached_views), desc="frozen features", unit="view"):
            rng = np.random.default_rng((seed, view))
            features = compute_features(learner, _augment_all(images, recipe.augmentation, rng))
            file.write(features.astype("<f2").tobytes())
    partial.replace(path)
