"""From any image source to the 128x128 array that every model takes. The only such path.

    path, bytes, file object, PIL image, array, tensor or pydicom Dataset
        -> load_image -> LoadedImage, grayscale [H, W] -> trim -> make_views -> [V, 128, 128]

Training, evaluation, the command line and the page all call it; nothing else resizes or scales an image.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.errors import InvalidImage
from fracture_lib.io.dicom.reader import DatasetLike, encode_dataset, is_dicom, read_dicom
from fracture_lib.io.framing import crop_borders, framing_warnings
from fracture_lib.io.grayscale import check_shape, stretch_range, to_grayscale
from fracture_lib.io.limits import MAX_BYTES, MAX_PIXELS, MAX_SIDE, check_file_size
from fracture_lib.io.raster.decode import FORMATS, DecodedImage, decode_file, to_plain_channels
from fracture_lib.io.views import INPUT_SIZE, VIEWS, View, make_views, shrink

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "INPUT_SIZE",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "PREPROCESSOR_CONFIG",
    "ImageSource",
    "LoadedImage",
    "content",
    "load_image",
    "preprocess",
    "trim",
]

READ_SIZE = 2**20  # bytes that a file object is asked for at once
MAX_ENLARGED = 4_000_000  # pixels of an image after it is enlarged to make its pixels square

# Lower case, with the dot: the suffixes of all files that `load_image` reads.
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS
) | {".jfif", ".mpo", ".dcm", ".dicom"}

_URL = re.compile("(?:[a-z][a-z0-9+.-]+:/|data:)", re.IGNORECASE)  # Path turns "//" into "/"

# Written beside every model as preprocessor_config.json and compared when one is loaded.
PREPROCESSOR_CONFIG = {
    "size": {"height": INPUT_SIZE, "width": INPUT_SIZE},
    "num_channels": 1,
    "do_convert_grayscale": True,
    "intensity": "per-image min-max to 0..1",
    "resample": int(Image.Resampling.BILINEAR),
    "do_pad": True,
    "pad_value": 0.0,
    "views": [{**asdict(view), "position": list(view.position)} for view in VIEWS],
}


@runtime_checkable
class BinaryFile(Protocol):
    """An object with a `read` method that returns bytes, as `open(path, "rb")` gives."""

    def read(self, size: int, /) -> bytes: ...


@runtime_checkable
class Tensor(Protocol):
    """A tensor of torch or TensorFlow, or what else NumPy can convert."""

    @property
    def shape(self) -> Iterable[Any]: ...

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]: ...


ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | BinaryFile
    | Image.Image
    | NDArray[Any]
    | Tensor
    | DatasetLike
)


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A decoded image in grayscale, at full size."""

    pixels: NDArray[np.float32]  # [H, W], the darkest value 0 and the brightest 1
    colorfulness: float = 0.0  # 0 to about 1: the deviation from one tint, which counts as gray
    modality: str | None = None  # of a DICOM file, such as "DX" or "CT"
    warnings: tuple[str, ...] = ()  # messages about what was corrected, ignored or guessed


def preprocess(source: ImageSource | LoadedImage, views: Sequence[View] = VIEWS) -> NDArray[np.float32]:
    """Return the model inputs for one image: float32 [V, 128, 128] in 0 to 1, one for each view.

    `source` is a LoadedImage or anything that `load_image` takes. Flat borders are cut off. Raises
    InvalidImage.
    """
    return make_views(content(source), views)


def content(source: ImageSource | LoadedImage, size: int = INPUT_SIZE) -> NDArray[np.float32]:
    """Return what views of `size` pixels are cut from: float32 [h, w] in 0 to 1 without flat borders.

    Raises InvalidImage.
    """
    image = source if isinstance(source, LoadedImage) else load_image(source)
    return shrink(_crop(image.pixels, crop_borders(image.pixels)), size)


def trim(image: LoadedImage) -> LoadedImage:
    """Cut flat borders off, stretch what is left to 0 to 1, and add warnings about unusual framing."""
    box = crop_borders(image.pixels)
    warnings = (*image.warnings, *framing_warnings(image.pixels, box))
    return replace(image, pixels=_crop(image.pixels, box), warnings=warnings)


def _crop(pixels: NDArray[np.float32], box: tuple[slice, slice]) -> NDArray[np.float32]:
    """Return what is in `box`, stretched to 0 to 1: a border must not set the range."""
    content = pixels[box]
    return pixels if content.shape == pixels.shape else stretch_range(content.copy())


def load_image(source: ImageSource) -> LoadedImage:
    """Decode an image at full size, in grayscale, its values stretched to 0 to 1.

    `source` is one of:
    - a path, the bytes of a file or an open binary file: an image in one of FORMATS, or DICOM; of several
      pages or frames the largest page or the first frame, with a warning
    - a pydicom Dataset, with or without `file_meta`
    - a Pillow image
    - an array of integers or floats, [H, W] or [H, W, C]; the channels are gray, gray and alpha, RGB
      or RGBA; masked pixels do not belong to the image and become black
    - a torch or TensorFlow tensor of the same shapes, on any device; a torch tensor may also be
      [C, H, W] with 1, 3 or 4 channels

    EXIF orientation is applied and alpha composited on black. Stretching to the image's own range gives
    a 16-bit image the same pixels as its 8-bit copy, whichever part of the 16 bits it uses, and clips
    nothing.

    Raises InvalidImage, whose message says what is wrong and what to do.
    """
    if isinstance(source, np.ndarray):
        # A matrix would keep two dimensions when reshaped.
        return _to_loaded_image(np.asarray(source), blank_mask=_blank_mask(source))
    if isinstance(source, Image.Image):
        return _load_decoded(to_plain_channels(source))
    if isinstance(source, (bytes, bytearray)):
        return _load_bytes(bytes(source))
    if isinstance(source, (str, os.PathLike)):
        return _load_bytes(_read_path(source))
    if isinstance(source, DatasetLike):
        return _load_bytes(encode_dataset(source))
    if isinstance(source, BinaryFile):
        return _load_bytes(_read_file(source))
    if isinstance(source, Tensor):
        return _to_loaded_image(_to_array(source))
    name = type(source).__name__
    if isinstance(source, Iterable) and not isinstance(source, Mapping):
        raise InvalidImage(
            f"Expected a path, bytes, PIL image or array; got {name}. Pass one image, or a list to `predict`."
        )
    raise InvalidImage(
        f"Expected a path, bytes, PIL image or array; got {name}. "
        "Open binary files, torch and TensorFlow tensors and pydicom Datasets work, too."
    )


