"""Files and arrays that are no film, and a word that the sentence about each must hold.

The library, the command line and the page are tested with the same table.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from fracture_lib.drawing import draw_film


def saved(image, kind="PNG", **options):
    """The bytes of a file that holds a Pillow image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _bomb():
    """A PNG header that announces 20,000 x 20,000 pixels, in a few bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


_film = draw_film("Spiral", width=64, height=96)

BAD_FILES = {
    "text.png": (b"this is a note, not a film", "not a picture"),
    "truncated.png": (saved(_film, "PNG")[:2000], "cut short"),
    "truncated.jpg": (saved(_film, "JPEG")[:900], "cut short"),
    "header-only.png": (b"\x89PNG\r\n\x1a\n", "picture"),
    "empty.png": (b"", "empty"),
    "one-pixel.png": (saved(Image.new("L", (1, 1)), "PNG"), "1x1"),
    "bomb.png": (_bomb(), "million pixels"),
    "animated.gif": (
        saved(_film, "GIF", save_all=True, append_images=[_film.rotate(90), _film.rotate(180)]),
        "several frames",
    ),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', "SVG"),
    "cmyk.jpg": (saved(_film.convert("CMYK"), "JPEG"), "CMYK"),
    "report.dcm": (bytes(128) + b"DICM", "no picture"),
    "flat.png": (saved(Image.new("L", (64, 64), 90), "PNG"), "flat tone"),
}

BAD_ARRAYS = {
    "nan": (np.full((64, 64), np.nan), "NaN"),
    "one infinity": (np.where(np.eye(64) > 0, np.inf, 0), "infinite"),
    "text": (np.full((64, 64), "x"), "<U1"),
    "objects": (np.full((64, 64), None), "object"),
    "complex": (np.ones((64, 64), complex), "complex128"),
    "booleans": (np.eye(64, dtype=bool), "bool"),
    "a vector": (np.arange(64), r"\(64,\)"),
    "five channels": (np.ones((64, 64, 5)), r"\(64, 64, 5\)"),
    "no pixels": (np.ones((0, 64)), "64x0"),
}
