import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidImage
from fracture_lib.io.image import (
    IMAGE_SUFFIXES,
    INPUT_SIZE,
    MAX_BYTES,
    PREPROCESSOR_CONFIG,
    READ_SIZE,
    content,
    load_image,
    preprocess,
)
from fracture_lib.io.views import DETECTOR_SIZE, FAST_VIEWS, VIEWS, View, make_views
from tests.helpers.bad_inputs import BAD_ARRAYS, BAD_FILES, error_message
from tests.helpers.images import encode_image


@pytest.fixture
def image():
    """A drawn radiograph: Pillow image, mode L, 120x240."""
    return synthetic_radiograph("Oblique", width=120, height=240)


# Preprocessing


def test_preprocess_returns_float32_in_0_to_1(image):
    pixels = preprocess(image)
    assert pixels.shape == (len(VIEWS), INPUT_SIZE, INPUT_SIZE) and pixels.dtype == np.float32
    assert pixels.min() == 0 and 0.9 < pixels.max() <= 1
    np.testing.assert_array_equal(preprocess(image, FAST_VIEWS), pixels[:1])


def test_preprocess_of_loaded_image_equals_preprocess_of_source(image):
    assert preprocess(load_image(image)).tobytes() == preprocess(image).tobytes()


def test_preprocess_cuts_a_flat_border_off():
    tones = np.random.default_rng(0).integers(20, 230, (12, 8), np.uint8)  # none of its sides is flat
    image = Image.fromarray(tones).resize((120, 180), Image.Resampling.BICUBIC)
    bordered = preprocess(ImageOps.expand(image, 40, fill=255))
    np.testing.assert_allclose(bordered, preprocess(image), atol=1e-6)


def test_content_of_large_image_is_shrunk_and_gives_the_same_views(image):
    large = image.resize((1200, 2400))
    shrunk = content(large)
    assert max(shrunk.shape) == 197 and shrunk.dtype == np.float32
    np.testing.assert_array_equal(make_views(shrunk), preprocess(large))
    assert max(content(large, DETECTOR_SIZE).shape) == 394


def test_preprocessor_config_lists_the_views():
    config = json.loads(json.dumps(PREPROCESSOR_CONFIG))
    assert config == PREPROCESSOR_CONFIG, "survives its file"
    assert [View(**{**v, "position": tuple(v["position"])}) for v in config["views"]] == list(VIEWS)


# Sources


def test_load_image_of_each_source_gives_the_same_pixels(image, tmp_path):
    path = tmp_path / "image.png"
    image.save(path)
    array = np.asarray(image)
    expected = load_image(image).pixels.tobytes()
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), array, array[..., None]):
        assert load_image(source).pixels.tobytes() == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I", "F"])
def test_load_image_of_gray_image_in_other_mode_gives_the_same_pixels(image, mode):
    np.testing.assert_allclose(load_image(image.convert(mode)).pixels, load_image(image).pixels, atol=1e-5)


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_load_image_of_16_bit_file_keeps_every_value(top):
    """A ramp over 8, 12 or 16 of the bits is neither clipped nor quantized."""
    ramp = np.tile(np.linspace(0, top, 128).round().astype(np.uint16), (128, 1))
    pixels = load_image(encode_image(Image.fromarray(ramp))).pixels
    assert pixels[0, 0] == 0 and pixels[0, -1] == 1
    assert (np.diff(pixels[0]) > 0).all()
    np.testing.assert_allclose(pixels, np.tile(np.linspace(0, 1, 128), (128, 1)), atol=0.6 / 255)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_load_image_of_matrix_gives_the_same_pixels(image):
    gray = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(load_image(np.asmatrix(gray)).pixels, load_image(gray).pixels)


def test_load_image_of_16_bit_copy_gives_the_same_pixels(image):
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 200 + 1000)
    np.testing.assert_allclose(load_image(encode_image(deep)).pixels, load_image(image).pixels, atol=1e-5)


def test_image_suffixes_are_those_of_the_formats_and_of_dicom():
    assert {
        ".jpg",
        ".jfif",
        ".png",
        ".tif",
        ".tiff",
        ".bmp",
        ".webp",
        ".gif",
        ".dcm",
        ".dicom",
    } <= IMAGE_SUFFIXES
    assert not {".pdf", ".zip", ".jp2", ".heic", ".txt", ""} & IMAGE_SUFFIXES


def test_load_image_of_gray_image_has_no_colorfulness(image):
    loaded = load_image(image.convert("RGB"))
    assert loaded.colorfulness == 0 and loaded.modality is None and loaded.warnings == ()


@pytest.mark.parametrize("name", BAD_FILES)
def test_load_image_with_bad_file_raises_invalid_image(name, tmp_path):
    data, pattern = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data)):
        with pytest.raises(InvalidImage, match=pattern) as caught:
            load_image(source)
        message = str(caught.value)
        assert "\n" not in message and message.endswith(".") and str(tmp_path) not in message


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_load_image_with_bad_array_raises_invalid_image(name):
    array, pattern = BAD_ARRAYS[name]
    with pytest.raises(InvalidImage, match=pattern):
        load_image(array)


