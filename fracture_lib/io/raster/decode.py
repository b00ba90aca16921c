"""Decode image files, within limits: bytes -> decode_file; Pillow images -> to_plain_channels."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL import TiffImagePlugin as tiff_tags

from fracture_lib.errors import InvalidImage
from fracture_lib.io.limits import MAX_PIXELS, BoundedFile, check_image_size, too_large
from fracture_lib.io.raster import jpeg, png, tiff
from fracture_lib.io.raster.orientation import exif_transpose
from fracture_lib.io.raster.signatures import find_kind, has_signature_of_format

__all__ = ["FORMATS", "DecodedImage", "decode_file", "to_plain_channels"]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

MAX_GIF = 2 * 2**20  # bytes: Pillow's time grows with the square of a comment's length

_DAMAGED = "The file is damaged or incomplete. Export or upload it again."
_SEVERAL_FRAMES = "The file has several frames; only the first one is used."
_LOW_BYTES_DROPPED = "Pillow keeps 8 of the 16 bits per channel; pass the file's path to use all of them."

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


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An upright image with plain channels: gray or RGB, with or without alpha."""

    values: NDArray[Any] | Image.Image
    warnings: tuple[str, ...] = ()


def decode_file(data: bytes) -> DecodedImage:
    """Decode the image in a file's bytes: the largest page of a TIFF, the first frame of other formats.

    Keeps all bits of each value. Raises InvalidImage, if the image is too large before any pixel is decoded.
    """
    if data.startswith(b"GIF8") and len(data) > MAX_GIF:
        raise InvalidImage(f"The GIF is too large; the limit is {MAX_GIF // 2**20} MB. Save it as PNG.")
    try:
        if tiff.is_tiff(data):
            return _decode_tiff(data)
        if data.startswith(png.SIGNATURE):
            return _decode_png(data)
        with _open(jpeg.with_one_exif_segment(data)) as image:
            warnings = _frame_warnings(image)
            return DecodedImage(_load_plain(image), warnings)
    except (InvalidImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise too_large("The image is too large") from error
    except UnidentifiedImageError as error:
        raise _unreadable(data) from error
    except Exception as error:  # Pillow raises many types on damaged files
        if data.startswith(jpeg.START) and (complete := _decode_jpeg_without_end(data)):
            return DecodedImage(complete)
        raise _unreadable(data) from error


def to_plain_channels(image: Image.Image) -> DecodedImage:
    """Decode the current frame of a Pillow image, turn it upright and convert it to gray or RGB.

    Raises InvalidImage, if the image is too large before any pixel is decoded.
    """
    try:
        warnings = _frame_warnings(image) + _depth_warnings(image)
        white_is_zero = _is_white_zero(image)
        plain = _load_plain(image)
        return DecodedImage(_inverted(plain) if white_is_zero else plain, warnings)
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # Pillow raises many types on damaged data
        raise InvalidImage(_DAMAGED) from error


def _open(data: bytes) -> ImageFile.ImageFile:
    """Open a file in memory without decoding it."""
    return Image.open(BoundedFile(data), formats=FORMATS)


def _load_plain(image: Image.Image) -> Image.Image:
    check_image_size(*image.size)
    tags = getattr(image, "tag_v2", {})
    # Pillow decodes the whole of a tile, however little of it belongs to the image.
    if tags.get(tiff_tags.TILEWIDTH, 0) * tags.get(tiff_tags.TILELENGTH, 0) > MAX_PIXELS:
        raise too_large("A tile of the TIFF is too large")
    if image.mode == "CMYK":
        raise InvalidImage("The image is in CMYK (print colours). Save it as greyscale or RGB.")
    image.load()  # before the EXIF is read, which may follow a PNG's pixels
    image = exif_transpose(image)
    return image.convert(_PLAIN_MODES[image.mode]) if image.mode in _PLAIN_MODES else image


def _frame_warnings(image: Image.Image) -> tuple[str, ...]:
    # A camera's MPO file is a JPEG followed by previews: its first frame is the image. `is_animated`
    # is cheap; `n_frames` would read all frames.
    try:
        animated = getattr(image, "is_animated", False) and image.format != "MPO"
    except Exception:  # Pillow raises many types on a damaged second frame; the first is not affected
        return ()
    return (_SEVERAL_FRAMES,) if animated and image.tell() == 0 else ()


def _depth_warnings(image: Image.Image) -> tuple[str, ...]:
    # Known until the image is decoded: Pillow then has the high bytes only.
    tiles = getattr(image, "tile", ())
    drops_bytes = image.mode in ("RGB", "RGBA") and any(";16" in str(tile.args) for tile in tiles)
    return (_LOW_BYTES_DROPPED,) if drops_bytes else ()


def _decode_png(data: bytes) -> DecodedImage:
    pixels_only, n_frames = png.without_metadata(data)
    warnings = (_SEVERAL_FRAMES,) if n_frames > 1 else ()
    with _open(pixels_only) as image:
        check_image_size(*image.size)
        if not png.has_deep_color(image):
            return DecodedImage(_load_plain(image), warnings)
    return DecodedImage(png.decode_deep(partial(_open, pixels_only)), warnings)


def _decode_tiff(data: bytes) -> DecodedImage:
    pages = tiff.read_pages(data)
    page, warnings = tiff.select_page(pages)
    check_image_size(*page.size)
    samples = tiff.decode_samples(data, page)
    if samples is not None:
        return DecodedImage(samples, warnings)
    try:
        image = _open(tiff.with_first_page(data, page))
    except UnidentifiedImageError as error:
        raise tiff.unsupported(page) from error
    with image:
        return DecodedImage(_load_plain(image), warnings)


def _is_white_zero(image: Image.Image) -> bool:
    """Return whether Pillow opened a TIFF whose white is 0 and leaves it a negative."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(tiff_tags.PHOTOMETRIC_INTERPRETATION, 1) == 0 and image.mode in ("I;16", "F")


def _inverted(image: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)
    return -values if values.dtype.kind == "f" else ~values


def _decode_jpeg_without_end(data: bytes) -> Image.Image | None:
    def decode(complete: bytes) -> Image.Image:
        with _open(jpeg.with_one_exif_segment(complete)) as image:
            return _load_plain(image)

    try:
        return jpeg.decode_without_end(data, decode)
    except MemoryError:
        raise
    except Exception:  # Pillow raises many types on damaged files
        return None


def _unreadable(data: bytes) -> InvalidImage:
    if data.startswith(jpeg.START) and (kind := jpeg.unsupported_kind(data)):
        return InvalidImage(f"{kind} is not supported. Save it as PNG.")
    if has_signature_of_format(data):
        return InvalidImage(_DAMAGED)
    kind = find_kind(data)
    formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    return InvalidImage(f"Unsupported file{f' ({kind})' if kind else ''}. Use DICOM, {formats}.")
