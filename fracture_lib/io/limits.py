"""Limits on what is read, so that no file can fill the memory or keep a reader busy for hours."""

import io

from fracture_lib.errors import InvalidImage

__all__ = [
    "MAX_BYTES",
    "MAX_DECODED_BYTES",
    "MAX_PIXELS",
    "MAX_READS",
    "MAX_SIDE",
    "MIN_SIDE",
    "BoundedFile",
    "check_decoded_size",
    "check_file_size",
    "check_image_size",
    "too_large",
    "too_many_parts",
]

MIN_SIDE = 16  # the smallest radiograph of the training data has 58 pixels on its short side
MAX_SIDE = 65_535  # the longest side that a JPEG can have
# A radiograph of 35 x 43 cm scanned at 100 micrometres has 15 million; decoding WebP takes 20 bytes for each.
MAX_PIXELS = 40_000_000
MAX_DECODED_BYTES = 8 * MAX_PIXELS  # of all channels: RGBA of 16 bits, or float64
MAX_BYTES = 64 * 2**20  # of a file; the page sets the same limit for uploads
MAX_READS = 50_000  # for one file: a PNG of 64 MB in chunks of the usual size needs 25,000


class BoundedFile(io.BytesIO):
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
            raise too_many_parts()
        return chunk


def too_many_parts() -> InvalidImage:
    """Return the error for a file that takes too long to read for its size."""
    return InvalidImage("The file has too many parts. Save the image as a new PNG.")


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


def check_decoded_size(n_bytes: int) -> None:
    """Raise InvalidImage if the values of an image take more than MAX_DECODED_BYTES."""
    if n_bytes > MAX_DECODED_BYTES:
        raise InvalidImage(
            f"The image has too many values ({n_bytes // 10**6} MB uncompressed); "
            f"the limit is {MAX_DECODED_BYTES // 10**6} MB. Save it as a greyscale PNG, or scale it down."
        )


def too_large(problem: str) -> InvalidImage:
    """Return the error for too many pixels; `problem` says what has them."""
    return InvalidImage(f"{problem}; the limit is {MAX_PIXELS // 10**6} million pixels. Scale it down.")