@pytest.mark.parametrize("dtype", [">u2", ">i4", ">f4", ">f8", "f2", "i1"])
def test_load_image_of_array_of_unusual_layout_gives_the_same_pixels(image, dtype):
    gray = np.asarray(image) // 2
    expected = load_image(gray).pixels
    array = gray.astype(dtype)
    array.flags.writeable = False
    strided = np.zeros((480, 360), dtype)[::2, ::3]
    strided[:] = array
    for source in (array, strided, np.asfortranarray(array), array[::-1][::-1]):
        np.testing.assert_allclose(load_image(source).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("padding", [-(2**31), 2**31 - 1])
def test_load_image_of_masked_array_leaves_masked_pixels_black_and_out_of_the_range(image, padding, channels):
    values = np.dstack([np.asarray(image).astype(np.int32)] * channels)
    if channels == 2:
        values[..., 1] = np.iinfo(np.int32).max
    mask = np.zeros(values.shape, bool)
    values[:50], mask[:50, :, 0] = padding, True
    loaded = load_image(np.ma.masked_array(values.squeeze(), mask.squeeze()))
    gray = np.asarray(image)[50:].astype(float)
    expected = (gray - gray.min()) / np.ptp(gray)
    np.testing.assert_allclose(loaded.pixels[50:], expected, atol=1e-6)
    assert (loaded.pixels[:50] == 0).all() and loaded.colorfulness == 0


def test_load_image_of_fully_masked_array_is_blank(image):
    assert "blank" in error_message(np.ma.masked_all((64, 64)))


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((1, 64, 64), "Move the channels to the end: numpy.moveaxis(array, 0, -1)."),
        ((3, 64, 64), "Move the channels to the end: numpy.moveaxis(array, 0, -1)."),
        ((2, 64, 64, 3), "Pass one image at a time, [H, W] or [H, W, C]."),
        ((64,), "Use [H, W] or [H, W, C] with 1 to 4 channels."),
    ],
)
def test_load_image_with_unsupported_shape_says_what_to_do(shape, advice):
    assert error_message(np.zeros(shape)) == f"Unsupported array shape {shape}. {advice}"


@pytest.mark.parametrize("source", [None, 3, {"path": "image.png"}, object()])
def test_load_image_with_unsupported_type_names_the_supported_ones(source):
    message = error_message(source)
    assert message.startswith(f"Expected a path, bytes, PIL image or array; got {type(source).__name__}. ")


@pytest.mark.parametrize("source", [["image.png"], ("image.png",), (name for name in "ab"), iter([1])])
def test_load_image_of_several_images_says_how_to_pass_them(source):
    assert error_message(source).endswith("Pass one image, or a list to `predict`.")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/image.png",
        "http:/example.org/a.png",
        "S3://bucket/image.dcm",
        "data:image/png;base64,",
    ],
)
def test_load_image_of_url_asks_for_a_file(url):
    for source in (url, Path(url)):
        assert error_message(source) == "URLs are not accepted. Download the file and pass its path."


def test_load_image_with_control_characters_in_the_name_escapes_them():
    assert error_message("no\x1b[31m\nfile.png").startswith(r"Cannot open 'no\x1b[31m\nfile.png': ")


@pytest.mark.parametrize("path", ["no/such/image.png", ".", "nul\0byte.png"])
def test_load_image_with_path_that_cannot_be_opened_raises_invalid_image(path):
    assert error_message(path).startswith("Cannot open '")


def test_load_image_with_size_below_minimum_names_both(image):
    assert error_message(image.resize((10, 20))) == "The image is too small (10x20); the minimum is 16x16."


def test_load_image_with_file_over_limit_does_not_read_all_of_it(tmp_path):
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.truncate(2**40)
    for source in (path, bytes(MAX_BYTES + 1)):
        assert "the limit is 64 MB" in error_message(source)


# File objects


class Reader:
    """A minimal file object; keeps the sizes that it was asked for."""

    def __init__(self, read):
        self.sizes = []
        self._read = read

    def read(self, size):
        self.sizes.append(size)
        return self._read(size)


def test_load_image_of_open_file_gives_the_same_pixels(image, tmp_path):
    path = tmp_path / "image.png"
    image.save(path)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(path, "image.png")
    expected = load_image(path).pixels.tobytes()
    with (
        path.open("rb") as buffered,
        path.open("rb", buffering=0) as unbuffered,
        zipfile.ZipFile(tmp_path / "images.zip") as archive,
        archive.open("image.png") as member,
    ):
        for file in (buffered, unbuffered, member, io.BytesIO(path.read_bytes())):
            assert load_image(file).pixels.tobytes() == expected


def test_load_image_of_file_object_reads_from_its_position(image):
    file = io.BytesIO(b"header" + encode_image(image))
    file.seek(len(b"header"))
    assert load_image(file).pixels.tobytes() == load_image(image).pixels.tobytes()


def test_load_image_of_file_object_at_its_end_asks_to_rewind(image):
    file = io.BytesIO(encode_image(image))
    file.read()
    assert error_message(file) == "The file object is at its end. Call `seek(0)` first."
    assert "empty" in error_message(io.BytesIO())


