"""Files and arrays that are not valid images, each with a pattern that its error message must match.

The library, the command line and the page are all tested with BAD_FILES.
"""

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidImage
from fracture_lib.io.image import ImageSource, load_image
from tests.helpers.images import encode_image, png_chunk


def error_message(source: ImageSource) -> str:
    """Return the message with which `load_image` rejects an image: one line that ends with a full stop."""
    with pytest.raises(InvalidImage) as caught:
        load_image(source)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def _decompression_bomb() -> bytes:
    """A few bytes of PNG whose header announces 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT") + png_chunk(b"IEND")


def _tiff(entries: list[tuple[int, int, int, int]]) -> bytes:
    """A TIFF with a directory only; an entry is tag, type, count, value or offset."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + rows + bytes(4)


def _huge_tile() -> bytes:
    """A TIFF of 64x64 pixels in the corner of one tile of 30,000 x 30,000."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: 99}
    return _tiff([(tag, 4, 1, value) for tag, value in tags.items()])


_IMAGE = synthetic_radiograph("Spiral", width=64, height=96)
_PNG, _JPEG = encode_image(_IMAGE), encode_image(_IMAGE, "JPEG")

# File name -> (bytes, pattern of the message)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "text.png": (b"this is a note, not an image", "Unsupported file"),
    "truncated.png": (_PNG[:2000], "incomplete"),
    "truncated.jpg": (_JPEG[:900], "incomplete"),
    "header-only.png": (b"\x89PNG\r\n\x1a\n", "incomplete"),
    "empty.png": (b"", "empty"),
    "one-pixel.png": (encode_image(Image.new("L", (1, 1))), "too small .1x1."),
    "bomb.png": (_decompression_bomb(), "million pixels"),
    "chunks.png": (_PNG[:33] + 30_000 * png_chunk(b"teSt") + _PNG[33:], "too many parts"),
    "comments.jpg": (_JPEG[:2] + 30_000 * b"\xff\xfe\0\2" + _JPEG[2:], "too many parts"),
    # 2,000 tags that all point to the same 100 kB
    "tags.tif": (
        _tiff([(tag, 1, 100_000, 0) for tag in range(1000, 3000)]) + bytes(100_000),
        "too many parts",
    ),
    "tile.tif": (_huge_tile(), "tile of the TIFF is too large; the limit is 40 million"),
    "comment.gif": (encode_image(_IMAGE, "GIF", comment=b"") + bytes(2**21), "GIF is too large"),
    "strip.png": (encode_image(Image.new("1", (65_536, 16))), "65535 pixels per side"),
    "vector.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', "SVG"),
    "cmyk.jpg": (encode_image(_IMAGE.convert("CMYK"), "JPEG"), "CMYK"),
    "report.dcm": (bytes(128) + b"DICM", "no image"),
    "blank.png": (encode_image(Image.new("L", (64, 64), 90)), "blank"),
}

# What is wrong -> (array, pattern of the message)
BAD_ARRAYS: dict[str, tuple[NDArray[Any], str]] = {
    "nan": (np.full((64, 64), np.nan), "NaN"),
    "infinity": (np.where(np.eye(64) > 0, np.inf, 0), "infinite"),
    "nearly-infinite": (np.linspace(-3e38, 3e38, 4096, dtype=np.float32).reshape(64, 64), "infinite"),
    "beyond-float32": (np.linspace(0, 1e300, 4096).reshape(64, 64), "infinite"),
    "text": (np.full((64, 64), "x"), "<U1"),
    "objects": (np.full((64, 64), None), "object"),
    "complex": (np.ones((64, 64), complex), "complex128"),
    "booleans": (np.eye(64, dtype=bool), "bool"),
    "vector": (np.arange(64), r"\(64,\)"),
    "five-channels": (np.ones((64, 64, 5)), r"\(64, 64, 5\)"),
    "no-pixels": (np.ones((0, 64)), "64x0"),
}
