"""Folders of labelled images: find, read, group and split.

Layouts, with folder names in any case:

    <class>/<split>/image.jpg      <split>/<class>/image.jpg      <class>/image.jpg

Images of one patient or figure must never be on both sides of a split. A `manifest.csv` with the columns
`path` and `source_group` says which belong together; where it does not, near-duplicates are grouped by
perceptual hash.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.duplicates import near_duplicate_groups
from fracture_lib.data.manifest import MANIFEST, read_source_groups
from fracture_lib.data.reading import map_images
from fracture_lib.data.sources import resolve_dataset
from fracture_lib.data.stored import StoredArrays
from fracture_lib.errors import InvalidArgument, InvalidData, UnknownLabel
from fracture_lib.hub import HUB_PREFIX
from fracture_lib.io.files import is_image_file, is_metadata
from fracture_lib.io.image import LoadedImage, content, preprocess
from fracture_lib.io.views import VIEWS, View
from fracture_lib.labels import CLASSES, label_id

__all__ = [
    "LabelledImages",
    "Transform",
    "assign_folds",
    "load_dataset_folder",
    "store_images",
    "stream_pixels",
    "stream_transformed",
]

SPLITS = {"train", "test", "valid", "validation", "val"}

Transform: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # [H, W] in 0..1, both ways
GroupedBy: TypeAlias = Literal["source_group", "perceptual hash", "source_group and perceptual hash"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """N labelled images, in the order of their paths."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]  # [N], class ids
    groups: NDArray[np.int64]  # [N]; images of one patient or figure share a number
    grouped_by: GroupedBy
    split: str | None  # the split folder that was read; None if there is none or all were read
    fingerprint: str  # sha256 over the sorted contents and labels, whatever the layout
    hub: str | None = None  # the Hub dataset that they came from, "owner/name[@revision]"


def load_dataset_folder(root: str | Path, split: str | None = None) -> LabelledImages:
    """Find the images of one `split`, or of all, and group them.

    `root` is a folder, "hf-hub:owner/name[@revision]" or "kaggle:owner/name"; its images are of any format
    that `load_image` reads. `split` is ignored if the folder has no split folders. Raises InvalidData if
    nothing fits the layouts above or manifest.csv is wrong, and UnknownLabel if a folder is not named after
    a class.
    """
    folder = resolve_dataset(root)
    found = _find_images(folder)
    rows = [(path, *_label_and_split(path.relative_to(folder))) for path in found]
    splits = {name for _, _, name in rows if name}
    wanted = split if split and splits else None
    if wanted:
        if outside := [path for path, _, name in rows if not name]:
            _logger.warning(
                "Images in no split folder were left out: %d, such as %s.", len(outside), outside[0].name
            )
        rows = [row for row in rows if row[2] == wanted.lower()]
    if not rows:
        raise InvalidData(
            f"{folder.name} has no images{f' of the split {split}' if split else ''}. Images in "
            f"all: {len(found)}; splits: {', '.join(sorted(splits)) or 'none'}. Expected "
            "<class>/<split>/image.jpg, <split>/<class>/image.jpg or <class>/image.jpg, with classes "
            f"such as {CLASSES[0].label} and {CLASSES[1].label}."
        )
    paths, labels = tuple(row[0] for row in rows), np.array([row[1] for row in rows], np.int64)
    source_groups = read_source_groups(folder, found, paths)
    groups, grouped_by = _group([source_groups.get(path) for path in paths], paths)
    is_hub = isinstance(root, str) and root.startswith(HUB_PREFIX)
    return LabelledImages(
        paths=paths,
        labels=labels,
        groups=groups,
        grouped_by=grouped_by,
        split=wanted,
        fingerprint=_fingerprint(paths, labels),
        hub=str(root).removeprefix(HUB_PREFIX) if is_hub else None,
    )


