"""What a viewer shows for DICOM values: padding, shutters, pixel aspect, windows, tables and polarity.

Most tests compare a file with the same image without the quirk.
"""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidImage
from fracture_lib.io.dicom.display import to_displayed
from fracture_lib.io.dicom.mask import MAX_VERTICES
from fracture_lib.io.image import load_image
from fracture_lib.io.views import make_views
from tests.helpers.dicom_files import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    RLE,
    build_dataset,
    dicom,
    encode_dicom,
    lut,
)

PADDING = "Padding pixels were left out."
SHUTTER = "The area outside the display shutter was left out."
NOT_SQUARE = "The pixels are not square; the image was resampled."
RAW = "The file has raw detector data, not an image prepared for viewing."
RAW_INVERTED = "The raw detector data were inverted, so that bone is bright."
WINDOW = {"WindowCenter": "1600", "WindowWidth": "2000"}
RAMP = np.tile(np.arange(4096, dtype="u2"), (16, 1))


@pytest.fixture
def deep():
    """A drawn radiograph with 12 bits: uint16 [96, 64], 400 to about 3700."""
    gray = np.asarray(synthetic_radiograph("Oblique", width=64, height=96))
    return (gray.astype("u2") * 13 + 400).astype("u2")


@pytest.fixture
def border():
    """A mask of what lies outside a circle: bool [96, 64]."""
    rows, columns = np.ogrid[:96, :64]
    return (rows - 48) ** 2 + (columns - 32) ** 2 > 31**2


def stretched(values, mask):
    """Return values stretched to 0 to 1 outside the mask and 0 in it."""
    inside = values[~mask].astype(float)
    return np.where(mask, 0, (values - inside.min()) / np.ptp(inside))


def with_vr(dataset, keyword, vr, value):
    dataset.add_new(keyword, vr, value)
    return dataset


# Padding


@pytest.mark.parametrize("window", [{}, WINDOW], ids=["full range", "window"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("dtype", "padding"), [("u2", 0), ("u2", 4095), ("u2", 65535), ("u2", 40000), ("i2", -32768), ("i2", -1)]
)
def test_load_image_with_padding_leaves_it_out(deep, border, dtype, padding, photometric, window):
    values = deep.astype(dtype)
    shown = np.clip((deep - 1599.5) / 1999 + 0.5, 0, 1) if window else deep.astype(float)
    values[border] = padding
    image = load_image(
        dicom(values, PixelPaddingValue=padding, PhotometricInterpretation=photometric, **window)
    )
    expected = stretched(-shown if photometric == "MONOCHROME1" else shown, border)
    np.testing.assert_allclose(image.pixels, expected, atol=1e-5)
    assert image.warnings == (PADDING,)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, RLE])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": "-2", "RescaleIntercept": "9000"}])
def test_load_image_with_padding_compares_stored_values_in_every_syntax(deep, border, syntax, rescale):
    deep[border] = 65535
    values = deep.astype(">u2") if syntax == BIG_ENDIAN else deep
    dataset = build_dataset(values, PixelPaddingValue=65535, **rescale)
    if syntax == RLE:
        encode_dicom(dataset)  # for its `file_meta`
        dataset.compress(UID(RLE))
    expected = stretched(deep.astype(float) * (-2 if rescale else 1), border)
    np.testing.assert_allclose(load_image(encode_dicom(dataset, syntax)).pixels, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "bits", "stored", "vr", "written"),
    [
        ("i2", 16, -1, "US", 65535),
        ("i2", 16, -2000, "US", 63536),
        ("u2", 16, 65535, "SS", -1),
        ("i2", 12, -2048, "US", 2048),
        ("i2", 12, -2048, "SS", -2048),
        ("u2", 16, 63536, "OW", b"\x30\xf8"),
        ("i2", 16, -2000, "OW", b"\x30\xf8"),
        ("i2", 16, -2000, "UN", b"\x30\xf8"),
    ],
)
def test_load_image_with_padding_of_other_representation_reads_it_as_the_pixels(
    border, dtype, bits, stored, vr, written
):
    gray = np.asarray(synthetic_radiograph("Oblique", width=64, height=96)).astype(dtype)
    values = np.where(border, stored, gray).astype(dtype)
    dataset = build_dataset(values, BitsStored=bits, HighBit=bits - 1)
    image = load_image(encode_dicom(with_vr(dataset, "PixelPaddingValue", vr, written)))
    np.testing.assert_allclose(image.pixels, stretched(gray, border), atol=1e-6)
    assert image.warnings == (PADDING,)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
