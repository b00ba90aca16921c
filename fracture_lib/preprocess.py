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
MAX_PIXELS = 64_000_000  # a 35 x 43 cm film scanned at 100 micrometres has 15 million
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
        values = source
    elif isinstance(source, Image.Image):
        values = _decode(source)
    elif isinstance(source, (str, os.PathLike, bytes, bytearray)):
        data = _read_bytes(source)
        if is_dicom(data):
            values, about = read_dicom(data, MAX_PIXELS)
        else:
            with _open(data) as image:
                values = _decode(image)
    else:
        raise InvalidImage(
            f"A {type(source).__name__} is no picture: give a path, bytes, a Pillow image or an array."
        )
    grey, colour = _grey(values)
    return Film(_scale(grey), colour, **about)


def _read_bytes(source):
    if isinstance(source, (str, os.PathLike)):
        try:
            source = Path(source).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reason = getattr(error, "strerror", None) or error
            raise InvalidImage(f"Cannot open {Path(source).name!r}: {reason}.") from error
    if not source:
        raise InvalidImage("The file is empty (0 bytes): upload it again.")
    return bytes(source)


def _open(data):
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
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


def _decode(image):
    """Pillow image -> array [H, W] or [H, W, C], with only the pixel values that models may see."""
    try:
        if image.width * image.height > MAX_PIXELS:  # before any pixel is decoded
            raise InvalidImage(_too_large(f"A picture of {image.width}x{image.height}"))
        # A camera's MPO file is a JPEG with previews behind it; its first frame is the picture.
        if getattr(image, "is_animated", False) and image.format != "MPO":  # n_frames would walk them all
            raise InvalidImage("The file holds several frames: save the one film as a still PNG.")
        if image.mode == "CMYK":
            raise InvalidImage("The picture is in print colours (CMYK): save it as greyscale or RGB.")
        image = ImageOps.exif_transpose(image)
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        elif image.mode == "1" or image.mode in ("La", "RGBa", "RGBX", "YCbCr", "LAB", "HSV"):
            image = image.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
        return np.asarray(image)
    except InvalidImage:
        raise
    except Exception as error:  # Pillow's readers raise many types on damaged data
        raise InvalidImage(_DAMAGED) from error


def _grey(values):
    """Array [H, W] or [H, W, C] of numbers -> grey float32 [H, W] and its colour, as Film has it."""
    if values.dtype.kind not in "uif":
        raise InvalidImage(f"An array of {values.dtype} is no picture: use integers or floats.")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in (1, 2, 3, 4):
        raise InvalidImage(f"An array of shape {values.shape} is no picture: use [H, W] or [H, W, 1 to 4].")
    height, width, channels = values.shape
    if min(height, width) < MIN_SIDE:
        raise InvalidImage(
            f"The picture is {width}x{height} pixels: a film needs at least {MIN_SIDE} a side."
        )
    if height * width > MAX_PIXELS:
        raise InvalidImage(_too_large(f"An array of {width}x{height}"))
    if not np.isfinite(values).all():
        raise InvalidImage("The picture holds NaN or infinite values: replace them first.")
    opaque = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
    values = values.astype(np.float32)
    grey, colour = values[..., 0], 0.0
    if channels > 2:
        rgb = values[..., :3]
        # ITU-R 601 luma, as Pillow's own conversion to grey
        grey = rgb @ np.float32([0.299, 0.587, 0.114])
        colour = float(np.ptp(rgb, axis=-1).mean() / max(np.ptp(rgb), 1e-12))
    if channels in (2, 4):
        grey = grey * (values[..., -1] / np.float32(opaque))
    return grey, colour


def _scale(grey):
    low, high = float(grey.min()), float(grey.max())
    if not high > low:
        raise InvalidImage("The picture is one flat tone: there is nothing to see in it.")
    scaled = grey - low
    scaled /= high - low  # in place, as fresh memory costs more than the arithmetic on it
    return np.clip(scaled, 0, 1, out=scaled)
