"""From an array or Pillow image with up to four channels to grayscale float32 [H, W] in 0 to 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.errors import InvalidImage
from fracture_lib.io.limits import check_image_size

__all__ = ["BLOCK_PIXELS", "check_shape", "stretch_range", "to_grayscale"]

BLOCK_PIXELS = 200_000  # converted at once: float32 copies of all channels would be the largest arrays by far
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, the weights of Pillow's mode "L"


def to_grayscale(
    image: NDArray[Any] | Image.Image, blank_mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], float]:
    """Return grayscale float32 [H, W] and the colorfulness in 0 to 1.

    `image` is an array [H, W] or [H, W, C] of integers or floats, or a Pillow image with plain channels.
    The channels are gray, gray and alpha, RGB or RGBA; alpha is composited on black. The values are those
    of the input; where float32 would round them, less the minimum of the pixels outside `blank_mask`
    (not with alpha, where black is 0). Raises InvalidImage.
    """
    width, height, channels = _size_and_channels(image)
    gray = np.empty((height, width), np.float32)
    colors, low, high = _ColorSums(), np.inf, -np.inf
    step = max(1, BLOCK_PIXELS // width)
    offset = None if channels in (2, 4) else _offset(image, blank_mask)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        block = _read_rows(image, rows)
        opaque = np.iinfo(block.dtype).max if block.dtype.kind in "ui" else 1.0
        with np.errstate(over="ignore", invalid="ignore"):  # `stretch_range` rejects what overflows
            block = block.reshape(-1, width, channels)
            if offset is not None:
                if blank_mask is not None:
                    block = np.where(blank_mask[rows].reshape(-1, width, 1), offset, block)
                block = _subtract(block, offset)
            gray[rows] = block[..., 0]
            if channels > 1:
                block = block.astype(np.float32, copy=False)
            if channels > 2:
                rgb = block[..., :3]
                gray[rows] = rgb @ LUMA
                colors.add(rgb)
                low, high = min(low, float(rgb.min())), max(high, float(rgb.max()))
            if channels in (2, 4):
                gray[rows] *= block[..., -1] / np.float32(opaque)
    return gray, colors.colorfulness(high - low) if channels > 2 else 0.0


def _offset(image: NDArray[Any] | Image.Image, blank_mask: NDArray[np.bool_] | None) -> Any:
    """Return the smallest value outside `blank_mask`, or None if float32 holds all values of the dtype."""
    dtype = np.asarray(image.crop((0, 0, 1, 1))).dtype if isinstance(image, Image.Image) else image.dtype
    if np.can_cast(dtype, np.float32):
        return None
    width, height, _ = _size_and_channels(image)
    step = max(1, BLOCK_PIXELS // width)
    smallest = []
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        block = _read_rows(image, rows)
        if blank_mask is not None:
            block = block[~blank_mask[rows]]
        if block.size:
            smallest.append(block.min())
    return min(smallest, default=None)


def _subtract(block: NDArray[Any], offset: Any) -> NDArray[Any]:
    """Subtract in the dtype of the block; signed integers become unsigned, which hold all differences."""
    difference = block - offset
    if difference.dtype.kind == "i":
        return difference.view(difference.dtype.str.replace("i", "u"))
    return difference


class _ColorSums:
    """Sums over the pixels from which the colorfulness follows, block by block."""

    def __init__(self) -> None:
        self._origin: NDArray[np.float32] | None = None  # near the colors, so that the sums keep their digits
        self._products = np.zeros((4, 4))  # of red, green, blue and 1

    def add(self, rgb: NDArray[np.float32]) -> None:
        """Count the pixels of a block [h, W, 3]."""
        if self._origin is None:
            self._origin = rgb[0, 0].copy()
        colors = np.ones((4, rgb.shape[0] * rgb.shape[1]))  # arithmetic along so short an axis is slow
        colors[:3] = rgb.reshape(-1, 3).T
        colors[:3] -= self._origin[:, None]
        self._products += colors @ colors.T

    def colorfulness(self, value_range: float) -> float:
        """Return the standard deviation of the colors from a line through them, relative to `value_range`.

        The line is each channel's linear regression on the luma, so an image of one tint, whatever its hue
        and strength, has 0, as a gray one.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            moments = self._products / self._products[3, 3]
            covariance = moments[:3, :3] - np.outer(moments[3, :3], moments[3, :3])
            with_luma = covariance @ LUMA
            luma_variance = LUMA @ with_luma
            variance = np.trace(covariance)
            rest = variance - (with_luma @ with_luma / luma_variance if luma_variance > 0 else 0)
            if not rest > 1e-9 * variance:  # rounded
                return 0.0
            return float(np.sqrt(rest)) / max(value_range, 1e-12)


def _size_and_channels(image: NDArray[Any] | Image.Image) -> tuple[int, int, int]:
    """Return width, height and number of channels. Raises InvalidImage if an array is not an image."""
    if isinstance(image, Image.Image):
        return *image.size, len(image.getbands())
    if image.dtype.kind not in "uif":
        raise InvalidImage(f"Unsupported array dtype {image.dtype}. Use integers or floats.")
    return check_shape(image.shape)


def check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return width, height and number of channels of an array's shape. Raises InvalidImage."""
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 2, 3, 4)):
        advice = "Use [H, W] or [H, W, C] with 1 to 4 channels."
        if len(shape) == 3 and shape[0] in (1, 3, 4):
            advice = "Move the channels to the end: numpy.moveaxis(array, 0, -1)."
        elif len(shape) == 4:
            advice = "Pass one image at a time, [H, W] or [H, W, C]."
        raise InvalidImage(f"Unsupported array shape {tuple(shape)}. {advice}")
    height, width, channels = (*shape, 1)[:3]
    check_image_size(width, height)
    return width, height, channels


def _read_rows(image: NDArray[Any] | Image.Image, rows: slice) -> NDArray[Any]:
    if isinstance(image, Image.Image):
        return np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
    return image[rows]


def stretch_range(
    gray: NDArray[np.float32], blank_mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Stretch values to 0 to 1, in place; pixels of `blank_mask` do not count for the range and become 0.

    Raises InvalidImage if the values are all equal or not finite.
    """
    if blank_mask is not None:
        if blank_mask.all():
            raise InvalidImage("The image is blank.")
        gray[blank_mask] = gray[~blank_mask].min()
    low, high = float(gray.min()), float(gray.max())
    if not abs(high - low) <= float(np.finfo(np.float32).max):  # also true for NaN
        raise InvalidImage("The image has NaN, infinite or nearly infinite values. Replace them first.")
    if high == low:
        raise InvalidImage("The image is blank.")
    gray -= low  # in place: allocating a copy takes longer than the arithmetic
    gray /= gray.max()  # `high - low` is rounded differently, and the maximum could exceed 1
    return gray
