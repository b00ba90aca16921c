"""DICOM files, written here with pydicom or shipped with it."""

import io
import random
import re
import traceback
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array

from fracture_lib import InvalidImage, preprocess, read_film
from fracture_lib.dicom import is_dicom
from fracture_lib.drawing import draw_film

RAMP = np.tile(np.arange(64), (64, 1))
EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG, JPEG_12_BIT = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
SECRETS = ("Roentgen", "SECRET-ID", "seen in ward 7")


@pytest.fixture
def film():
    return np.asarray(draw_film("Oblique", width=120, height=240))


def dataset_of(pixels, **elements):
    """A minimal pydicom Dataset of integers [H, W] or [H, W, 3]; a keyword set to None is left out."""
    bits = 8 * pixels.itemsize
    defaults = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "PlanarConfiguration": 0 if pixels.ndim == 3 else None,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }
    dataset = Dataset()
    for keyword, value in (defaults | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def saved(dataset, syntax=EXPLICIT):
    """The bytes of a DICOM file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    if dataset.file_meta.TransferSyntaxUID.is_compressed and syntax != DEFLATED and "PixelData" in dataset:
        dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels, syntax=EXPLICIT, **elements):
    return saved(dataset_of(pixels, **elements), syntax)


def packed(codestream, pixels, syntax, **elements):
    """A DICOM file of a codestream."""
    return dicom(pixels, syntax, **elements, PixelData=encapsulate([codestream]))


def by_gdcm(pixels, syntax, folder):
    """A DICOM file that GDCM compressed."""
    import gdcm

    source, target = str(folder / "source.dcm"), str(folder / "target.dcm")
    (folder / "source.dcm").write_bytes(dicom(pixels))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(source)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(target)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "target.dcm").read_bytes()


def shipped(name):
    return Path(get_testdata_file(name, download=False)).read_bytes()


def sentence_about(data):
    """What InvalidImage says of a file, checked for its form."""
    with pytest.raises(InvalidImage) as caught:
        read_film(data)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def lut(table, first=0, bits=16, kind="<u2"):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "OW", np.asarray(table, kind).tobytes())
    return [item]


# What is DICOM


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_files_are_known_by_their_bytes(film, syntax, tmp_path):
    data = dicom(film, syntax, SOPClassUID="1.2.840.10008.5.1.4.1.1.1")
    bare = data[data.index(b"\x08\0\x16\0") :]
    assert is_dicom(data) and is_dicom(data[132:]) and is_dicom(bare)
    path = tmp_path / "film"
    for stored in (data, data[132:], bare):
        path.write_bytes(stored)
        np.testing.assert_array_equal(preprocess(path), preprocess(film))


@pytest.mark.parametrize(
    "kind", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "ICO", "TGA", "PPM", "JPEG2000"]
)
def test_other_formats_are_not_dicom(film, kind):
    buffer = io.BytesIO()
    Image.fromarray(film).save(buffer, kind)
    assert not is_dicom(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"\x08\0", b"DICM", b"\x02\0\0\0" + b"\xff" * 99, b"no film" * 40])
def test_short_or_random_bytes_are_not_dicom(data):
    assert not is_dicom(data)


# What it shows


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_a_film_gives_the_same_input_as_its_png(film, syntax):
    assert preprocess(dicom(film, syntax)).tobytes() == preprocess(film).tobytes()


def test_monochrome1_is_inverted(film):
    data = dicom(255 - film, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(preprocess(data), preprocess(film), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16), ("i4", 20)]
)
def test_deep_films_keep_every_step(kind, bits):
    """A ramp over all the bits stored is neither clipped nor stepped."""
    low = -(2 ** (bits - 1)) if kind.startswith("i") else 0
    ramp = np.tile(np.linspace(low, low + 2**bits - 1, 128).round().astype(kind), (64, 1))
    read = read_film(dicom(ramp, BitsStored=bits, HighBit=bits - 1)).pixels
    assert (np.diff(read, axis=1) > 0).all()
    np.testing.assert_allclose(read[0], np.linspace(0, 1, 128), atol=0.6 / 255)


def test_a_full_16_bit_ramp_has_65536_tones():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(read_film(dicom(ramp)).pixels)) == 65536
    data = dicom(ramp, RescaleSlope="0.25", RescaleIntercept="-1024")
    assert len(np.unique(read_film(data).pixels)) == 65536


def test_a_window_stretches_what_is_inside_and_clips_the_rest():
    data = dicom(RAMP.astype("u1"), WindowCenter="32.5", WindowWidth="17")
    shown = read_film(data).pixels[0]
    assert (shown[:25] == 0).all() and (shown[40:] == 1).all()
    np.testing.assert_allclose(shown[24:41], np.linspace(0, 1, 17), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR_EXACT", np.clip((np.arange(64) - 32) / 16 + 0.5, 0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-(np.arange(64) - 32) / 4))),
    ],
)
def test_other_window_functions(function, expected):
    data = dicom(RAMP.astype("u1"), WindowCenter="32", WindowWidth="16", VOILUTFunction=function)
    expected = (expected - expected[0]) / (expected[-1] - expected[0])
    np.testing.assert_allclose(read_film(data).pixels[0], expected, atol=1e-5)


def test_the_first_of_several_windows_counts():
    several = dicom(RAMP.astype("u1"), WindowCenter=["20", "50"], WindowWidth=["10", "4"])
    one = dicom(RAMP.astype("u1"), WindowCenter="20", WindowWidth="10")
    np.testing.assert_array_equal(read_film(several).pixels, read_film(one).pixels)


def test_a_window_of_monochrome1_is_inverted():
    elements = {"WindowCenter": "32.5", "WindowWidth": "17"}
    shown = read_film(dicom(RAMP.astype("u1"), **elements)).pixels
    inverted = read_film(dicom(RAMP.astype("u1"), **elements, PhotometricInterpretation="MONOCHROME1")).pixels
    np.testing.assert_allclose(inverted, 1 - shown, atol=1e-6)


def test_rescaling_comes_before_the_window():
    """CT numbers: stored 0..63 are -1000..+890 in steps of 30, of which -400..+200 are shown."""
    data = dicom(
        RAMP.astype("i2") - 10,
        RescaleSlope="30",
        RescaleIntercept="-700",
        WindowCenter="-99.5",
        WindowWidth="601",
    )
    expected = np.clip((np.arange(64) * 30 - 1000 + 400) / 600, 0, 1)
    np.testing.assert_allclose(read_film(data).pixels[0], expected, atol=1e-5)


def test_a_negative_slope_inverts_with_and_without_a_window():
    for window in ({}, {"WindowCenter": "-31", "WindowWidth": "64"}):
        data = dicom(RAMP.astype("u1"), RescaleSlope="-1", RescaleIntercept="0", **window)
        np.testing.assert_allclose(read_film(data).pixels[0], np.linspace(1, 0, 64), atol=1e-6)


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_lookup_tables(keyword, syntax):
    """A table of 12 bits that squares, for values from 8 on: those below get its first entry."""
    kind = ">u2" if syntax == BIG_ENDIAN else "<u2"
    item = lut(np.arange(50) ** 2, first=8, bits=12, kind=kind)
    shown = read_film(dicom(RAMP.astype(kind), syntax, **{keyword: item})).pixels[0]
    np.testing.assert_allclose(shown, (np.arange(64) - 8).clip(0, 49) ** 2 / 49**2, atol=1e-6)


def test_a_table_of_8_bits_covers_a_12_bit_film():
    ramp = np.tile(np.arange(0, 4096, 16, dtype="u2"), (64, 1))
    for kind in ("<u2", "u1"):
        item = lut(np.arange(4096) // 16, bits=8, kind=kind)
        shown = read_film(dicom(ramp, BitsStored=12, HighBit=11, VOILUTSequence=item)).pixels[0]
        np.testing.assert_allclose(shown, np.linspace(0, 1, 256), atol=1e-6)


def test_a_table_is_preferred_to_a_window():
    item = lut(np.arange(64) ** 2)
    both = dicom(RAMP.astype("u1"), VOILUTSequence=item, WindowCenter="32", WindowWidth="4")
    only = dicom(RAMP.astype("u1"), VOILUTSequence=item)
    np.testing.assert_array_equal(read_film(both).pixels, read_film(only).pixels)


def test_functional_groups_of_the_first_frame_count():
    def frame(centre):
        window = Dataset()
        window.WindowCenter, window.WindowWidth = centre, "10"
        item = Dataset()
        item.FrameVOILUTSequence = [window]
        return item

    frames = {"NumberOfFrames": 2, "PixelData": 2 * RAMP.astype("u1").tobytes()}
    groups = {"PerFrameFunctionalGroupsSequence": [frame("20"), frame("50")]}
    enhanced = read_film(dicom(RAMP.astype("u1"), **frames, **groups))
    plain = read_film(dicom(RAMP.astype("u1"), WindowCenter="20", WindowWidth="10"))
    np.testing.assert_array_equal(enhanced.pixels, plain.pixels)


BROKEN_WINDOWS = {
    "no width": {"WindowCenter": "30", "WindowWidth": "0"},
    "a negative width": {"WindowCenter": "30", "WindowWidth": "-5"},
    "beside the film": {"WindowCenter": "9000", "WindowWidth": "10"},
    "half of it": {"WindowCenter": "30"},
    "an unknown function": {"WindowCenter": "30", "WindowWidth": "9", "VOILUTFunction": "CUBIC"},
    "too large": {"WindowCenter": "1e999", "WindowWidth": "10"},
    "an empty table": {"VOILUTSequence": [Dataset()]},
    "a table cut short": {"VOILUTSequence": lut([0, 1])},
}
BROKEN_WINDOWS["a table cut short"]["VOILUTSequence"][0].LUTDescriptor = [64, 0, 16]


@pytest.mark.parametrize("name", BROKEN_WINDOWS)
def test_a_broken_window_is_ignored_with_a_notice(name):
    film = read_film(dicom(RAMP.astype("u1"), **BROKEN_WINDOWS[name]))
    np.testing.assert_allclose(film.pixels[0], np.linspace(0, 1, 64), atol=1e-6)
    assert len(film.notices) == 1 and "window is broken" in film.notices[0]


def test_a_window_of_text_is_ignored_with_a_notice():
    dataset = dataset_of(RAMP.astype("u1"), WindowWidth="9")
    dataset.add_new("WindowCenter", "LO", "SECRET-ID")
    film = read_film(saved(dataset))
    assert len(film.notices) == 1 and "window is broken" in film.notices[0]
    assert "SECRET-ID" not in repr(film)


@pytest.mark.parametrize("slope", ["0", "1e300", "1e999"])
def test_broken_rescaling_is_ignored_with_a_notice(slope):
    film = read_film(dicom(RAMP.astype("u1"), RescaleSlope=slope, RescaleIntercept="0"))
    np.testing.assert_allclose(film.pixels[0], np.linspace(0, 1, 64), atol=1e-6)
    assert len(film.notices) == 1 and "rescaling is broken" in film.notices[0]


def test_empty_windows_are_no_windows():
    film = read_film(dicom(RAMP.astype("u1"), WindowCenter="", WindowWidth="", RescaleSlope=""))
    assert film.notices == ()


def test_only_the_first_of_many_frames_is_read(film):
    for dataset in (
        dataset_of(film, NumberOfFrames=3, PixelData=film.tobytes() + 2 * film[::-1].tobytes()),
        dataset_of(film, NumberOfFrames=3, PixelData=film.tobytes() + b"cut short..."),
    ):
        read = read_film(saved(dataset))
        assert preprocess(read).tobytes() == preprocess(film).tobytes()
        assert read.notices == ("The file holds 3 frames: only the first is used.",)


@pytest.mark.parametrize(
    ("modality", "expected"), [("DX", "DX"), ("CT", "CT"), (None, None), ("ROENTGEN^WILHELM", None)]
)
def test_modality(film, modality, expected):
    assert read_film(dicom(film, Modality=modality)).modality == expected


def test_colours(film):
    rgb = np.dstack([film, film // 2, 255 - film])
    expected = read_film(rgb)
    planar = {"PlanarConfiguration": 1, "PixelData": rgb.transpose(2, 0, 1).tobytes()}
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    for data, tolerance in (
        (dicom(rgb), 0),
        (dicom(rgb, **planar), 0),
        (dicom(ycbcr, PhotometricInterpretation="YBR_FULL"), 0.01),
    ):
        read = read_film(data)
        np.testing.assert_allclose(read.pixels, expected.pixels, atol=tolerance)
        assert read.colour == pytest.approx(expected.colour, abs=tolerance)


def test_palettes(film):
    palette = {}
    table = np.arange(256) * 257
    for name, values in {"Red": table, "Green": table[::-1], "Blue": table // 2}.items():
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = values.astype("<u2").tobytes()
    read = read_film(dicom(film, PhotometricInterpretation="PALETTE COLOR", **palette))
    expected = read_film(np.dstack([table[film], table[255 - film], table[film] // 2]))
    np.testing.assert_allclose(read.pixels, expected.pixels, atol=1e-5)
    assert read.colour == pytest.approx(expected.colour)


# Compressed


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_lossless_compression_by_gdcm(film, syntax, kind, tmp_path):
    pixels = film.astype(kind) * (257 if kind == "u2" else 1)
    np.testing.assert_array_equal(
        read_film(by_gdcm(pixels, syntax, tmp_path)).pixels, read_film(dicom(pixels)).pixels
    )


def test_rle(film):
    dataset = dataset_of(film.astype("u2") * 257)
    expected = read_film(saved(dataset)).pixels
    dataset.compress(RLE)
    np.testing.assert_array_equal(read_film(saved(dataset, RLE)).pixels, expected)


def test_jpeg_and_jpeg_2000_by_pillow(film):
    for kind, syntax, options in (("JPEG", JPEG, {"quality": 95}), ("JPEG2000", JPEG_2000, {})):
        buffer = io.BytesIO()
        Image.fromarray(film).save(buffer, kind, **options)
        read = preprocess(packed(buffer.getvalue(), film, syntax))
        assert np.abs(read - preprocess(film)).mean() < 0.01


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
def test_shipped_files_agree(name):
    np.testing.assert_array_equal(read_film(shipped(name)).pixels, read_film(shipped("MR_small.dcm")).pixels)


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_jpeg2k.dcm"],
)
def test_shipped_colours_agree_with_pydicom(name):
    expected = read_film(pixel_array(get_testdata_file(name, download=False), index=0))
    np.testing.assert_array_equal(read_film(shipped(name)).pixels, expected.pixels)


def test_jpeg_of_12_bits():
    """pydicom reads it with none of its decoders; the two pixels are those that its tests expect."""
    assert read_film(shipped("JPGExtended.dcm")).pixels[[420, 230], [140, 120]] == pytest.approx(
        [244 / 264, 95 / 264]
    )


# Bad files


def spoilt():
    film = np.asarray(draw_film("Spiral", width=64, height=96))
    codestream = get_frame(pydicom.dcmread(io.BytesIO(shipped("MR_small_jp2klossless.dcm"))).PixelData, 0)
    report = saved(Dataset())
    bomb = zlib.compressobj(9, wbits=-15)
    zeros = bomb.compress(bytes(300_000_000)) + bomb.flush()
    deflated = dicom(film, DEFLATED)
    head = deflated.index(DEFLATED.encode()) + len(DEFLATED)
    larger = bytearray(codestream)
    larger[8:16] = larger[24:32] = (2**15).to_bytes(4) * 2
    box = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(8)
    return {
        "no pixels": (dicom(film, PixelData=None), "no picture"),
        "a report": (report, "no picture"),
        "a shipped report": (shipped("test-SR.dcm"), "no picture"),
        "no rows": (dicom(film, Rows=None), "damaged"),
        "no columns": (dicom(film, Columns=None), "damaged"),
        "no photometric interpretation": (dicom(film, PhotometricInterpretation=None), "damaged"),
        "a huge header": (dicom(film, Rows=65535, Columns=65535), "65535x65535 .* 40 million"),
        "fewer pixels than announced": (dicom(film, Rows=960), "damaged"),
        "video": (packed(b"\0\0\1\xb3", film, "1.2.840.10008.1.2.4.100"), "video"),
        "a private syntax": (
            dicom(film).replace(EXPLICIT.encode() + b"\0", b"1.2.3.4.5.6.7.8.9.10"),
            "rare way",
        ),
        "high-throughput JPEG 2000": (packed(codestream, film, "1.2.840.10008.1.2.4.201"), "rare way"),
        "a palette without tables": (dicom(film, PhotometricInterpretation="PALETTE COLOR"), "damaged"),
        "a deflated bomb": (deflated[:head] + zeros, "160 MB"),
        "damaged deflation": (deflated[: head + 40] + b"\xff" * 40, "damaged"),
        "a codestream of 32768x32768": (packed(bytes(larger), RAMP.astype("u2"), JPEG_2000), "damaged"),
        "an endless box": (packed(box + codestream[:40], RAMP.astype("u2"), JPEG_2000), "damaged"),
        "one pixel": (dicom(film[:1, :1]), "1x1"),
        "a flat film": (dicom(np.full((64, 64), 90, "u1")), "flat tone"),
    }


SPOILT = spoilt()


@pytest.mark.parametrize("name", SPOILT)
def test_bad_files_raise_one_sentence(name):
    data, words = SPOILT[name]
    assert re.search(words, sentence_about(data))


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"])
def test_truncated_files_raise_one_sentence(name, share):
    data = shipped(name)
    assert "cut short" in sentence_about(data[: int(len(data) * share)])


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_damaged_codestreams_raise_one_sentence(film, syntax, tmp_path, capfd):
    """Some of these make GDCM end its process, which must not be ours."""
    data = bytearray(by_gdcm(film, syntax, tmp_path))
    start = data.rindex(b"\xfe\xff\x00\xe0")  # the item with the codestream
    data[start + 70 : start + 120] = bytes(50)
    data[-2000:] = bytes(2000)
    assert "damaged" in sentence_about(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"])
def test_mutated_files_raise_nothing_else(name, capfd, caplog, recwarn):
    data, rng = shipped(name), random.Random(name)
    for _ in range(120):
        mutant = bytearray(data)
        for _ in range(rng.choice([1, 4, 16])):
            at = rng.randrange(132, rng.choice([1500, len(mutant)]))
            if rng.random() < 0.7:
                mutant[at] = rng.randrange(256)
            else:
                del mutant[at : at + rng.randrange(30)]
        try:
            read_film(bytes(mutant))
        except InvalidImage as error:
            assert "\n" not in str(error) and str(error).endswith(".")
    assert capfd.readouterr() == ("", "") and not caplog.records and not recwarn.list


# Privacy


def private_files():
    """Files that name a person where they may and where they may not, whole and damaged."""
    film = np.asarray(draw_film("Spiral", width=64, height=96))
    with pydicom.config.disable_value_validation():
        dataset = dataset_of(film, WindowCenter="30", WindowWidth="20")
        dataset.PatientName, dataset.PatientID = "Roentgen^Wilhelm", "SECRET-ID"
        dataset.PatientComments = "seen in ward 7"
        dataset.add_new("PatientBirthDate", "DA", "SECRET-ID, not a date")
        dataset.add_new("PatientAge", "AS", "seen in ward 7")
        dataset.add_new("StudyInstanceUID", "UI", "SECRET-ID")
        dataset.add_new("SpecificCharacterSet", "CS", "Roentgen")
        yield saved(dataset)
        yield saved(dataset)[132:]
        yield saved(dataset, IMPLICIT)
        yield saved(dataset)[:-3000]
        for keyword, vr in {
            "Modality": "LO",
            "NumberOfFrames": "LO",
            "PhotometricInterpretation": "LO",
            "WindowCenter": "LO",
            "VOILUTFunction": "LO",
            "RescaleSlope": "LO",
            "Rows": "LO",
            "BitsAllocated": "LO",
        }.items():
            spoilt = dataset_of(film, WindowCenter="30", WindowWidth="20")
            spoilt.update(dataset)
            spoilt.add_new(keyword, vr, "Roentgen, seen in ward 7")
            yield saved(spoilt)
        dataset.file_meta.TransferSyntaxUID = "SECRET-ID"
        yield saved(dataset).replace(b"1.2.840.10008.1.2.1\0", b"SECRET-ID\0\0\0\0\0\0\0\0\0\0\0")


def test_nothing_about_a_patient_comes_out(capfd, caplog, recwarn):
    caplog.set_level(0)
    files = list(private_files())
    recwarn.clear()
    caplog.clear()
    read, said = 0, []
    for data in files:
        assert any(secret.encode() in data for secret in SECRETS)
        try:
            said.append(repr(read_film(data)))
            read += 1
        except InvalidImage as error:
            said += traceback.format_exception(error)
    said += [*capfd.readouterr(), caplog.text, *(str(warning.message) for warning in recwarn.list)]
    assert read >= 5 and len(files) - read >= 5
    assert not [secret for secret in SECRETS if secret in "".join(said)]
