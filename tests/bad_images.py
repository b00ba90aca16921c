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


def _chunk(kind, data=b""):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _bomb():
    """A PNG header that announces 20,000 x 20,000 pixels, in a few bytes."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT") + _chunk(b"IEND")


def _tiff(entries):
    """A TIFF of a directory alone: rows of tag, type, count, value or offset."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + rows + bytes(4)


def _huge_tile():
    """A TIFF of 64x64 pixels in the corner of one tile of 30,000 x 30,000."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: 99}
    return _tiff([(tag, 4, 1, value) for tag, value in tags.items()])


def _second_directory():
    """A TIFF whose second directory is empty, which Pillow takes for a frame without a size."""
    data = bytearray(saved(_film, "TIFF"))
    directory = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[directory : directory + 2], "little")
    after = directory + 2 + 12 * entries
    data[after : after + 4] = len(data).to_bytes(4, "little")
    return bytes(data) + bytes(6)


_film = draw_film("Spiral", width=64, height=96)
_animated = saved(_film, "GIF", save_all=True, append_images=[_film.rotate(90), _film.rotate(180)])
_png, _jpeg = saved(_film), saved(_film, "JPEG")

BAD_FILES = {
    "text.png": (b"this is a note, not a film", "not a picture"),
    "truncated.png": (saved(_film, "PNG")[:2000], "cut short"),
    "truncated.jpg": (saved(_film, "JPEG")[:900], "cut short"),
    "header-only.png": (b"\x89PNG\r\n\x1a\n", "picture"),
    "empty.png": (b"", "empty"),
    "one-pixel.png": (saved(Image.new("L", (1, 1)), "PNG"), "1x1"),
    "bomb.png": (_bomb(), "million pixels"),
    "animated.gif": (_animated, "several frames"),
    "cut-in-the-second-frame.gif": (_animated[: _animated.index(b"!\xf9") + 1], "damaged"),
    "second-directory.tif": (_second_directory(), "several frames"),
    "chunks.png": (_png[:33] + 30_000 * _chunk(b"teSt") + _png[33:], "too many parts"),
    "comments.jpg": (_jpeg[:2] + 30_000 * b"\xff\xfe\0\2" + _jpeg[2:], "too many parts"),
    # 2,000 tags whose values are all the same 100 kB
    "tags.tif": (
        _tiff([(tag, 1, 100_000, 0) for tag in range(1000, 3000)]) + bytes(100_000),
        "too many parts",
    ),
    "tile.tif": (_huge_tile(), "tile of the TIFF has over 40 million"),
    "comment.gif": (saved(_film, "GIF", comment=b"") + bytes(2**21), "GIF has over 2 MB"),
    "strip.png": (saved(Image.new("1", (65_536, 16))), "at most 65535 a side"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', "SVG"),
    "cmyk.jpg": (saved(_film.convert("CMYK"), "JPEG"), "CMYK"),
    "report.dcm": (bytes(128) + b"DICM", "no picture"),
    "flat.png": (saved(Image.new("L", (64, 64), 90), "PNG"), "flat tone"),
}

BAD_ARRAYS = {
    "nan": (np.full((64, 64), np.nan), "NaN"),
    "one infinity": (np.where(np.eye(64) > 0, np.inf, 0), "infinite"),
    "nearly infinite": (np.linspace(-3e38, 3e38, 4096, dtype=np.float32).reshape(64, 64), "infinite"),
    "beyond float32": (np.linspace(0, 1e300, 4096).reshape(64, 64), "infinite"),
    "text": (np.full((64, 64), "x"), "<U1"),
    "objects": (np.full((64, 64), None), "object"),
    "complex": (np.ones((64, 64), complex), "complex128"),
    "booleans": (np.eye(64, dtype=bool), "bool"),
    "a vector": (np.arange(64), r"\(64,\)"),
    "five channels": (np.ones((64, 64, 5)), r"\(64, 64, 5\)"),
    "no pixels": (np.ones((0, 64)), "64x0"),
}
