import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.io.grayscale import BLOCK_PIXELS, stretch_range, to_grayscale


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
def test_to_grayscale_of_several_blocks_equals_arithmetic_on_the_whole(dtype, channels):
    """The image has two blocks and a part of a third."""
    shape = (2 * BLOCK_PIXELS // 400 + 9, 400, channels)
    values = np.random.default_rng(0).uniform(0, 1 if dtype[0] == "f" else 200, shape).astype(dtype)
    opaque = 1 if dtype[0] == "f" else np.iinfo(dtype).max
    rounded = dtype in ("i4", "f8") and channels in (1, 3)  # by float32, so relative to the minimum
    whole = (values - values.min() if rounded else values).astype(np.float32)
    expected = whole[..., 0] if channels < 3 else whole[..., :3] @ np.float32([0.299, 0.587, 0.114])
    if channels in (2, 4):
        expected = expected * (whole[..., -1] / np.float32(opaque))
    gray, colorfulness = to_grayscale(values)
    assert gray.tobytes() == expected.tobytes()
    if channels > 2:
        rgb = whole[..., :3]
        colors = rgb.reshape(-1, 3).astype(float)
        line = np.column_stack([np.ones(len(colors)), colors @ [0.299, 0.587, 0.114]])
        rest = colors - line @ np.linalg.lstsq(line, colors)[0]
        assert colorfulness == pytest.approx(np.sqrt((rest**2).sum(axis=1).mean()) / np.ptp(rgb), rel=1e-4)
    else:
        assert colorfulness == 0
    if dtype == "u1":
        assert to_grayscale(Image.fromarray(values.squeeze()))[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        ("i4", -(2**31)),
        ("i4", 2**31 - 256),
        ("u4", 2**32 - 256),
        ("i8", -(2**63)),
        ("i8", 2**62),
        ("u8", 2**64 - 256),
        ("f8", 1e12),
        ("f8", -1e12),
    ],
)
def test_to_grayscale_with_large_offset_keeps_every_value(dtype, offset, channels, byte_order):
    ramp = np.tile(np.arange(256), (16, 1))
    values = np.dstack([ramp.astype(dtype) + np.dtype(dtype).type(offset)] * channels)
    gray, _ = to_grayscale(values.astype(values.dtype.newbyteorder(byte_order)))
    np.testing.assert_allclose(gray, ramp, atol=1e-4)


def test_to_grayscale_of_the_whole_range_of_signed_integers_does_not_wrap():
    values = np.tile(np.linspace(-(2**31), 2**31 - 1, 64).astype(np.int32), (16, 1))
    gray, _ = to_grayscale(values)
    np.testing.assert_allclose(gray / 2**32, np.tile(np.linspace(0, 1, 64), (16, 1)), atol=1e-6)


def test_to_grayscale_subtracts_the_minimum_outside_the_blank_mask():
    values = np.tile(np.arange(64) + 2**30, (16, 1)).astype(np.int32)
    mask = np.zeros(values.shape, bool)
    values[:3], mask[:3] = -(2**31), True
    gray, _ = to_grayscale(values, mask)
    np.testing.assert_array_equal(gray[3:], np.tile(np.arange(64), (13, 1)))


@pytest.mark.parametrize("from_pillow", [False, True])
def test_to_grayscale_of_transparent_pixels_gives_black(from_pillow):
    rgba = np.full((64, 64, 4), 255, np.uint8)
    rgba[:20, :, 3] = 0
    gray, _ = to_grayscale(Image.fromarray(rgba, "RGBA") if from_pillow else rgba)
    assert (gray[:20] == 0).all() and (gray[20:] == 255).all()


def test_stretch_range_of_any_values_ends_at_exactly_0_and_1():
    values = np.random.default_rng(0).uniform(-1e30, 1e30, (300, 300)).astype(np.float32)
    stretched = stretch_range(values.copy())
    assert stretched.min() == 0 and stretched.max() == 1
    np.testing.assert_allclose(stretched, (values - values.min()) / np.ptp(values), atol=1e-6)


@pytest.mark.parametrize("tint", [(0.5, 0.7, 1), (1, 0.8, 0.5), (0.5, 1, 0.6), (0.9, 0.95, 1)])
@pytest.mark.parametrize("base", [0, 60])
def test_to_grayscale_of_image_of_one_tint_has_almost_no_colorfulness(tint, base):
    """As of an X-ray on a blue base, scanned in colour."""
    gray = np.asarray(synthetic_radiograph("Spiral"), float)[..., None]
    tinted = np.round(base * np.array([0.2, 0.5, 1]) + gray * tint * (1 - base / 255)).astype(np.uint8)
    assert to_grayscale(tinted)[1] < 0.01


def test_to_grayscale_of_several_hues_is_colorful():
    hues = np.array([[255, 0, 0], [0, 130, 0], [30, 30, 255], [230, 200, 20]], np.uint8)
    assert to_grayscale(np.tile(hues.repeat(20, axis=0), (40, 1, 1)))[1] > 0.2
