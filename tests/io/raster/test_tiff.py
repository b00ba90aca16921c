import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.io.image import load_image
from tests.helpers.bad_inputs import error_message
from tests.helpers.images import DEFLATE, LZW, PACKBITS, RAW, encode_image, encode_tiff

ALPHA, PREMULTIPLIED_ALPHA, UNSPECIFIED = 2, 1, 0  # of the tag ExtraSamples
WIDTH, HEIGHT, EXTRA_SAMPLES, ORIENTATION, NEW_SUBFILE_TYPE, FILL_ORDER = 256, 257, 338, 274, 254, 266
GRAY = np.asarray(synthetic_radiograph("Oblique", width=75, height=121)).astype(int)
RANGES = {
    "u1": 1,
    "u2": 257,
    "i2": 100,
    "u4": 2**24,
    "i4": 2**23,
    "u8": 2**56,
    "f2": 1,
    "f4": 0.01,
    "f8": 0.01,
}


def scaled(dtype):
    """The drawn radiograph in a range of values that needs the whole dtype."""
    values = GRAY * RANGES[dtype]
    return (values - GRAY.max() * RANGES[dtype] // 2 if dtype[0] == "i" else values).astype(dtype)


def white_is_zero(values):
    return -values if values.dtype.kind == "f" else ~values


def assert_shows(data, gray=GRAY, atol=1e-3):
    """The file shows the same as a PNG of the gray values."""
    loaded = load_image(data)
    expected = load_image(encode_image(Image.fromarray(gray.astype(np.uint8)))).pixels
    np.testing.assert_allclose(loaded.pixels, expected, atol=atol)
    return loaded


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", RANGES)
def test_tiff_of_each_dtype_and_photometric_interpretation_shows_the_image(dtype, byte_order, photometric):
    values = scaled(dtype)
    page = {"values": values if photometric else white_is_zero(values), "photometric": photometric}
    assert_shows(encode_tiff(page, byte_order=byte_order))
    assert_shows(encode_tiff(page, byte_order=byte_order, big=True))
    assert_shows(encode_tiff(page | {"compression": LZW, "tile": (32, 48)}, byte_order=byte_order))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14, 20, 24])
def test_tiff_of_packed_bits_shows_the_image(bits, photometric):
    dtype = "u1" if bits < 8 else "u2" if bits < 16 else "u4"
    values = (GRAY / GRAY.max() * (2**bits - 1)).round().astype(dtype)
    stored = values if photometric else 2**bits - 1 - values
    page = {"values": stored, "bits": bits, "photometric": photometric}
    for layout in ({}, {"compression": DEFLATE, "tile": (16, 32)}, {"compression": PACKBITS}):
        for byte_order in "<>" if bits < 24 else ">":  # samples of bits have none
            pixels = load_image(encode_tiff(page | layout, byte_order=byte_order)).pixels
            np.testing.assert_allclose(pixels, values / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "jpeg"])
