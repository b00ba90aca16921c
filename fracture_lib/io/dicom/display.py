"""From the stored values of a DICOM image to what a viewer shows.

    stored values -> padding and shutter -> modality LUT or rescaling -> VOI LUT or window
        -> photometric interpretation

Section numbers refer to the DICOM standard, PS3.3. Where it leaves a choice, this follows pydicom's
functions for pixels (a VOI LUT before a window), dcm4che and OHIF.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracture_lib.errors import InvalidImage
from fracture_lib.io.dicom.mask import find_blank_mask
from fracture_lib.io.dicom.values import numbers, terms

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DisplayedImage", "to_displayed"]

MAX_WINDOWS = 5  # tried, of those in a file
MIN_TONES = 0.05  # the share of the tonal information that a window must keep
SAMPLED_PIXELS = 1_000_000  # about as many are counted for the tonal information
MAX_PIXEL_ASPECT = 10  # of a pixel's height and width, the longer divided by the shorter

_INVALID_RESCALE = "The file's rescaling is invalid and was ignored."
_IGNORED_WINDOW = "The file's display window {problem} and was ignored; {used} is used."
_INVALID = "is invalid"
_TOO_NARROW = "leaves almost no grey values"
_FULL_RANGE, _NEXT_WINDOW = "the full range of grey values", "the next one"
_NOT_SQUARE = "The pixels are not square; the image was resampled."
_INVALID_ASPECT = "The file's pixel aspect ratio is invalid and was ignored."
_RAW = "The file has raw detector data, not an image prepared for viewing."
_RAW_INVERTED = "The raw detector data were inverted, so that bone is bright."
_CONTRADICTION = (
    "The file contradicts itself about which values are white; the lowest were taken to be white."
)
_SEGMENTED_PALETTE = "The DICOM file has a segmented colour palette. Export it in greyscale."
_NO_PALETTE = "The DICOM file lacks its colour palette. Export it in greyscale."

# The function that applies a VOI LUT or window to values + an offset
Window: TypeAlias = Callable[[NDArray[np.float32], float], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class DisplayedImage:
    """One frame as a viewer shows it."""

    values: NDArray[Any]  # float32 [H, W], any range, brighter is higher; or integers [H, W, 3], RGB
    blank_mask: NDArray[np.bool_] | None  # [H, W]: padding and what a shutter covers; None if there is none
    pixel_aspect: float  # height of a pixel divided by its width


def to_displayed(values: NDArray[Any], dataset: "Dataset", messages: list[str]) -> DisplayedImage:
    """Turn stored values into displayed ones; add a message for everything that is corrected or ignored.

    `values` are integers or floats [H, W], or integers [H, W, 3], RGB; they may be changed.
    """
    pixel_aspect = _pixel_aspect(dataset, messages)
    mask = find_blank_mask(values, dataset, pixel_aspect, messages)
    if values.ndim == 3:  # pydicom has converted YBR to RGB
        return DisplayedImage(values, mask, pixel_aspect)
    if mask is not None:  # a value of the image itself, so that no step counts those that are left out
        values = np.require(values, requirements="W")
        values[mask] = values[np.unravel_index(np.argmin(mask), mask.shape)]
    values, offset = _to_float32(values)
    if terms(dataset, "PhotometricInterpretation") == ["PALETTE COLOR"]:
        return DisplayedImage(_apply_palettes(values, offset, dataset), mask, pixel_aspect)
    return DisplayedImage(_to_gray(values, offset, mask, dataset, messages), mask, pixel_aspect)


def _pixel_aspect(dataset: "Dataset", messages: list[str]) -> float:
    """Return a pixel's height divided by its width (C.7.6.3.1.7, 10.7.1.3).

    The elements hold the vertical before the horizontal size. The first one that differs from 1 by more
    than 1 % counts; a ratio of 1:1 beside another spacing is a default that some devices write.
    """
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        sizes = numbers(dataset, keyword)
        if not sizes:
            continue
        ratio = sizes[0] / sizes[1] if len(sizes) == 2 and min(sizes) > 0 else math.nan
        if not 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT:  # also true for NaN
            if _INVALID_ASPECT not in messages:
                messages.append(_INVALID_ASPECT)
        elif abs(ratio - 1) > 0.01:
            messages.append(_NOT_SQUARE)
            return ratio
    return 1.0


def _to_float32(values: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """Return values as float32 and the number subtracted from them, which keeps the tones of 32-bit ones.

    float32 has 24 bits: without this, values such as 10**9 + 1 and 10**9 + 2 would be equal.
    """
    if values.dtype.itemsize <= 2 or values.dtype == np.float32:
        return values.astype(np.float32), 0.0
    low = values.min()
    if values.dtype.kind == "f":
        return (values - low).astype(np.float32), float(low)
    # Unsigned, because a signed difference could overflow.
    unsigned = values.view(values.dtype.str.replace("i", "u"))
    difference = np.subtract(unsigned, low, dtype=f"u{values.dtype.itemsize}", casting="unsafe")
    return difference.astype(np.float32), float(low)


def _to_gray(
    values: NDArray[np.float32],
    offset: float,
    mask: NDArray[np.bool_] | None,
    dataset: "Dataset",
    messages: list[str],
) -> NDArray[np.float32]:
    """Apply rescaling, window and polarity to `values` + `offset`."""
    darkest, brightest = values.argmin(), values.argmax()
    if not _is_image(values):  # blank or not finite: leave it to the caller
        return values
    values, offset = _rescale_if_valid(values, offset, dataset, messages)
    values = _apply_first_useful_window(values, offset, mask, dataset, messages)
    rises = bool(values.flat[brightest] >= values.flat[darkest])
    return np.negative(values, out=values) if _is_inverted(rises, dataset, messages) else values


def _is_image(values: NDArray[np.float32]) -> bool:
    """Return whether the values are finite and not all equal."""
    with np.errstate(all="ignore"):
        return bool(0 < np.ptp(values) < np.inf)  # false for NaN


def _rescale_if_valid(
    values: NDArray[np.float32], offset: float, dataset: "Dataset", messages: list[str]
) -> tuple[NDArray[np.float32], float]:
    try:
        with np.errstate(all="ignore"):
            rescaled, new_offset = _rescale(values, offset, dataset)
        if _is_image(rescaled) and math.isfinite(new_offset):
            return rescaled, new_offset
    except MemoryError:
        raise
    except Exception:  # elements may be missing, empty, text, lists or out of range
        pass
    messages.append(_INVALID_RESCALE)
    return values, offset


def _rescale(
    values: NDArray[np.float32], offset: float, dataset: "Dataset"
) -> tuple[NDArray[np.float32], float]:
    """Apply the modality LUT or rescaling (C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(values, offset, dataset.ModalityLUTSequence[0], "LUT"), 0.0
    slope = (numbers(dataset, "RescaleSlope") or [1.0])[0]
    intercept = (numbers(dataset, "RescaleIntercept") or [0.0])[0]
    return values if slope == 1 else values * slope, offset * slope + intercept


def _apply_first_useful_window(
    values: NDArray[np.float32],
    offset: float,
    mask: NDArray[np.bool_] | None,
    dataset: "Dataset",
    messages: list[str],
) -> NDArray[np.float32]:
    """Apply the first VOI LUT or window that is valid and leaves enough tones (C.11.2).

    VOI LUTs come before windows, as in pydicom's `apply_voi_lut`. A window is left out if it keeps less
    than MIN_TONES of the tonal information of the full range: one that was made for 8 bits can leave two
    tones of a 12-bit image. Of 50 radiographs, windows from the 85th percentile to the 99.9th keep 0.13
    to 0.30, and from the 95th 0.02 to 0.10.
    """
    windows = list(islice(_windows(dataset), MAX_WINDOWS))
    min_tones = MIN_TONES * _tonal_information(values, mask) if windows else 0.0
    first_problem = ""
    for apply in windows:
        windowed, problem = _try_window(apply, values, offset, mask, min_tones)
        if windowed is not None:
            if first_problem:
                messages.append(_IGNORED_WINDOW.format(problem=first_problem, used=_NEXT_WINDOW))
            return windowed
        first_problem = first_problem or problem
    if first_problem:
        messages.append(_IGNORED_WINDOW.format(problem=first_problem, used=_FULL_RANGE))
    return values


def _try_window(
    apply: Window,
    values: NDArray[np.float32],
    offset: float,
    mask: NDArray[np.bool_] | None,
    min_tones: float,
) -> tuple[NDArray[np.float32] | None, str]:
    """Return the windowed values, or None and what is wrong with the window."""
    try:
        with np.errstate(all="ignore"):
            windowed = apply(values, offset)
    except MemoryError:
        raise
    except Exception:  # elements may be missing, empty, text, lists or out of range
        return None, _INVALID
    if not _is_image(windowed) or _tonal_information(windowed, mask) < min_tones:
        return None, _TOO_NARROW
    return windowed, ""


def _tonal_information(values: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> float:
    """Return the entropy, in nats, of the 256 gray levels of an image without its black and its white.

    Without them, because clipping makes pixels black or white, and borders are so in any window.
    """
    step = max(1, math.isqrt(values.size // SAMPLED_PIXELS))
    sample = values[::step, ::step]
    sample = sample.copy() if mask is None else sample[~mask[::step, ::step]]
    low, high = values.min(), values.max()
    sample -= low  # NumPy rejects bins that float32 cannot tell apart; near 0, it can
    shares = np.histogram(sample, 256, (0, high - low))[0][1:-1] / max(1, sample.size)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _windows(dataset: "Dataset") -> Iterator[Window]:
    """Yield the functions that apply each VOI LUT and window; they raise many types."""
    for item in dataset.get("VOILUTSequence") or []:
        yield partial(_look_up, dataset=item, prefix="LUT")
    function = (terms(dataset, "VOILUTFunction") or ["LINEAR"])[0]
    centers, widths = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    for center, width in zip_longest(centers, widths, fillvalue=math.nan):
        yield partial(_apply_window, center=center, width=width, function=function)


def _apply_window(
    values: NDArray[np.float32], offset: float, center: float, width: float, function: str
) -> NDArray[np.float32]:
    """Apply a window to `values` + `offset` (C.11.2.1.2, C.11.2.1.3). Raises ValueError if it is invalid."""
    is_wide_enough = width >= 1 if function == "LINEAR" else width > 0
    if not (is_wide_enough and math.isfinite(center) and math.isfinite(width)):
        raise ValueError
    center -= offset
    if function == "SIGMOID":
        windowed = values - center
        # In place: an image can have 40 million pixels.
        windowed *= -4
        windowed /= width
        np.exp(windowed, out=windowed)
        windowed += 1
        return np.reciprocal(windowed, out=windowed)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError
    # Not scaled: the image is stretched to its range, anyway.
    return np.clip(values, center - width / 2, center + width / 2)


def _is_inverted(rises: bool, dataset: "Dataset", messages: list[str]) -> bool:
    """Return whether the lowest values are white.

    `rises` says whether a higher stored value has a higher value after rescaling and window.

    - Raw detector data (Presentation Intent Type FOR PROCESSING) are shown with bone bright if the Pixel
      Intensity Relationship Sign says which values got less radiation (C.8.11.3.1.2): 1 is for
      higher values where there is more radiation, -1 for lower ones.
    - Otherwise MONOCHROME1 inverts (C.7.6.3.1.2), and so does the Presentation LUT Shape INVERSE
      (C.11.6, pydicom's `apply_presentation_lut`, dcm4che). Both together invert once: DX images must
      have both. IDENTITY does not undo MONOCHROME1, as in OHIF: dcm4che had to make that optional.
    """
    if terms(dataset, "PresentationIntentType") == ["FOR PROCESSING"]:
        messages.append(_RAW)
        sign = numbers(dataset, "PixelIntensityRelationshipSign")[:1]
        if sign in ([1], [-1], [65535]):  # 65535 is -1 in a file that has it as unsigned
            is_inverted = rises == (sign == [1])
            if is_inverted:
                messages.append(_RAW_INVERTED)
            return is_inverted
    is_monochrome1 = terms(dataset, "PhotometricInterpretation") == ["MONOCHROME1"]
    shape = terms(dataset, "PresentationLUTShape")
    if shape == ["IDENTITY" if is_monochrome1 else "INVERSE"]:
        messages.append(_CONTRADICTION)
    return is_monochrome1 or shape == ["INVERSE"]


def _apply_palettes(values: NDArray[np.float32], offset: float, dataset: "Dataset") -> NDArray[np.float32]:
    """Map values to colors [H, W, 3] (C.7.6.3.1.5).

    Raises InvalidImage if a palette is missing or segmented (C.7.9.2).
    """
    palettes = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
    if f"{palettes[0]}Data" not in dataset and f"Segmented{palettes[0]}Data" in dataset:
        raise InvalidImage(_SEGMENTED_PALETTE)
    if not all(f"{palette}{part}" in dataset for palette in palettes for part in ("Descriptor", "Data")):
        raise InvalidImage(_NO_PALETTE)
    return np.stack([_look_up(values, offset, dataset, palette) for palette in palettes], axis=-1)


def _look_up(
    values: NDArray[np.float32], offset: float, dataset: "Dataset", prefix: str
) -> NDArray[np.float32]:
    """Map `values` + `offset` through the table whose elements begin with `prefix` (C.11.1.1, C.7.6.3.1.5).

    The first value mapped is signed or not as the values are, whatever its value representation says. It
    is read as negative if some values are, or if all are below it otherwise.

    pydicom's own functions count the entries for a 12-bit image in 8 bits if the table's output has 8.
    """
    raw: Any = dataset.get_item(f"{prefix}Data")  # a RawDataElement: `_parse` converts no values
    byte_order = "<" if raw.is_little_endian else ">"
    descriptor = dataset[f"{prefix}Descriptor"].value
    if isinstance(descriptor, bytes):
        descriptor = np.frombuffer(descriptor, f"{byte_order}u2")
    n_entries, first_value, _ = (int(number) % 2**16 for number in descriptor)
    n_entries = n_entries or 2**16
    if first_value >= 2**15 and (values.min() + offset < 0 or values.max() + offset < first_value):
        first_value -= 2**16
    one_byte_each = 0 <= len(raw.value) - n_entries <= 1 < n_entries  # padded to an even length
    if one_byte_each and raw.VR == "OW" and not raw.is_little_endian:  # two entries in each swapped word
        table = np.frombuffer(raw.value, "u2").byteswap().view("u1")[:n_entries]
    else:
        table = np.frombuffer(raw.value, "u1" if one_byte_each else f"{byte_order}u2", n_entries)
    table = table.astype(np.float32)
    mapped = np.empty_like(values)
    # Row by row: the indices of the whole image would be the largest array.
    for row, mapped_row in zip(values, mapped, strict=True):
        indices = np.rint(row - np.float32(first_value - offset))
        np.take(table, np.clip(indices, 0, n_entries - 1).astype(np.intp), out=mapped_row)
    return mapped
