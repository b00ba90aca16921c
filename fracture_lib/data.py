"""Folders of labelled films: reading, grouping and splitting.

Layouts, each level's folder names matched without regard to case:

    <class>/<split>/film.jpg      <split>/<class>/film.jpg      <class>/film.jpg

Films of one patient or figure must never sit on both sides of a split. A `manifest.csv` with the
columns `path` and `source_group` says which belong together; without one, films whose perceptual
hashes nearly agree, mirrored and turned copies too, form a group.
"""

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fracture_lib.errors import InvalidData, InvalidImage, UnknownLabel
from fracture_lib.hub import is_hub_id
from fracture_lib.labels import CLASSES, label_id
from fracture_lib.preprocess import INPUT_SIZE, preprocess, read_film
from fracture_lib.sources import film_folder

__all__ = ["Films", "changed_pixels", "folds", "load_films", "near_copies", "pixels_of"]

SPLITS = {"train", "test", "valid", "validation", "val"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
# Of 64 bits. Measured on Bone Break Train: 8 finds all 123 near-copy pairs of its manifest, and 90 % of
# the pairs that it finds share a source there (6 misses 2 % of the copies, 10 drops to 77 %).
HASH_DISTANCE = 8


@dataclass(frozen=True)
class Films:
    """N labelled films, in the order of their paths."""

    paths: tuple  # of Path
    labels: np.ndarray  # int64 [N], class ids
    groups: np.ndarray  # int64 [N], films of one patient or figure share a number
    grouped_by: str  # "source_group" or "perceptual hash"
    split: str | None  # the split folder that was read; None where there is none or all were
    fingerprint: str  # sha256 over the sorted contents and labels, whatever the layout
    hub: str | None = None  # the Hub dataset that they came from


def load_films(root, split=None):
    """Find the films in `root`, of one `split` or of all, and group them.

    `root` is a folder or whatever else `sources.film_folder` takes. A folder without split folders is
    taken whole. Raises InvalidData where nothing fits the layouts, UnknownLabel where a folder is no
    class.
    """
    named, root = str(root), film_folder(root)
    found = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
    rows = [(path, *_place(path.relative_to(root))) for path in found]
    splits = Counter(s for _, _, s in rows if s)
    if split and splits:
        rows = [row for row in rows if row[2] == split.lower()]
    if not rows:
        raise InvalidData(
            f"No films{f' of split {split}' if split else ''} in {root.name}: found {len(found)} "
            f"pictures and the splits {', '.join(sorted(splits)) or '(none)'}; expected "
            "<class>/<split>/film.jpg, <split>/<class>/film.jpg or <class>/film.jpg, with classes "
            f"such as {CLASSES[0].label} and {CLASSES[1].label}."
        )
    paths, labels = tuple(row[0] for row in rows), np.array([row[1] for row in rows])
    listed = _manifest_groups(root)
    if all(path in listed for path in paths):
        names, grouped_by = [listed[path] for path in paths], "source_group"
        groups = np.unique(names, return_inverse=True)[1]
    else:
        groups, grouped_by = near_copies(paths), "perceptual hash"
    return Films(
        paths,
        labels,
        groups,
        grouped_by,
        split if split and splits else None,
        _fingerprint(paths, labels),
        named if root != Path(named) and is_hub_id(named) else None,
    )


def _place(relative):
    """Relative path -> (class id, split in lower case or None)."""
    folders = relative.parts[:-1]
    split = next((f.lower() for f in folders if f.lower() in SPLITS), None)
    named = [f for f in folders if f.lower() not in SPLITS]
    if len(named) != 1:
        raise InvalidData(
            f"Cannot tell the class of {relative.as_posix()}: expected one class folder above it."
        )
    try:
        return label_id(named[0]), split
    except UnknownLabel as error:
        raise UnknownLabel(f"The folder {error}") from error


def _manifest_groups(root):
    path = root / "manifest.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"path", "source_group"} <= rows[0].keys():
        raise InvalidData("manifest.csv needs the columns path and source_group.")
    return {root / row["path"]: row["source_group"] for row in rows}


def _fingerprint(paths, labels):
    films = sorted(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {CLASSES[label].label}"
        for path, label in zip(paths, labels, strict=True)
    )
    return hashlib.sha256("\n".join(films).encode()).hexdigest()


def near_copies(paths):
    """Return int64 [N]: a number shared by films that are near copies, directly or by a chain.

    Two films are near copies when the perceptual hash of one is within HASH_DISTANCE of 64 bits of
    that of any of the eight mirrored and turned views of the other.
    """
    import imagehash
    from PIL import Image
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    views = []
    for path in tqdm(paths, desc="looking for near copies", unit="film", leave=False):
        film = Image.fromarray(np.uint8(255 * _read(read_film, path).pixels))
        turned = [film, *(film.transpose(t) for t in Image.Transpose)]
        views.append([imagehash.phash(view).hash.ravel() for view in turned])
    bits = np.array(views, np.float32) * 2 - 1  # [N, 8, 64] of -1 and 1
    distance = np.min([(64 - bits[:, 0] @ bits[:, v].T) / 2 for v in range(bits.shape[1])], axis=0)
    pairs = coo_array(distance <= HASH_DISTANCE)
    return connected_components(pairs, directed=False)[1].astype(np.int64)


def pixels_of(films):
    """Read all films: float32 [N, 1, 128, 128]. Raises InvalidData."""
    return changed_pixels(films, {"as is": lambda film: film})["as is"]


def changed_pixels(films, changes):
    """Read each film once and return a dict: for each of `changes`, float32 [N, 1, 128, 128].

    `changes` is a dict of functions, applied to a film, grey float32 [H, W] in 0..1, before it is
    scaled and padded. Raises InvalidData.
    """

    def inputs(path):
        film = read_film(path).pixels
        return [preprocess(change(film)) for change in changes.values()]

    shape = (len(films.paths), 1, INPUT_SIZE, INPUT_SIZE)
    pixels = {name: np.empty(shape, np.float32) for name in changes}
    for i, path in enumerate(tqdm(films.paths, desc="reading films", unit="film", leave=False)):
        for name, one in zip(changes, _read(inputs, path), strict=True):
            pixels[name][i, 0] = one
    return pixels


def _read(reader, path):
    try:
        return reader(path)
    except InvalidImage as error:
        raise InvalidData(f"{path.name} cannot be read ({error}) Mend or remove it.") from error


def folds(films, count):
    """Return int64 [N], the fold of each film: stratified by class, groups kept whole.

    The same for every training seed, so that models trained with different seeds can be compared,
    and averaged, on the same held-out films. Raises InvalidData where `count` folds cannot be had.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels, groups = films.labels, films.groups
    most = min(len(np.unique(groups)), np.bincount(labels).max())
    if not 2 <= count <= most:
        raise InvalidData(f"These films can be split into 2 to {most} folds, not {count}: add films.")
    fold = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    for i, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
        fold[held_out] = i
    return fold
