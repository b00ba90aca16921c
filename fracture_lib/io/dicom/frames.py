"""Find the frames in the pixel data of a DICOM file, and what their codestreams say about themselves.

Section numbers refer to the DICOM standard, PS3.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from fracture_lib.errors import InvalidImage

if TYPE_CHECKING:
    from pydicom.uid import UID

__all__ = ["DAMAGED", "Codestream", "is_encapsulated", "parse_codestream", "parse_rle", "split_frames"]

DAMAGED = "The DICOM file is damaged, incomplete or compressed in a rare way. Export it again, uncompressed."
MAX_FRAGMENTS = 100_000  # each costs a microsecond, and 64 MB could hold 8 million empty ones

_FIRST_ITEM = b"\xfe\xff\x00\xe0"
_JPEG = b"\xff\xd8\xff"
_JPEG_2000 = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  "  # the first box of a JP2 file, which some codestreams have against PS3.5 A.4.4
_TOO_MANY_FRAGMENTS = "The DICOM file has too many fragments. Export one frame of it, uncompressed."


@dataclass(frozen=True)
class Codestream:
    """One compressed frame and what its header says, whatever the elements of the file say."""

    data: bytes
    syntax: "UID"  # by which to decode it
    rows: int | None
    columns: int | None
    samples: int | None  # per pixel; None: not in the header, as for RLE
    precision: int  # bits per sample


def is_encapsulated(data: bytes) -> bool:
    """Return whether pixel data begin as compressed ones do, with an item (PS3.5 A.4)."""
    return data.startswith(_FIRST_ITEM)


def split_frames(data: bytes, syntax: "UID", limit: int) -> tuple[list[list[bytes]], int]:
    """Return the fragments of each of the first `limit` compressed frames, and the number of all (PS3.5 A.4).

    A frame begins where a codestream does. The offset tables and the number of frames, which are
    often wrong, are not needed. Raises InvalidImage for more than MAX_FRAGMENTS.
    """
    from pydicom.encaps import generate_fragments
    from pydicom.uid import RLELossless

    begins: Callable[[bytes], bool] = _begins_rle if syntax == RLELossless else _begins_jpeg
    frames: list[list[bytes]] = []
    n_frames = 0
    fragments = generate_fragments(data)
    next(fragments)  # the Basic Offset Table
    for fragment in islice(fragments, MAX_FRAGMENTS):
        if n_frames == 0 or begins(fragment):
            n_frames += 1
            if n_frames <= limit:
                frames.append([])
        if n_frames <= limit:
            frames[-1].append(fragment)
    if next(fragments, None) is not None:
        raise InvalidImage(_TOO_MANY_FRAGMENTS)
    return frames, n_frames


def _begins_jpeg(fragment: bytes) -> bool:
    """Return whether a fragment begins with the start of a codestream, which does not occur inside one."""
    return fragment.startswith((_JPEG, _JPEG_2000, _JP2))


def _begins_rle(fragment: bytes) -> bool:
    """Return whether a fragment begins with an RLE header: the number of segments and their offsets (G.5)."""
    n_segments, *offsets = struct.unpack("<16I", fragment[:64].ljust(64, b"\0"))
    return 1 <= n_segments <= 15 and offsets[0] == 64 and not any(offsets[n_segments:])


def parse_rle(data: bytes, samples: int, syntax: "UID") -> Codestream:
    """Return a frame compressed with RLE, which has one segment for each byte of a pixel (PS3.5 G.2)."""
    n_segments = int.from_bytes(data[:4], "little")
    n_bytes, rest = divmod(n_segments, samples)
    if rest or n_bytes not in (1, 2, 4, 8):
        raise InvalidImage(DAMAGED)
    return Codestream(data, syntax, None, None, None, 8 * n_bytes)


def parse_codestream(data: bytes, syntax: "UID") -> Codestream:
    """Return a JPEG, JPEG-LS or JPEG 2000 codestream with its size, samples and precision.

    `syntax` is the one that the file names; where it names another kind, the codestream counts.
    """
    from pydicom.uid import (
        JPEG2000,
        JPEG2000TransferSyntaxes,
        JPEGBaseline8Bit,
        JPEGExtended12Bit,
        JPEGLossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEGLSTransferSyntaxes,
    )

    # Skip the boxes of JP2: pydicom can loop over them forever.
    if (start := data.find(_JPEG_2000)) >= 0 and not data.startswith(_JPEG):  # ISO/IEC 15444-1 A.5.1
        data = data[start:]
        right, bottom, left, top, samples, precision = struct.unpack(">4I16xHB", data[8:43])
        rows, columns = bottom - top, right - left
        if not (0 < rows <= 65535 and 0 < columns <= 65535):
            raise InvalidImage(DAMAGED)
        syntax = syntax if syntax in JPEG2000TransferSyntaxes else JPEG2000
        return Codestream(data, syntax, rows, columns, samples, precision % 128 + 1)
    # Tables and comments, then the frame header: ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2
    offset = 2
    while re.match(rb"\xff[\xc4\xcc\xdb\xdd\xe0-\xef\xfe]", data[offset : offset + 2]):
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4])
    marker, precision, rows, columns, samples = struct.unpack(">H2xBHHB", data[offset : offset + 10])
    if marker == 0xFFF7:
        syntax = syntax if syntax in JPEGLSTransferSyntaxes else JPEGLSLossless
    elif marker == 0xFFC3:
        syntax = syntax if syntax in (JPEGLossless, JPEGLosslessSV1) else JPEGLossless
    elif marker in (0xFFC0, 0xFFC1, 0xFFC2):
        syntax = JPEGBaseline8Bit if precision == 8 else JPEGExtended12Bit
    else:
        raise InvalidImage(DAMAGED)
    return Codestream(data, syntax, rows, columns, samples, precision)