@pytest.mark.parametrize(
    ("dtype", "bits", "padding", "limit"),
    [
        ("u2", 12, 65535, None),
        ("u2", 12, 63536, None),
        ("u2", 14, 65535, 60000),
        ("i2", 12, -32768, None),
        ("i2", 12, -3000, -2048),
    ],
)
def test_load_image_with_padding_beyond_bits_stored_leaves_it_out(
    deep, border, dtype, bits, padding, limit, syntax
):
    values = (deep.astype("i4") - 2047 * (dtype == "i2")).astype(dtype)
    values[border] = padding
    elements = {"BitsStored": bits, "HighBit": bits - 1, "PixelPaddingRangeLimit": limit}
    dataset = build_dataset(values, PixelPaddingValue=padding, **elements)
    if syntax == RLE:
        encode_dicom(dataset)  # for its `file_meta`
        dataset.compress(UID(RLE))
    image = load_image(encode_dicom(dataset, syntax))
    np.testing.assert_allclose(image.pixels, stretched(deep, border), atol=1e-6)
    assert image.warnings == (PADDING,)


@pytest.mark.parametrize(("value", "limit"), [(0, 90), (90, 0), (4000, 4095), (4095, 4000), (7, 0)])
def test_load_image_with_padding_range_leaves_out_both_ends_and_between(deep, border, value, limit):
    low, high = sorted((value, limit))
    values = deep.copy()
    values[border] = np.linspace(low, high, border.sum()).round()
    image = load_image(dicom(values, PixelPaddingValue=value, PixelPaddingRangeLimit=limit))
    np.testing.assert_allclose(image.pixels, stretched(deep, border), atol=1e-6)


@pytest.mark.parametrize("elements", [{"PixelPaddingValue": 5}, {"PixelPaddingRangeLimit": 4095}])
def test_load_image_with_padding_value_that_no_pixel_has_changes_nothing(deep, elements):
    image = load_image(dicom(deep, **elements))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)
    assert image.warnings == ()


def test_load_image_with_padding_value_that_is_black_is_harmless(deep):
    deep[:2] = 0
    image = load_image(dicom(deep, PixelPaddingValue=0))
    assert (image.pixels[:2] == 0).all()
    np.testing.assert_allclose(image.pixels[2:], load_image(dicom(deep[2:])).pixels, atol=1e-6)


@pytest.mark.parametrize("limit", [65535, 399], ids=["all", "all but one tone"])
def test_load_image_with_padding_that_leaves_no_image_ignores_it(deep, limit):
    if limit == 399:
        deep[deep > 400] = 0
    image = load_image(dicom(deep, PixelPaddingValue=0, PixelPaddingRangeLimit=limit))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)
    assert image.warnings == ("The file's pixel padding value is invalid and was ignored.",)


def test_load_image_with_colors_ignores_the_padding_value(deep):
    rgb = np.dstack([deep // 16] * 3).astype("u1")
    image = load_image(dicom(rgb, PixelPaddingValue=int(rgb[0, 0, 0])))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(rgb)).pixels)
    assert image.warnings == ()


@pytest.mark.parametrize(
    ("keyword", "dtype", "value"),
    [
        ("FloatPixelPadding", "f4", -1e30),
        ("FloatPixelPadding", "f4", np.nan),
        ("DoubleFloatPixelPadding", "f8", -1e300),
    ],
)
def test_to_displayed_with_float_padding_leaves_it_out(deep, border, keyword, dtype, value):
    values = np.where(border, value, deep).astype(dtype)
    dataset, messages = build_dataset(deep), []
    dataset.add_new(f"{keyword}Value", "FL" if dtype == "f4" else "FD", value)
    displayed = to_displayed(values, dataset, messages)
    np.testing.assert_array_equal(displayed.blank_mask, border)
    assert messages == [PADDING] and np.ptp(displayed.values) == np.ptp(deep[~border])


# Display shutter


def polygon_mask(shape, vertices):
    """Return what lies outside a convex polygon of rows and columns from 1, given clockwise."""
    rows, columns = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    outside = np.zeros(shape, bool)
    for (row, column), (next_row, next_column) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        outside |= (next_column - column) * (rows - row) - (next_row - row) * (columns - column) < 0
    return outside


