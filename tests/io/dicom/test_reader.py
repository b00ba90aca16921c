import copy
import io
import random
import re
import traceback
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidImage
from fracture_lib.io.dicom.reader import is_dicom
from fracture_lib.io.image import load_image, preprocess
from fracture_lib.io.limits import MAX_BYTES
from tests.helpers.bad_inputs import error_message
from tests.helpers.dicom_files import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    HTJ2K,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    MPEG2,
    RLE,
    build_dataset,
    compressed_by_gdcm,
    dicom,
    encapsulated,
    encode_dicom,
    lut,
    shipped,
    shipped_path,
)
from tests.helpers.images import encode_image

RAMP = np.tile(np.arange(64, dtype="u1"), (64, 1))
RAMP_STRETCHED = np.linspace(0, 1, 64)
PRIVATE = ("Roentgen", "SECRET-ID", "seen in ward 7")


@pytest.fixture
def radiograph():
    """A drawn radiograph: uint8 [240, 120]."""
    return np.asarray(synthetic_radiograph("Oblique", width=120, height=240))


# Recognizing DICOM


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_is_dicom_without_preamble_or_extension_returns_true(radiograph, syntax, tmp_path):
    data = dicom(radiograph, syntax, SOPClassUID="1.2.840.10008.5.1.4.1.1.1")
    without_head = data[data.index(b"\x08\0\x16\0") :]
    path = tmp_path / "image"
    for stored in (data, data[132:], without_head):
        assert is_dicom(stored)
        path.write_bytes(stored)
        np.testing.assert_array_equal(load_image(path).pixels, load_image(radiograph).pixels)


@pytest.mark.parametrize(
    "format", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "ICO", "TGA", "PPM", "JPEG2000"]
)
def test_is_dicom_with_other_format_returns_false(radiograph, format):
    assert not is_dicom(encode_image(Image.fromarray(radiograph), format))


@pytest.mark.parametrize("data", [b"", b"\x08\0", b"DICM", b"\x02\0\0\0" + b"\xff" * 99, b"no image" * 40])
def test_is_dicom_with_short_or_random_bytes_returns_false(data):
    assert not is_dicom(data)


# Displayed values


@pytest.mark.parametrize(("named", "used"), [(BIG_ENDIAN, EXPLICIT), (EXPLICIT, BIG_ENDIAN)])
def test_read_dicom_with_the_other_byte_order_than_it_names_reads_it(named, used):
    values = RAMP.astype(">u2" if used == BIG_ENDIAN else "<u2")
    data = dicom(values, used, Modality="DX").replace(used.encode() + b"\0", named.encode() + b"\0")
    image = load_image(data)
    np.testing.assert_array_equal(image.pixels, load_image(dicom(RAMP)).pixels)
    assert image.modality == "DX"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_read_dicom_with_uncompressed_syntax_gives_the_same_model_input(radiograph, syntax):
    assert preprocess(dicom(radiograph, syntax)).tobytes() == preprocess(radiograph).tobytes()


def test_read_dicom_with_monochrome1_inverts(radiograph):
    data = dicom(255 - radiograph, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(load_image(data).pixels, load_image(radiograph).pixels, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16), ("i4", 20)]
)
def test_read_dicom_with_more_than_8_bits_keeps_every_value(dtype, bits):
    """A ramp over all stored bits is neither clipped nor quantized."""
    low = -(2 ** (bits - 1)) if dtype.startswith("i") else 0
    ramp = np.tile(np.linspace(low, low + 2**bits - 1, 128).round().astype(dtype), (64, 1))
    loaded = load_image(dicom(ramp, BitsStored=bits, HighBit=bits - 1)).pixels
    assert (np.diff(loaded, axis=1) > 0).all()
    np.testing.assert_allclose(loaded[0], np.linspace(0, 1, 128), atol=0.6 / 255)


@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": "0.25", "RescaleIntercept": "-1024"}])
def test_read_dicom_with_16_bits_keeps_65536_values(rescale):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(load_image(dicom(ramp, **rescale)).pixels)) == 65536