def test_load_image_of_file_object_with_short_reads_reads_to_the_end(image):
    data = io.BytesIO(encode_image(image))
    reader = Reader(lambda size: data.read(min(size, 700)))
    assert load_image(reader).pixels.tobytes() == load_image(image).pixels.tobytes()


def test_load_image_of_endless_file_object_stops_at_the_limit():
    reader = Reader(bytes)
    assert "the limit is 64 MB" in error_message(reader)
    assert max(reader.sizes) == READ_SIZE and sum(reader.sizes) <= MAX_BYTES + READ_SIZE


def test_load_image_of_text_file_asks_for_binary_mode(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not an image", encoding="utf-8")
    with path.open(encoding="utf-8") as file:
        assert "binary mode" in error_message(file)


def test_load_image_of_closed_file_raises_invalid_image(image):
    file = io.BytesIO(encode_image(image))
    file.close()
    assert "closed" in error_message(file)


def test_load_image_of_failing_file_object_gives_the_reason():
    def fail(size):
        raise OSError(5, "Input/output error")

    assert error_message(Reader(fail)) == "Cannot read the file: Input/output error."


# Tensors. Importing torch and TensorFlow takes seconds.

RGB = np.dstack([np.asarray(synthetic_radiograph("Oblique", width=64, height=96))] * 3)
RGB[..., 1] //= 2
GRAY = RGB[..., 0]
ALPHA = np.dstack([RGB, 255 - GRAY])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tensorflow():
    return pytest.importorskip("tensorflow")


def assert_same_image(source, array):
    loaded, expected = load_image(source), load_image(array)
    np.testing.assert_allclose(loaded.pixels, expected.pixels, atol=1e-6)
    assert loaded.colorfulness == pytest.approx(expected.colorfulness)


@pytest.mark.slow
@pytest.mark.parametrize("array", [GRAY, GRAY[..., None], RGB, ALPHA], ids=["HW", "HW1", "RGB", "RGBA"])
def test_load_image_of_torch_tensor_accepts_channels_first_and_last(torch, array):
    tensor = torch.tensor(array)
    assert_same_image(tensor, array)
    if array.ndim == 3:
        assert_same_image(tensor.permute(2, 0, 1), array)
        assert_same_image(tensor.permute(2, 0, 1).contiguous(), array)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
)
def test_load_image_of_torch_tensor_accepts_each_dtype(torch, dtype):
    assert_same_image(torch.tensor(GRAY).to(getattr(torch, dtype)), GRAY)
    assert_same_image(torch.tensor(RGB).to(getattr(torch, dtype)).permute(2, 0, 1), RGB)


@pytest.mark.slow
def test_load_image_of_torch_tensor_with_gradient_leaves_it_attached(torch):
    tensor = torch.tensor(GRAY).float().requires_grad_()
    assert_same_image(tensor, GRAY)
    assert tensor.requires_grad


@pytest.mark.slow
def test_load_image_of_torch_tensor_on_gpu_copies_it(torch):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert_same_image(torch.tensor(RGB, device="cuda").permute(2, 0, 1), RGB)


@pytest.mark.slow
def test_load_image_of_unusable_torch_tensor_raises_invalid_image(torch):
    assert "shape (1, 1, 64, 64)" in error_message(torch.zeros(1, 1, 64, 64))
    assert "too small (64x8)" in error_message(torch.zeros(3, 8, 64))
    assert "dtype bool" in error_message(torch.ones(64, 64, dtype=torch.bool))
    assert "complex64" in error_message(torch.ones(64, 64, dtype=torch.complex64))
    assert "Convert it to NumPy" in error_message(torch.zeros(64, 64, device="meta"))
    assert "Convert it to NumPy" in error_message(torch.eye(64).to_sparse())
    assert "40 million pixels" in error_message(torch.empty(1, device="meta").expand(10_000, 10_000))


@pytest.mark.slow
@pytest.mark.parametrize("array", [GRAY, GRAY[..., None], RGB, ALPHA], ids=["HW", "HW1", "RGB", "RGBA"])
def test_load_image_of_tensorflow_tensor_gives_the_same_pixels(tensorflow, array):
    assert_same_image(tensorflow.constant(array), array)
    assert_same_image(tensorflow.Variable(array), array)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float16", "bfloat16", "float64"])
def test_load_image_of_tensorflow_tensor_accepts_each_dtype(tensorflow, dtype):
    assert_same_image(tensorflow.cast(tensorflow.constant(RGB), dtype), RGB)


@pytest.mark.slow
def test_load_image_of_unusable_tensorflow_tensor_raises_invalid_image(tensorflow):
    assert "shape (1, 64, 64, 1)" in error_message(tensorflow.zeros((1, 64, 64, 1)))
    assert "shape (3, 64, 64)" in error_message(tensorflow.zeros((3, 64, 64)))
    assert "dtype object" in error_message(tensorflow.fill((64, 64), "text"))
    with tensorflow.Graph().as_default():
        assert "Convert it to NumPy" in error_message(tensorflow.zeros((64, 64)))