RECTANGLE = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 11,
    "ShutterRightVerticalEdge": 50,
    "ShutterUpperHorizontalEdge": 21,
    "ShutterLowerHorizontalEdge": 90,
}
CIRCLE = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [40, 30], "RadiusOfCircularShutter": 25}
VERTICES = [(10, 30), (50, 60), (90, 30), (50, 5)]
POLYGON = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [n for v in VERTICES for n in v]}
ROWS, COLUMNS = np.ogrid[1:97, 1:65]
MASKS = {
    "RECTANGULAR": ~((ROWS >= 21) & (ROWS <= 90) & (COLUMNS >= 11) & (COLUMNS <= 50)),
    "CIRCULAR": (ROWS - 40) ** 2 + (COLUMNS - 30) ** 2 > 25**2,
    "POLYGONAL": polygon_mask((96, 64), VERTICES),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "shapes",
    [["RECTANGULAR"], ["CIRCULAR"], ["RECTANGULAR", "CIRCULAR"], [" circular", "CIRCULAR"]],
)
def test_load_image_with_shutter_leaves_out_what_is_outside(deep, shapes, photometric):
    mask = np.any([MASKS[shape.strip().upper()] for shape in shapes], axis=0)
    covered = np.where(mask, 65535 if photometric == "MONOCHROME2" else 0, deep).astype("u2")
    elements = RECTANGLE | CIRCLE | {"ShutterShape": shapes, "PhotometricInterpretation": photometric}
    image = load_image(dicom(covered, **elements))
    shown = deep.astype(float) * (-1 if photometric == "MONOCHROME1" else 1)
    np.testing.assert_allclose(image.pixels, stretched(shown, mask), atol=1e-6)
    assert image.warnings == (SHUTTER,)


@pytest.mark.parametrize("shapes", [["POLYGONAL"], ["RECTANGULAR", "CIRCULAR", "POLYGONAL"]])
@pytest.mark.parametrize("order", [1, -1])
def test_load_image_with_polygonal_shutter_leaves_out_what_is_outside(deep, shapes, order):
    vertices = {"VerticesOfThePolygonalShutter": [n for v in VERTICES[::order] for n in v]}
    image = load_image(dicom(deep, **RECTANGLE | CIRCLE | vertices | {"ShutterShape": shapes}))
    mask = np.any([MASKS[shape] for shape in shapes], axis=0)
    # Pillow draws the pixels that an edge passes through.
    assert (image.pixels[mask] != 0).mean() < 0.03 and (image.pixels[~mask] > 0).mean() > 0.99
    assert image.warnings == (SHUTTER,)


def test_load_image_with_shutter_and_padding_leaves_out_both(deep):
    mask = MASKS["RECTANGULAR"] | MASKS["CIRCULAR"]
    values = np.where(MASKS["CIRCULAR"], 0, np.where(MASKS["RECTANGULAR"], 65535, deep)).astype("u2")
    image = load_image(dicom(values, PixelPaddingValue=0, **RECTANGLE))
    np.testing.assert_allclose(image.pixels, stretched(deep, mask), atol=1e-6)
    assert image.warnings == (PADDING, SHUTTER)


def test_load_image_with_circular_shutter_and_tall_pixels_shows_a_circle(deep):
    """The radius is in pixels along a row."""
    displayed = to_displayed(deep, build_dataset(deep, PixelAspectRatio=[2, 1], **CIRCLE), [])
    expected = (2 * (ROWS - 40)) ** 2 + (COLUMNS - 30) ** 2 > 25**2
    np.testing.assert_array_equal(displayed.blank_mask, expected)


