"""Fill in what the Image Pixel Module of a DICOM file lacks (PS3.3 C.7.6.3), with a warning or an error.

Section numbers refer to the DICOM standard, PS3.
"""

import difflib
import re
from typing import TYPE_CHECKING, Any

from fracture_lib.errors import InvalidImage
from fracture_lib.io.limits import MAX_PIXELS, too_large

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "announced_frames",
    "check_size",
    "complete_bits",
    "complete_colors",
    "embedded_overlay_bits",
    "report_defaults",
]

# The defined terms of PS3.3 C.7.6.3.1.2, also the retired ones, by their letters and digits.
COLOR_TERMS = (
    *("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422", "YBR_PARTIAL_420"),
    *("HSV", "ARGB", "CMYK"),
)
TERMS = {
    re.sub(r"[ _]", "", term): term for term in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", *COLOR_TERMS)
}
UNSUPPORTED_TERMS = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_420")
BITS_ALLOCATED = (1, 8, 16, 32, 64)


def check_size(dataset: "Dataset") -> None:
    """Check Rows and Columns, which have no default. Raises InvalidImage, also for over MAX_PIXELS."""
    sides = {keyword: _integer(dataset, keyword) for keyword in ("Rows", "Columns")}
    if lacking := [keyword for keyword, side in sides.items() if not side or side < 0]:
        raise InvalidImage(f"The DICOM file lacks {_join(lacking)}. Export it again.")
    for keyword, side in sides.items():
        _set(dataset, keyword, side)
    if dataset.Rows * dataset.Columns > MAX_PIXELS:
        raise too_large(f"The image is too large ({dataset.Columns}x{dataset.Rows})")


def announced_frames(dataset: "Dataset", lacking: list[str]) -> int | None:
    """Return NumberOfFrames, or 1 if there is no such element (PS3.3 C.7.6.6).

    If it is invalid, return None and add its keyword to `lacking`.
    """
    if "NumberOfFrames" not in dataset:
        return 1
    n_frames = _integer(dataset, "NumberOfFrames")
    if n_frames is not None and n_frames >= 1:
        return n_frames
    lacking.append("NumberOfFrames")
    return None


