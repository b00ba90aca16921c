"""From the stored values of a DICOM image to what a viewer shows.

    stored values -> modality LUT or rescaling -> VOI LUT or window -> photometric interpretation

Section numbers are of the DICOM standard, PS3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DisplayedImage", "to_displayed"]

_INVALID_RESCALE = "The file's rescaling is invalid and was ignored."
_INVALID_WINDOW = (
    "The file's display window is invalid and was ignored; the full range of grey values is used."
)


@dataclass(frozen=True, eq=False)
class DisplayedImage:
    """One frame as a viewer shows it."""

    values: NDArray[Any]  # float32 [H, W], any range, brighter is higher; or integers [H, W, 3], RGB
    blank_mask: NDArray[np.bool_] | None  # [H, W]: padding and what a shutter covers; None if there is none
    pixel_aspect: float  # height of a pixel divided by its width


def to_displayed(values: NDArray[Any], dataset: "Dataset", messages: list[str]) -> DisplayedImage:
    """Turn stored values into displayed ones; add a message for everything that is corrected or ignored."""
    return DisplayedImage(_to_values(values, dataset, messages), None, 1.0)


def _to_values(values: NDArray[Any], dataset: "Dataset", messages: list[str]) -> NDArray[Any]:
    """Apply rescaling, window and the Photometric Interpretation (PS3.3 C.7.6.3.1.2)."""
    if values.ndim == 3:  # pydicom has converted YBR to RGB
        return values
    values = values.astype(np.float32)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        palettes = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
        return np.stack([_look_up(values, dataset, palette) for palette in palettes], axis=-1)
    values = _apply_if_valid(_rescale, values, dataset, messages, _INVALID_RESCALE)
    values = _apply_if_valid(_apply_window, values, dataset, messages, _INVALID_WINDOW)
    return np.negative(values, out=values) if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def _apply_if_valid(
    step: "Callable[[NDArray[np.float32], Dataset], NDArray[Any]]",
    values: NDArray[np.float32],
    dataset: "Dataset",
    messages: list[str],
    message: str,
) -> NDArray[np.float32]:
    """Return `step(values, dataset)`; if it fails or leaves a blank image, add `message`, return `values`."""
    try:
        with np.errstate(all="ignore"):
            result = step(values, dataset).astype(np.float32, copy=False)
        if result is values:
            return values
        if np.isfinite(result).all() and (np.ptp(result) > 0 or np.ptp(values) == 0):
            return result
    except Exception:  # elements may be missing, empty, text, lists or out of range
        pass
    messages.append(message)
    return values


def _rescale(values: NDArray[np.float32], dataset: "Dataset") -> NDArray[Any]:
    """Apply the modality LUT or rescaling (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(values, dataset.ModalityLUTSequence[0], "LUT")
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    slope, intercept = 1 if slope is None else slope, 0 if intercept is None else intercept
    if (slope, intercept) == (1, 0):
        return values
    scaled = values * slope
    scaled += intercept  # in place, here and below: an image can have 40 million pixels
    return scaled


def _apply_window(values: NDArray[np.float32], dataset: "Dataset") -> NDArray[Any]:
    """Apply the VOI LUT or window (PS3.3 C.11.2), the first of several."""
    if dataset.get("VOILUTSequence"):
        return _look_up(values, dataset.VOILUTSequence[0], "LUT")
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None and width is None:
        return values
    if center is None or width is None:
        raise ValueError
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)
    elif function not in ("LINEAR_EXACT", "SIGMOID"):
        raise ValueError
    windowed = values - center
    if function == "SIGMOID":
        windowed *= -4
        windowed /= width
        np.exp(windowed, out=windowed)
        windowed += 1
        return np.reciprocal(windowed, out=windowed)
    windowed /= width
    windowed += 0.5
    return np.clip(windowed, 0, 1, out=windowed)


def _number(dataset: "Dataset", keyword: str) -> float | None:
    """Return the first number of an element, or None if it is missing or empty."""
    value = dataset.get(keyword)
    return None if value in (None, "") else float(np.ravel(value)[0])


def _look_up(values: NDArray[np.float32], dataset: "Dataset", prefix: str) -> NDArray[np.float32]:
    """Map values through the table whose elements begin with `prefix` (PS3.3 C.11.1.1, C.7.6.3.1.5).

    pydicom's own functions count the entries for a 12-bit image in 8 bits if the table's output has 8.
    """
    n_entries, first_value, _ = dataset[f"{prefix}Descriptor"].value
    n_entries = n_entries or 65536
    raw: Any = dataset.get_item(f"{prefix}Data")  # a RawDataElement: `_parse` converts no values
    one_byte_each = len(raw.value) < 2 * n_entries
    dtype = "u1" if one_byte_each else "<u2" if raw.is_little_endian else ">u2"
    table = np.frombuffer(raw.value, dtype, n_entries).astype(np.float32)
    mapped = np.empty_like(values)
    # Row by row: the indices of the whole image would be the largest array.
    for row, mapped_row in zip(values, mapped, strict=True):
        np.take(table, np.clip(row - first_value, 0, n_entries - 1).astype(np.intp), out=mapped_row)
    return mapped