def test_load_image_with_colors_and_shutter_leaves_out_what_is_outside(deep):
    gray = (deep // 16).astype("u1")
    rgb = np.dstack([np.where(MASKS["RECTANGULAR"], 255, gray)] * 3).astype("u1")
    pixels = load_image(dicom(rgb, **RECTANGLE)).pixels
    np.testing.assert_allclose(pixels, stretched(gray, MASKS["RECTANGULAR"]), atol=1e-5)


def test_load_image_with_shutter_and_spacing_of_a_frame_uses_them(deep):
    shutter, spacing, groups = Dataset(), Dataset(), Dataset()
    for keyword, value in RECTANGLE.items():
        setattr(shutter, keyword, value)
    spacing.PixelSpacing = ["0.2", "0.1"]
    groups.FrameDisplayShutterSequence, groups.PixelMeasuresSequence = [shutter], [spacing]
    image = load_image(dicom(deep, SharedFunctionalGroupsSequence=[groups]))
    plain = load_image(dicom(deep, PixelSpacing=["0.2", "0.1"], **RECTANGLE))
    np.testing.assert_array_equal(image.pixels, plain.pixels)
    assert image.warnings == plain.warnings == (NOT_SQUARE, SHUTTER)


INVALID_SHUTTERS = {
    "left-of-right": RECTANGLE | {"ShutterLeftVerticalEdge": 51},
    "outside": RECTANGLE | {"ShutterUpperHorizontalEdge": 1000, "ShutterLowerHorizontalEdge": 2000},
    "negative": RECTANGLE | {"ShutterUpperHorizontalEdge": -90, "ShutterLowerHorizontalEdge": -1},
    "missing-edge": RECTANGLE | {"ShutterLowerHorizontalEdge": None},
    "empty-edge": RECTANGLE | {"ShutterLowerHorizontalEdge": ""},
    "one-pixel": RECTANGLE | {"ShutterRightVerticalEdge": 11, "ShutterLowerHorizontalEdge": 21},
    "no-radius": CIRCLE | {"RadiusOfCircularShutter": 0},
    "negative-radius": CIRCLE | {"RadiusOfCircularShutter": -30},
    "missing-radius": CIRCLE | {"RadiusOfCircularShutter": None},
    "center-of-one": CIRCLE | {"CenterOfCircularShutter": 40},
    "far-circle": CIRCLE | {"CenterOfCircularShutter": [2**31 - 1, -(2**31)]},
    "no-vertices": POLYGON | {"VerticesOfThePolygonalShutter": None},
    "two-vertices": POLYGON | {"VerticesOfThePolygonalShutter": [1, 1, 50, 50]},
    "odd-vertices": POLYGON | {"VerticesOfThePolygonalShutter": [1, 1, 50, 50, 90, 1, 7]},
    "too-many-vertices": POLYGON | {"VerticesOfThePolygonalShutter": [9, 9] * (MAX_VERTICES + 1)},
    "far-polygon": POLYGON
    | {"VerticesOfThePolygonalShutter": [10**9, 10**9, 10**9, 2**31 - 1, 2**30, 2**30]},
    "bitmap": {"ShutterShape": "BITMAP"},
    "unknown": {"ShutterShape": "STAR"},
}


@pytest.mark.parametrize("name", INVALID_SHUTTERS)
def test_load_image_with_invalid_shutter_ignores_it_with_a_warning(deep, name):
    image = load_image(dicom(deep, **INVALID_SHUTTERS[name]))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)
    assert len(image.warnings) == 1 and "shutter is invalid or unsupported" in image.warnings[0]


def test_load_image_with_text_as_shutter_ignores_it_without_quoting_it(deep):
    dataset = with_vr(build_dataset(deep, **RECTANGLE), "ShutterLeftVerticalEdge", "LO", "SECRET-ID")
    image = load_image(encode_dicom(dataset))
    assert "shutter is invalid" in image.warnings[0] and "SECRET-ID" not in repr(image)


def test_load_image_with_one_invalid_shape_applies_the_other(deep):
    elements = (
        RECTANGLE | CIRCLE | {"ShutterShape": ["CIRCULAR", "RECTANGULAR"], "RadiusOfCircularShutter": 0}
    )
    image = load_image(dicom(deep, **elements))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep, **RECTANGLE)).pixels)
    assert SHUTTER in image.warnings and len(image.warnings) == 2


@pytest.mark.parametrize(
    "elements",
    [
        RECTANGLE
        | {"ShutterLeftVerticalEdge": 0, "ShutterRightVerticalEdge": 65}
        | {"ShutterUpperHorizontalEdge": -5, "ShutterLowerHorizontalEdge": 9000},
        CIRCLE | {"RadiusOfCircularShutter": 2**31 - 1},
        POLYGON
        | {"VerticesOfThePolygonalShutter": [-(2**31), -(2**31), -9, 2**31 - 1, 2**31 - 1, 2**31 - 1]}
        | {"VerticesOfThePolygonalShutter": [0, 0, 0, 65, 97, 65, 97, 0]},
    ],
)
def test_load_image_with_shutter_around_the_image_changes_nothing(deep, elements):
    image = load_image(dicom(deep, **elements))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)
    assert image.warnings == ()


# Pixel aspect


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelAspectRatio": [2, 1]},
        {"PixelSpacing": ["0.2", "0.1"]},
        {"ImagerPixelSpacing": ["0.28", "0.14"]},
        {"NominalScannedPixelSpacing": ["0.1", "0.05"]},
        {"PixelAspectRatio": [1, 1], "PixelSpacing": ["0.2", "0.1"]},
        {"PixelSpacing": "", "ImagerPixelSpacing": ["0.2", "0.1"]},
    ],
    ids=lambda elements: "-".join(elements),
)
def test_load_image_with_tall_pixels_gives_the_input_of_square_ones(elements):
    square = np.asarray(synthetic_radiograph("Oblique", width=160, height=240))
    squashed = np.asarray(Image.fromarray(square).resize((160, 120), Image.Resampling.BOX))
    image = load_image(dicom(squashed, **elements))
    assert image.warnings == (NOT_SQUARE,)
    assert image.pixels.shape[0] / image.pixels.shape[1] == pytest.approx(1.5, rel=0.02)
    assert np.abs(make_views(image.pixels) - make_views(load_image(square).pixels)).mean() < 0.01