def _blank_mask(array: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return bool [H, W], the pixels of a masked array with a masked channel; None for other arrays."""
    if not isinstance(array, np.ma.MaskedArray) or array.dtype.fields:
        return None
    width, height, channels = check_shape(array.shape)
    mask = np.ma.getmaskarray(array).reshape(height, width, channels)
    return np.logical_or.reduce(mask, axis=2, dtype=np.bool_)


def _load_bytes(data: bytes) -> LoadedImage:
    check_file_size(len(data))
    if is_dicom(data):
        image = read_dicom(data)
        shown = image.displayed
        return _to_loaded_image(
            shown.values, image.warnings, image.modality, shown.blank_mask, shown.pixel_aspect
        )
    return _load_decoded(decode_file(data))


def _load_decoded(image: DecodedImage) -> LoadedImage:
    try:
        return _to_loaded_image(image.values, image.warnings)
    except InvalidImage as error:  # such as a blank first frame
        raise InvalidImage(" ".join([str(error), *image.warnings])) from error


def _to_loaded_image(
    image: NDArray[Any] | Image.Image,
    warnings: Sequence[str] = (),
    modality: str | None = None,
    blank_mask: NDArray[np.bool_] | None = None,
    pixel_aspect: float = 1.0,
) -> LoadedImage:
    """Turn decoded values into a LoadedImage.

    `blank_mask` bool [H, W] marks pixels that do not belong to the image; they become black and do not
    count for the range. `pixel_aspect` is the height of a pixel divided by its width.
    """
    gray, colorfulness = to_grayscale(image, blank_mask)
    pixels = stretch_range(gray, blank_mask)
    return LoadedImage(_to_square_pixels(pixels, pixel_aspect), colorfulness, modality, tuple(warnings))


def _to_square_pixels(pixels: NDArray[np.float32], pixel_aspect: float) -> NDArray[np.float32]:
    """Resample an image whose pixels are not square.

    The image is enlarged, as in viewers; one that would have over MAX_ENLARGED pixels is shrunk instead.
    """
    if pixel_aspect == 1:
        return pixels
    height, width = pixels.shape
    enlarges = pixels.size * max(pixel_aspect, 1 / pixel_aspect) <= MAX_ENLARGED
    if (pixel_aspect > 1) == enlarges:
        height = max(1, round(height * pixel_aspect))
    else:
        width = max(1, round(width / pixel_aspect))
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0, 1)


def _read_path(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes, at most one more than MAX_BYTES."""
    try:
        with Path(path).open("rb") as file:
            # `read` allocates as much as it is asked for; a pipe's size is 0 here.
            size = os.fstat(file.fileno()).st_size or MAX_BYTES
            return file.read(min(size, MAX_BYTES) + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        if _URL.match(str(path)):
            raise InvalidImage("URLs are not accepted. Download the file and pass its path.") from error
        reason = getattr(error, "strerror", None) or error
        raise InvalidImage(f"Cannot open {Path(path).name!r}: {reason}.") from error


def _read_file(file: BinaryFile) -> bytes:
    """Return the bytes from the file's position on, at most READ_SIZE more than MAX_BYTES."""
    data = bytearray()
    while len(data) <= MAX_BYTES:
        try:
            chunk = file.read(READ_SIZE)
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise InvalidImage(f"Cannot read the file: {reason}.") from error
        if isinstance(chunk, str):
            raise InvalidImage('The file is open in text mode. Open it in binary mode, "rb".')
        if not chunk:
            break
        data += chunk
    if not data and _is_past_start(file):
        raise InvalidImage("The file object is at its end. Call `seek(0)` first.")
    return bytes(data)


def _is_past_start(file: Any) -> bool:
    try:
        return bool(file.tell() > 0)
    except (AttributeError, OSError, TypeError, ValueError):  # it cannot tell
        return False


def _to_array(tensor: Any) -> NDArray[Any]:
    """Return a tensor as an array [H, W] or [H, W, C], its size checked before it is copied."""
    is_torch = hasattr(tensor, "detach")
    try:
        shape = tuple(tensor.shape)
        channels_first = is_torch and len(shape) == 3 and shape[0] in (1, 3, 4)
        check_shape((*shape[1:], shape[0]) if channels_first else shape)
        if is_torch:
            tensor = tensor.detach().cpu()
            if tensor.is_floating_point():
                tensor = tensor.float()  # NumPy has no bfloat16
        array = np.asarray(tensor)
        if array.dtype.kind == "V":  # TensorFlow's bfloat16, a type of the package ml_dtypes
            array = array.astype(np.float32)
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # torch and TensorFlow raise many types for tensors without values
        raise InvalidImage(
            f"The {type(tensor).__name__} cannot be converted to an array. Convert it to NumPy first."
        ) from error
    return np.moveaxis(array, 0, -1) if channels_first else array
