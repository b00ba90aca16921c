"""Near-duplicates: the same radiograph scaled, re-encoded, mirrored, turned or inverted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.data.reading import map_images
from fracture_lib.io.image import LoadedImage

__all__ = ["HASH_DISTANCE", "have_near_duplicates", "near_duplicate_groups", "perceptual_hashes"]

# Of 64 bits. On the Train split of Bone Break, 8 finds all 123 near-duplicate pairs of its manifest, and
# 90 % of the pairs that it finds share a source there. 6 misses 2 % of the pairs; 10 lowers 90 % to 77 %.
# No pair is found there only because one image is inverted.
HASH_DISTANCE = 8


def near_duplicate_groups(paths: Sequence[Path]) -> NDArray[np.int64]:
    """Return int64 [N]: one number per group of images that are near-duplicates, directly or by a chain.

    Two images are near-duplicates if the perceptual hash of one is within HASH_DISTANCE of that of any
    of the eight mirrored and turned views of the other, or of its negative. Raises InvalidData if an image
    cannot be read.
    Source of the hash: https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html.
    """
    hashes = _hash_all(paths)
    groups = np.arange(len(hashes))  # the lowest position in each group
    for views in hashes:
        joined = np.unique(groups[_are_near(views, hashes[:, 0])])
        if len(joined) > 1:
            groups[np.isin(groups, joined)] = joined[0]
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def perceptual_hashes(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Return uint8 [N, 8]: the 64 bits of each image's perceptual hash. Raises InvalidData."""
    hashes = map_images(lambda image: _hash(_to_pillow(image)), paths, "comparing images")
    return np.array(list(hashes), np.uint64)[:, None].view(np.uint8)


def have_near_duplicates(paths: Sequence[Path], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool [N]: whether an image is a near-duplicate of any with the `perceptual_hashes` [M, 8].

    Raises InvalidData if an image cannot be read.
    """
    other_hashes = np.ascontiguousarray(others).view(np.uint64)[:, 0]
    return np.array([_are_near(views, other_hashes).any() for views in _hash_all(paths)], bool)


def _are_near(views: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return bool [M]: whether any of an image's views [8] is near each of the hashes [M] of others."""
    n_different = np.bitwise_count(views[:, None] ^ others)
    # The hash of a negative has nearly all bits different.
    is_near = (n_different <= HASH_DISTANCE) | (n_different >= 64 - HASH_DISTANCE)
    return np.asarray(is_near.any(axis=0))


def _hash_all(paths: Sequence[Path]) -> NDArray[np.uint64]:
    """Return uint64 [N, 8] of `_hash_views`."""
    hashes = np.empty((len(paths), 8), np.uint64)
    for i, views in enumerate(map_images(_hash_views, paths, "comparing images")):
        hashes[i] = views
    return hashes


def _hash_views(image: LoadedImage) -> list[np.uint64]:
    """Return the perceptual hashes of the eight mirrored and turned views, the image itself first."""
    original = _to_pillow(image)
    return [_hash(original), *(_hash(original.transpose(method)) for method in Image.Transpose)]


def _to_pillow(image: LoadedImage) -> Image.Image:
    return Image.fromarray((255 * image.pixels).astype(np.uint8))


def _hash(image: Image.Image) -> np.uint64:
    import imagehash

    return np.packbits(imagehash.phash(image).hash).view(np.uint64)[0]
