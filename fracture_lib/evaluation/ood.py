"""Fit and measure the out-of-distribution detector that `inference.ood` serves.

Only X-rays fit it; other images only measure it.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.dataset import LabelledImages
from fracture_lib.data.reading import map_images
from fracture_lib.errors import InvalidData, InvalidImage
from fracture_lib.evaluation.calibration import cross_fit_masks
from fracture_lib.evaluation.metrics import mean_with_interval, rounded, wilson
from fracture_lib.inference.ood import OOD_FOLDER, REFERENCE_EMBEDDINGS, embed, knn_distances
from fracture_lib.io.files import is_image_file, is_metadata
from fracture_lib.io.image import LoadedImage, load_image, preprocess
from fracture_lib.models.functional import Floats
from fracture_lib.models.report import DetectionRate, OODReport, OODThresholds
from fracture_lib.models.tensors import write_tensors

__all__ = ["fit_ood_detector"]

# Share of X-rays beyond each threshold
SCORE_REJECTION = 0.025
COLORFULNESS_REJECTION = 0.005

PROTOCOL = (
    "fitted on X-rays only; an image's score and thresholds come from other groups. The last stage of "
    "ResNet50 was trained on these images, so new ones may be rejected a little more often."
)

Features = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def fit_ood_detector(
    images: LabelledImages, others: str | Path, features: Features, folder: Path = OOD_FOLDER
) -> OODReport:
    """Fit the detector on labelled X-rays, measure it, write both into `folder` and return the report.

    `others` is a folder <kind>/<image> of images that are not bone X-rays. `features` maps a model input
    float32 [1, 1, 128, 128] to its feature map float32 [1, C, h, w], the bundled ResNet50's. An X-ray's
    score and thresholds come from other groups' X-rays, so the rate of false rejection is not flattered.

    Raises InvalidData if `others` has no images or an X-ray cannot be read.
    """
    paths_by_kind = _list_kinds(Path(others))
    embedded = list(map_images(partial(_embed_image, features=features), images.paths, "embedding images"))
    vectors, colorfulness = (np.array(values) for values in zip(*embedded, strict=True))
    scores = np.empty(len(vectors))
    for test in cross_fit_masks(images.groups):
        scores[test] = knn_distances(vectors[test], vectors[~test])
    rejected = np.empty(len(vectors))
    for test in cross_fit_masks(images.groups):
        fitted = _fit_thresholds(scores[~test], colorfulness[~test])
        rejected[test] = _is_beyond(fitted, scores[test], colorfulness[test])
    thresholds = _fit_thresholds(scores, colorfulness)
    report = OODReport(
        protocol=PROTOCOL,
        thresholds=thresholds,
        n=len(vectors),
        n_groups=len(np.unique(images.groups)),
        false_rejection=mean_with_interval(rejected, images.groups),
        detection={
            kind: _measure_detection(paths, features, vectors, thresholds)
            for kind, paths in paths_by_kind.items()
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / REFERENCE_EMBEDDINGS, {"embeddings": vectors.astype(np.float16)})
    report.write(folder)
    return report


def _list_kinds(root: Path) -> dict[str, list[Path]]:
    """Return the files of each folder in `root`. Raises InvalidData."""

    def contents(folder: Path) -> list[Path]:
        return [path for path in sorted(folder.iterdir()) if not is_metadata([path.name])]

    folders = [path for path in contents(root) if path.is_dir()] if root.is_dir() else []
    kinds = {
        folder.name: [path for path in contents(folder) if path.is_file() and is_image_file(path)]
        for folder in folders
    }
    if not kinds:
        raise InvalidData(f"There are no folders of images in {root}. Arrange it as <kind>/image.png.")
    if empty := [kind for kind, paths in kinds.items() if not paths]:
        raise InvalidData(f"There are no images in {', '.join(empty)}. Add some or remove the folder.")
    return kinds


def _embed_image(image: LoadedImage, features: Features) -> tuple[Floats, float]:
    """Return the unit vector [C] and the colorfulness of one image."""
    return embed(features(preprocess(image)[None, None]))[0], image.colorfulness


def _measure_detection(
    paths: list[Path], features: Features, reference: Floats, thresholds: OODThresholds
) -> DetectionRate:
    """Return the share of images that are detected; an unreadable file is rejected anyway and counts."""
    n_detected = 0
    for path in paths:
        try:
            vector, colorfulness = _embed_image(load_image(path), features)
        except InvalidImage:
            n_detected += 1
            continue
        score = knn_distances(vector[None], reference)
        n_detected += int(_is_beyond(thresholds, score, np.array([colorfulness]))[0])
    share = n_detected / len(paths)
    low, high = wilson(share, len(paths))
    return DetectionRate(rounded(share), rounded(low), rounded(high), n=len(paths))


def _fit_thresholds(scores: Floats, colorfulness: Floats) -> OODThresholds:
    return OODThresholds(
        score=float(np.quantile(scores, 1 - SCORE_REJECTION)),
        colorfulness=float(np.quantile(colorfulness, 1 - COLORFULNESS_REJECTION)),
    )


def _is_beyond(thresholds: OODThresholds, scores: Floats, colorfulness: Floats) -> NDArray[np.bool_]:
    return (scores > thresholds.score) | (colorfulness > thresholds.colorfulness)
