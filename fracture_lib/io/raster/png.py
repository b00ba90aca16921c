"""Read what Pillow does not read of PNG files: 16 bits per channel, and files with large metadata.

Chunks and color types: PNG specification, third edition, sections 5 and 11.
"""

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from fracture_lib.io.limits import MAX_READS, check_decoded_size, too_many_parts
from fracture_lib.io.raster.orientation import exif_orientation, turn_upright

__all__ = ["SIGNATURE", "decode_deep", "has_deep_color", "without_metadata"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_EXIF_TEXT = 200_000  # bytes of a text chunk with the EXIF, in hexadecimal digits
BLOCK_PIXELS = 1_000_000  # converted at once

_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
_EXIF_KEYWORD = b"Raw profile type exif\0"  # ImageMagick's
# Pillow's raw mode of an image with several channels of 16 bits -> those that give its high and low bytes,
# and the bands that these are in. It takes the second byte of a little-endian sample for the high one.
_DEEP_MODES: dict[str, tuple[tuple[str, slice], tuple[str, slice]]] = {
    "RGB;16B": (("RGB;16B", slice(0, 3)), ("RGB;16L", slice(0, 3))),
    "RGBA;16B": (("RGBA;16B", slice(0, 4)), ("RGBA;16L", slice(0, 4))),
    "LA;16B": (("RGBA", slice(0, 4, 2)), ("RGBA", slice(1, 4, 2))),  # gray and alpha: four bytes, as RGBA
}


def without_metadata(data: bytes) -> tuple[bytes, int]:
    """Return a PNG with only the chunks that its first frame's pixels and orientation need, and its frames.

    Pillow would unpack the others, and reject the file if one is large. Raises InvalidImage if there are
    too many chunks. A file that is cut off keeps what there is of its last chunk.
    """
    kept, start, n_frames = [SIGNATURE], len(SIGNATURE), 1
    for _ in range(MAX_READS // 2):  # Pillow reads each chunk twice
        if start + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if kind in _PIXEL_CHUNKS or (kind in _TEXT_CHUNKS and _is_exif(data, start + 8, length)):
            kept.append(data[start:end])
        elif kind == b"acTL" and length == 8:
            n_frames = max(1, int.from_bytes(data[start + 8 : start + 12]))
        if kind == b"IEND":
            break
        start = end
    else:
        raise too_many_parts()
    return b"".join(kept), n_frames


def _is_exif(data: bytes, start: int, length: int) -> bool:
    return length <= MAX_EXIF_TEXT and data.startswith(_EXIF_KEYWORD, start)


def has_deep_color(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened PNG has several channels of 16 bits, of which Pillow drops the low bytes."""
    return bool(image.tile) and image.tile[0].args in _DEEP_MODES


def decode_deep(open_image: Callable[[], ImageFile.ImageFile]) -> NDArray[np.uint16]:
    """Return all 16 bits of an image with `has_deep_color`, upright: gray and alpha, RGB or RGBA, [H, W, C].

    `open_image` opens the file.
    """
    with open_image() as image:
        high, low = _DEEP_MODES[str(image.tile[0].args)]
        width, height, n_channels = *image.size, len(range(4)[high[1]])
    check_decoded_size(2 * n_channels * width * height)
    values = np.empty((height, width, n_channels), "<u2")
    pairs = values.view(np.uint8).reshape(height, width, n_channels, 2)
    step = max(1, BLOCK_PIXELS // width)
    for i, (raw_mode, bands) in enumerate((low, high)):
        with open_image() as image:
            image.tile = [image.tile[0]._replace(args=raw_mode)]
            image.load()
            for top in range(0, height, step):
                block = np.asarray(image.crop((0, top, width, min(top + step, height))))
                pairs[top : top + step, ..., i] = block[..., bands]
            orientation = exif_orientation(image)
    return turn_upright(values, orientation)