def test_read_dicom_with_window_stretches_its_range_and_clips_the_rest():
    displayed = load_image(dicom(RAMP, WindowCenter="32.5", WindowWidth="17")).pixels[0]
    assert (displayed[:25] == 0).all() and (displayed[40:] == 1).all()
    np.testing.assert_allclose(displayed[24:41], np.linspace(0, 1, 17), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR_EXACT", np.clip((np.arange(64) - 32) / 16 + 0.5, 0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-(np.arange(64) - 32) / 4))),
    ],
)
def test_read_dicom_with_voi_lut_function_applies_it(function, expected):
    data = dicom(RAMP, WindowCenter="32", WindowWidth="16", VOILUTFunction=function)
    expected = (expected - expected[0]) / (expected[-1] - expected[0])
    np.testing.assert_allclose(load_image(data).pixels[0], expected, atol=1e-5)


def test_read_dicom_with_several_windows_uses_the_first():
    several = dicom(RAMP, WindowCenter=["20", "50"], WindowWidth=["10", "4"])
    one = dicom(RAMP, WindowCenter="20", WindowWidth="10")
    np.testing.assert_array_equal(load_image(several).pixels, load_image(one).pixels)


def test_read_dicom_with_monochrome1_and_window_inverts():
    window = {"WindowCenter": "32.5", "WindowWidth": "17"}
    displayed = load_image(dicom(RAMP, **window)).pixels
    inverted = load_image(dicom(RAMP, **window, PhotometricInterpretation="MONOCHROME1")).pixels
    np.testing.assert_allclose(inverted, 1 - displayed, atol=1e-6)


def test_read_dicom_with_rescaling_and_window_rescales_first():
    """CT numbers: stored 0..63 are -1000..+890 in steps of 30, of which -400..+200 are displayed."""
    data = dicom(
        RAMP.astype("i2") - 10,
        RescaleSlope="30",
        RescaleIntercept="-700",
        WindowCenter="-99.5",
        WindowWidth="601",
    )
    expected = np.clip((np.arange(64) * 30 - 1000 + 400) / 600, 0, 1)
    np.testing.assert_allclose(load_image(data).pixels[0], expected, atol=1e-5)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": "-31", "WindowWidth": "64"}])
def test_read_dicom_with_negative_slope_inverts(window):
    data = dicom(RAMP, RescaleSlope="-1", RescaleIntercept="0", **window)
    np.testing.assert_allclose(load_image(data).pixels[0], RAMP_STRETCHED[::-1], atol=1e-6)


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_read_dicom_with_lut_maps_values(keyword, syntax):
    """A table of 12 bits that squares, for values from 8 on; lower ones get its first entry."""
    dtype = ">u2" if syntax == BIG_ENDIAN else "<u2"
    table = lut(np.arange(50) ** 2, first=8, bits=12, dtype=dtype)
    displayed = load_image(dicom(RAMP.astype(dtype), syntax, **{keyword: table})).pixels[0]
    np.testing.assert_allclose(displayed, (np.arange(64) - 8).clip(0, 49) ** 2 / 49**2, atol=1e-6)