@pytest.mark.parametrize("ratio", [(3, 2), (2, 3), (10, 1), (1, 10)])
def test_load_image_with_pixels_that_are_not_square_keeps_the_details_of_a_small_image(deep, ratio):
    image = load_image(dicom(deep, PixelAspectRatio=list(ratio)))
    height, width = deep.shape
    tall, wide = ratio
    assert image.pixels.shape == (
        round(height * max(1, tall / wide)),
        round(width * max(1, wide / tall)),
    )


def test_load_image_with_pixels_that_are_not_square_shrinks_a_large_image():
    values = np.tile(np.arange(2048, dtype="u2"), (1500, 1))
    assert load_image(dicom(values, PixelAspectRatio=[2, 1])).pixels.shape == (1500, 1024)
    assert load_image(dicom(values, PixelAspectRatio=[1, 2])).pixels.shape == (750, 2048)


@pytest.mark.parametrize("elements", [{"PixelAspectRatio": [5, 7]}, {"PixelSpacing": ["0.25", "0.35"]}])
def test_load_image_with_wide_pixels_gives_the_input_of_square_ones(elements):
    square = np.asarray(synthetic_radiograph("Oblique", width=140, height=200))
    squashed = np.asarray(Image.fromarray(square).resize((100, 200), Image.Resampling.BOX))
    image = load_image(dicom(squashed, **elements))
    assert np.abs(make_views(image.pixels) - make_views(load_image(square).pixels)).mean() < 0.01


@pytest.mark.parametrize(
    "elements", [{"PixelAspectRatio": [1, 1]}, {"PixelSpacing": ["0.1436", "0.1434"]}, {"PixelSpacing": ""}]
)
def test_load_image_with_square_pixels_is_not_resampled(deep, elements):
    image = load_image(dicom(deep, **elements))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)
    assert image.warnings == ()


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelAspectRatio": [0, 1]},
        {"PixelAspectRatio": [1, 0]},
        {"PixelAspectRatio": [-2, -1]},
        {"PixelAspectRatio": 2},
        {"PixelAspectRatio": [1, 2, 3]},
        {"PixelSpacing": ["11", "1"]},
        {"PixelSpacing": ["1", "11"], "ImagerPixelSpacing": ["0", "1"]},
        {"PixelSpacing": ["1e-999", "1"]},
    ],
)
def test_load_image_with_invalid_aspect_ignores_it_with_a_warning(deep, elements):
    image = load_image(dicom(deep, **elements))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)
    assert image.warnings == ("The file's pixel aspect ratio is invalid and was ignored.",)


def test_load_image_with_invalid_aspect_uses_the_next_element(deep):
    image = load_image(dicom(deep, PixelAspectRatio=[0, 0], PixelSpacing=["0.1", "0.2"]))
    assert image.pixels.shape == (96, 128) and len(image.warnings) == 2


# Windows


def bordered(values, share):
    """Return values with the top rows black, as collimation leaves them."""
    values = values.copy()
    values[: round(share * len(values))] = 0
    return values


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("center", "width"), [("128", "256"), ("127.5", "255"), ("3900", "8"), ("40", "80"), ("300", "2")]
)
def test_load_image_with_window_that_leaves_almost_no_tones_ignores_it(deep, share, center, width):
    values = bordered(deep, share)
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        plain = load_image(dicom(values, PhotometricInterpretation=photometric))
        image = load_image(
            dicom(values, WindowCenter=center, WindowWidth=width, PhotometricInterpretation=photometric)
        )
        np.testing.assert_array_equal(image.pixels, plain.pixels)
        assert len(image.warnings) == 1 and "window" in image.warnings[0]


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize(("low", "high"), [(30, 70), (60, 98), (85, 99.9), (90, 99.9), (0, 20)])
def test_load_image_with_hard_window_keeps_it(deep, share, low, high):
    """A window between two percentiles of the image, such as that of bone."""
    low, high = np.percentile(deep[round(share * len(deep)) :], [low, high])
    values = bordered(deep, share)
    elements = {"WindowCenter": str(round((low + high) / 2)), "WindowWidth": str(round(high - low) + 1)}
    image = load_image(dicom(values, VOILUTFunction="LINEAR_EXACT", **elements))
    center, width = (float(elements[key]) for key in ("WindowCenter", "WindowWidth"))
    expected = np.clip((values - center) / width + 0.5, 0, 1)
    np.testing.assert_allclose(image.pixels, stretched(expected, np.zeros(values.shape, bool)), atol=1e-5)
    assert image.warnings == ()


