"""Views: the ways in which one image becomes 128x128 model inputs. The only place that decides this.

Radiographs of limbs are tall and narrow, so a square wastes pixels on padding or distorts them. A model is
trained on random views and answers with the mean over a few fixed ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "DETECTOR_SIZE",
    "FAST_VIEWS",
    "INPUT_SIZE",
    "LETTERBOX",
    "VIEWS",
    "View",
    "make_detector_input",
    "make_views",
    "project_maps",
    "shrink",
    "window",
]

INPUT_SIZE = 128
DETECTOR_SIZE = 256  # of the fracture detector's input: a fracture is a few pixels wide at 128
# Longer side of an image before it is cut into views, as a multiple of theirs: a window of 0.65 of the
# image then takes its pixels as they are.
OVERSAMPLING = 1.54
MAP_SIZE = 32  # cells per side of a map over a whole image


@dataclass(frozen=True)
class View:
    """A window onto an image, scaled to a square."""

    # Exponent: 0 keeps the aspect ratio and pads, 1 stretches the image to the square, 0.5 is in between.
    aspect: float = 0.5
    zoom: float = 1.0  # side of the window as a fraction of the longer side; above 1 it pads
    # Where the window lies along the longer and the shorter side of the image, 0 to 1, if it is smaller.
    position: tuple[float, float] = (0.5, 0.5)
    mirror: bool = False  # left and right


LETTERBOX = View(aspect=0.0)
# The whole image and both of its ends, one of them mirrored. Chosen out of fold: six views did no better.
VIEWS = (View(), View(zoom=0.8, position=(0.0, 0.5), mirror=True), View(zoom=0.8, position=(1.0, 0.5)))
FAST_VIEWS = VIEWS[:1]


def shrink(pixels: NDArray[np.float32], size: int = INPUT_SIZE) -> NDArray[np.float32]:
    """Scale a large image float32 [H, W] down to what views of `size` pixels are cut from."""
    scale = round(OVERSAMPLING * size) / max(pixels.shape)
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    # Pillow's bilinear filter widens when it shrinks an image, so fine lines do not alias.
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0, 1)


def window(shape: tuple[int, int], view: View) -> tuple[float, float, float, float]:
    """Return a view's window onto an image [H, W] in pixels: top, left, bottom, right.

    It exceeds the image where the view pads.
    """
    longer, shorter = max(shape), min(shape)
    extents = [view.zoom * longer, view.zoom * longer * (shorter / longer) ** view.aspect]
    spans = []
    for side, extent, position in zip((longer, shorter), extents, view.position, strict=True):
        room = side - extent
        start = room * (position if room > 0 else 0.5)
        spans.append((start, start + extent))
    (top, bottom), (left, right) = spans if shape[0] >= shape[1] else reversed(spans)
    return top, left, bottom, right


def make_views(
    pixels: NDArray[np.float32], views: Sequence[View] = VIEWS, size: int = INPUT_SIZE
) -> NDArray[np.float32]:
    """Return model inputs float32 [V, size, size] in 0 to 1 of an image float32 [H, W] in 0 to 1."""
    small = shrink(pixels, size)
    return np.stack([_make_view(small, view, size) for view in views])


def make_detector_input(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the fracture detector's input float32 [1, 256, 256] of an image float32 [H, W] in 0 to 1."""
    return make_views(pixels, (LETTERBOX,), DETECTOR_SIZE)


def _make_view(pixels: NDArray[np.float32], view: View, size: int) -> NDArray[np.float32]:
    top, left, bottom, right = window(pixels.shape, view)
    rows, y0, y1 = _visible(top, bottom, pixels.shape[0], size)
    columns, x0, x1 = _visible(left, right, pixels.shape[1], size)
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    resized = Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    canvas = np.zeros((size, size), np.float32)
    canvas[rows, columns] = np.clip(np.asarray(resized), 0, 1)
    return canvas[:, ::-1] if view.mirror else canvas


def _visible(start: float, stop: float, side: int, size: int) -> tuple[slice, float, float]:
    """Return which of `size` pixels an image of `side` pixels fills, and which of its own these show."""
    first, last = max(start, 0.0), min(stop, float(side))
    scale = size / (stop - start)
    begin = min(round((first - start) * scale), size - 1)
    end = max(round((last - start) * scale), begin + 1)
    return slice(begin, end), first, last


def project_maps(
    maps: NDArray[np.float32], shape: tuple[int, int], views: Sequence[View]
) -> NDArray[np.float32]:
    """Return the sum [K, 32, 32], over an image [H, W], of maps [V, K, h, w] over its views.

    Each value spreads over the part of the image that its cell covers; what lies on padding is left out.
    """
    total = np.zeros((maps.shape[1], MAP_SIZE, MAP_SIZE), np.float32)
    for view, view_maps in zip(views, maps, strict=True):
        top, left, bottom, right = window(shape, view)
        rows = _interpolation(top / shape[0], bottom / shape[0], maps.shape[2])
        columns = _interpolation(left / shape[1], right / shape[1], maps.shape[3])
        total += rows @ (view_maps[..., ::-1] if view.mirror else view_maps) @ columns.T
    return total


def _interpolation(start: float, stop: float, n_cells: int) -> NDArray[np.float32]:
    """Return the weights [32, n] of n cells between `start` and `stop` for 32 cells between 0 and 1.

    Linear between the cells' centers, zero outside; narrower cells count for more, as they are denser.
    """
    centers = (np.arange(MAP_SIZE) + 0.5) / MAP_SIZE
    positions = (centers - start) / (stop - start) * n_cells - 0.5
    inside = (centers >= start) & (centers <= stop)
    distances = np.abs(np.clip(positions, 0, n_cells - 1)[:, None] - np.arange(n_cells))
    weights = np.maximum(0, 1 - distances) * inside[:, None] * n_cells / (MAP_SIZE * (stop - start))
    return weights.astype(np.float32)
