"""Find the images of a test set that a model was trained on, however they are named, stored or labelled."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.dataset import LabelledImages, load_dataset_folder
from fracture_lib.data.duplicates import have_near_duplicates, perceptual_hashes
from fracture_lib.errors import InvalidModel
from fracture_lib.evaluation.ensemble import read_out_of_fold

__all__ = ["find_training_images"]


def find_training_images(
    images: LabelledImages, data: str | Path, folders: Iterable[Path]
) -> NDArray[np.bool_]:
    """Return bool [N]: whether an image is a near-duplicate of one that a model in `folders` was trained on.

    If no model stores the hashes of its training images, `images` are compared with the rest of the dataset
    `data` instead. Raises InvalidData if an image cannot be read.
    """
    stored = [hashes for folder in folders if (hashes := _stored_hashes(folder)) is not None]
    if not stored:
        others = sorted(set(load_dataset_folder(data).paths) - set(images.paths))
        stored = [perceptual_hashes(others)] if others else []
    if not stored:
        return np.zeros(len(images.paths), bool)
    # The members of an ensemble were trained on the same images; the test set is read once for all of them.
    return have_near_duplicates(images.paths, np.unique(np.concatenate(stored), axis=0))


def _stored_hashes(folder: Path) -> NDArray[np.uint8] | None:
    try:
        return read_out_of_fold(folder).training_hashes
    except InvalidModel:  # an ensemble's folder, or a wheel, which leaves these files out
        return None
