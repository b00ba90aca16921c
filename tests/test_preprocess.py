import numpy as np
import pytest
from bad_images import BAD_ARRAYS, BAD_FILES, saved
from PIL import Image

from fracture_lib import InvalidImage, preprocess, read_film
from fracture_lib.drawing import draw_film
from fracture_lib.preprocess import BLOCK, MAX_BYTES, MAX_EXIF


@pytest.fixture
def film():
    return draw_film("Oblique", width=120, height=240)


def test_every_kind_of_source_gives_the_same_input(film, tmp_path):
    path = tmp_path / "film.png"
    film.save(path)
    expected = preprocess(film)
    assert expected.shape == (128, 128) and expected.dtype == np.float32
    assert expected.min() == 0 and 0.9 < expected.max() <= 1
    for source in (path, str(path), path.read_bytes(), np.asarray(film), np.asarray(film)[..., None]):
        assert preprocess(source).tobytes() == expected.tobytes()


def test_a_film_that_was_read_gives_the_same_input(film):
    assert preprocess(read_film(film)).tobytes() == preprocess(film).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I", "F"])
def test_grey_and_colour_modes_agree(film, mode):
    np.testing.assert_allclose(preprocess(film.convert(mode)), preprocess(film), atol=1e-5)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_agree(film, kind):
    np.testing.assert_array_equal(preprocess(saved(film, kind)), preprocess(film))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(film, kind):
    assert np.abs(preprocess(saved(film, kind, quality=95)) - preprocess(film)).mean() < 0.01


def test_aspect_is_kept_and_the_rest_is_black(film):
    pixels = preprocess(film)  # 120x240 -> 64x128 in the middle
    assert (pixels[:, :32] == 0).all() and (pixels[:, 96:] == 0).all()
    assert (pixels[:, 32:96].max(axis=0) > 0).all()
    assert (preprocess(film.rotate(90, expand=True))[:32] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(film, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = film.transpose(undo[orientation]) if orientation > 1 else film
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(preprocess(saved(stored, exif=exif)), preprocess(film))


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_deep_films_keep_their_whole_range(top):
    """An 8-, 12- or 16-bit ramp in a 16-bit file: every step is there, none clipped."""
    ramp = np.tile(np.linspace(0, top, 128).round().astype(np.uint16), (128, 1))
    read = read_film(saved(Image.fromarray(ramp))).pixels
    assert read[0, 0] == 0 and read[0, -1] == 1
    assert (np.diff(read[0]) > 0).all()
    np.testing.assert_allclose(read, np.tile(np.linspace(0, 1, 128), (128, 1)), atol=0.6 / 255)


def test_a_16_bit_copy_of_a_film_gives_the_same_input(film):
    deep = Image.fromarray(np.asarray(film).astype(np.uint16) * 200 + 1000)
    np.testing.assert_allclose(preprocess(saved(deep)), preprocess(film), atol=1e-5)


def test_transparent_pixels_are_black(film):
    rgba = np.dstack([np.asarray(film)] * 3 + [np.full((240, 120), 255, np.uint8)])
    rgba[:60, :, 3] = 0
    assert (read_film(rgba).pixels[:60] == 0).all()
    np.testing.assert_array_equal(read_film(Image.fromarray(rgba, "RGBA")).pixels, read_film(rgba).pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4", "f8"])
def test_turning_grey_by_blocks_changes_no_bit(kind, channels):
    """The same as arithmetic on the whole picture, which has two blocks and a part of one."""
    shape = (2 * BLOCK // 400 + 9, 400, channels)
    values = np.random.default_rng(0).uniform(0, 1 if kind[0] == "f" else 200, shape).astype(kind)
    opaque = 1 if kind[0] == "f" else np.iinfo(kind).max
    whole = values.astype(np.float32)
    grey = whole[..., 0] if channels < 3 else whole[..., :3] @ np.float32([0.299, 0.587, 0.114])
    if channels in (2, 4):
        grey = grey * (whole[..., -1] / np.float32(opaque))
    low, high = float(grey.min()), float(grey.max())
    expected = np.clip((grey - low) / (high - low), 0, 1)
    read = read_film(values)
    assert read.pixels.tobytes() == expected.tobytes()
    if channels > 2:
        rgb = whole[..., :3]
        assert read.colour == pytest.approx(np.ptp(rgb, axis=-1).mean() / np.ptp(rgb), rel=1e-4)
    if kind == "u1":
        picture = Image.fromarray(values.squeeze())
        assert read_film(picture).pixels.tobytes() == expected.tobytes()


def test_exif_longer_than_a_jpegs_is_left_alone(film):
    """Pillow's reader would copy parts of it without end."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "m" * MAX_EXIF
    np.testing.assert_array_equal(preprocess(saved(film, exif=exif)), preprocess(film))


def test_only_the_first_exif_of_a_jpeg_counts(film):
    upright, turned = saved(film, "JPEG"), Image.Exif()
    turned[0x0112] = 6
    data = saved(film, "JPEG", exif=turned)
    expected = preprocess(data)
    assert (expected != preprocess(upright)).any()
    start = data.index(b"Exif\0\0")
    end = start - 2 + int.from_bytes(data[start - 2 : start])
    again = data[:end] + 9 * (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527)) + data[end:]
    np.testing.assert_array_equal(preprocess(again), expected)


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path):
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.truncate(2**40)
    for source in (path, bytes(MAX_BYTES + 1)):
        with pytest.raises(InvalidImage, match="over 64 MB"):
            preprocess(source)


def test_a_cameras_file_with_a_preview_behind_it_is_read(film):
    data = saved(film, "MPO", save_all=True, append_images=[film.resize((60, 120))])
    np.testing.assert_array_equal(preprocess(data), preprocess(saved(film, "JPEG")))


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_raise_one_sentence(name, tmp_path):
    data, word = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(InvalidImage, match=word) as caught:
            preprocess(source)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_raise_one_sentence(name):
    values, word = BAD_ARRAYS[name]
    with pytest.raises(InvalidImage, match=word):
        preprocess(values)


@pytest.mark.parametrize("source", [None, 3, ["film.png"], "no/such/film.png", ".", "nul\0byte.png"])
def test_what_is_no_file_at_all_raises_one_sentence(source):
    with pytest.raises(InvalidImage):
        preprocess(source)
