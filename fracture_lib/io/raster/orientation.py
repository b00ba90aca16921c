"""Turn images upright, by the orientation of EXIF and TIFF: 1 to 8, where 1 is upright."""

from typing import Any

from numpy.typing import NDArray
from PIL import ExifTags, Image

__all__ = ["MAX_EXIF", "ORIENTATION", "exif_orientation", "exif_transpose", "turn_upright"]

MAX_EXIF = 65_535  # bytes, the most that one segment of a JPEG can hold; Pillow copies parts of it many times
ORIENTATION = int(ExifTags.Base.Orientation)

_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_upright(values: NDArray[Any], orientation: Any) -> NDArray[Any]:
    """Return an upright view of an array [H, W, ...]; `orientation` is a tag's value, valid or not."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def exif_orientation(image: Image.Image) -> Any:
    """Return the orientation of a decoded image; 1 if it has none that can be read."""
    if max(len(image.info.get(key, "")) for key in ("exif", "Raw profile type exif")) > MAX_EXIF:
        return 1
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types on damaged EXIF; the pixels are not affected
        return 1


def exif_transpose(image: Image.Image) -> Image.Image:
    """Turn a decoded image upright."""
    method = _METHODS.get(exif_orientation(image))
    return image if method is None else image.transpose(method)