@pytest.mark.parametrize("dtype", ["<u2", "u1"])
def test_read_dicom_with_8_bit_lut_for_12_bit_image_uses_all_entries(dtype):
    ramp = np.tile(np.arange(0, 4096, 16, dtype="u2"), (64, 1))
    table = lut(np.arange(4096) // 16, bits=8, dtype=dtype)
    displayed = load_image(dicom(ramp, BitsStored=12, HighBit=11, VOILUTSequence=table)).pixels[0]
    np.testing.assert_allclose(displayed, np.linspace(0, 1, 256), atol=1e-6)


def test_read_dicom_with_lut_and_window_uses_the_lut():
    table = lut(np.arange(64) ** 2)
    both = dicom(RAMP, VOILUTSequence=table, WindowCenter="32", WindowWidth="4")
    np.testing.assert_array_equal(
        load_image(both).pixels, load_image(dicom(RAMP, VOILUTSequence=table)).pixels
    )


def test_read_dicom_with_functional_groups_uses_the_first_frame():
    def functional_groups(center):
        window, groups = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, "10"
        groups.FrameVOILUTSequence = [window]
        return groups

    enhanced = dicom(
        RAMP,
        NumberOfFrames=2,
        PixelData=2 * RAMP.tobytes(),
        PerFrameFunctionalGroupsSequence=[functional_groups("20"), functional_groups("50")],
    )
    plain = dicom(RAMP, WindowCenter="20", WindowWidth="10")
    np.testing.assert_array_equal(load_image(enhanced).pixels, load_image(plain).pixels)


TRUNCATED_LUT = lut([0, 1])
TRUNCATED_LUT[0].LUTDescriptor = [64, 0, 16]
INVALID_WINDOWS = {
    "zero-width": {"WindowCenter": "30", "WindowWidth": "0"},
    "negative-width": {"WindowCenter": "30", "WindowWidth": "-5"},
    "no-width": {"WindowCenter": "30"},
    "no-center": {"WindowWidth": "30"},
    "unknown-function": {"WindowCenter": "30", "WindowWidth": "9", "VOILUTFunction": "CUBIC"},
    "infinite-center": {"WindowCenter": "1e999", "WindowWidth": "10"},
    "infinite-width": {"WindowCenter": "30", "WindowWidth": "1e999"},
    "empty-lut": {"VOILUTSequence": [Dataset()]},
    "truncated-lut": {"VOILUTSequence": TRUNCATED_LUT},
}


@pytest.mark.parametrize("name", INVALID_WINDOWS)
def test_read_dicom_with_invalid_window_ignores_it_with_a_warning(name):
    image = load_image(dicom(RAMP, **INVALID_WINDOWS[name]))
    np.testing.assert_allclose(image.pixels[0], RAMP_STRETCHED, atol=1e-6)
    assert len(image.warnings) == 1 and "window is invalid" in image.warnings[0]


def test_read_dicom_with_text_as_window_ignores_it_without_quoting_it():
    dataset = build_dataset(RAMP, WindowWidth="9")
    dataset.add_new("WindowCenter", "LO", "SECRET-ID")
    image = load_image(encode_dicom(dataset))
    assert len(image.warnings) == 1 and "window is invalid" in image.warnings[0]
    assert "SECRET-ID" not in repr(image)


@pytest.mark.parametrize("slope", ["0", "1e300", "1e999"])
def test_read_dicom_with_invalid_rescaling_ignores_it_with_a_warning(slope):
    image = load_image(dicom(RAMP, RescaleSlope=slope, RescaleIntercept="0"))
    np.testing.assert_allclose(image.pixels[0], RAMP_STRETCHED, atol=1e-6)
    assert len(image.warnings) == 1 and "rescaling is invalid" in image.warnings[0]


def test_read_dicom_with_empty_window_and_rescaling_gives_no_warning():
    assert load_image(dicom(RAMP, WindowCenter="", WindowWidth="", RescaleSlope="")).warnings == ()


def test_read_dicom_with_several_frames_reads_the_first_with_a_warning(radiograph):
    pixel_data = radiograph.tobytes() + 2 * radiograph[::-1].tobytes()
    image = load_image(dicom(radiograph, NumberOfFrames=3, PixelData=pixel_data))
    assert image.pixels.tobytes() == load_image(radiograph).pixels.tobytes()
    assert image.warnings == ("The file has 3 frames; only the first is used.",)


@pytest.mark.parametrize(
    ("modality", "expected"), [("DX", "DX"), ("CT", "CT"), (None, None), ("ROENTGEN^WILHELM", None)]
)
def test_read_dicom_returns_only_standard_modalities(radiograph, modality, expected):
    assert load_image(dicom(radiograph, Modality=modality)).modality == expected


def test_read_dicom_with_colors_gives_the_same_pixels_and_colorfulness(radiograph):
    rgb = np.dstack([radiograph, radiograph // 2, 255 - radiograph])
    expected = load_image(rgb)
    planar = {"PlanarConfiguration": 1, "PixelData": rgb.transpose(2, 0, 1).tobytes()}
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    for data, tolerance in (
        (dicom(rgb), 0),
        (dicom(rgb, **planar), 0),
        (dicom(ycbcr, PhotometricInterpretation="YBR_FULL"), 0.01),
    ):
        image = load_image(data)
        np.testing.assert_allclose(image.pixels, expected.pixels, atol=tolerance)
        assert image.colorfulness == pytest.approx(expected.colorfulness, abs=tolerance)


def test_read_dicom_with_palette_looks_up_colors(radiograph):
    palette = {}
    table = np.arange(256) * 257
    for color, values in {"Red": table, "Green": table[::-1], "Blue": table // 2}.items():
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{color}PaletteColorLookupTableData"] = values.astype("<u2").tobytes()
    image = load_image(dicom(radiograph, PhotometricInterpretation="PALETTE COLOR", **palette))
    expected = load_image(np.dstack([table[radiograph], table[255 - radiograph], table[radiograph] // 2]))
    np.testing.assert_allclose(image.pixels, expected.pixels, atol=1e-5)
    assert image.colorfulness == pytest.approx(expected.colorfulness)


# Compression


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_read_dicom_with_lossless_compression_gives_the_same_pixels(radiograph, syntax, dtype, tmp_path):
    radiograph = radiograph.astype(dtype) * (257 if dtype == "u2" else 1)
    compressed = compressed_by_gdcm(radiograph, syntax, tmp_path)
    np.testing.assert_array_equal(load_image(compressed).pixels, load_image(dicom(radiograph)).pixels)


def test_read_dicom_with_rle_gives_the_same_pixels(radiograph):
    dataset = build_dataset(radiograph.astype("u2") * 257)
    expected = load_image(encode_dicom(dataset)).pixels
    dataset.compress(RLE)
    np.testing.assert_array_equal(load_image(encode_dicom(dataset, RLE)).pixels, expected)


@pytest.mark.parametrize(
    ("format", "syntax", "options"), [("JPEG", JPEG, {"quality": 95}), ("JPEG2000", JPEG_2000, {})]
)
def test_read_dicom_with_codestream_from_pillow_gives_close_pixels(radiograph, format, syntax, options):
    codestream = encode_image(Image.fromarray(radiograph), format, **options)
    loaded = preprocess(encapsulated(codestream, radiograph, syntax))
    assert np.abs(loaded - preprocess(radiograph)).mean() < 0.01


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
    ],
)
def test_read_dicom_with_copies_in_other_syntaxes_gives_the_same_pixels(name):
    np.testing.assert_array_equal(
        load_image(shipped(name)).pixels, load_image(shipped("MR_small.dcm")).pixels
    )


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_jpeg2k.dcm"],
)
def test_read_dicom_with_compressed_colors_agrees_with_pydicom(name):
    expected = load_image(pixel_array(shipped_path(name), index=0))
    np.testing.assert_array_equal(load_image(shipped(name)).pixels, expected.pixels)


def test_read_dicom_with_12_bit_jpeg_gives_expected_values():
    """None of pydicom's decoders reads it; its own tests expect these two pixels."""
    pixels = load_image(shipped("JPGExtended.dcm")).pixels
    assert pixels[[420, 230], [140, 120]] == pytest.approx([244 / 264, 95 / 264])


# Invalid files


def build_invalid_files():
    """Name -> (bytes, pattern of the message)."""
    pixels = np.asarray(synthetic_radiograph("Spiral", width=64, height=96))
    ramp = RAMP.astype("u2")
    codestream = get_frame(pydicom.dcmread(shipped_path("MR_small_jp2klossless.dcm")).PixelData, 0)
    compressor = zlib.compressobj(9, wbits=-15)
    zeros = compressor.compress(bytes(300_000_000)) + compressor.flush()
    deflated = dicom(pixels, DEFLATED)
    head = deflated.index(DEFLATED.encode()) + len(DEFLATED)
    larger = bytearray(codestream)
    larger[8:16] = larger[24:32] = (2**15).to_bytes(4) * 2
    endless_box = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(8) + codestream[:40]
    private_syntax = dicom(pixels).replace(EXPLICIT.encode() + b"\0", b"1.2.3.4.5.6.7.8.9.10")
    return {
        "no-pixels": (dicom(pixels, PixelData=None), "no image"),
        "no-elements": (encode_dicom(Dataset()), "no image"),
        "report": (shipped("test-SR.dcm"), "no image: it is a structured report"),
        "no-rows": (dicom(pixels, Rows=None), "lacks Rows\\."),
        "no-size": (dicom(pixels, Rows=None, Columns=0), "lacks Rows and Columns\\."),
        "huge-size": (dicom(pixels, Rows=65535, Columns=65535), "65535x65535.* 40 million"),
        "fewer-pixels-than-announced": (dicom(pixels, Rows=960), "has 6144 bytes of pixels instead of 61440"),
        "video": (encapsulated(b"\0\0\1\xb3", pixels, MPEG2), "video"),
        "private-syntax": (private_syntax, "unsupported way"),
        "high-throughput-jpeg-2000": (encapsulated(codestream, pixels, HTJ2K), "unsupported way"),
        "palette-without-tables": (
            dicom(pixels, PhotometricInterpretation="PALETTE COLOR"),
            "lacks its colour",
        ),
        "deflated-bomb": (deflated[:head] + zeros, "160 MB"),
        "damaged-deflation": (deflated[: head + 40] + b"\xff" * 40, "damaged"),
        "codestream-of-32768x32768": (
            encapsulated(bytes(larger), ramp, JPEG_2000),
            "64x64 pixels but holds 32768x32768",
        ),
        "endless-box": (encapsulated(endless_box, ramp, JPEG_2000), "damaged"),
        "one-pixel": (dicom(pixels[:1, :1]), "1x1"),
        "blank": (dicom(np.full((64, 64), 90, "u1")), "blank"),
    }


INVALID_FILES = build_invalid_files()


@pytest.mark.parametrize("name", INVALID_FILES)
def test_read_dicom_with_invalid_file_raises_invalid_image(name):
    data, pattern = INVALID_FILES[name]
    assert re.search(pattern, error_message(data))


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"])
def test_read_dicom_with_truncated_file_raises_invalid_image(name, fraction):
    data = shipped(name)
    assert "incomplete" in error_message(data[: int(len(data) * fraction)])


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_read_dicom_with_damaged_codestream_raises_invalid_image_in_silence(
    radiograph, syntax, tmp_path, capfd
):
    """Some of these make GDCM kill its process, which must not be this one."""
    data = bytearray(compressed_by_gdcm(radiograph, syntax, tmp_path))
    codestream = data.rindex(b"\xfe\xff\x00\xe0")  # its item
    data[codestream + 70 : codestream + 120] = bytes(50)
    data[-2000:] = bytes(2000)
    assert "damaged" in error_message(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"])
def test_read_dicom_with_mutated_file_raises_at_most_invalid_image(name, capfd, caplog, recwarn):
    data, rng = shipped(name), random.Random(name)
    for _ in range(120):
        mutant = bytearray(data)
        for _ in range(rng.choice([1, 4, 16])):
            offset = rng.randrange(132, rng.choice([1500, len(mutant)]))
            if rng.random() < 0.7:
                mutant[offset] = rng.randrange(256)
            else:
                del mutant[offset : offset + rng.randrange(30)]
        try:
            load_image(bytes(mutant))
        except InvalidImage as error:
            assert "\n" not in str(error) and str(error).endswith(".")
    assert capfd.readouterr() == ("", "") and not caplog.records and not recwarn.list


# pydicom Datasets


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg.dcm",  # implicit, against its transfer syntax
        "examples_palette.dcm",
        "image_dfl.dcm",
        "SC_rgb_rle_2frame.dcm",
    ],
)
@pytest.mark.parametrize("state", ["raw", "parsed", "deferred"])
@pytest.mark.filterwarnings("ignore:Expected explicit VR")
def test_load_image_with_dataset_gives_the_same_as_its_file(name, state):
    dataset = pydicom.dcmread(shipped_path(name), force=True, defer_size=99 if state == "deferred" else None)
    if state == "parsed":
        list(dataset.iterall())
    before = copy.deepcopy(dataset)
    image, expected = load_image(dataset), load_image(shipped(name))
    assert image.pixels.tobytes() == expected.pixels.tobytes()
    assert (image.modality, image.warnings) == (expected.modality, expected.warnings)
    assert dataset == before


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": "100", "WindowWidth": "60", "PhotometricInterpretation": "MONOCHROME1"},
        {"VOILUTSequence": lut(np.arange(256) ** 2)},
        {"WindowCenter": "100"},
        {"Modality": "DX", "NumberOfFrames": 1},
    ],
    ids=["plain", "window", "lut", "invalid-window", "modality"],
)
def test_load_image_with_dataset_without_file_meta_gives_the_same_as_a_file(radiograph, elements):
    dataset = build_dataset(radiograph, **elements)
    assert not hasattr(dataset, "file_meta")
    image, expected = load_image(dataset), load_image(dicom(radiograph, **elements))
    assert image.pixels.tobytes() == expected.pixels.tobytes()
    assert (image.modality, image.warnings) == (expected.modality, expected.warnings)


def test_load_image_with_dataset_of_ambiguous_elements_leaves_them(radiograph):
    dataset = build_dataset(radiograph)
    del dataset.PixelData
    dataset.PixelData = radiograph.tobytes()
    before = dataset["PixelData"].VR
    assert load_image(dataset).pixels.tobytes() == load_image(radiograph).pixels.tobytes()
    assert dataset["PixelData"].VR == before == "OB or OW"


def test_load_image_with_dataset_of_buffered_pixels_gives_the_same(radiograph):
    dataset = build_dataset(radiograph)
    dataset.PixelData = io.BytesIO(radiograph.tobytes())
    for _ in range(2):
        assert load_image(dataset).pixels.tobytes() == load_image(radiograph).pixels.tobytes()


def test_load_image_with_dataset_changed_after_reading_uses_the_changes(radiograph):
    dataset = pydicom.dcmread(io.BytesIO(dicom(radiograph, WindowCenter="100", WindowWidth="60")))
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.PixelData = radiograph[::-1].tobytes()
    assert load_image(dataset).pixels.tobytes() == load_image(radiograph[::-1]).pixels.tobytes()


def test_load_image_with_compressed_dataset_without_syntax_asks_for_it():
    dataset = pydicom.dcmread(shipped_path("MR_small_RLE.dcm"))
    del dataset.file_meta
    assert "Set file_meta.TransferSyntaxUID" in error_message(dataset)


def test_load_image_with_dataset_over_limit_raises_invalid_image(radiograph):
    assert "the limit is 64 MB" in error_message(build_dataset(radiograph, PixelData=bytes(MAX_BYTES + 2)))
    assert "40 million pixels" in error_message(build_dataset(radiograph, Rows=65535, Columns=65535))


def test_load_image_with_dataset_without_pixels_raises_invalid_image():
    assert "no image" in error_message(Dataset())
    assert "lacks Rows" in error_message(build_dataset(RAMP, Rows=None))


# Privacy


def private_files():
    """Yield files that identify a person where they may and where they must not, whole and damaged."""
    pixels = np.asarray(synthetic_radiograph("Spiral", width=64, height=96))
    with pydicom.config.disable_value_validation():
        dataset = build_dataset(pixels, WindowCenter="30", WindowWidth="20")
        dataset.PatientName, dataset.PatientID = "Roentgen^Wilhelm", "SECRET-ID"
        dataset.PatientComments = "seen in ward 7"
        dataset.add_new("PatientBirthDate", "DA", "SECRET-ID, not a date")
        dataset.add_new("PatientAge", "AS", "seen in ward 7")
        dataset.add_new("StudyInstanceUID", "UI", "SECRET-ID")
        dataset.add_new("SpecificCharacterSet", "CS", "Roentgen")
        yield encode_dicom(dataset)
        yield encode_dicom(dataset)[132:]
        yield encode_dicom(dataset, IMPLICIT)
        yield encode_dicom(dataset)[:-3000]
        for keyword, value in (("Rows", 9000), ("PixelData", b"")):
            unreadable = copy.deepcopy(dataset)
            setattr(unreadable, keyword, value)
            yield encode_dicom(unreadable)
        for keyword in (
            "Modality",
            "NumberOfFrames",
            "PhotometricInterpretation",
            "WindowCenter",
            "VOILUTFunction",
            "RescaleSlope",
            "Rows",
            "Columns",
            "BitsAllocated",
        ):
            damaged = build_dataset(pixels, WindowCenter="30", WindowWidth="20")
            damaged.update(dataset)
            damaged.add_new(keyword, "LO", "Roentgen, seen in ward 7")
            yield encode_dicom(damaged)
        yield encode_dicom(dataset).replace(b"1.2.840.10008.1.2.1\0", b"SECRET-ID\0\0\0\0\0\0\0\0\0\0\0")


@pytest.mark.parametrize("as_dataset", [False, True])
def test_read_dicom_reveals_nothing_about_the_patient(as_dataset, capfd, caplog, recwarn):
    caplog.set_level(0)
    files = list(private_files())
    assert all(any(text.encode() in data for text in PRIVATE) for data in files)
    sources = [pydicom.dcmread(io.BytesIO(data), force=True) for data in files] if as_dataset else files
    recwarn.clear()
    caplog.clear()
    capfd.readouterr()
    n_read, outputs = 0, []
    for source in sources:
        try:
            outputs.append(repr(load_image(source)))
            n_read += 1
        except InvalidImage as error:
            outputs += traceback.format_exception(error)
    outputs += [*capfd.readouterr(), caplog.text, *(str(warning.message) for warning in recwarn.list)]
    assert n_read >= 5 and len(files) - n_read >= 5
    assert not [text for text in PRIVATE if text in "".join(outputs)]
