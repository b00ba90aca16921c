import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidImage
from fracture_lib.io.image import load_image
from fracture_lib.io.raster.orientation import MAX_EXIF
from tests.helpers.images import encode_image, encode_png, encode_tiff, png_chunk

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


# PNG


def deep_channels(image, top):
    """Different 16-bit channels up to a value: gray, its mirror image, its inverse, and alpha."""
    gray = np.asarray(image).astype(int) * top // 255
    return np.dstack([gray, gray[::-1], top - gray, np.where(gray > top // 9, 65535, 9000)]).astype(np.uint16)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [[0], [0, 3], [0, 1, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
def test_decode_of_png_with_16_bits_per_channel_keeps_every_value(image, top, channels, interlaced):
    values = deep_channels(image, top)[..., channels]
    loaded, expected = load_image(encode_png(values, interlaced=interlaced)), load_image(values)
    np.testing.assert_array_equal(loaded.pixels, expected.pixels)
    assert loaded.colorfulness == expected.colorfulness


@pytest.mark.parametrize("orientation", range(2, 9))
def test_decode_of_png_with_16_bits_per_channel_turns_the_image_upright(image, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    deep, shallow = (
        encode_png(np.dstack([np.asarray(image).astype(dtype)] * 3), png_chunk(b"eXIf", exif.tobytes()[6:]))
        for dtype in ("u2", "u1")
    )
    np.testing.assert_array_equal(pixels_of(deep), pixels_of(shallow))
    assert (pixels_of(deep).shape == (120, 240)) == (orientation > 4)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"prVt"])
def test_decode_of_png_with_large_metadata_ignores_it(image, kind):
    text = 3_000_000 * b"x"
    body = {
        b"zTXt": b"Comment\0\0" + zlib.compress(text),
        b"iTXt": b"Comment\0\1\0\0\0" + zlib.compress(text),
        b"iCCP": b"profile\0\0" + zlib.compress(text),
    }.get(kind, b"Comment\0" + text)
    gray = np.asarray(image)
    chunk = png_chunk(kind, body)
    expected = pixels_of(image)
    np.testing.assert_array_equal(pixels_of(encode_png(gray, chunk)), expected)
    np.testing.assert_array_equal(pixels_of(encode_png(gray, 15 * chunk)), expected)
    after_pixels = encode_png(gray)[:-12] + chunk + png_chunk(b"IEND")
    np.testing.assert_array_equal(pixels_of(after_pixels), expected)


def test_decode_of_png_with_damaged_metadata_ignores_it(image):
    gray = np.asarray(image)
    damaged = png_chunk(b"zTXt", b"Comment\0\0not compressed") + png_chunk(b"tEXt", b"x")[:-4] + bytes(4)
    np.testing.assert_array_equal(pixels_of(encode_png(gray, damaged)), pixels_of(image))


def test_decode_of_png_without_its_last_chunk_shows_the_image(image):
    np.testing.assert_array_equal(pixels_of(encode_image(image)[:-12]), pixels_of(image))


# JPEG


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 4}, {"restart_marker_rows": 1}, {"subsampling": 0}],
    ids=str,
)
def test_decode_of_jpeg_without_end_marker_shows_the_image_only_if_no_pixel_is_missing(image, options, mode):
    data = encode_image(image.convert(mode), "JPEG", **options)
    expected = pixels_of(data)
    for missing in (1, 2):
        np.testing.assert_array_equal(pixels_of(data[:-missing]), expected)
    # The filler bits after the last pixel are less than a byte; a scan or restart interval ends at a marker.
    ends = [i for i in range(len(data) // 2, len(data)) if data[i] == 0xFF and data[i + 1] > 0][:-1]
    for end in [len(data) - 5, len(data) - 40, len(data) // 2, *ends[-5:]]:
        with pytest.raises(InvalidImage, match="incomplete"):
            load_image(data[:end])


def test_decode_of_jpeg_with_archive_after_it_shows_the_image(image):
    data = encode_image(image, "JPEG")
    trailer = b"PK\3\4" + bytes(60) + b"PK\5\6" + bytes(18)
    np.testing.assert_array_equal(pixels_of(data + trailer), pixels_of(data))


# Frames


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_decode_of_several_frames_shows_the_first_with_a_warning(image, format):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode_image(image, format, save_all=True, append_images=[image.rotate(180)], **options)
    loaded = load_image(data)
    np.testing.assert_allclose(loaded.pixels, pixels_of(image), atol=1e-6)
    assert loaded.warnings == ("The file has several frames; only the first one is used.",)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_decode_of_one_frame_gives_no_warning(image, format):
    assert load_image(encode_image(image, format, save_all=True)).warnings == ()


def test_decode_of_animated_png_with_one_frame_gives_no_warning(image):
    control = png_chunk(b"acTL", struct.pack(">II", 1, 0))
    control += png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *image.size, 0, 0, 1, 1, 0, 0))
    loaded = load_image(encode_png(np.asarray(image), control))
    np.testing.assert_array_equal(loaded.pixels, pixels_of(image))
    assert loaded.warnings == ()


def test_decode_of_gif_with_damaged_second_frame_shows_the_first(image):
    data = encode_image(image, "GIF", save_all=True, append_images=[image.rotate(180)])
    second_frame = data.rindex(b"!\xf9")
    np.testing.assert_allclose(pixels_of(data[: second_frame + 1]), pixels_of(image), atol=1e-6)


# Pillow images


def test_load_image_of_pillow_image_with_several_frames_warns_unless_one_was_chosen(image, tmp_path):
    path = tmp_path / "frames.gif"
    image.save(path, save_all=True, append_images=[image.rotate(180)])
    with Image.open(path) as opened:
        assert load_image(opened).warnings
        opened.seek(1)
        loaded = load_image(opened)
    np.testing.assert_allclose(loaded.pixels, pixels_of(image.rotate(180)), atol=1e-6)
    assert loaded.warnings == ()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_load_image_of_opened_tiff_with_white_zero_shows_the_image(image, dtype):
    """Pillow inverts only some of them."""
    values = np.asarray(image).astype(dtype)
    stored = -values if dtype == "f4" else ~values
    with Image.open(io.BytesIO(encode_tiff({"values": stored, "photometric": 0}))) as opened:
        np.testing.assert_allclose(load_image(opened).pixels, pixels_of(image), atol=1e-6)


def test_load_image_of_opened_16_bit_color_image_warns_that_pillow_drops_bits(image):
    deep = np.dstack([np.asarray(image).astype(np.uint16) * 200] * 3)
    for data in (encode_png(deep), encode_tiff({"values": deep})):
        with Image.open(io.BytesIO(data)) as opened:
            assert load_image(opened).warnings == (
                "Pillow keeps 8 of the 16 bits per channel; pass the file's path to use all of them.",
            )
        assert load_image(data).warnings == ()


# Unsupported files


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\3\4\x14\0", "a ZIP archive or an Office document"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x18ftypheic\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0", "a video"),
        (b"<!DOCTYPE html>\n<html>", "HTML"),
        (b"\xef\xbb\xbf<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"Patient,Date\n1,2\n", "text"),
        (b"\x93NUMPY\1\0", "a NumPy array; load it with numpy.load"),
    ],
)
def test_decode_of_unsupported_file_names_what_it_is(start, kind):
    with pytest.raises(InvalidImage) as caught:
        load_image(start)
    assert str(caught.value) == f"Unsupported file ({kind}). Use DICOM, JPEG, PNG, TIFF, BMP, WEBP or GIF."


