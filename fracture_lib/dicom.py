"""DICOM files: the pixel values that a person at a viewer would see, and nothing about a patient.

    bytes -> _parse: the ELEMENTS alone -> _decode: stored values -> _display: values as shown

Elements that name a person are not among the ELEMENTS: they are skipped. Sections are of DICOM PS3.
"""

import io
import logging
import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np

from fracture_lib.errors import InvalidImage

__all__ = ["is_dicom", "read_dicom"]

# All that is read of a file's data set.
ELEMENTS = (
    *("Modality", "PixelData", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *(
        f"{c}PaletteColorLookupTable{part}"
        for c in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# The terms of PS3.3 C.7.3.1.1.1 that come with pictures; any other text may be about a person.
MODALITIES = (
    *("BI", "BMD", "CR", "CT", "DG", "DX", "ES", "GM", "HC", "IO", "IVUS", "MG", "MR", "NM", "OCT", "OP"),
    *("OT", "PT", "PX", "RF", "RG", "RTIMAGE", "SM", "TG", "US", "XA", "XC"),
)

_DAMAGED = "The DICOM file is damaged, cut short or oddly compressed: export it again, uncompressed."
_NO_PICTURE = "The DICOM file holds no picture (a report?) or is cut short: choose a film or export it again."
_UNSUPPORTED = "The DICOM file is a video or compressed in a rare way: export it as a still, uncompressed."
_NO_RESCALE = "The file's rescaling is broken: it was ignored."
_NO_WINDOW = "The file's display window is broken: the whole range of its grey values is used."


def is_dicom(data):
    """Whether the bytes of a file are DICOM, whatever the file is called.

    Old files without the preamble begin with an element of group 2 or 8, little endian, whose tag a
    value representation or a length within the file follows.
    """
    if data[128:132] == b"DICM":
        return True
    return bool(re.match(rb"[\x02\x08]\0.\0", data, re.DOTALL)) and (
        _is_explicit(data) or int.from_bytes(data[4:8], "little") <= len(data) - 8
    )


def read_dicom(data, max_pixels):
    """Return what the bytes of a DICOM file show, and a dict of two fields of preprocess.Film.

    Values are float32 [H, W], brighter is higher and the range is the file's own, or integers
    [H, W, 3] for RGB. Modality LUT or rescaling, then VOI LUT or window (the first) are applied as in
    PS3.3 C.11.1 and C.11.2; one that is broken is left out, with a notice. The dict has "modality", str
    or None, and "notices", a tuple of sentences. No message quotes an element of the file but these.

    Raises InvalidImage if there is no picture that can be read, and before it decodes more than
    `max_pixels`.
    """
    _silence()
    try:
        dataset = _parse(data, 4 * max_pixels)
        notices = []
        if (frames := _frames(dataset)) > 1:
            notices.append(f"The file holds {frames} frames: only the first is used.")
        values = _display(_decode(dataset, max_pixels), dataset, notices)
        modality = str(dataset.get("Modality"))
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # pydicom and the decoders raise many types on damaged data
        raise InvalidImage(_DAMAGED) from None  # their messages quote elements
    return values, {"modality": modality if modality in MODALITIES else None, "notices": tuple(notices)}


def _frames(dataset):
    return int(dataset.get("NumberOfFrames") or 1)


def _silence():
    """Keep pydicom quiet in the whole process: its warnings and logs quote elements.

    Nothing is put back. `warnings.catch_warnings` and pydicom's own context managers change the process
    too, and of two threads that read at once, one would end the silence of the other.
    """
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")


def _parse(data, max_bytes):
    """Bytes of a file -> pydicom Dataset of its ELEMENTS, with the transfer syntax in `file_meta`."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filereader import data_element_generator, read_preamble
    from pydicom.tag import Tag
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

    # pydicom's dcmread would read all of the file's head, and inflate without a limit.
    def elements(stream, implicit, little, keywords, stop_when=None):
        tags = [Tag(keyword) for keyword in keywords]
        found = data_element_generator(stream, implicit, little, stop_when, specific_tags=tags)
        return {element.tag: element for element in found if element.tag in tags}

    def past_head(tag, *_):
        return tag >> 16 != 2

    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    head = FileMetaDataset(elements(stream, False, True, ["TransferSyntaxUID"], past_head))
    syntax = head.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian).value
    body = stream.read()
    if syntax == DeflatedExplicitVRLittleEndian:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        body = inflate.decompress(body, max_bytes)
        if inflate.unconsumed_tail:
            raise InvalidImage(
                f"The DICOM file unpacks to over {max_bytes // 10**6} MB: export it uncompressed."
            )
    # As some files name another encoding than they use, the first element says what it is.
    implicit, little = not _is_explicit(body), syntax != ExplicitVRBigEndian
    dataset = Dataset(elements(io.BytesIO(body), implicit, little, ELEMENTS))
    dataset.set_original_encoding(implicit, little)
    dataset.file_meta = head
    _promote_functional_groups(dataset)
    return dataset


def _is_explicit(data):
    """Whether the first element gives its value representation, two capital letters, after its tag."""
    return data[4:6].isalpha() and data[4:6].isupper()


def _promote_functional_groups(dataset):
    """Put the first frame's rescaling and window where files of one frame have them (PS3.3 C.7.6.16)."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in dataset.get(groups, [])[:1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in frame.get(macro, [])[:1]:
                    dataset.update(item)


def _decode(dataset, max_pixels):
    """Dataset -> stored values of the first frame, [H, W] or RGB [H, W, 3]."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    if "PixelData" not in dataset:
        raise InvalidImage(_NO_PICTURE)
    rows, columns = dataset.Rows, dataset.Columns
    if rows * columns > max_pixels:  # before any pixel is decoded
        raise InvalidImage(
            f"A picture of {columns}x{rows} has over {max_pixels // 10**6} million pixels: "
            "scale it down first."
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise InvalidImage(_UNSUPPORTED) from None
    if not decoder.is_available:
        raise InvalidImage(_UNSUPPORTED)
    plugin = ""
    if syntax.is_encapsulated and syntax != RLELossless:
        decoder, plugin = _unpack(dataset, decoder)
    dataset.NumberOfFrames = 1
    values = decoder.as_array(dataset, index=0, decoding_plugin=plugin)[0]
    del dataset.PixelData  # as large as the values, which are a copy
    return values


def _unpack(dataset, decoder):
    """Make the first frame's codestream, or its samples, the pixel data; return what decodes that."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian, JPEGExtended12Bit

    stream, precision = _first_codestream(dataset)
    deep = dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and precision > 8
    if "pillow" in decoder.available_plugins and not deep:
        dataset.PixelData = encapsulate([stream])
        return decoder, "pillow"
    dataset.BitsAllocated = 8 if precision <= 8 else 16
    dataset.BitsStored = min(dataset.BitsStored, dataset.BitsAllocated)
    dataset.PlanarConfiguration = 0
    dataset.PixelData = _decode_apart(stream, precision, dataset)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return get_decoder(ExplicitVRLittleEndian), ""


def _first_codestream(dataset):
    """Return the first frame's JPEG, JPEG-LS or JPEG 2000 codestream and its bits a sample.

    It must be as large as the file says: decoders believe it, and one of 7 kB took them 65 s and 2 GB.
    """
    from pydicom.encaps import get_frame

    stream = get_frame(dataset.PixelData, 0, number_of_frames=_frames(dataset))
    # What wraps JPEG 2000 in some files, against PS3.5 A.4.4, can keep pydicom in a loop without end.
    stream = stream[max(stream.find(_JPEG_2000), 0) :]
    if stream.startswith(_JPEG_2000):  # ISO/IEC 15444-1 A.5.1
        right, bottom, left, top, samples, precision = struct.unpack(">4I16xHB", stream[8:43])
        rows, columns = bottom - top, right - left
    else:  # tables and comments, then the frame header: ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2
        at = 2
        while re.match(rb"\xff[\xc4\xcc\xdb\xdd\xe0-\xef\xfe]", stream[at : at + 2]):
            at += 2 + int.from_bytes(stream[at + 2 : at + 4])
        marker, precision, rows, columns, samples = struct.unpack(">H2xBHHB", stream[at : at + 10])
        if marker >> 4 != 0xFFC and marker != 0xFFF7:
            raise InvalidImage(_DAMAGED)
    announced = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    if (rows, columns, samples) != announced or samples not in (1, 3):
        raise InvalidImage(_DAMAGED)
    return stream, precision


_JPEG_2000 = b"\xff\x4f\xff\x51"


def _decode_apart(stream, precision, dataset):
    """Codestream -> bytes of its samples, little endian, from GDCM in a process of its own.

    Damaged JPEG-LS and lossless JPEG make GDCM 3.2.6 write to the terminal and end its process.
    """
    settings = dataset.file_meta.TransferSyntaxUID, dataset.Rows, dataset.Columns
    settings += dataset.SamplesPerPixel, dataset.BitsAllocated, precision
    return subprocess.run(
        [sys.executable, "-c", _GDCM, *map(str, settings)],
        input=stream,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=60,
    ).stdout


_GDCM = """
import sys
import gdcm

syntax = gdcm.TransferSyntax.GetTSType(sys.argv[1])
rows, columns, samples, allocated, precision = map(int, sys.argv[2:])
fragment = gdcm.Fragment()
fragment.SetByteStringValue(sys.stdin.buffer.read())
fragments = gdcm.SequenceOfFragments.New()
fragments.AddFragment(fragment)
element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
element.SetValue(fragments.__ref__())
image = gdcm.Image()
image.SetNumberOfDimensions(2)
image.SetDimensions((columns, rows, 1))
image.SetDataElement(element)
kind = gdcm.PhotometricInterpretation.GetPIType("RGB" if samples == 3 else "MONOCHROME2")
image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
image.SetPixelFormat(gdcm.PixelFormat(samples, allocated, precision, precision - 1, 0))
sys.stdout.buffer.write(image.GetBuffer().encode("utf-8", "surrogateescape"))
"""


def _display(values, dataset, notices):
    """Stored values -> values as shown, by the Photometric Interpretation (PS3.3 C.7.6.3.1.2)."""
    if values.ndim == 3:  # pydicom has turned what was YBR into RGB
        return values
    values = values.astype(np.float32)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        palette = "{}PaletteColorLookupTable".format
        channels = [_look_up(values, dataset, palette(c)) for c in ("Red", "Green", "Blue")]
        return np.stack(channels, axis=-1)
    values = _unless_broken(_rescale, values, dataset, notices, _NO_RESCALE)
    values = _unless_broken(_window, values, dataset, notices, _NO_WINDOW)
    return np.negative(values, out=values) if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def _unless_broken(step, values, dataset, notices, notice):
    """Return `step(values, dataset)`, or `values` and a notice if that fails or leaves one flat tone."""
    try:
        with np.errstate(all="ignore"):
            done = step(values, dataset).astype(np.float32, copy=False)
        if done is values:
            return values
        if np.isfinite(done).all() and (np.ptp(done) > 0 or np.ptp(values) == 0):
            return done
    except Exception:  # an element may be missing, empty, text, a list or out of range
        pass
    notices.append(notice)
    return values


def _rescale(values, dataset):
    """Modality LUT or rescaling (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(values, dataset.ModalityLUTSequence[0], "LUT")
    slope, intercept = _number(dataset, "RescaleSlope", 1), _number(dataset, "RescaleIntercept", 0)
    if (slope, intercept) == (1, 0):
        return values
    scaled = values * slope
    scaled += intercept  # in place, here and below: a film can have 40 million pixels
    return scaled


def _window(values, dataset):
    """VOI LUT or window (PS3.3 C.11.2), the first of several."""
    if dataset.get("VOILUTSequence"):
        return _look_up(values, dataset.VOILUTSequence[0], "LUT")
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is None and width is None:
        return values
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    elif function not in ("LINEAR_EXACT", "SIGMOID"):
        raise ValueError
    shown = values - centre
    if function == "SIGMOID":
        shown *= -4
        shown /= width
        np.exp(shown, out=shown)
        shown += 1
        return np.reciprocal(shown, out=shown)
    shown /= width
    shown += 0.5
    return np.clip(shown, 0, 1, out=shown)


def _number(dataset, keyword, default=None):
    """The first number of an element, or `default` if it is missing or empty."""
    value = dataset.get(keyword)
    return default if value in (None, "") else float(np.ravel(value)[0])


def _look_up(values, dataset, prefix):
    """Values through the table whose elements begin with `prefix` (PS3.3 C.11.1.1 and C.7.6.3.1.5).

    pydicom's own functions count a 12-bit film's entries in 8 bits where the table's output has 8.
    """
    entries, first, _ = dataset[f"{prefix}Descriptor"].value
    entries = entries or 65536
    raw = dataset.get_item(f"{prefix}Data")
    packed = len(raw.value) < 2 * entries  # one byte an entry, otherwise two
    kind = "u1" if packed else "<u2" if raw.is_little_endian else ">u2"
    table = np.frombuffer(raw.value, kind, entries).astype(np.float32)
    looked_up = np.empty_like(values)
    # By rows, as the indices of all at once would be the largest array of a film's.
    for row, into in zip(values, looked_up, strict=True):
        np.take(table, np.clip(row - first, 0, entries - 1).astype(np.intp), out=into)
    return looked_up
