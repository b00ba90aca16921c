import numpy as np
import pytest
from PIL import Image

from fracture_lib.io.grayscale import BLOCK_PIXELS, stretch_range, to_grayscale


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
def test_to_grayscale_of_several_blocks_equals_arithmetic_on_the_whole(dtype, channels):
    """The image has two blocks and a part of a third."""
    shape = (2 * BLOCK_PIXELS // 400 + 9, 400, channels)
    values = np.random.default_rng(0).uniform(0, 1 if dtype[0] == "f" else 200, shape).astype(dtype)
    opaque = 1 if dtype[0] == "f" else np.iinfo(dtype).max
    whole = values.astype(np.float32)
    expected = whole[..., 0] if channels < 3 else whole[..., :3] @ np.float32([0.299, 0.587, 0.114])
    if channels in (2, 4):
        expected = expected * (whole[..., -1] / np.float32(opaque))
    gray, colorfulness = to_grayscale(values)
    assert gray.tobytes() == expected.tobytes()
    if channels > 2:
        rgb = whole[..., :3]
        assert colorfulness == pytest.approx(np.ptp(rgb, axis=-1).mean() / np.ptp(rgb), rel=1e-4)
    else:
        assert colorfulness == 0
    if dtype == "u1":
        assert to_grayscale(Image.fromarray(values.squeeze()))[0].tobytes() == expected.tobytes()


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
