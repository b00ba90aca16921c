"""Fit and measure the out-of-distribution detector that `inference.ood` serves.

X-rays and other images fit the discriminant; X-rays alone set the thresholds.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.dataset import LabelledImages
from fracture_lib.data.fracatlas import FracAtlas
from fracture_lib.data.reading import map_images
from fracture_lib.errors import InvalidData, InvalidImage
from fracture_lib.evaluation.calibration import cross_fit_masks
from fracture_lib.evaluation.metrics import mean_with_interval, rounded, wilson
from fracture_lib.inference.ood import DISCRIMINANT_FILE, OOD_FOLDER, Discriminant, embed
from fracture_lib.io.files import is_image_file, is_metadata
from fracture_lib.io.image import LoadedImage, load_image, preprocess
from fracture_lib.io.views import FAST_VIEWS
from fracture_lib.models.functional import Floats
from fracture_lib.models.report import DetectionRate, OODReport, OODThresholds
from fracture_lib.models.tensors import write_tensors

__all__ = ["fit_discriminant", "fit_ood_detector"]

# Share of X-rays beyond each threshold
SCORE_REJECTION = 0.02
COLORFULNESS_REJECTION = 0.005

SHRINKAGE = 0.3  # of the X-rays' correlations towards none: there are few more X-rays than features
DIRECTION_WEIGHT = 2.0  # of the way towards other images against the distance from the mean
N_RADIOGRAPHS = 500  # drawn from FracAtlas

PROTOCOL = (
    "fitted on X-rays and other images, the thresholds on X-rays only; an image's score and thresholds come "
    "from other groups"
)

Features = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_LABELLED, _RADIOGRAPH = -2, -1  # kinds of X-rays; the other kinds count from 0


@dataclass(frozen=True, eq=False)
class _Images:
    """N images of several kinds."""

    vectors: Floats  # [N, C]
    colorfulness: Floats  # [N]
    kinds: NDArray[np.int64]  # [N]
    groups: NDArray[np.int64]  # [N]; images of one source share a number


def fit_ood_detector(
    images: LabelledImages,
    others: str | Path,
    features: Features,
    folder: Path = OOD_FOLDER,
    radiographs: FracAtlas | None = None,
) -> OODReport:
    """Fit the detector, measure it, write both into `folder` and return the report.

    `others` is a folder <kind>/<image> of images that are not bone X-rays; those whose names differ only in
    the digits at the end count as one source. `features` maps model inputs float32 [1, 128, 128] to a
    feature map float32 [C, h, w], the bundled ResNet50's. `radiographs` are X-rays of another source: a
    sample of them joins the fit, but does not set the thresholds. An image's score and thresholds come from
    other groups' images, so neither rate is flattered.

    Raises InvalidData if `others` has images of fewer than two sources or an X-ray cannot be read.
    """
    paths_by_kind = _list_kinds(Path(others))
    sample = _read_images(images, paths_by_kind, radiographs, features)
    scores = np.empty(len(sample.vectors))
    for test in cross_fit_masks(sample.groups):
        discriminant = fit_discriminant(sample.vectors[~test], sample.kinds[~test])
        scores[test] = discriminant.score(sample.vectors[test])
    labelled, radiograph = sample.kinds == _LABELLED, sample.kinds == _RADIOGRAPH
    thresholds = _fit_thresholds(scores[labelled], sample.colorfulness[labelled])
    rejected = _is_beyond(thresholds, scores, sample.colorfulness)
    for test in cross_fit_masks(images.groups):
        fitted = _fit_thresholds(scores[labelled][~test], sample.colorfulness[labelled][~test])
        rejected[np.flatnonzero(labelled)[test]] = _is_beyond(
            fitted, scores[labelled][test], sample.colorfulness[labelled][test]
        )
    report = OODReport(
        protocol=PROTOCOL,
        thresholds=thresholds,
        n=len(images.paths),
        n_groups=len(np.unique(images.groups)),
        false_rejection=mean_with_interval(rejected[labelled].astype(float), images.groups),
        # A file that cannot be read is rejected anyway and counts as detected.
        detection={
            name: _rate(len(paths) - int((~rejected[sample.kinds == kind]).sum()), len(paths))
            for kind, (name, paths) in enumerate(paths_by_kind.items())
        },
        radiographs=_rate(int(rejected[radiograph].sum()), int(radiograph.sum())) if radiographs else None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = vars(fit_discriminant(sample.vectors, sample.kinds))
    write_tensors(folder / DISCRIMINANT_FILE, {k: array.astype(np.float16) for k, array in tensors.items()})
    report.write(folder)
    return report


def fit_discriminant(vectors: Floats, kinds: NDArray[np.int64]) -> Discriminant:
    """Fit a discriminant to vectors [N, C] of X-rays, whose kinds [N] are negative, and of other images.

    Each kind of other images counts alike, however many there are.
    """
    xrays = vectors[kinds < 0].astype(np.float64)
    mean, scale = xrays.mean(0), xrays.std(0)
    scale = np.maximum(scale, scale.mean() / 100)
    correlations = np.cov((xrays - mean) / scale, rowvar=False)
    shrunk = (1 - SHRINKAGE) * correlations + SHRINKAGE * np.eye(len(mean))
    whitening = np.linalg.cholesky(np.linalg.inv(shrunk)) / scale[:, None]
    kind_means = [vectors[kinds == kind].mean(0) for kind in np.unique(kinds[kinds >= 0])]
    direction = (np.mean(kind_means, axis=0) - mean) @ whitening
    return Discriminant(mean, whitening, DIRECTION_WEIGHT * direction / np.linalg.norm(direction))


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


def _read_images(
    images: LabelledImages,
    paths_by_kind: dict[str, list[Path]],
    radiographs: FracAtlas | None,
    features: Features,
) -> _Images:
    """Read every image once. Raises InvalidData."""
    embed_image = partial(_embed_image, features=features)
    embedded = list(map_images(embed_image, images.paths, "embedding images"))
    kinds = [_LABELLED] * len(embedded)
    groups = [f"image {group}" for group in images.groups]
    if radiographs:
        chosen = np.random.default_rng(0).permutation(len(radiographs.paths))[:N_RADIOGRAPHS]
        paths = [radiographs.paths[i] for i in chosen]
        embedded += map_images(embed_image, paths, "embedding radiographs")
        kinds += [_RADIOGRAPH] * len(paths)
        groups += [f"radiograph {group}" for group in radiographs.groups[chosen]]
    for kind, paths in enumerate(paths_by_kind.values()):
        for path in paths:
            try:
                embedded.append(embed_image(load_image(path)))
            except InvalidImage:
                continue
            kinds.append(kind)
            groups.append(f"other {re.sub('[0-9]*$', '', path.stem)}")
    if len({group for group in groups if group.startswith("other ")}) < 2:
        raise InvalidData("The other images need at least two sources. Add images under other names.")
    vectors, colorfulness = (np.array(values) for values in zip(*embedded, strict=True))
    return _Images(vectors, colorfulness, np.array(kinds), np.unique(groups, return_inverse=True)[1])


def _embed_image(image: LoadedImage, features: Features) -> tuple[Floats, float]:
    """Return the vector [C] and the colorfulness of one image."""
    pixels = preprocess(image, FAST_VIEWS)
    return embed(pixels[0], features(pixels)), image.colorfulness


def _fit_thresholds(scores: Floats, colorfulness: Floats) -> OODThresholds:
    return OODThresholds(
        score=float(np.quantile(scores, 1 - SCORE_REJECTION)),
        colorfulness=float(np.quantile(colorfulness, 1 - COLORFULNESS_REJECTION)),
    )


def _is_beyond(thresholds: OODThresholds, scores: Floats, colorfulness: Floats) -> NDArray[np.bool_]:
    return (scores > thresholds.score) | (colorfulness > thresholds.colorfulness)


def _rate(n_rejected: int, n: int) -> DetectionRate:
    share = n_rejected / n
    low, high = wilson(share, n)
    return DetectionRate(rounded(share), rounded(low), rounded(high), n=n)