def _find_images(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted; log how many other files lie among them."""
    images, others = [], []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if is_metadata(parts) or not path.is_file():
            continue
        if is_image_file(path):
            images.append(path)
        elif len(parts) > 1:
            others.append(path)
    if others:
        _logger.warning(
            "Files that are not images were left out: %d, such as %s.", len(others), others[0].name
        )
    return images


def _label_and_split(relative: Path) -> tuple[int, str | None]:
    """Return the class id and the split, in lower case, that the folders of a path name."""
    folders = relative.parts[:-1]
    splits = {name.lower() for name in folders} & SPLITS
    class_folders = [name for name in folders if name.lower() not in SPLITS]
    if len(splits) > 1:
        raise InvalidData(f"The split of {relative.as_posix()} is unclear. Put it into one split folder.")
    if len(class_folders) != 1:
        raise InvalidData(
            f"The class of {relative.as_posix()} is unclear. Put it into one folder named after its class."
        )
    try:
        return label_id(class_folders[0]), next(iter(splits), None)
    except UnknownLabel as error:
        raise UnknownLabel(f"{relative.as_posix()}: {error}") from error


def _group(source_groups: Sequence[str | None], paths: Sequence[Path]) -> tuple[NDArray[np.int64], GroupedBy]:
    """Return the groups [N] and what they come from.

    If only some images have a source group, images belong together by either measure, directly or by a
    chain: no group of the manifest is divided.
    """
    is_known = np.array([group is not None for group in source_groups])
    if is_known.all():
        return np.unique(np.array(source_groups), return_inverse=True)[1].astype(np.int64), "source_group"
    near = near_duplicate_groups(paths)
    if not is_known.any():
        return near, "perceptual hash"
    unknown = paths[int(is_known.argmin())]
    _logger.warning(
        "%d of %d images have no source_group in %s, such as %s; near-duplicates are grouped, too.",
        (~is_known).sum(),
        len(paths),
        MANIFEST,
        f"{unknown.parent.name}/{unknown.name}",
    )
    names = np.unique([group for group in source_groups if group is not None], return_inverse=True)[1]
    return _join_groups(near, np.flatnonzero(is_known), names), "source_group and perceptual hash"


def _join_groups(
    near: NDArray[np.int64], known: NDArray[np.int64], names: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Join the groups `near` [N] with the groups `names` [M] of the images `known` [M]: int64 [N]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(near)  # the graph's first nodes are images, then come near-duplicate groups, then source groups
    images = np.concatenate([np.arange(n), known])
    nodes = np.concatenate([n + near, n + near.max() + 1 + names])
    size = int(nodes.max()) + 1
    graph = coo_array((np.ones(len(nodes)), (images, nodes)), (size, size))
    joined = connected_components(graph, directed=False)[1][:n]
    return np.unique(joined, return_inverse=True)[1].astype(np.int64)


def _fingerprint(paths: Sequence[Path], labels: NDArray[np.int64]) -> str:
    lines = sorted(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {CLASSES[label].label}"
        for path, label in zip(paths, labels, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def store_images(paths: Sequence[Path], file: Path) -> StoredArrays:
    """Read images as `io.image.content` returns them, one float32 [h, w] each, and keep them in `file`.

    Raises InvalidData if an image cannot be read.
    """
    return StoredArrays(file, map_images(content, paths, "reading images"))


def stream_pixels(paths: Sequence[Path], views: Sequence[View] = VIEWS) -> Iterator[NDArray[np.float32]]:
    """Read images as model inputs: yield float32 [V, 128, 128] in 0..1 for each, one array for each view.

    Raises InvalidData if an image cannot be read.
    """
    return map_images(lambda image: preprocess(image, views), paths, "reading images")


def stream_transformed(
    paths: Sequence[Path], transforms: Sequence[Transform], view: View
) -> Iterator[NDArray[np.float32]]:
    """Read transformed images as model inputs: yield float32 [T, 128, 128] for each, one view per transform.

    A transform is applied to the image at full size, before anything else; each image is read once for all
    of them. Raises InvalidData if an image cannot be read.
    """

    def model_inputs(image: LoadedImage) -> NDArray[np.float32]:
        changed = (replace(image, pixels=transform(image.pixels)) for transform in transforms)
        return np.concatenate([preprocess(image, [view]) for image in changed])

    return map_images(model_inputs, paths, "reading images")


def assign_folds(images: LabelledImages, n_folds: int) -> NDArray[np.int64]:
    """Return int64 [N]: the fold of each image. Stratified by class; a group is never divided.

    The folds do not depend on a training seed, so models trained with different seeds can be compared,
    and averaged, on the same held-out images. Raises InvalidArgument unless the images allow `n_folds`
    folds, and InvalidData if they allow none.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels, groups = images.labels, images.groups
    most = int(min(len(np.unique(groups)), np.bincount(labels).max()))
    if most < 2:
        raise InvalidData("There are too few images to split them into folds. Add images.")
    if not 2 <= n_folds <= most:
        raise InvalidArgument(f"n_folds is {n_folds}; these images allow 2 to {most}.")
    folds = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        folds[test] = fold
    return folds
