"""Pixel cells, frames and missing elements: each file holds values that the test has drawn."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels import convert_color_space

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidImage
from fracture_lib.io.dicom import frames
from fracture_lib.io.image import load_image
from tests.helpers.bad_inputs import error_message
from tests.helpers.dicom_files import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    RLE,
    build_dataset,
    compressed_by_gdcm,
    dicom,
    encapsulated,
    encode_dicom,
    fragmented,
    shipped,
    with_elements,
)
from tests.helpers.images import encode_image

CODECS = [JPEG_2000, JPEG_LS, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, RLE]


@pytest.fixture(scope="module")
def gray():
    """A drawn radiograph: uint8 [160, 90]."""
    return np.asarray(synthetic_radiograph("Oblique", width=90, height=160))


@pytest.fixture(scope="module")
def deep(gray):
    """The same with smooth noise, 12 of 16 bits: uint16 [160, 90]."""
    fine = np.random.default_rng(0).integers(0, 16, gray.shape, dtype="u2")
    return gray.astype("u2") * 16 + fine


@pytest.fixture(scope="module")
def overlay(gray):
    """Text and a frame: bool [160, 90]."""
    drawing = Image.new("1", gray.shape[::-1])
    draw = ImageDraw.Draw(drawing)
    draw.text((8, 8), "L 12", fill=1)
    draw.rectangle((20, 60, 70, 120), outline=1)
    return np.asarray(drawing)


def compress(cells, syntax, folder, **elements):
    """Return a DICOM file with unsigned cells compressed without loss, then the elements set."""
    if syntax == RLE:
        data = with_rle(build_dataset(cells))
    elif syntax == JPEG_2000:
        data = encapsulated(encode_image(Image.fromarray(cells), "JPEG2000"), cells, syntax)
    else:
        data = compressed_by_gdcm(cells, syntax, folder)
    return with_elements(data, **elements)


def with_rle(dataset):
    """Return the bytes of a DICOM file with the frames of the dataset compressed by pydicom."""
    encode_dicom(dataset)
    dataset.compress(RLE)
    return encode_dicom(dataset, RLE)


def assert_same(data, values, *words, atol=0.0):
    """Check that a file is displayed as the values are, with one warning that has all words, or none."""
    image, expected = load_image(data), load_image(np.asarray(values))
    np.testing.assert_allclose(image.pixels, expected.pixels, atol=atol or 1e-6)
    assert len(image.warnings) == bool(words), image.warnings
    assert all(word in image.warnings[0] for word in words), image.warnings


# Bits


@pytest.mark.parametrize(("bits", "high_bit"), [(12, 15), (12, 13), (10, 11), (8, 15), (15, 15), (1, 4)])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, *CODECS])
def test_read_dicom_with_high_bit_above_bits_stored_shifts(deep, syntax, bits, high_bit, tmp_path):
    values = deep >> max(0, 12 - bits)
    cells = (values << (high_bit + 1 - bits)).astype("u2")
    elements = {"BitsStored": bits, "HighBit": high_bit}
    if syntax in CODECS:
        data = compress(cells, syntax, tmp_path, **elements)
    else:
        data = dicom(cells.astype(">u2") if syntax == BIG_ENDIAN else cells, syntax, **elements)
    assert_same(data, values)


@pytest.mark.parametrize(("bits", "high_bit"), [(12, 15), (10, 11), (12, 11)])
def test_read_dicom_with_signed_values_shifts_and_extends_their_sign(deep, bits, high_bit):
    values = (deep.astype("i2") - 2048) >> (12 - bits)
    cells = (values.view("u2") & (2**bits - 1)) << (high_bit + 1 - bits)
    elements = {"BitsStored": bits, "HighBit": high_bit, "PixelRepresentation": 1}
    assert_same(dicom(cells.astype("u2"), **elements), values)


def test_read_dicom_with_unused_low_bits_drops_them(deep):
    """Bits below those stored are not part of the image."""
    cells = (deep << 4 | np.random.default_rng(1).integers(0, 16, deep.shape)).astype("u2")
    assert_same(dicom(cells, BitsStored=12, HighBit=15), deep)


def test_read_dicom_with_high_bit_that_does_not_fit_the_pixels_ignores_it(deep):
    assert_same(dicom(deep, BitsStored=12, HighBit=15), deep, "HighBit does not fit")


@pytest.mark.parametrize("high_bit", [3, 16, 99])
def test_read_dicom_with_impossible_high_bit_uses_the_default(deep, high_bit):
    assert_same(dicom(deep, BitsStored=12, HighBit=high_bit), deep, "HighBit", "defaults")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 11])
def test_read_dicom_with_too_low_bits_stored_keeps_all_values(deep, bits, signed):
    values = deep.astype("i2") - 2048 if signed else deep
    data = dicom(values, BitsStored=bits, HighBit=bits - 1)
    assert_same(data, values, "12 bits", f"{bits} of BitsStored")


@pytest.mark.parametrize("syntax", CODECS)
def test_read_dicom_with_too_low_bits_stored_in_a_codestream_keeps_all_values(deep, syntax, tmp_path):
    data = compress(deep, syntax, tmp_path, BitsStored=10, HighBit=9)
    assert_same(data, deep, "12 bits", "10 of BitsStored")


@pytest.mark.parametrize("plane", [12, 15])
@pytest.mark.parametrize("syntax", [EXPLICIT, *CODECS])
def test_read_dicom_with_undeclared_overlay_above_bits_stored_masks_it(
    deep, overlay, syntax, plane, tmp_path
):
    cells = (deep | overlay.astype("u2") << plane).astype("u2")
    elements = {"BitsStored": 12, "HighBit": 11}
    compressed = syntax in CODECS
    data = compress(cells, syntax, tmp_path, **elements) if compressed else dicom(cells, **elements)
    assert_same(data, deep, "overlay")


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, JPEG_2000])
def test_read_dicom_with_declared_overlay_masks_it_without_a_warning(deep, overlay, syntax, tmp_path):
    cells = (deep | overlay.astype("u2") << 12 | overlay[::-1].astype("u2") << 14).astype("u2")
    dataset = build_dataset(cells, BitsStored=12, HighBit=11)
    if syntax == JPEG_2000:
        dataset.PixelData = encapsulate([encode_image(Image.fromarray(cells), "JPEG2000")])
    for group, position in ((0x6000, 12), (0x6002, 14)):
        dataset.add_new((group, 0x0100), "US", 16)
        dataset.add_new((group, 0x0102), "US", position)
    assert_same(encode_dicom(dataset, syntax), deep)


def test_read_dicom_with_overlay_of_half_the_image_and_signed_values_masks_it(deep):
    values = deep.astype("i2") - 2048
    cells = values.view("u2") & 0xFFF
    cells[40:] |= 1 << 13
    elements = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
    assert_same(dicom(cells, **elements), values, "overlay")


def test_read_dicom_with_8_bits_in_16_and_overlay_masks_it(gray, overlay):
    cells = gray.astype("u2") | overlay.astype("u2") << 8
    assert_same(dicom(cells, BitsStored=8, HighBit=7), gray, "overlay")


def test_read_dicom_with_overlay_of_its_own_data_ignores_it(deep):
    dataset = build_dataset(deep, BitsStored=12, HighBit=11)
    dataset.add_new((0x6000, 0x0100), "US", 1)
    dataset.add_new((0x6000, 0x0102), "US", 0)
    dataset.add_new((0x6000, 0x3000), "OW", bytes(deep.size // 8))
    assert_same(encode_dicom(dataset), deep)


def test_read_dicom_with_left_aligned_values_and_right_aligned_bits_keeps_them(gray):
    """All image is above BitsStored."""
    assert_same(dicom(gray.astype("u2") << 8, BitsStored=8, HighBit=7), gray, "16 bits")


def test_read_dicom_with_padding_above_bits_stored_leaves_it_out(deep):
    cells = deep.copy()
    cells[:30] = 65535
    image = load_image(dicom(cells, BitsStored=12, HighBit=11, PixelPaddingValue=65535))
    np.testing.assert_allclose(image.pixels[30:], load_image(deep[30:]).pixels, atol=1e-6)
    assert (image.pixels[:30] == 0).all()


# Precision of codestreams


def test_read_dicom_with_16_allocated_and_8_bit_jpeg_reads_the_codestream(gray):
    codestream = encode_image(Image.fromarray(gray), "JPEG", quality=95)
    wide = gray.astype("u2")
    for stored in (8, 16):
        data = encapsulated(codestream, wide, JPEG, BitsStored=stored, HighBit=stored - 1)
        image = load_image(data)
        np.testing.assert_allclose(image.pixels, load_image(codestream).pixels, atol=1e-6)
        assert len(image.warnings) == (stored == 16)


def test_read_dicom_with_jpeg_without_end_reads_it_if_it_is_complete(gray):
    codestream = encode_image(Image.fromarray(gray), "JPEG", quality=95)
    for end in (codestream[:-2], codestream[:-1], codestream[:-2] + b"\0"):
        image = load_image(encapsulated(end, gray, JPEG))
        np.testing.assert_array_equal(image.pixels, load_image(codestream).pixels)
    for end in (codestream[:-30], codestream[: len(codestream) // 2]):
        assert "incomplete" in error_message(encapsulated(end, gray, JPEG))


@pytest.mark.parametrize("syntax", CODECS)
def test_read_dicom_with_allocation_unlike_the_codestream_reads_the_codestream(gray, deep, syntax, tmp_path):
    wide = {"BitsAllocated": 16, "BitsStored": 8, "HighBit": 7}
    assert_same(compress(gray, syntax, tmp_path, **wide), gray)
    narrow = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    assert_same(compress(deep * 16, syntax, tmp_path, **narrow), deep, "16 bits", "8 of BitsStored")


@pytest.mark.parametrize("syntax", [JPEG_LS, JPEG_LOSSLESS, RLE])
def test_read_dicom_with_signed_codestream_extends_its_sign(deep, syntax, tmp_path):
    values = deep.astype("i2") - 2048
    elements = {"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 11}
    for cells in (values.view("u2"), values.view("u2") & 0xFFF):
        assert_same(compress(cells, syntax, tmp_path, **elements), values)
    assert_same(compress(values.view("u2"), syntax, tmp_path, PixelRepresentation=1), values)


def test_read_dicom_with_lossy_jpeg_that_says_signed_reads_it_unsigned(gray):
    codestream = encode_image(Image.fromarray(gray), "JPEG", quality=95)
    data = encapsulated(codestream, gray, JPEG, PixelRepresentation=1)
    image = load_image(data)
    np.testing.assert_allclose(image.pixels, load_image(codestream).pixels, atol=1e-6)
    assert len(image.warnings) == 1 and "PixelRepresentation" in image.warnings[0]


@pytest.mark.parametrize("is_signed", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
def test_read_dicom_with_signed_values_in_jpeg_2000_reads_them(deep, is_signed, bits):
    """Whether the codestream says that they are signed or not."""
    values = deep.astype("i2") - 2048
    codestream = encode_image(Image.fromarray(values.view("u2")), "JPEG2000", signed=bool(is_signed))
    assert_same(encapsulated(codestream, values, JPEG_2000, BitsStored=bits, HighBit=bits - 1), values)


@pytest.mark.parametrize("syntax", [EXPLICIT, JPEG_2000, JPEG_LS, JPEG_LOSSLESS])
def test_read_dicom_with_colors_of_16_bits_reads_them(deep, syntax, tmp_path):
    rgb = np.dstack([deep, deep // 2, 4095 - deep])
    data = dicom(rgb) if syntax == EXPLICIT else compressed_by_gdcm(rgb, syntax, tmp_path)
    assert_same(data, rgb)


@pytest.mark.parametrize("syntax", [syntax for syntax in CODECS if syntax != RLE])
def test_read_dicom_with_codestream_of_another_syntax_reads_it(deep, syntax, tmp_path):
    """The codestream says what it is, whichever JPEG the file names."""
    dataset = pydicom.dcmread(io.BytesIO(compress(deep, syntax, tmp_path)))
    assert_same(encode_dicom(dataset, JPEG), deep)


@pytest.mark.parametrize(("format", "syntax"), [("JPEG2000", JPEG_2000), ("JPEG", JPEG)])
def test_read_dicom_with_color_codestream_that_says_gray_reads_the_codestream(gray, format, syntax):
    rgb = np.dstack([gray, gray // 2, 255 - gray])
    codestream = encode_image(Image.fromarray(rgb), format)
    image = load_image(encapsulated(codestream, gray, syntax))
    expected = load_image(Image.open(io.BytesIO(codestream)))
    np.testing.assert_allclose(image.pixels, expected.pixels, atol=0.02 if format == "JPEG" else 1e-6)
    assert len(image.warnings) == 1 and "SamplesPerPixel" in image.warnings[0]


# Frames and fragments


@pytest.mark.parametrize("announced", [None, 0, 1, 2, 3, 7, ""])
@pytest.mark.parametrize("table", ["empty", "right", "wrong"])
def test_read_dicom_with_one_frame_in_fragments_reads_it(gray, announced, table):
    codestream = encode_image(Image.fromarray(gray), "JPEG2000")
    data = dicom(gray, JPEG_2000, NumberOfFrames=announced, PixelData=fragmented([codestream], 3, table))
    image = load_image(data)
    np.testing.assert_array_equal(image.pixels, load_image(gray).pixels)
    assert len(image.warnings) == (announced not in (None, 1))


@pytest.mark.parametrize("n_fragments", [1, 2])
def test_read_dicom_with_rle_in_fragments_reads_it(deep, n_fragments):
    dataset = build_dataset(deep, NumberOfFrames=2, PixelData=2 * deep.tobytes())
    with_rle(dataset)
    frames = list(generate_fragments(dataset.PixelData))[1:]
    dataset.PixelData = fragmented(frames, n_fragments)
    assert_same(encode_dicom(dataset, RLE), deep, "2 frames")


@pytest.mark.parametrize("syntax", [EXPLICIT, JPEG_2000])
@pytest.mark.parametrize("announced", [None, 0, "", 2, 9])
def test_read_dicom_with_wrong_number_of_frames_counts_them(deep, syntax, announced):
    stack = np.stack([deep, deep[::-1]])
    if syntax == JPEG_2000:
        pixel_data = encapsulate([encode_image(Image.fromarray(frame), "JPEG2000") for frame in stack])
    else:
        pixel_data = stack.tobytes()
    image = load_image(dicom(deep, syntax, NumberOfFrames=announced, PixelData=pixel_data))
    np.testing.assert_array_equal(image.pixels, load_image(deep).pixels)
    assert image.warnings[-1] == "The file has 2 frames; only the first is used."
    guesses = {None: "announces 1 frame but holds 2", 9: "announces 9 frames but holds 2", 2: ""}
    assert guesses.get(announced, "NumberOfFrames") in image.warnings[0]


@pytest.mark.parametrize("n_blank", [1, 3])
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN, JPEG_2000, RLE])
def test_read_dicom_with_blank_first_frames_uses_the_next_with_its_window(deep, syntax, n_blank):
    values = deep.astype(">u2") if syntax == BIG_ENDIAN else deep
    stack = np.stack([np.full_like(values, 7)] * n_blank + [values, values[::-1]])
    groups = []
    for number in range(len(stack)):
        window, item = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = "1500", str(2000 + number)
        item.FrameVOILUTSequence = [window]
        groups.append(item)
    dataset = build_dataset(values, NumberOfFrames=len(stack), PerFrameFunctionalGroupsSequence=groups)
    dataset.PixelData = stack.astype(values.dtype).tobytes()
    if syntax == RLE:
        with_rle(dataset)
    if syntax == JPEG_2000:
        dataset.PixelData = encapsulate([encode_image(Image.fromarray(frame), "JPEG2000") for frame in stack])
    image = load_image(encode_dicom(dataset, syntax))
    window = {"WindowCenter": "1500", "WindowWidth": str(2000 + n_blank)}
    np.testing.assert_array_equal(image.pixels, load_image(dicom(deep, **window)).pixels)
    blank = {1: "frame 1 is blank", 3: "frames 1 to 3 are blank"}[n_blank]
    assert image.warnings == (
        f"The file has {len(stack)} frames; only frame {n_blank + 1} is used, as {blank}.",
    )


def test_read_dicom_with_many_blank_frames_decodes_a_few(gray):
    data = dicom(gray, NumberOfFrames=500, PixelData=bytes(499 * gray.size) + gray.tobytes())
    assert error_message(data) == "The image is blank."


def test_read_dicom_with_too_many_fragments_raises_invalid_image(gray, monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAGMENTS", 10)
    codestream = encode_image(Image.fromarray(gray), "JPEG2000")
    data = dicom(gray, JPEG_2000, PixelData=fragmented([codestream], 20))
    assert "too many fragments" in error_message(data)


def test_read_dicom_with_truncated_pixels_says_what_is_missing(gray):
    message = error_message(dicom(gray)[: -gray.size // 10])
    assert f"instead of {gray.size}" in message and "incomplete" in message


def test_read_dicom_with_rle_far_longer_than_the_pixels_reads_only_these(gray):
    """Each two bytes of a segment can be 128 pixels."""
    dataset = build_dataset(gray)
    with_rle(dataset)
    frame = list(generate_fragments(dataset.PixelData))[1]
    dataset.PixelData = encapsulate([frame + 1_000_000 * b"\x81\x05"])
    assert_same(encode_dicom(dataset, RLE), gray)


# Missing elements


@pytest.mark.parametrize(
    ("keywords", "elements"),
    [
        (["SamplesPerPixel"], {}),
        (["BitsStored"], {}),
        (["HighBit"], {}),
        (["PixelRepresentation"], {}),
        (["BitsAllocated"], {}),
        (["PhotometricInterpretation"], {}),
        (["BitsAllocated", "BitsStored", "HighBit"], {}),
        (["SamplesPerPixel", "PixelRepresentation", "PhotometricInterpretation"], {}),
        (["BitsStored"], {"BitsStored": 0}),
        (["BitsStored"], {"BitsStored": 0, "HighBit": 11}),
        (["BitsAllocated"], {"BitsAllocated": 12}),
        (["BitsAllocated"], {"BitsAllocated": 8}),
        (["BitsAllocated"], {"BitsAllocated": 33}),
        (["PixelRepresentation"], {"PixelRepresentation": 7}),
        (["SamplesPerPixel"], {"SamplesPerPixel": 0}),
    ],
)
@pytest.mark.parametrize("syntax", [EXPLICIT, JPEG_LS])
def test_read_dicom_without_an_element_uses_the_default_and_names_it(
    deep, syntax, keywords, elements, tmp_path
):
    changes = elements or dict.fromkeys(keywords)
    data = compress(deep, JPEG_LS, tmp_path) if syntax == JPEG_LS else dicom(deep, BitsStored=12, HighBit=11)
    if syntax == JPEG_LS and elements.get("BitsAllocated"):
        pytest.skip("the codestream says its bits")
    image = load_image(with_elements(data, **changes))
    np.testing.assert_array_equal(image.pixels, load_image(deep).pixels)
    assert len(image.warnings) == 1
    assert all(keyword in image.warnings[0] for keyword in keywords)


def test_read_dicom_with_16_bits_allocated_and_half_the_bytes_reads_8(gray):
    data = dicom(gray, BitsAllocated=16, BitsStored=8, HighBit=7)
    assert_same(data, gray, "BitsAllocated")


def test_read_dicom_with_truncated_pixels_and_too_few_bits_allocated_says_what_is_missing(deep):
    data = dicom(deep, BitsAllocated=8, BitsStored=12, PixelData=deep.tobytes()[:-1000])
    assert f"has {2 * deep.size - 1000} bytes of pixels instead of {2 * deep.size}" in error_message(data)


def test_read_dicom_with_numbers_as_text_reads_them(deep):
    dataset = build_dataset(deep, BitsStored=12, HighBit=11)
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"):
        value = dataset.pop(keyword).value
        dataset.add_new(keyword, "LO", str(value))
    assert_same(encode_dicom(dataset), deep)


def test_load_image_with_dataset_without_elements_uses_the_defaults(deep):
    keywords = (
        "SamplesPerPixel",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PhotometricInterpretation",
    )
    image = load_image(build_dataset(deep, **dict.fromkeys(keywords)))
    np.testing.assert_array_equal(image.pixels, load_image(deep).pixels)
    assert len(image.warnings) == 1 and all(keyword in image.warnings[0] for keyword in keywords)


def test_read_dicom_without_or_with_wrong_pixel_representation_recognizes_signed_values(deep):
    values = deep.astype("i2") - 2048
    for representation in (None, 0):
        data = dicom(values, BitsStored=12, HighBit=11, PixelRepresentation=representation)
        image = load_image(data)
        np.testing.assert_array_equal(image.pixels, load_image(values).pixels)
        assert "read as signed" in image.warnings[-1]


@pytest.mark.parametrize(
    ("text", "inverted"),
    [
        ("monochrome1", True),
        ("MONOCHROME 1", True),
        (" Monochrome1 ", True),
        ("MONOCROME1", True),
        ("MONO1", True),
        ("MONOCHROME_2", False),
        ("monochrome2", False),
        ("MONOCHROM2", False),
        ("MONOCHROME", False),
        ("GRAY", False),
        ("", False),
    ],
)
def test_read_dicom_with_misspelt_photometric_interpretation_reads_what_it_means(deep, text, inverted):
    data = dicom(deep, PhotometricInterpretation=text)
    term = "MONOCHROME1" if inverted else "MONOCHROME2"
    image = load_image(data)
    expected = load_image(dicom(deep, PhotometricInterpretation=term))
    np.testing.assert_array_equal(image.pixels, expected.pixels)
    if text.strip() != term:
        assert len(image.warnings) == 1 and f"({term} is assumed)" in image.warnings[0]


def test_read_dicom_without_photometric_interpretation_heeds_the_presentation_lut(deep):
    data = dicom(deep, PhotometricInterpretation=None, PresentationLUTShape="INVERSE")
    expected = load_image(dicom(deep, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(load_image(data).pixels, expected.pixels)


@pytest.mark.parametrize(
    "changes",
    [
        {"PlanarConfiguration": None},
        {"SamplesPerPixel": None},
        {"SamplesPerPixel": 1},
        {"PhotometricInterpretation": None},
        {"PhotometricInterpretation": "rgb"},
        {"PhotometricInterpretation": "MONOCHROME2"},
        {"SamplesPerPixel": None, "PhotometricInterpretation": None, "PlanarConfiguration": None},
    ],
)
def test_read_dicom_with_colors_without_an_element_uses_the_default(gray, changes):
    rgb = np.dstack([gray, gray // 2, 255 - gray])
    image = load_image(dicom(rgb, **changes))
    np.testing.assert_allclose(image.pixels, load_image(rgb).pixels, atol=1e-6)
    assert image.colorfulness == pytest.approx(load_image(rgb).colorfulness)
    assert len(image.warnings) == 1 and all(keyword in image.warnings[0] for keyword in changes)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"Rows": None}, "lacks Rows. Export it again."),
        ({"Rows": None, "Columns": None}, "lacks Rows and Columns. Export it again."),
        ({"BitsAllocated": None, "BitsStored": None, "PixelData": bytes(99_999)}, "lacks BitsAllocated"),
        ({"BitsAllocated": 12, "PixelData": bytes(160 * 90 * 3 // 2)}, "allocates 12 bits"),
        ({"SamplesPerPixel": 4}, "4 values per pixel"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "HSV"}, "unsupported way"),
    ],
)
def test_read_dicom_without_an_element_that_has_no_default_names_it(deep, changes, pattern):
    assert pattern in error_message(dicom(deep, **changes))


def test_read_dicom_with_compressed_pixels_of_no_syntax_says_so(gray):
    codestream = encode_image(Image.fromarray(gray), "JPEG")
    assert "TransferSyntaxUID" in error_message(dicom(gray, PixelData=encapsulate([codestream])))


def test_read_dicom_with_plain_pixels_in_compressed_syntax_reads_them(deep):
    assert_same(dicom(deep).replace(EXPLICIT.encode() + b"\0", RLE.encode() + b"\0"), deep)


# Other types of pixels


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_read_dicom_with_floats_reads_them(deep, keyword, dtype, syntax):
    values = deep / 7 - 200
    stored = values.astype((">" if syntax == BIG_ENDIAN else "<") + dtype)
    elements = {"PixelData": None, "BitsStored": None, "HighBit": None, "PixelRepresentation": None}
    data = dicom(deep, syntax, **elements, BitsAllocated=8 * stored.itemsize, **{keyword: stored.tobytes()})
    assert_same(data, values.astype("f4"))


def test_read_dicom_with_floats_that_are_not_numbers_leaves_them_out(deep):
    values = deep.astype("f4")
    values[:20], values[20:22], values[22] = np.nan, np.inf, -np.inf
    image = load_image(dicom(deep, PixelData=None, FloatPixelData=values.tobytes()))
    np.testing.assert_allclose(image.pixels[23:], load_image(deep[23:]).pixels, atol=1e-6)
    assert (image.pixels[:23] == 0).all()
    assert len(image.warnings) == 1 and "not numbers" in image.warnings[0]
    values[:] = np.nan
    assert "blank" in error_message(dicom(deep, PixelData=None, FloatPixelData=values.tobytes()))


def test_read_dicom_with_several_frames_of_floats_uses_the_first_not_blank(deep):
    stack = np.stack([np.zeros(deep.shape), deep]).astype("f4")
    data = dicom(deep, PixelData=None, NumberOfFrames=2, FloatPixelData=stack.tobytes())
    assert_same(data, deep, "only frame 2 is used")


@pytest.mark.parametrize("dtype", ["u4", "i4", "u8", "i8"])
def test_read_dicom_with_32_or_64_bits_reads_them(deep, dtype):
    values = deep.astype(dtype) * 1000 - (10**6 if dtype[0] == "i" else 0)
    assert_same(dicom(values), values.astype("f4"))


def test_read_dicom_with_1_bit_reads_it(overlay):
    bits = np.packbits(overlay, bitorder="little").tobytes()
    elements = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": bits}
    assert_same(dicom(overlay.astype("u1"), **elements), overlay.astype("u1"))


@pytest.mark.parametrize("width", [90, 89])
def test_read_dicom_with_8_bits_in_big_endian_words_swaps_them(gray, width):
    pixels = np.ascontiguousarray(gray[:, :width])
    pixels = pixels[: -1 if width % 2 else None]  # an odd number of bytes
    padded = np.frombuffer(pixels.tobytes() + b"\0" * (pixels.size % 2), "u2").byteswap()
    dataset = build_dataset(pixels, PixelData=padded.tobytes())
    dataset["PixelData"].VR = "OW"
    assert_same(encode_dicom(dataset, BIG_ENDIAN), pixels)


@pytest.mark.parametrize("padding", [0, 1, 2, 500])
def test_read_dicom_with_padded_or_odd_pixel_data_reads_them(gray, padding):
    pixels = gray[:-1, :-1]
    assert_same(dicom(pixels, PixelData=pixels.tobytes() + bytes(padding)), pixels)


@pytest.mark.parametrize("term", ["YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"])
def test_read_dicom_with_ybr_colors_converts_them(gray, term):
    ybr = np.asarray(Image.fromarray(np.dstack([gray, gray // 2 + 60, 255 - gray])).convert("YCbCr")).copy()
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]  # so that subsampling loses nothing
    expected = convert_color_space(ybr, "YBR_FULL", "RGB")
    if term == "YBR_PARTIAL_422":
        ybr = (ybr * (np.array([219, 224, 224]) / 255) + [16, 15.94, 15.94]).round().astype("u1")
    pixel_data = ybr.tobytes()
    if term != "YBR_FULL":
        pairs = ybr.reshape(-1, 2, 3)
        pixel_data = np.column_stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1:]]).tobytes()
    image = load_image(dicom(ybr, PhotometricInterpretation=term, PixelData=pixel_data))
    atol = 0.02 if term == "YBR_PARTIAL_422" else 1e-6
    np.testing.assert_allclose(image.pixels, load_image(expected).pixels, atol=atol)
    assert image.warnings == ()


def test_read_dicom_with_ybr_422_that_is_not_subsampled_reads_all_samples(gray):
    ybr = np.asarray(Image.fromarray(np.dstack([gray, gray // 2, 255 - gray])).convert("YCbCr"))
    image = load_image(dicom(ybr, PhotometricInterpretation="YBR_FULL_422"))
    expected = load_image(dicom(ybr, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_array_equal(image.pixels, expected.pixels)
    assert len(image.warnings) == 1 and "YBR_FULL is assumed" in image.warnings[0]


def test_read_dicom_with_several_planar_frames_reads_one(gray):
    rgb = np.dstack([gray, gray // 2, 255 - gray])
    pixel_data = np.stack([rgb, 255 - rgb]).transpose(0, 3, 1, 2).tobytes()
    data = dicom(rgb, PlanarConfiguration=1, NumberOfFrames=2, PixelData=pixel_data)
    np.testing.assert_allclose(load_image(data).pixels, load_image(rgb).pixels, atol=1e-6)


# Files without an image


@pytest.mark.parametrize(
    ("sop_class", "pattern"),
    [
        ("1.2.840.10008.1.3.10", "DICOMDIR.*Choose an image"),
        ("1.2.840.10008.5.1.4.1.1.88.11", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "PDF"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "presentation state"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "waveform"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "radiotherapy"),
        ("1.2.3.4", "no image"),
    ],
)
@pytest.mark.parametrize("as_dataset", [False, True])
def test_read_dicom_without_pixels_says_what_the_file_is(sop_class, pattern, as_dataset):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.PatientName = sop_class, "Roentgen^Wilhelm"
    with pytest.raises(InvalidImage, match=pattern) as caught:
        load_image(dataset if as_dataset else encode_dicom(dataset))
    assert "Roentgen" not in str(caught.value) and sop_class not in str(caught.value)


def test_read_dicom_with_dicomdir_says_that_it_is_an_index():
    assert "DICOMDIR" in error_message(shipped("DICOMDIR-nooffset"))