def complete_colors(
    dataset: "Dataset",
    n_samples: int | None,
    n_bytes: int | None,
    lacking: list[str],
    default_term: str = "RGB",
) -> None:
    """Make SamplesPerPixel, PhotometricInterpretation and PlanarConfiguration valid (PS3.3 C.7.6.3.1).

    `n_samples` is the codestream's, if it says so; `n_bytes` the length of a frame that is not compressed;
    `default_term` is for colors. Adds the keywords of those that were missing or invalid to `lacking`. Raises
    InvalidImage.
    """
    term, is_exact = _photometric_term(dataset)
    samples = _integer(dataset, "SamplesPerPixel")
    if samples in (2, 4):
        raise InvalidImage(
            f"The DICOM file has {samples} values per pixel; 1 and 3 are supported. Export it in greyscale."
        )
    n_pixels = dataset.Rows * dataset.Columns
    sample_size = max(1, (_integer(dataset, "BitsAllocated") or 8) // 8)  # bytes
    has_three = n_bytes is not None and n_bytes >= 3 * n_pixels * sample_size
    expected = n_samples or samples
    if expected not in (1, 3):
        expected = 3 if term in COLOR_TERMS or (term is None and n_bytes == 3 * n_pixels) else 1
    elif expected == 1 and term in COLOR_TERMS and has_three:
        expected = 3
    if samples != expected:
        lacking.append("SamplesPerPixel")
    _set(dataset, "SamplesPerPixel", expected)
    if term is None or (expected == 3) != (term in COLOR_TERMS):
        is_exact = False
        if expected == 3:
            term = default_term
        else:
            term = "MONOCHROME1" if dataset.get("PresentationLUTShape") == "INVERSE" else "MONOCHROME2"
    if term in UNSUPPORTED_TERMS:
        raise InvalidImage("The DICOM file stores colours in an unsupported way. Export it in greyscale.")
    if term in ("YBR_FULL_422", "YBR_PARTIAL_422") and has_three:
        # Pixel data that were decompressed and keep the name of their subsampled colors
        term, is_exact = "YBR_FULL", False
    if not is_exact:
        lacking.append(f"PhotometricInterpretation ({term} is assumed)")
    _set(dataset, "PhotometricInterpretation", term)
    planar = _integer(dataset, "PlanarConfiguration")
    if expected == 3 and planar not in (0, 1) and n_bytes is not None:  # compressed pixels do not need it
        lacking.append("PlanarConfiguration")
    _set(dataset, "PlanarConfiguration", planar if expected == 3 and planar in (0, 1) else 0)


def complete_bits(dataset: "Dataset", precision: int | None, n_bytes: int | None, lacking: list[str]) -> None:
    """Make BitsAllocated, BitsStored, HighBit and PixelRepresentation valid (PS3.5 8.1.1).

    `precision` is the codestream's; `n_bytes` the length of a frame that is not compressed. Adds the
    keywords of those that were missing or invalid to `lacking`. Raises InvalidImage.
    """
    allocated, stored = _integer(dataset, "BitsAllocated"), _integer(dataset, "BitsStored")
    n_samples = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
    # 8 bits in 16, of which the file has only the 8
    is_half = allocated == 16 and (stored or 16) <= 8 and n_bytes in (n_samples, n_samples + n_samples % 2)
    if allocated not in BITS_ALLOCATED or (stored or 0) > allocated or is_half:
        derived = _derive_bits_allocated(dataset, stored, precision, n_bytes)
        if derived is None and allocated and 1 < allocated <= 64:
            raise InvalidImage(
                f"The DICOM file allocates {allocated} bits per value; 1, 8, 16, 32 and 64 are supported. "
                "Export it again."
            )
        if derived is None:
            raise InvalidImage("The DICOM file lacks BitsAllocated. Export it again.")
        if derived != allocated:
            lacking.append("BitsAllocated")
        allocated = derived
    high_bit = _integer(dataset, "HighBit")
    if stored is None or not 1 <= stored <= allocated:
        lacking.append("BitsStored")
        stored = allocated if high_bit is None or not 0 <= high_bit < allocated else high_bit + 1
    if high_bit is None or not stored - 1 <= high_bit < allocated:
        lacking.append("HighBit")
        high_bit = stored - 1
    is_signed = _integer(dataset, "PixelRepresentation")
    if is_signed not in (0, 1):
        lacking.append("PixelRepresentation")
        is_signed = 0
    _set(dataset, "BitsAllocated", allocated)
    _set(dataset, "BitsStored", stored)
    _set(dataset, "HighBit", high_bit)
    _set(dataset, "PixelRepresentation", is_signed)


def report_defaults(lacking: list[str], messages: list[str]) -> None:
    """Add one message with the keywords of all elements that were filled in."""
    if lacking:
        messages.append(f"The file has no valid {_join(lacking)}; defaults were used.")


def embedded_overlay_bits(dataset: "Dataset") -> list[int]:
    """Return the bits of the pixel cells that hold overlays: (60xx,0102), retired from PS3.3 C.9.2.

    Overlays with data of their own have one bit allocated, in (60xx,0100), and position 0.
    """
    bits = []
    for group in range(0x6000, 0x6020, 2):
        allocated, position = (_integer(dataset, (group, element)) for element in (0x0100, 0x0102))
        if position is not None and position >= 0 and (position > 0 if allocated is None else allocated > 1):
            bits.append(position)
    return bits


def _photometric_term(dataset: "Dataset") -> tuple[str | None, bool]:
    """Return the defined term that PhotometricInterpretation means, or None, and whether it is spelled so."""
    try:
        text = str(dataset.get("PhotometricInterpretation") or "")
    except Exception:  # undecodable
        return None, False
    if text in TERMS.values():
        return text, True
    key = re.sub(r"[^A-Z0-9]", "", text.upper())
    if key in TERMS:
        return TERMS[key], False
    if re.fullmatch("MONO.*[12]", key):
        return f"MONOCHROME{key[-1]}", False
    for close in difflib.get_close_matches(key[:20], TERMS, n=2, cutoff=0.85):
        if close[-1] == key[-1]:  # MONOCHROME1 and 2 are as close to MONOCHROME
            return TERMS[close], False
    return None, False


def _derive_bits_allocated(
    dataset: "Dataset", stored: int | None, precision: int | None, n_bytes: int | None
) -> int | None:
    """Return the bits allocated: from the codestream, the length of a frame or else the bits stored."""
    if precision is not None:
        return next((bits for bits in BITS_ALLOCATED[1:] if bits >= precision), None)
    n_samples = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
    for bits in BITS_ALLOCATED[1:]:
        length = n_samples * bits // 8
        if n_bytes in (length, length + length % 2):
            return bits
    if (_integer(dataset, "BitsAllocated") or 8) not in BITS_ALLOCATED:
        return None  # such as 12, packed
    return next((bits for bits in BITS_ALLOCATED[1:] if stored and bits >= stored), None)


def _integer(dataset: "Dataset", key: Any) -> int | None:
    """Return an element as an integer, or None if it is missing, empty or something else."""
    try:
        return int(dataset[key].value)
    except Exception:  # pydicom raises many types on elements that it cannot convert
        return None


def _set(dataset: "Dataset", keyword: str, value: Any) -> None:
    """Set an element, with its standard value representation, whatever the file gave it."""
    dataset.pop(keyword, None)
    setattr(dataset, keyword, value)


def _join(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
