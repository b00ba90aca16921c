import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.io.decode import MAX_EXIF
from fracture_lib.io.image import load_image
from tests.helpers.images import encode_image

ORIENTATION, MAKE = 0x0112, 0x010F  # EXIF tags


@pytest.fixture
def image():
    """A drawn radiograph: Pillow image, mode L, 120x240."""
    return synthetic_radiograph("Oblique", width=120, height=240)


def pixels_of(data):
    return load_image(data).pixels


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_decode_of_lossless_format_gives_the_same_pixels(image, format):
    # A GIF's gray values come out of a palette of colors.
    np.testing.assert_allclose(pixels_of(encode_image(image, format)), pixels_of(image), atol=1e-6)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_decode_of_lossy_format_gives_close_pixels(image, format):
    assert np.abs(pixels_of(encode_image(image, format, quality=95)) - pixels_of(image)).mean() < 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_with_exif_orientation_turns_the_image_upright(image, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = image.transpose(undo[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    np.testing.assert_array_equal(pixels_of(encode_image(stored, exif=exif)), pixels_of(image))


def test_decode_with_exif_over_limit_ignores_it(image):
    """Pillow would keep copying parts of it."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "m" * MAX_EXIF
    np.testing.assert_array_equal(pixels_of(encode_image(image, exif=exif)), pixels_of(image))


def test_decode_of_jpeg_with_many_exif_segments_uses_the_first(image):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode_image(image, "JPEG", exif=exif)
    expected = pixels_of(data)
    assert expected.shape == (120, 240)  # turned
    start = data.index(b"Exif\0\0")
    end = start - 2 + int.from_bytes(data[start - 2 : start])
    repeated = data[:end] + 9 * (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527)) + data[end:]
    np.testing.assert_array_equal(pixels_of(repeated), expected)


def test_decode_of_mpo_with_preview_returns_the_first_frame(image):
    data = encode_image(image, "MPO", save_all=True, append_images=[image.resize((60, 120))])
    np.testing.assert_array_equal(pixels_of(data), pixels_of(encode_image(image, "JPEG")))
