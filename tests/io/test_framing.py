"""Flat borders and unusual framing, drawn around synthetic radiographs."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.io.framing import crop_borders, framing_warnings
from fracture_lib.io.limits import MIN_SIDE
from fracture_lib.labels import CLASSES

TONES = {"black": 0, "gray": 110, "white": 255}


@pytest.fixture(scope="module")
def radiograph():
    """uint8 [360, 240], its own collimator shadow cut off."""
    return np.asarray(synthetic_radiograph("Spiral"))[20:340, 16:224]


def add_border(image, tone, top=0, bottom=0, left=0, right=0):
    return np.pad(image, ((top, bottom), (left, right)), constant_values=tone)


def to_unit_range(image):
    pixels = np.asarray(image, np.float32)
    return (pixels - pixels.min()) / np.ptp(pixels)


def crop(image):
    """Return (top, bottom, left, right) of what `crop_borders` keeps."""
    rows, columns = crop_borders(to_unit_range(image))
    return rows.start, rows.stop, columns.start, columns.stop


def compress(image, quality=80):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def warnings_of(image):
    pixels = to_unit_range(image)
    return framing_warnings(pixels, crop_borders(pixels))


# Borders


@pytest.mark.parametrize("label", [c.label for c in CLASSES])
def test_crop_borders_of_radiograph_without_border_keeps_almost_all(label):
    image = np.asarray(synthetic_radiograph(label))
    top, bottom, left, right = crop(image)
    # The collimator's shadow is a border, too.
    assert max(top, 360 - bottom, left, 240 - right) <= 16


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("tone", TONES.values(), ids=TONES)
def test_crop_borders_of_border_all_around_finds_the_image(radiograph, tone, share):
    height, width = radiograph.shape
    y, x = round(share * height), round(share * width)
    assert crop(add_border(radiograph, tone, y, y, x, x)) == (y, y + height, x, x + width)


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
@pytest.mark.parametrize("tone", TONES.values(), ids=TONES)
def test_crop_borders_of_border_on_one_side_cuts_that_side(radiograph, tone, side):
    height, width = radiograph.shape
    top, left = (70 * (side == name) for name in ("top", "left"))
    bordered = add_border(radiograph, tone, **{side: 70})
    assert crop(bordered) == (top, top + height, left, left + width)


@pytest.mark.parametrize("tone", TONES.values(), ids=TONES)
def test_crop_borders_of_noisy_jpeg_finds_the_image(radiograph, tone):
    noisy = add_border(radiograph, tone, 60, 60, 60, 60) + np.random.default_rng(0).normal(0, 2, (440, 328))
    found = crop(compress(np.clip(noisy, 0, 255).astype(np.uint8)))
    np.testing.assert_allclose(found, (60, 380, 60, 268), atol=3)


def test_crop_borders_of_nested_and_different_tones_cuts_all(radiograph):
    inner = add_border(radiograph, 255, 20, 20, 20, 20)
    nested = add_border(inner, 0, 30, 30, 30, 30)
    assert crop(nested) == (50, 370, 50, 258)
    different = add_border(add_border(radiograph, 255, top=40, right=50), 128, bottom=60, left=30)
    assert crop(different) == (40, 360, 30, 238)


def test_crop_borders_of_blurred_bright_border_leaves_none_of_it(radiograph):
    dark = radiograph // 2
    bordered = Image.fromarray(add_border(dark, 255, 80, 80, 80, 80)).resize((500, 650))
    pixels = to_unit_range(bordered)
    assert pixels[crop_borders(pixels)].max() < 0.6


def test_crop_borders_of_background_that_fades_cuts_nothing():
    """The tissue is round and its background black."""
    y, x = np.mgrid[-1:1:400j, -1:1:300j]
    limb = np.sqrt(np.clip(0.5 - x**2 - np.clip(y - 0.2, 0, None) ** 2, 0, 1))
    ramp = np.clip(x + 0.4, 0, 1)
    for image in (limb, ramp, x, 1 - 0.4 * (x**2 + y**2)):
        assert crop(image) == (0, 400, 0, 300)


def test_crop_borders_cuts_no_bone_off():
    """A bone that crosses the border in a narrow strip ends the border."""
    image = np.zeros((300, 300), np.uint8)
    image[100:200] = np.random.default_rng(0).integers(60, 120, (100, 300))
    image[:100, 140:155] = 200
    assert crop(image)[:2] == (0, 200)


def test_crop_borders_never_leaves_less_than_an_image(radiograph):
    top, bottom, _, _ = crop(add_border(radiograph[100 : 100 + MIN_SIDE - 4, 80:180], 255, 100, 100))
    assert bottom - top >= MIN_SIDE
    square = np.zeros((64, 64), np.uint8)
    square[20:44, 20:44] = 255
    assert crop(square) == (0, 64, 0, 64)


# Warnings


@pytest.mark.parametrize("label", [c.label for c in CLASSES])
def test_framing_warnings_of_radiograph_is_empty(label):
    assert warnings_of(synthetic_radiograph(label)) == ()
    assert warnings_of(synthetic_radiograph(label, seed=1, width=900, height=1200)) == ()


def test_framing_warnings_of_border_names_wide_ones(radiograph):
    assert warnings_of(add_border(radiograph, 255, left=100)) == ("Flat borders were cut off.",)
    assert warnings_of(add_border(radiograph, 255, left=5)) == ()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tone", TONES.values(), ids=TONES)
def test_framing_warnings_of_two_views_names_them(radiograph, tone, axis):
    gutter = [(0, 12) if axis == i else (0, 0) for i in (0, 1)]
    views = np.concatenate([np.pad(radiograph, gutter, constant_values=tone), radiograph[::-1]], axis)
    assert warnings_of(views) == ("This looks like several views in one image. Crop one of them.",)
    assert len(warnings_of(compress(views))) == 1


@pytest.mark.parametrize("light", [False, True])
def test_framing_warnings_of_screenshot_names_it(radiograph, light):
    window = Image.new("L", (1280, 800), 225 if light else 45)
    pen = ImageDraw.Draw(window)
    pen.rectangle((0, 0, 1280, 70), fill=200 if light else 80)
    pen.rectangle((0, 70, 220, 800), fill=240 if light else 60)
    pen.rectangle((221, 71, 1280, 760), fill=0)
    for i in range(12):
        pen.rectangle((20 + 50 * i, 30, 50 + 50 * i, 60), outline=20 if light else 220)
        pen.text((15, 90 + 50 * i), "Series 1  AP", fill=20 if light else 220)
    pen.text((20, 8), "File  Edit  View  Tools", fill=20 if light else 220)
    pen.text((20, 775), "Zoom 84 %", fill=20 if light else 220)
    window.paste(Image.fromarray(radiograph).resize((420, 640)), (540, 90))
    for image in (np.asarray(window), compress(np.asarray(window), 90)):
        assert warnings_of(image) == (
            "This looks like a screenshot. Crop the X-ray or export it from the viewer.",
        )


def test_framing_warnings_of_photograph_on_a_light_box_names_it(radiograph):
    y, x = np.mgrid[-1:1:900j, -1:1:700j]
    photograph = 235 - 50 * (x**2 + y**2) + np.random.default_rng(0).normal(0, 3, x.shape)
    turned = Image.fromarray(radiograph).resize((400, 620)).convert("LA").rotate(4, expand=True)
    canvas = Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8))
    canvas.paste(turned.getchannel("L"), (130, 120), turned.getchannel("A"))
    message = "This looks like a photograph of an X-ray or a negative. Use the original image."
    assert warnings_of(canvas) == (message,)
    assert message in warnings_of(255 - radiograph)
