"""What Pillow does not do for JPEG files: complete one that lacks only its end, name an unsupported kind.

Markers and headers: ITU-T T.81, annex B.
"""

import re
from collections.abc import Callable
from itertools import islice

from PIL import Image

__all__ = ["START", "decode_without_end", "unsupported_kind", "with_one_exif_segment"]

START = b"\xff\xd8\xff"

_EXIF_HEADER = b"Exif\0\0"
_END = b"\xff\xd9"
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # sequential and progressive DCT
_LOSSLESS_HEADERS = (0xC3, 0xC7, 0xCB, 0xCF)
_JPEG_LS_HEADER = 0xF7  # ITU-T T.87
_NOT_FRAME_HEADERS = (0xC4, 0xC8, 0xCC)
_MAX_SEGMENTS = 1000  # that are examined
_SCAN_HEADER = re.compile(rb"\xff\xda")
_RESTARTS = tuple(range(0xD0, 0xD8))
_MAX_SCANS = 1000  # that are examined: four components of ten scans are usual
_BLOCK_ROWS = 256  # compared at once
_N_COEFFICIENTS = 64  # of a block


def with_one_exif_segment(data: bytes) -> bytes:
    """Rename all EXIF segments of a JPEG but the first: Pillow would join them to more than MAX_EXIF."""
    if not data.startswith(START) or data.count(_EXIF_HEADER) < 2:
        return data
    end = data.index(_EXIF_HEADER) + len(_EXIF_HEADER)
    return data[:end] + data[end:].replace(_EXIF_HEADER, _EXIF_HEADER.lower())


def unsupported_kind(data: bytes) -> str:
    """Return what kind of JPEG a file is, if it is one that libjpeg may not decode, or ""."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        if position + 5 > len(data) or data[position] != 0xFF:
            break
        marker, precision = data[position + 1], data[position + 4]
        if marker == _JPEG_LS_HEADER:
            return "JPEG-LS"
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAME_HEADERS:
            kind = "lossless JPEG" if marker in _LOSSLESS_HEADERS else "JPEG"
            if precision != 8:
                return f"{precision}-bit {kind}"
            return "" if marker in _FRAME_HEADERS else f"This kind of {kind}"
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return ""


def decode_without_end(data: bytes, decode: Callable[[bytes], Image.Image]) -> Image.Image | None:
    """Decode a JPEG that has all pixels but no end marker; return None if pixels are missing.

    libjpeg replaces missing pixels by gray or by what the following bytes happen to mean. Where these
    bytes change nothing, neither here nor after the next restart marker, no pixel is missing.
    """
    data = data.rstrip(b"\xff")
    if not _has_all_scans(data):
        return None
    start = _find_last(data, _RESTARTS)
    restart = b"\xff%c" % (0xD0 + (data[start + 1] + 1) % 8 if start >= 0 else 0xD0)
    images = [decode(data + filler + restart + filler + _END) for filler in (bytes(64), 64 * b"\xaa")]
    return images[0] if _are_equal(*images) else None


def _are_equal(image: Image.Image, other: Image.Image) -> bool:
    width, height = image.size
    boxes = ((0, top, width, min(top + _BLOCK_ROWS, height)) for top in range(0, height, _BLOCK_ROWS))
    return all(image.crop(box).tobytes() == other.crop(box).tobytes() for box in boxes)


def _find_last(data: bytes, markers: tuple[int, ...]) -> int:
    return max(data.rfind(bytes((0xFF, marker))) for marker in markers)


def _has_all_scans(data: bytes) -> bool:
    """Return whether there is a scan with the last bit of each coefficient of each component."""
    start = _find_last(data, _FRAME_HEADERS)  # those before are of previews
    if start < 0:
        return False
    components = data[start + 10 : start + 10 + 3 * data[start + 9] : 3]
    missing = {(component, i) for component in components for i in range(_N_COEFFICIENTS)}
    for scan in islice(_SCAN_HEADER.finditer(data, start), _MAX_SCANS):
        parameters = scan.start() + 5 + 2 * data[scan.start() + 4]
        first, last, approximation = data[parameters : parameters + 3]
        if approximation & 15 == 0:  # the position of the lowest bit
            scanned = data[scan.start() + 5 : parameters : 2]
            missing -= {(component, i) for component in scanned for i in range(first, last + 1)}
    return not missing