def test_load_image_with_small_object_in_a_ct_keeps_its_bone_window():
    """97 % of the pixels are air, with noise; the window shows the object only."""
    rng = np.random.default_rng(5)
    values = rng.normal(-1000, 15, (200, 200))
    values[90:125, 90:125] = rng.normal(400, 300, (35, 35))
    image = load_image(dicom(values.astype("i2"), WindowCenter="500", WindowWidth="1500"))
    assert image.warnings == () and (image.pixels[:80] == 0).all()


def test_load_image_with_outliers_keeps_the_window(deep):
    deep[0, :3] = 65535
    image = load_image(dicom(deep, **WINDOW))
    assert image.warnings == () and image.pixels.std() > 0.2


def test_load_image_with_two_tones_keeps_its_window(deep):
    two_tones = np.where(deep > 2000, 3000, 1000).astype("u2")
    image = load_image(dicom(two_tones, **WINDOW))
    assert set(np.unique(image.pixels)) == {0, 1} and image.warnings == ()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_load_image_with_window_far_wider_than_its_values_keeps_their_range(deep, function):
    window = {"WindowCenter": "2000", "WindowWidth": "1e9", "VOILUTFunction": function}
    image = load_image(dicom(deep, **window))
    tolerance = 0.05 if function == "SIGMOID" else 1e-6  # float32 has few numbers that near to 0.5
    np.testing.assert_allclose(image.pixels, load_image(dicom(deep)).pixels, atol=tolerance)
    assert image.warnings == ()


def test_load_image_with_window_outside_all_values_ignores_it_with_a_warning(deep):
    image = load_image(dicom(deep, WindowCenter="60000", WindowWidth="10"))
    np.testing.assert_allclose(image.pixels, load_image(dicom(deep)).pixels, atol=1e-6)
    assert len(image.warnings) == 1 and "leaves almost no grey values" in image.warnings[0]


@pytest.mark.parametrize("first", [("128", "256"), ("1600", "0"), ("9999", "9")])
def test_load_image_with_first_window_useless_uses_the_second_with_a_warning(deep, first):
    several = {"WindowCenter": [first[0], "1600"], "WindowWidth": [first[1], "2000"]}
    image = load_image(dicom(deep, **several))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep, **WINDOW)).pixels)
    assert len(image.warnings) == 1 and image.warnings[0].endswith("was ignored; the next one is used.")


@pytest.mark.parametrize("item", [Dataset(), lut([0, 1])[0]], ids=["empty", "two tones"])
def test_load_image_with_useless_voi_lut_uses_the_window_with_a_warning(deep, item):
    image = load_image(dicom(deep, VOILUTSequence=[item], **WINDOW))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep, **WINDOW)).pixels)
    assert len(image.warnings) == 1 and "the next one is used" in image.warnings[0]


def test_load_image_with_second_voi_lut_usable_uses_it(deep):
    table = lut(np.arange(4096) ** 2 // 4096)
    image = load_image(dicom(deep, VOILUTSequence=[Dataset(), *table]))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep, VOILUTSequence=table)).pixels)


def test_load_image_with_thousands_of_useless_windows_gives_up_soon(deep):
    image = load_image(dicom(deep, WindowCenter=["9999"] * 2000, WindowWidth=["2"] * 2000))
    assert len(image.warnings) == 1 and "full range" in image.warnings[0]


# Rescaling and tables


@pytest.mark.parametrize(
    ("dtype", "low"),
    [("u4", 2**31), ("u4", 2**32 - 4096), ("i4", -(2**31)), ("i4", 2**31 - 4096), ("i4", -7)],
)
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": "0.5", "RescaleIntercept": "-3"}])
def test_load_image_with_32_bits_keeps_neighbouring_values(dtype, low, rescale):
    image = load_image(dicom((RAMP.astype("i8") + low).astype(dtype), **rescale))
    np.testing.assert_allclose(image.pixels[0], np.linspace(0, 1, 4096), atol=1e-6)
    slope, intercept = (0.5, -3) if rescale else (1, 0)
    window = {"WindowCenter": str((low + 2048) * slope + intercept), "WindowWidth": str(2048 * slope)}
    image = load_image(
        dicom((RAMP.astype("i8") + low).astype(dtype), VOILUTFunction="LINEAR_EXACT", **window, **rescale)
    )
    np.testing.assert_allclose(image.pixels[0], np.clip(np.arange(-1024, 3072) / 2048, 0, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [">u4", ">i4", "<i4"])
def test_load_image_with_32_bits_in_each_byte_order_gives_the_same(dtype):
    data = dicom((RAMP.astype("i8") + 10**9).astype(dtype), BIG_ENDIAN if dtype[0] == ">" else EXPLICIT)
    np.testing.assert_allclose(load_image(data).pixels[0], np.linspace(0, 1, 4096), atol=1e-6)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_load_image_with_one_of_slope_and_intercept_assumes_the_other(keyword):
    window = {"WindowCenter": "2048", "WindowWidth": "1000"}
    neutral = {"RescaleSlope": "1", "RescaleIntercept": "0"}
    image = load_image(dicom(RAMP, **{keyword: neutral[keyword]}, **window))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(RAMP, **window)).pixels)
    assert image.warnings == ()


