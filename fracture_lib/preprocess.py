"""From any picture to the 128x128 array that all models read. The only such path.

    path, bytes, Pillow image or array -> read_film -> Film, grey [H, W] -> preprocess -> [128, 128]

Training, evaluation, the command line and the page call `preprocess`; nothing else resizes or
scales a film.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fracture_lib.dicom import is_dicom, read_dicom
from fracture_lib.errors import InvalidImage

__all__ = ["INPUT_SIZE", "PREPROCESSOR_CONFIG", "Film", "placement", "preprocess", "read_film"]

INPUT_SIZE = 128
MIN_SIDE = 16  # the smallest film of the training data has 58 pixels on its short side
MAX_SIDE = 65_535  # as many as a JPEG can have
# A 35 x 43 cm film scanned at 100 micrometres has 15 million; reading WebP takes 20 bytes of memory each.
MAX_PIXELS = 40_000_000
MAX_BYTES = 64 * 2**20  # of a file: as many as the page takes
MAX_GIF = 2 * 2**20  # bytes: Pillow takes a time that goes with the square of a comment's length
MAX_READS = 50_000  # of parts of a picture's file: a PNG of 64 MB in the usual pieces needs 25,000
BLOCK = 200_000  # pixels that are turned grey at once
MAX_EXIF = 65_535  # bytes, as many as one segment of a JPEG can have
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

# Written beside every model as preprocessor_config.json and compared when one is loaded.
PREPROCESSOR_CONFIG = {
    "size": {"height": INPUT_SIZE, "width": INPUT_SIZE},
    "num_channels": 1,
    "do_convert_grayscale": True,
    "intensity": "per-image min-max to 0..1",
    "resample": int(Image.Resampling.BILINEAR),
    "do_pad": True,
    "pad_value": 0.0,
}


@dataclass(frozen=True)
class Film:
    """A film as read."""

    pixels: np.ndarray  # grey float32 [H, W] at full size, the darkest value 0 and the brightest 1
    colour: float = 0.0  # mean distance between a pixel's largest and smallest channel, 0..1
    modality: str | None = None  # of a DICOM file, such as "DX" or "CT"
    notices: tuple[str, ...] = ()  # sentences about what reading left out


def preprocess(source):
    """Return the model input of one film: float32 [128, 128] in 0..1, black where padded.

    `source` is a Film or anything that `read_film` takes. The film is scaled to fit with its aspect
    kept and centred. Raises InvalidImage.
    """
    film = source if isinstance(source, Film) else read_film(source)
    rows, columns = placement(film.pixels.shape)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    # Pillow's bilinear filter widens when it shrinks a picture, so fine lines do not alias.
    scaled = np.asarray(Image.fromarray(film.pixels).resize(size, Image.Resampling.BILINEAR))
    pixels = np.zeros((INPUT_SIZE, INPUT_SIZE), np.float32)
    pixels[rows, columns] = np.clip(scaled, 0, 1)
    return pixels


def placement(shape):
    """Shape (H, W) of a film -> slices of rows and columns that it fills in the model input."""
    scale, slices = INPUT_SIZE / max(shape), []
    for side in shape:
        length = max(1, round(side * scale))
        start = (INPUT_SIZE - length) // 2
        slices.append(slice(start, start + length))
    return tuple(slices)


def read_film(source):
    """Return the Film in `source`, at full size.

    `source` is a path or the bytes of a file (a picture or DICOM), a Pillow image, or an array
    [H, W] or [H, W, C] with 1 to 4 channels (grey, grey + alpha, RGB, RGBA) of integers or floats.
    EXIF orientation is applied and alpha laid over black. Scaling by the film's own range gives a
    16-bit film the same input as its 8-bit copy, whichever part of the 16 bits it uses, and clips
    nothing.

    Raises InvalidImage with a sentence that says what is wrong.
    """
    about = {}
    if isinstance(source, np.ndarray):
        grey, colour = _grey(source)
    elif isinstance(source, Image.Image):
        grey, colour = _grey(_decode(source))
    elif isinstance(source, (str, os.PathLike, bytes, bytearray)):
        data = _read_bytes(source)
        if is_dicom(data):
            values, about = read_dicom(data, MAX_PIXELS)
            grey, colour = _grey(values)
        else:
            with _open(data) as image:
                grey, colour = _grey(_decode(image))
    else:
        raise InvalidImage(
            f"A {type(source).__name__} is no picture: give a path, bytes, a Pillow image or an array."
        )
    return Film(_scale(grey), colour, **about)


def _read_bytes(source):
    if isinstance(source, (str, os.PathLike)):
        try:
            with Path(source).open("rb") as file:
                size = os.fstat(file.fileno()).st_size or MAX_BYTES  # a pipe does not say
                source = file.read(min(size, MAX_BYTES) + 1)  # which makes room for all that it may return
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reason = getattr(error, "strerror", None) or error
            raise InvalidImage(f"Cannot open {Path(source).name!r}: {reason}.") from error
    if not source:
        raise InvalidImage("The file is empty (0 bytes): upload it again.")
    if len(source) > MAX_BYTES:
        raise InvalidImage(
            f"The file has over {MAX_BYTES // 2**20} MB: export the one film, compressed or scaled down."
        )
    return bytes(source)


class _Bounded(io.BytesIO):
    """The bytes of a picture, for readers that some files would keep busy for hours or fill the memory of.

    A few MB can hold millions of empty parts, or thousands of tags whose values are all the same MB.
    """

    def __init__(self, data):
        super().__init__(data)
        self.reads, self.bytes = MAX_READS, 4 * len(data) + 1_000_000

    def read(self, size=-1):
        part = super().read(size)
        self.reads -= 1
        self.bytes -= len(part)
        if self.reads < 0 or self.bytes < 0:
            raise InvalidImage("The picture's file is in too many parts: save it as a new PNG.")
        return part


def _open(data):
    # Pillow would join the EXIF of many segments, which MAX_EXIF is there to prevent.
    if data.startswith(b"\xff\xd8") and data.count(b"Exif\0\0") > 1:
        first = data.index(b"Exif\0\0") + 6
        data = data[:first] + data[first:].replace(b"Exif\0\0", b"exif\0\0")
    if data.startswith(b"GIF8") and len(data) > MAX_GIF:
        raise InvalidImage(f"The GIF has over {MAX_GIF // 2**20} MB: save it as PNG.")
    try:
        return Image.open(_Bounded(data), formats=FORMATS)
    except (InvalidImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InvalidImage(_too_large("The picture")) from error
    except Image.UnidentifiedImageError as error:
        if b"<svg" in data[:4096].lower():
            raise InvalidImage("An SVG is a drawing, not a film: save it as PNG.") from error
        raise InvalidImage(
            f"This is not a picture that can be read: use DICOM, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from error
    except Exception as error:  # a damaged header makes Pillow's readers raise many types
        raise InvalidImage(_DAMAGED) from error


_DAMAGED = "The picture is damaged or cut short: export or upload it again."


def _too_large(what):
    return f"{what} has over {MAX_PIXELS // 10**6} million pixels: scale it down first."


def _check_size(what, width, height):
    """Raise InvalidImage if a film has no such size."""
    if min(width, height) < MIN_SIDE:
        raise InvalidImage(
            f"The picture is {width}x{height} pixels: a film needs at least {MIN_SIDE} a side."
        )
    if width * height > MAX_PIXELS:
        raise InvalidImage(_too_large(f"{what} of {width}x{height}"))
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(f"{what} of {width}x{height} is no film: cut it to at most {MAX_SIDE} a side.")


def _decode(image):
    """Pillow image -> one of 1 to 4 plain channels, upright, with only the pixels that models may see."""
    try:
        _check_size("A picture", *image.size)  # before any pixel is decoded
        tags = getattr(image, "tag_v2", {})
        # A tile is decoded whole, however little of it shows.
        if tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) > MAX_PIXELS:
            raise InvalidImage(_too_large("A tile of the TIFF"))
        # A camera's MPO file is a JPEG with previews behind it; its first frame is the picture.
        if getattr(image, "is_animated", False) and image.format != "MPO":  # n_frames would walk them all
            raise InvalidImage("The file holds several frames: save the one film as a still PNG.")
        if image.mode == "CMYK":
            raise InvalidImage("The picture is in print colours (CMYK): save it as greyscale or RGB.")
        image.load()  # a PNG's EXIF may follow its pixels
        if max(len(image.info.get(key, "")) for key in ("exif", "Raw profile type exif")) <= MAX_EXIF:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        elif image.mode == "1" or image.mode in ("La", "RGBa", "RGBX", "YCbCr", "LAB", "HSV"):
            image = image.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
        return image
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise many types on damaged data
        raise InvalidImage(_DAMAGED) from error


def _grey(picture):
    """Array [H, W] or [H, W, C] or plain Pillow image -> grey float32 [H, W] and its colour, as Film has it.

    It goes by blocks of rows: a copy of all channels in float32 would be by far the largest thing in memory.
    """
    width, height, channels = _shape(picture)
    grey, spread, low, high = np.empty((height, width), np.float32), 0.0, np.inf, -np.inf
    step = max(1, BLOCK // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        values = _rows(picture, rows)
        opaque = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
        with np.errstate(over="ignore", invalid="ignore"):  # _scale finds what overflows
            values = values.reshape(-1, width, channels)
            grey[rows] = values[..., 0]
            if channels > 1:
                values = values.astype(np.float32, copy=False)
            if channels > 2:
                rgb = values[..., :3]
                grey[rows] = rgb @ np.float32([0.299, 0.587, 0.114])  # ITU-R 601 luma, as Pillow's own
                red, green, blue = np.moveaxis(rgb, -1, 0)  # np.ptp is slow along so short an axis
                spread += float(np.maximum(np.maximum(red, green), blue).sum(dtype=np.float64))
                spread -= float(np.minimum(np.minimum(red, green), blue).sum(dtype=np.float64))
                low, high = min(low, float(rgb.min())), max(high, float(rgb.max()))
            if channels in (2, 4):
                grey[rows] *= values[..., -1] / np.float32(opaque)
    return grey, spread / (width * height) / max(high - low, 1e-12)


def _shape(picture):
    """Width, height and channels of an array, if it can be a picture, or of a Pillow image."""
    if isinstance(picture, Image.Image):
        return *picture.size, len(picture.getbands())
    if picture.dtype.kind not in "uif":
        raise InvalidImage(f"An array of {picture.dtype} is no picture: use integers or floats.")
    height, width, channels = (*picture.shape, 1)[:3] if picture.ndim in (2, 3) else (0, 0, 0)
    if channels not in (1, 2, 3, 4):
        raise InvalidImage(f"An array of shape {picture.shape} is no picture: use [H, W] or [H, W, 1 to 4].")
    _check_size("An array", width, height)
    return width, height, channels


def _rows(picture, rows):
    if isinstance(picture, Image.Image):
        return np.asarray(picture.crop((0, rows.start, picture.width, rows.stop)))
    return picture[rows]


def _scale(grey):
    low, high = float(grey.min()), float(grey.max())
    if not abs(high - low) <= float(np.finfo(np.float32).max):
        raise InvalidImage("The picture holds NaN, infinite or nearly infinite values: replace them first.")
    if high == low:
        raise InvalidImage("The picture is one flat tone: there is nothing to see in it.")
    grey -= low  # in place, as fresh memory costs more than the arithmetic on it
    grey /= grey.max()  # not high - low, which is rounded otherwise: so nothing exceeds 1
    return grey