def test_tiff_with_compression_of_pixels_shows_the_image(compression, photometric):
    """Pillow reads these."""
    image = Image.fromarray(GRAY.astype(np.uint8))
    if compression != "jpeg":
        image = image.convert("1")
        data = encode_image(image, "TIFF", compression=compression, tiffinfo={262: photometric})
        np.testing.assert_array_equal(load_image(data).pixels, load_image(image).pixels)
    elif photometric:
        data = encode_image(image, "TIFF", compression=compression, quality=98)
        np.testing.assert_allclose(load_image(data).pixels, load_image(image).pixels, atol=0.05)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize(
    "layout", [{}, {"tile": (16, 32)}, {"planar": True}, {"planar": True, "tile": (16, 32)}]
)
@pytest.mark.parametrize("compression", [RAW, LZW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_tiff_of_color_keeps_every_value(dtype, compression, layout, byte_order):
    rgb = np.dstack([scaled(dtype), scaled(dtype)[::-1], scaled(dtype)[:, ::-1]])
    predictors = [1, 2] + [3] * (dtype == "f4") if compression in (LZW, DEFLATE) else [1]
    for predictor in predictors:
        page = {"values": rgb, "compression": compression, "predictor": predictor, **layout}
        loaded, expected = load_image(encode_tiff(page, byte_order=byte_order)), load_image(rgb)
        np.testing.assert_array_equal(loaded.pixels, expected.pixels)
        assert loaded.colorfulness == expected.colorfulness > 0


@pytest.mark.parametrize("predictor", [2, 3])
@pytest.mark.parametrize("dtype", ["u2", "i4", "u8", "f2", "f4", "f8"])
def test_tiff_with_predictor_shows_the_image(dtype, predictor):
    if predictor == 2 or dtype[0] == "f":
        page = {"values": scaled(dtype), "compression": DEFLATE, "predictor": predictor}
        for byte_order in "<>":
            assert_shows(encode_tiff(page, byte_order=byte_order))
            assert_shows(encode_tiff(page | {"tile": (32, 16)}, byte_order=byte_order))


def test_tiff_with_predictor_but_without_compression_ignores_it():
    data = bytearray(encode_tiff({"values": scaled("u2")}))
    position = data.index(b"\x3d\x01\x04\0\x01\0\0\0\x01")  # the tag Predictor
    data[position + 8] = 2
    assert_shows(bytes(data))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("n_colors", [1, 3])
def test_tiff_with_extra_samples_composites_alpha_on_black(n_colors, dtype):
    scale = RANGES[dtype]
    alpha = np.full_like(GRAY, 255)
    alpha[:30] = 51
    colors = [GRAY] * n_colors
    on_black = GRAY * alpha // 255
    for extra, values, expected in (
        (ALPHA, [*colors, alpha], on_black),
        (PREMULTIPLIED_ALPHA, [*[on_black] * n_colors, alpha], on_black),
        (UNSPECIFIED, [*colors, alpha], GRAY),
    ):
        page = {
            "values": (np.dstack(values) * scale).astype(dtype),
            "photometric": 2 if n_colors == 3 else 1,
            "tags": {EXTRA_SAMPLES: [extra]},
        }
        assert_shows(encode_tiff(page), expected, atol=0.004)
        assert_shows(encode_tiff(page | {"planar": True}), expected, atol=0.004)


def test_tiff_with_white_zero_and_alpha_composites_on_black():
    alpha = np.full_like(GRAY, 255)
    alpha[:30] = 0
    values = (np.dstack([255 - GRAY, alpha]) * 257).astype("u2")
    page = {"values": values, "photometric": 0, "tags": {EXTRA_SAMPLES: [ALPHA]}}
    assert_shows(encode_tiff(page), GRAY * alpha // 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_with_orientation_is_turned_upright(orientation):
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    assert_shows(encode_tiff({"values": undo(scaled("u2")), "tags": {ORIENTATION: [orientation]}}))


def test_tiff_with_reversed_bits_shows_the_image():
    values = scaled("u2")
    reversed_bits = np.packbits(np.unpackbits(values.view(np.uint8), bitorder="little")).view("u2")
    assert_shows(encode_tiff({"values": reversed_bits.reshape(values.shape), "tags": {FILL_ORDER: [2]}}))


# Pages


def test_tiff_of_several_pages_shows_the_first_with_a_warning():
    data = encode_tiff({"values": scaled("u2")}, {"values": scaled("u2")[::-1]})
    assert assert_shows(data).warnings == ("The file has several pages; only the first one is used.",)


def test_tiff_with_small_first_page_shows_the_largest_with_a_warning():
    data = encode_tiff({"values": scaled("u2")[:40, :40]}, {"values": scaled("u2")}, byte_order=">")
    assert assert_shows(data).warnings == ("The file has several pages; only the largest one is used.",)


@pytest.mark.parametrize("subfile_type", [1, 4])
@pytest.mark.parametrize("first", [True, False])
def test_tiff_with_thumbnail_or_mask_skips_it_without_a_warning(first, subfile_type):
    """Even one that is larger than the image."""
    other = {"values": np.zeros((200, 200), "u1"), "tags": {NEW_SUBFILE_TYPE: [subfile_type]}}
    pages = [other, {"values": scaled("u2")}] if first else [{"values": scaled("u2")}, other]
    assert assert_shows(encode_tiff(*pages)).warnings == ()


def test_tiff_with_palette_on_a_later_page_shows_it():
    """Pillow reads palettes; this one inverts."""
    ramp = [*range(255 * 257, -1, -257)] * 3
    page = {"values": (255 - GRAY).astype("u1"), "photometric": 3, "tags": {320: ramp}}
    small = {"values": np.zeros((20, 20), "u1")}
    for big in (False, True):
        assert_shows(encode_tiff(small, page, big=big))


def test_tiff_whose_pages_form_a_circle_shows_the_first():
    data = bytearray(encode_tiff({"values": scaled("u1")}, {"values": scaled("u1")}))
    first = data[4:8]
    assert data[-4:] == bytes(4)
    data[-4:] = first
    assert_shows(bytes(data))


# Errors


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ({"tags": {259: [34712]}}, "16-bit greyscale TIFF with JPEG 2000 compression"),
        ({"tags": {339: [5]}}, "16-bit greyscale TIFF with no compression"),
        ({"photometric": 32803}, "16-bit raw camera TIFF with no compression"),
        ({"photometric": 3}, "16-bit palette TIFF with no compression"),
    ],
)
def test_tiff_of_unsupported_kind_names_it(page, kind):
    message = error_message(encode_tiff({"values": scaled("u2"), **page}))
    assert message == f"{kind} is not supported. Save it as PNG."


@pytest.mark.parametrize("compression", [RAW, LZW, DEFLATE])
def test_tiff_without_its_end_is_incomplete(compression):
    page = {"values": scaled("u2"), "compression": compression}
    data = encode_tiff(page)
    assert "incomplete" in error_message(data[: len(data) // 2])
    assert "incomplete" in error_message(encode_tiff(page | {"tags": {HEIGHT: [10_000]}}))  # of strips


def test_tiff_of_too_many_bytes_is_not_decoded():
    tags = {WIDTH: [6000], HEIGHT: [6000], 258: [64] * 3, 262: [2], 277: [3], 339: [3] * 3}
    message = error_message(encode_tiff({"values": scaled("f8"), "tags": tags}))
    assert message.startswith("The image has too many values (864 MB uncompressed); the limit is 320 MB.")