@pytest.mark.parametrize("elements", [{"RescaleIntercept": "1e999"}, {"RescaleSlope": "1e-300"}])
def test_load_image_with_invalid_rescaling_ignores_it_with_a_warning(elements):
    image = load_image(dicom(RAMP, **elements))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(RAMP)).pixels)
    assert len(image.warnings) == 1 and "rescaling is invalid" in image.warnings[0]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("vr", ["US", "SS", "OW"])
def test_load_image_with_signed_first_mapped_value_reads_it_as_the_pixels(keyword, vr, syntax):
    byte_order = ">" if syntax == BIG_ENDIAN else "<"
    [table] = lut(np.arange(4096) ** 2 // 4096, dtype=f"{byte_order}u2")
    signed = [4096, -2048, 16]
    unsigned = [4096, 65536 - 2048, 16]
    as_bytes = np.array(unsigned, f"{byte_order}u2").tobytes()
    table.add_new("LUTDescriptor", vr, {"US": unsigned, "SS": signed, "OW": as_bytes}[vr])
    values = (RAMP.astype("i4") - 2048).astype(f"{byte_order}i2")
    image = load_image(dicom(values, syntax, **{keyword: [table]}))
    np.testing.assert_allclose(image.pixels[0], np.arange(4096) ** 2 // 4096 / 4094, atol=1e-6)
    assert image.warnings == ()


def test_load_image_with_voi_lut_after_rescaling_to_negative_values_reads_a_signed_first_value():
    [table] = lut(np.arange(4096) ** 2 // 4096)
    table.add_new("LUTDescriptor", "US", [4096, 65536 - 1024, 16])
    image = load_image(dicom(RAMP, RescaleIntercept="-1024", VOILUTSequence=[table]))
    np.testing.assert_allclose(image.pixels[0], np.arange(4096) ** 2 // 4096 / 4094, atol=1e-6)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_load_image_with_unsigned_first_mapped_value_above_32767_reads_it_as_the_pixels(vr):
    [table] = lut(np.arange(4096) ** 2 // 4096)
    table.add_new("LUTDescriptor", vr, [4096, 40000 if vr == "US" else 40000 - 65536, 16])
    image = load_image(dicom(RAMP + 40000, VOILUTSequence=[table]))
    np.testing.assert_allclose(image.pixels[0], np.arange(4096) ** 2 // 4096 / 4094, atol=1e-6)


def test_load_image_with_65536_entries_counts_0_as_that():
    [table] = lut(np.arange(65536)[::-1])
    table.LUTDescriptor = [0, 0, 16]
    ramp = np.arange(65536, dtype="u2").reshape(256, 256)
    image = load_image(dicom(ramp, VOILUTSequence=[table]))
    np.testing.assert_allclose(image.pixels.ravel(), np.linspace(1, 0, 65536), atol=1e-6)


@pytest.mark.parametrize("n_entries", [256, 255])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_load_image_with_8_bit_entries_in_words_reads_each_byte(syntax, n_entries):
    entries = np.arange(n_entries, dtype="u1")[::-1]
    data = entries.tobytes() + b"\0" * (n_entries % 2)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [n_entries, 0, 8])
    # In big endian, the bytes of each word are swapped.
    item.add_new(
        "LUTData", "OW", np.frombuffer(data, "<u2").byteswap().tobytes() if syntax == BIG_ENDIAN else data
    )
    ramp = np.tile(np.arange(n_entries, dtype="u1"), (16 + 16 * (n_entries % 2), 1))
    image = load_image(dicom(ramp, syntax, VOILUTSequence=[item]))
    np.testing.assert_allclose(image.pixels[0], np.linspace(1, 0, n_entries), atol=1e-6)


def test_load_image_with_segmented_palette_says_so():
    palette = {}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"Segmented{color}PaletteColorLookupTableData"] = np.array(
            [0, 1, 0, 1, 255, 65535], "<u2"
        ).tobytes()
    with pytest.raises(InvalidImage, match="segmented colour palette"):
        load_image(dicom(RAMP.astype("u1"), PhotometricInterpretation="PALETTE COLOR", **palette))


@pytest.mark.parametrize(
    "missing", ["RedPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"]
)
def test_load_image_with_missing_palette_says_so(missing):
    palette = {}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{color}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
    palette[missing] = None
    with pytest.raises(InvalidImage, match="lacks its colour palette"):
        load_image(dicom(RAMP.astype("u1"), PhotometricInterpretation="PALETTE COLOR", **palette))


# Polarity


@pytest.mark.parametrize("slope", ["1", "-1"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("window", [False, True])
def test_load_image_with_raw_data_and_sign_shows_bone_bright(deep, slope, photometric, sign, window):
    """Sign 1: higher values where more radiation arrived, so where there is less bone."""
    stored = 4095 - deep if sign == 1 else deep
    elements = {
        "PresentationIntentType": "FOR PROCESSING",
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": sign,
        "PhotometricInterpretation": photometric,
        "RescaleSlope": slope,
    }
    if window:
        elements |= {
            "WindowCenter": str(2047.5 * int(slope)),
            "WindowWidth": "4096",
            "VOILUTFunction": "LINEAR_EXACT",
        }
    image = load_image(dicom(stored, **elements))
    np.testing.assert_allclose(image.pixels, load_image(dicom(deep)).pixels, atol=1e-5)
    is_inverted = (sign == 1) == (slope == "1")
    assert image.warnings == ((RAW, RAW_INVERTED) if is_inverted else (RAW,))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("sign", [None, "", 0, 7])
def test_load_image_with_raw_data_without_sign_only_warns(deep, photometric, sign):
    elements = {"PhotometricInterpretation": photometric, "PixelIntensityRelationshipSign": sign}
    image = load_image(dicom(deep, PresentationIntentType="FOR PROCESSING", **elements))
    plain = load_image(dicom(deep, PhotometricInterpretation=photometric))
    np.testing.assert_array_equal(image.pixels, plain.pixels)
    assert image.warnings == (RAW,)


def test_load_image_with_raw_data_and_unsigned_sign_reads_it_as_minus_1(deep):
    dataset = build_dataset(
        deep, PresentationIntentType="FOR PROCESSING", PhotometricInterpretation="MONOCHROME1"
    )
    image = load_image(encode_dicom(with_vr(dataset, "PixelIntensityRelationshipSign", "US", 65535)))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)


@pytest.mark.parametrize("intent", ["FOR PRESENTATION", None])
@pytest.mark.parametrize("sign", [1, -1])
def test_load_image_with_image_for_presentation_ignores_the_sign(deep, intent, sign):
    image = load_image(dicom(deep, PresentationIntentType=intent, PixelIntensityRelationshipSign=sign))
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep)).pixels)
    assert image.warnings == ()


@pytest.mark.parametrize(
    ("photometric", "shape", "is_inverted", "n_warnings"),
    [
        ("MONOCHROME1", "INVERSE", True, 0),
        ("MONOCHROME2", "IDENTITY", False, 0),
        ("MONOCHROME2", "INVERSE", True, 1),
        ("MONOCHROME1", "IDENTITY", True, 1),
        ("MONOCHROME1", "", True, 0),
        ("MONOCHROME2", "LIN OD", False, 0),
    ],
)
@pytest.mark.parametrize("window", [{}, WINDOW])
def test_load_image_with_presentation_lut_shape_inverts_at_most_once(
    deep, photometric, shape, is_inverted, n_warnings, window
):
    image = load_image(
        dicom(deep, PhotometricInterpretation=photometric, PresentationLUTShape=shape, **window)
    )
    plain = load_image(dicom(deep, **window)).pixels
    np.testing.assert_allclose(image.pixels, 1 - plain if is_inverted else plain, atol=1e-6)
    assert len(image.warnings) == n_warnings


# Limits


def test_to_displayed_with_every_step_takes_few_bytes_per_pixel():
    values = np.tile(RAMP[0], (512, 1)).astype("u2")
    dataset = build_dataset(
        values,
        PixelPaddingValue=0,
        PixelPaddingRangeLimit=9,
        PixelAspectRatio=[2, 1],
        RescaleSlope="2",
        WindowCenter=["1", "4000"],
        WindowWidth=["1", "6000"],
        PhotometricInterpretation="MONOCHROME1",
        **POLYGON | RECTANGLE | CIRCLE | {"ShutterShape": ["POLYGONAL", "RECTANGULAR"]},
    )
    dataset.ShutterRightVerticalEdge, dataset.ShutterLowerHorizontalEdge = 4000, 500
    dataset.VerticesOfThePolygonalShutter = [1, 1, 1, 4096, 512, 4096, 512, 1]
    tracemalloc.start()
    try:
        to_displayed(values, dataset, [])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * values.size