def test_decode_of_unknown_bytes_names_the_supported_formats():
    with pytest.raises(InvalidImage, match=r"^Unsupported file\. Use DICOM, JPEG,"):
        load_image(bytes(range(40)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_decode_of_header_only_does_not_call_the_format_unsupported(image, format):
    data = encode_image(image, format)
    for length in (16, 40):
        with pytest.raises(InvalidImage, match="incomplete"):
            load_image(data[:length])


def test_decode_of_blank_first_frame_mentions_the_others(image):
    blank = Image.new("L", image.size)
    data = encode_image(blank, "GIF", save_all=True, append_images=[image])
    with pytest.raises(
        InvalidImage, match=r"The image is blank\. The file has several frames; only the first"
    ):
        load_image(data)


@pytest.mark.parametrize(
    ("marker", "precision", "kind"),
    [
        (0xC1, 12, "12-bit JPEG"),
        (0xC3, 16, "16-bit lossless JPEG"),
        (0xC5, 8, "This kind of JPEG"),
        (0xF7, 8, "JPEG-LS"),
        (0xC7, 8, "This kind of lossless JPEG"),
    ],
)
def test_decode_of_unsupported_jpeg_names_its_kind(image, marker, precision, kind):
    data = bytearray(encode_image(image, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, precision
    with pytest.raises(InvalidImage) as caught:
        load_image(bytes(data))
    assert str(caught.value) == f"{kind} is not supported. Save it as PNG."
