"""Limits on what is read, so that no file can fill the memory or keep a reader busy for hours."""

from fracture_lib.errors import InvalidImage

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MIN_SIDE",
    "check_file_size",
    "check_image_size",
    "too_large",
]

MIN_SIDE = 16  # the smallest radiograph of the training data has 58 pixels on its short side
MAX_SIDE = 65_535  # the longest side that a JPEG can have
# A radiograph of 35 x 43 cm scanned at 100 micrometres has 15 million; decoding WebP takes 20 bytes for each.
MAX_PIXELS = 40_000_000
MAX_BYTES = 64 * 2**20  # of a file; the page sets the same limit for uploads


def check_file_size(size: int) -> None:
    """Raise InvalidImage if a file of `size` bytes is empty or too large."""
    if size == 0:
        raise InvalidImage("The file is empty (0 bytes). Export or upload it again.")
    if size > MAX_BYTES:
        raise InvalidImage(
            f"The file is too large; the limit is {MAX_BYTES // 2**20} MB. "
            "Export a single image, compressed or scaled down."
        )


def check_image_size(width: int, height: int) -> None:
    """Raise InvalidImage if an image of `width` x `height` pixels is too small or too large."""
    if min(width, height) < MIN_SIDE:
        raise InvalidImage(
            f"The image is too small ({width}x{height}); the minimum is {MIN_SIDE}x{MIN_SIDE}."
        )
    if width * height > MAX_PIXELS:
        raise too_large(f"The image is too large ({width}x{height})")
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(
            f"The image is too large ({width}x{height}); the limit is {MAX_SIDE} pixels per side. "
            "Crop or scale it down."
        )


def too_large(problem: str) -> InvalidImage:
    """Return the error for too many pixels; `problem` says what has them."""
    return InvalidImage(f"{problem}; the limit is {MAX_PIXELS // 10**6} million pixels. Scale it down.")
