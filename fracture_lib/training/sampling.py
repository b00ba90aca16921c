"""What a training step sees: augmented images, or features of augmented images that are cached on disk."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fracture_lib.data.stored import StoredArrays
from fracture_lib.training.augment import Augmentation, augment
from fracture_lib.training.learner import Learner, compute_features
from fracture_lib.training.recipes import Recipe

__all__ = ["Sampler", "augment_all", "make_sampler"]

# (indices int64 [B], generator) -> features float32 [B, ...] of one random view per image
Sampler: TypeAlias = Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.float32]]


def make_sampler(learner: Learner, recipe: Recipe, images: StoredArrays, seed: int, cache: Path) -> Sampler:
    """Return the sampler of a recipe for `images`, [h, w] each, as `io.image.content` returns them.

    With `recipe.n_cached_views`, the features are computed by the learner's frozen trunk, which is the
    same in every fit, and kept in the file `cache`.
    """
    if not recipe.n_cached_views:
        return lambda indices, rng: learner.features(
            np.stack([*augment_all((images[i] for i in indices), recipe.augmentation, rng)])
        )
    if not cache.exists():
        _write_views(learner, recipe, images, seed, cache)
    views = np.load(cache, mmap_mode="r")  # float16 [V, N, ...]
    return lambda indices, rng: views[rng.integers(len(views), size=len(indices)), indices].astype(np.float32)


def augment_all(
    images: Iterable[NDArray[np.float32]], strength: Augmentation, rng: np.random.Generator
) -> Iterator[NDArray[np.float32]]:
    """Yield one random view [1, 128, 128] of each image."""
    return (augment(image, strength, rng)[None] for image in images)


def _write_views(learner: Learner, recipe: Recipe, images: StoredArrays, seed: int, path: Path) -> None:
    """Write the features of `n_cached_views` views of every image: float16 [V, N, ...]."""

    def features(view: int) -> Iterator[NDArray[np.float32]]:
        rng = np.random.default_rng((seed, view))
        return compute_features(learner, augment_all(images, recipe.augmentation, rng))

    one_view = augment_all([images[0]], recipe.augmentation, np.random.default_rng(seed))
    shape = (recipe.n_cached_views, len(images), *next(compute_features(learner, one_view)).shape)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:  # not a memory map: on a full disk, that kills the process
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for view in tqdm(range(recipe.n_cached_views), desc="frozen features", unit="view"):
            for one in features(view):
                file.write(one.astype("<f2").tobytes())
    partial.replace(path)
