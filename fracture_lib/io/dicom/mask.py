"""Which pixels of a DICOM image do not belong to it: padding, and what a display shutter covers.

Section numbers refer to the DICOM standard, PS3.3.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fracture_lib.io.dicom.values import numbers, terms
from fracture_lib.io.limits import MAX_SIDE

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["find_blank_mask", "replace_large_padding"]

MAX_VERTICES = 1000  # of a polygonal shutter: filling it takes time for each vertex and row

# Padding value -> the other end of the range, where there is one
INTEGER_PADDING = {"PixelPaddingValue": "PixelPaddingRangeLimit"}
FLOAT_PADDING = {
    "FloatPixelPaddingValue": "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue": "DoubleFloatPixelPaddingRangeLimit",
}

_PADDING = "Padding pixels were left out."
_PADDING_IGNORED = "The file's pixel padding value is invalid and was ignored."
_SHUTTER = "The area outside the display shutter was left out."
_SHUTTER_IGNORED = "The file's display shutter is invalid or unsupported and was ignored."

Mask: TypeAlias = NDArray[np.bool_]  # [H, W], True for pixels that do not belong to the image


def find_blank_mask(
    values: NDArray[Any], dataset: "Dataset", pixel_aspect: float, messages: list[str]
) -> Mask | None:
    """Return the mask of padding and of what the display shutter covers, or None if there is neither.

    `values` are the stored values, [H, W] or [H, W, 3]; `pixel_aspect` is the height of a pixel divided
    by its width. A part that is invalid, or would leave a single tone, is ignored. Adds a message if
    something is left out and if something is ignored.
    """
    mask: Mask | None = None
    for find, left_out, ignored in _parts(values, dataset, pixel_aspect):
        message = ignored
        try:
            found = find()
            if not found.any():
                continue
            combined = found if mask is None else found | mask
            if not _is_flat(values, combined):
                mask, message = combined, left_out
        except MemoryError:
            raise
        except Exception:  # elements may be missing, text, lists or out of range
            pass
        if message not in messages:
            messages.append(message)
    return mask


def _parts(
    values: NDArray[Any], dataset: "Dataset", pixel_aspect: float
) -> Iterator[tuple[Callable[[], Mask], str, str]]:
    """Yield the function that finds each part and the messages for a part that is left out or ignored.

    Several shapes of a shutter apply at once (C.7.6.11).
    """
    if values.ndim == 2:  # padding is for grayscale (C.7.5.1.1.2)
        for keyword in FLOAT_PADDING if values.dtype.kind == "f" else INTEGER_PADDING:
            if _has_value(dataset, keyword):
                yield partial(_padding, values, dataset, keyword), _PADDING, _PADDING_IGNORED
    for shape in dict.fromkeys(terms(dataset, "ShutterShape")):
        find = partial(SHUTTERS.get(shape, _unsupported), values.shape[:2], dataset, pixel_aspect)
        yield find, _SHUTTER, _SHUTTER_IGNORED


def _is_flat(values: NDArray[Any], mask: Mask) -> bool:
    """Return whether all pixels outside the mask are equal, or there are none."""
    inside = ~mask
    first = values[np.unravel_index(np.argmax(inside), inside.shape)]
    return not np.any(values != first, where=inside if values.ndim == 2 else inside[..., np.newaxis])


def _padding(values: NDArray[Any], dataset: "Dataset", keyword: str) -> Mask:
    """Return the mask of the stored values from the padding value to its range limit (C.7.5.1.1.2).

    The limit may be below the value, as it is for MONOCHROME1. After lossy compression, only pixels that
    still have these values count, as in dcm4che.
    """
    low = high = _padding_value(values, dataset, keyword)
    limit = (INTEGER_PADDING | FLOAT_PADDING)[keyword]
    if _has_value(dataset, limit):
        high = _padding_value(values, dataset, limit)
    if low == high:
        return values == low
    if np.isnan([low, high]).any():
        return np.isnan(values)
    return (values >= min(low, high)) & (values <= max(low, high))


def replace_large_padding(cells: NDArray[Any], dataset: "Dataset", messages: list[str]) -> Mask | None:
    """Replace padding that has more bits than BitsStored, in place, and return its mask, or None.

    Such padding is against C.7.5.1.1.2, but common: -2000 or 65535 in an image of 12 bits. `cells` [H, W]
    are integers as allocated. The padding gets the value of another pixel. Adds a message.
    """
    if cells.ndim != 2 or dataset.HighBit != dataset.BitsStored - 1:
        return None
    keywords = [
        keyword for pair in INTEGER_PADDING.items() for keyword in pair if _has_value(dataset, keyword)
    ]
    bits = dataset.BitsStored - (cells.dtype.kind == "i")
    low, high = -(2**bits) if cells.dtype.kind == "i" else 0, 2**bits
    try:
        if all(low <= _padding_value(cells, dataset, keyword) < high for keyword in keywords):
            return None
        mask = _padding(cells, dataset, "PixelPaddingValue")
    except MemoryError:
        raise
    except Exception:  # text, lists or out of range: `find_blank_mask` says so
        return None
    if not mask.any() or _is_flat(cells, mask):
        return None
    cells[mask] = cells[np.unravel_index(np.argmin(mask), mask.shape)]
    messages.append(_PADDING)
    return mask


def _has_value(dataset: "Dataset", keyword: str) -> bool:
    return getattr(dataset.get_item(keyword), "value", None) not in (None, "", b"")


def _padding_value(values: NDArray[Any], dataset: "Dataset", keyword: str) -> float:
    """Return an element as a stored value: of 16 bits, and signed if the pixels are, or of floats.

    Its value representation depends on the Pixel Representation, and files contradict it: 65535 is -1
    if the pixels are signed, as in pydicom's `correct_ambiguous_vr` and Weasis.
    """
    if values.dtype.kind == "f":
        return numbers(dataset, keyword)[0]
    element: Any = dataset.get_item(keyword)  # a RawDataElement unless its value was read before
    if isinstance(element.value, bytes):
        value = int.from_bytes(element.value[:2], "little" if element.is_little_endian else "big")
    else:
        value = int(np.ravel(element.value)[0]) % 2**16
    if values.dtype.kind != "i":
        return value
    bits = min(16, dataset.BitsStored)
    signed = (value + 2**15) % 2**16 - 2**15
    return signed - 2**bits if 2 ** (bits - 1) <= signed < 2**bits else signed


def _rectangle(shape: tuple[int, int], dataset: "Dataset", _: float) -> Mask:
    """Return the mask of what is outside two rows and two columns, which count from 1 (C.7.6.11)."""
    upper, lower = _integers(dataset, "ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge")
    left, right = _integers(dataset, "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge")
    mask = np.ones(shape, bool)
    mask[max(upper - 1, 0) : max(lower, 0), max(left - 1, 0) : max(right, 0)] = False
    return mask


def _circle(shape: tuple[int, int], dataset: "Dataset", pixel_aspect: float) -> Mask:
    """Return the mask of what is outside a circle, whose radius is in pixels along a row (C.7.6.11)."""
    row, column, radius = _integers(dataset, "CenterOfCircularShutter", "RadiusOfCircularShutter")
    if radius <= 0:
        raise ValueError
    heights = (np.arange(1, shape[0] + 1) - row) * pixel_aspect
    half_widths = np.sqrt(np.maximum(float(radius) ** 2 - heights**2, 0))
    half_widths[np.abs(heights) > radius] = -1
    return np.abs(np.arange(1, shape[1] + 1) - column) > half_widths[:, np.newaxis]


def _polygon(shape: tuple[int, int], dataset: "Dataset", _: float) -> Mask:
    """Return the mask of what is outside a polygon of rows and columns, which count from 1 (C.7.6.11)."""
    vertices = np.reshape(_integers(dataset, "VerticesOfThePolygonalShutter"), (-1, 2))
    if not 3 <= len(vertices) <= MAX_VERTICES:
        raise ValueError
    # Pillow's coordinates are C integers.
    rows, columns = np.clip(vertices - 1, -MAX_SIDE, 2 * MAX_SIDE).T.tolist()
    image = Image.new("L", shape[::-1], 1)
    ImageDraw.Draw(image).polygon(list(zip(columns, rows, strict=True)), fill=0)
    return np.asarray(image).view(bool)


def _unsupported(*_: Any) -> Mask:
    raise ValueError


# A bitmap shutter is an overlay of a presentation state, not of an image.
SHUTTERS: dict[str, Callable[..., Mask]] = {
    "RECTANGULAR": _rectangle,
    "CIRCULAR": _circle,
    "POLYGONAL": _polygon,
}


def _integers(dataset: "Dataset", *keywords: str) -> list[int]:
    """Return the integers of elements, one after the other. Raises ValueError or OverflowError."""
    return [int(number) for keyword in keywords for number in numbers(dataset, keyword)]
