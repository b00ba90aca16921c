"""Measure how well heatmaps point at fractures: against radiologists' boxes, a centre prior and chance.

A heatmap is float [32, 32], 0 or more, over an image without flat borders. Boxes are float [K, 4]: x0, y0,
x1, y1 of each of K fractures as fractions of that image's width and height.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fracture_lib.data.fracatlas import FracAtlas, boxes_inside
from fracture_lib.data.reading import map_images
from fracture_lib.errors import ModelUnavailable
from fracture_lib.evaluation.metrics import Ints, intervals
from fracture_lib.inference.fracture import project_heatmap
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.io.framing import crop_borders
from fracture_lib.io.views import MAP_SIZE
from fracture_lib.labels import label_id
from fracture_lib.models.functional import Floats
from fracture_lib.models.report import Localization

__all__ = ["BoxedImages", "detector_heatmaps", "localize", "overlay_heatmaps", "read_boxed_images"]

# How far from a box, in width and height of the image, a maximum still hits it: one cell of a heatmap. The
# source of the pointing game allows 15 pixels of about 500.
TOLERANCE = 1 / MAP_SIZE
CENTER_SPREAD = 0.25  # standard deviation of the centre prior, in width and height of the image
FINE = 8  # parts of a cell, per side, that lie in a box or not


@dataclass(frozen=True, eq=False)
class BoxedImages:
    """M fractured radiographs."""

    paths: tuple[Path, ...]
    groups: NDArray[np.int64]  # [M]; images of one patient share a number
    boxes: tuple[Floats, ...]  # [K, 4] each
    shapes: tuple[tuple[int, int], ...]  # height and width in pixels, without flat borders

    def __getitem__(self, chosen: Ints) -> "BoxedImages":
        """Return the images with the given indices."""
        indices = chosen.tolist()
        return BoxedImages(
            tuple(self.paths[i] for i in indices),
            self.groups[chosen],
            tuple(self.boxes[i] for i in indices),
            tuple(self.shapes[i] for i in indices),
        )


def read_boxed_images(atlas: FracAtlas) -> BoxedImages:
    """Return the fractured images of FracAtlas, in its order. Raises InvalidData if one cannot be read."""
    fractured = np.flatnonzero(atlas.fractured)
    paths = tuple(atlas.paths[i] for i in fractured)
    frames = list(map_images(lambda image: (image.pixels.shape, crop_borders(image.pixels)), paths, "boxes"))
    return BoxedImages(
        paths=paths,
        groups=atlas.groups[fractured],
        boxes=tuple(boxes_inside(atlas.boxes[i], *frame) for i, frame in zip(fractured, frames, strict=True)),
        shapes=tuple((rows.stop - rows.start, columns.stop - columns.start) for _, (rows, columns) in frames),
    )


def detector_heatmaps(maps: NDArray[np.float32], images: BoxedImages) -> NDArray[np.float32]:
    """Return heatmaps [M, 32, 32] for the detector's logits [M, 16, 16] over the images' letterbox views."""
    return np.stack(
        [project_heatmap(one[None], shape) for one, shape in zip(maps, images.shapes, strict=True)]
    )


def overlay_heatmaps(
    images: BoxedImages, models: Sequence[str], pipeline: InferencePipeline
) -> dict[str, NDArray[np.float32]]:
    """Return heatmaps [M, 32, 32] of each model: the positive part of the overlay of its most probable type.

    Raises ModelUnavailable if a model fails.
    """
    heatmaps = {name: np.zeros((len(images.paths), MAP_SIZE, MAP_SIZE), np.float32) for name in models}
    for i, path in enumerate(tqdm(images.paths, desc="overlays", unit="image", leave=False)):
        result = pipeline.predict(path, models, skip_ood_check=True)
        for name, message in result.failures.items():
            raise ModelUnavailable(f"{name}: {message}")
        for name, prediction in result.predictions.items():
            heatmaps[name][i] = np.maximum(prediction.cam[label_id(prediction.label)], 0)
    return heatmaps


def localize(heatmaps: Floats, images: BoxedImages) -> Localization:
    """Compare heatmaps [M, 32, 32] with the boxes of M images; 95 % intervals are over groups.

    The pointing game (Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016) counts the images
    whose maximum is at most TOLERANCE from a box. Beside a heatmap stand the centre of the image, with a
    Gaussian for the share of heat, and a place drawn at random. A heatmap without heat counts as even.
    """
    centers = (np.arange(MAP_SIZE) + 0.5) / MAP_SIZE
    hits = np.array([_near(boxes, centers[:, None], centers) for boxes in images.boxes])  # [M, 32, 32]
    covered = np.array([_covered(boxes) for boxes in images.boxes])
    heat = np.where(heatmaps.any((1, 2), keepdims=True), heatmaps, 1)
    hottest = heat.reshape(len(heat), -1).argmax(1)
    bell = np.exp(-((centers - 0.5) ** 2) / (2 * CENTER_SPREAD**2))
    prior = np.outer(bell, bell)
    values = {
        "pointing": hits.reshape(len(heat), -1)[np.arange(len(heat)), hottest],
        "pointing_center": np.array([_near(boxes, 0.5, 0.5) for boxes in images.boxes]),
        "pointing_random": hits.mean((1, 2)),
        "inside": (heat * covered).sum((1, 2)) / heat.sum((1, 2)),
        "inside_center": (prior * covered).sum((1, 2)) / prior.sum(),
        "inside_random": covered.mean((1, 2)),
    }
    measured = intervals(
        lambda chosen: {name: float(shares[chosen].mean()) for name, shares in values.items()}, images.groups
    )
    return Localization(n=len(heat), **measured)


def _near(boxes: Floats, y: Floats | float, x: Floats | float) -> NDArray[np.bool_]:
    """Return whether each place (x, y) is at most TOLERANCE from one of the boxes; x and y broadcast."""
    near = [
        (abs(x - (x0 + x1) / 2) <= (x1 - x0) / 2 + TOLERANCE)
        & (abs(y - (y0 + y1) / 2) <= (y1 - y0) / 2 + TOLERANCE)
        for x0, y0, x1, y1 in boxes
    ]
    return np.any(near, axis=0)


def _covered(boxes: Floats) -> NDArray[np.float64]:
    """Return the share of each of 32x32 cells that lies in a box."""
    size = FINE * MAP_SIZE
    mask = np.zeros((size, size))
    for x0, y0, x1, y1 in boxes * size:
        mask[round(y0) : round(y1), round(x0) : round(x1)] = 1
    return mask.reshape(MAP_SIZE, FINE, MAP_SIZE, FINE).mean((1, 3))
