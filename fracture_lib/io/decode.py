"""Decode image files with Pillow, within limits: bytes -> open_image -> to_plain_channels."""

import io
from collections.abc import Mapping

from PIL import Image, ImageOps, UnidentifiedImageError

from fracture_lib.errors import InvalidImage
from fracture_lib.io.limits import MAX_PIXELS, check_image_size, too_large

__all__ = ["FORMATS", "MAX_EXIF", "open_image", "to_plain_channels"]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

MAX_GIF = 2 * 2**20  # bytes: Pillow's time grows with the square of a comment's length
MAX_READS = 50_000  # for one file: a PNG of 64 MB in chunks of the usual size needs 25,000
MAX_EXIF = 65_535  # bytes, the most that one segment of a JPEG can hold
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags

_EXIF_HEADER = b"Exif\0\0"
_DAMAGED = "The file is damaged or incomplete. Export or upload it again."

# Modes whose values are not plain gray or RGB, with or without alpha -> the mode to convert them to.
_PLAIN_MODES = {
    "1": "L",
    "P": "RGBA",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
}


class _BoundedFile(io.BytesIO):
    """A file in memory that allows a limited number of reads and of bytes.

    A few MB can hold millions of empty chunks, or thousands of tags that all point to the same MB.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads_left = MAX_READS
        self.bytes_left = 4 * len(data) + 1_000_000

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self.reads_left -= 1
        self.bytes_left -= len(chunk)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise InvalidImage("The file has too many parts. Save the image as a new PNG.")
        return chunk


def open_image(data: bytes) -> Image.Image:
    """Return the image in a file's bytes, its pixels not yet decoded. Raises InvalidImage."""
    if data.startswith(b"GIF8") and len(data) > MAX_GIF:
        raise InvalidImage(f"The GIF is too large; the limit is {MAX_GIF // 2**20} MB. Save it as PNG.")
    try:
        return Image.open(_BoundedFile(_with_one_exif_segment(data)), formats=FORMATS)
    except (InvalidImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise too_large("The image is too large") from error
    except UnidentifiedImageError as error:
        raise _unsupported(data) from error
    except Exception as error:  # Pillow raises many types on damaged headers
        raise InvalidImage(_DAMAGED) from error


def _with_one_exif_segment(data: bytes) -> bytes:
    """Rename all EXIF segments of a JPEG but the first: Pillow would join them to more than MAX_EXIF."""
    if not data.startswith(b"\xff\xd8") or data.count(_EXIF_HEADER) < 2:
        return data
    end = data.index(_EXIF_HEADER) + len(_EXIF_HEADER)
    return data[:end] + data[end:].replace(_EXIF_HEADER, _EXIF_HEADER.lower())


def _unsupported(data: bytes) -> InvalidImage:
    if b"<svg" in data[:4096].lower():
        return InvalidImage("SVG files are not supported. Save the image as PNG.")
    return InvalidImage(f"Unsupported file. Use DICOM, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def to_plain_channels(image: Image.Image) -> Image.Image:
    """Decode an image, turn it upright and convert it to gray or RGB, with or without alpha.

    Raises InvalidImage, if the image is too large before any pixel is decoded.
    """
    try:
        _check_before_decoding(image)
        image.load()  # before the EXIF is read, which may follow a PNG's pixels
        if max(len(image.info.get(key, "")) for key in ("exif", "Raw profile type exif")) <= MAX_EXIF:
            image = ImageOps.exif_transpose(image)
        return image.convert(_PLAIN_MODES[image.mode]) if image.mode in _PLAIN_MODES else image
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # Pillow raises many types on damaged data
        raise InvalidImage(_DAMAGED) from error


def _check_before_decoding(image: Image.Image) -> None:
    check_image_size(*image.size)
    tags: Mapping[int, int] = getattr(image, "tag_v2", {})
    # Pillow decodes the whole of a tile, however little of it belongs to the image.
    if tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) > MAX_PIXELS:
        raise too_large("A tile of the TIFF is too large")
    # A camera's MPO file is a JPEG followed by previews: its first frame is the image. `is_animated`
    # is cheap; `n_frames` would read all frames.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InvalidImage("The file has several frames. Save one of them as a still PNG.")
    if image.mode == "CMYK":
        raise InvalidImage("The image is in CMYK (print colours). Save it as greyscale or RGB.")
