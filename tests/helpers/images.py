"""Image files in memory."""

import io
from typing import Any

from PIL import Image


def encode_image(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of a file that holds a Pillow image; `options` are those of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
