"""Perturbations that should not change the predicted fracture: what robustness is measured under.

PERTURBATIONS maps names to functions from and to a grayscale image, float32 [H, W] in 0..1, as
`load_image` returns it. `data.dataset.stream_transformed` applies them before it cuts views.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["PERTURBATIONS", "mask_markers"]

Pixels = NDArray[np.float32]

# A burned-in letter or arrow
MARKER_BRIGHTNESS = 0.9  # is nearly white,
MARKER_MAX_SIDE = 0.15  # covers at most this share of the height and width,
MARKER_BORDER = 0.25  # lies in this outer share of the image
MARKER_MAX_BACKGROUND = 0.3  # and on a background darker than this, unlike bone in grey soft tissue.
MARKER_MARGIN = 3  # pixels around it, whose median is its background


def mask_markers(image: Pixels) -> Pixels:
    """Return a copy with whatever looks like a burned-in letter or arrow painted over."""
    from scipy.ndimage import find_objects, label

    blobs, _ = label(image >= MARKER_BRIGHTNESS, structure=np.ones((3, 3)))
    height, width = image.shape
    masked = image.copy()
    for rows, columns in find_objects(blobs):
        y, x = (rows.start + rows.stop) / 2 / height, (columns.start + columns.stop) / 2 / width
        side = max((rows.stop - rows.start) / height, (columns.stop - columns.start) / width)
        is_central = all(MARKER_BORDER < position < 1 - MARKER_BORDER for position in (y, x))
        if side > MARKER_MAX_SIDE or is_central:
            continue
        box = tuple(slice(max(0, s.start - MARKER_MARGIN), s.stop + MARKER_MARGIN) for s in (rows, columns))
        surroundings = image[box][image[box] < MARKER_BRIGHTNESS]
        if surroundings.size and (background := np.median(surroundings)) < MARKER_MAX_BACKGROUND:
            masked[box][image[box] > MARKER_MAX_BACKGROUND] = background
    return masked


def _rotation(degrees: float) -> Callable[[Pixels], Pixels]:
    """Return a rotation that enlarges the image to keep its corners."""

    def rotate(image: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR, expand=True))

    return rotate


def _brightness(factor: float) -> Callable[[Pixels], Pixels]:
    return lambda image: np.clip(image * np.float32(factor), 0, 1)


def _contrast(factor: float) -> Callable[[Pixels], Pixels]:
    return lambda image: np.clip((image - 0.5) * np.float32(factor) + 0.5, 0, 1)


def _compress_as_jpeg(image: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray((255 * image + 0.5).astype(np.uint8)).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file), np.float32) / np.float32(255)


PERTURBATIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "horizontal flip": lambda image: image[:, ::-1],
    "rotation by 90 degrees left": np.rot90,
    "rotation by 90 degrees right": lambda image: np.rot90(image, -1),
    "rotation by 15 degrees": _rotation(15),
    "rotation by -15 degrees": _rotation(-15),
    "JPEG, quality 40": _compress_as_jpeg,
    "brightness +30 %": _brightness(1.3),
    "brightness -30 %": _brightness(0.7),
    "contrast +30 %": _contrast(1.3),
    "contrast -30 %": _contrast(0.7),
    "burned-in markers masked": mask_markers,
}
