"""Read DICOM files: the pixels as a viewer would show them, and nothing about the patient.

    bytes -> _parse: ELEMENTS only -> _decode: stored values -> _to_displayed: values as displayed

Elements that identify a person are not in ELEMENTS and are skipped. Section numbers are of the DICOM
standard, PS3.
"""

import copy
import io
import logging
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fracture_lib.errors import InvalidImage
from fracture_lib.io.limits import MAX_BYTES, MAX_PIXELS, check_file_size, too_large

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.tag import BaseTag
    from pydicom.uid import UID

__all__ = ["DatasetLike", "DicomImage", "encode_dataset", "is_dicom", "read_dicom"]

# The only elements that are read.
ELEMENTS = (
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PixelData",
)

# The terms of PS3.3 C.7.3.1.1.1 for images; any other text could be about the patient.
MODALITIES = (
    *("BI", "BMD", "CR", "CT", "DG", "DX", "ES", "GM", "HC", "IO", "IVUS", "MG", "MR", "NM", "OCT", "OP"),
    *("OT", "PT", "PX", "RF", "RG", "RTIMAGE", "SM", "TG", "US", "XA", "XC"),
)

MAX_INFLATED = 4 * MAX_PIXELS  # bytes of a deflated data set
DECODER_TIMEOUT = 60  # seconds

_JPEG_2000 = b"\xff\x4f\xff\x51"  # how a JPEG 2000 codestream begins
_FIRST_ITEM = b"\xfe\xff\x00\xe0"  # how compressed pixel data begin (PS3.5 A.4)

_DAMAGED = "The DICOM file is damaged, incomplete or compressed in a rare way. Export it again, uncompressed."
_NO_PIXELS = "The DICOM file has no image (it may be a report) or is incomplete. Choose another one."
_UNSUPPORTED = (
    "The DICOM file is a video or compressed in an unsupported way. Export it as an uncompressed still image."
)
_NO_TRANSFER_SYNTAX = (
    "The Dataset has compressed pixels but no transfer syntax. Set file_meta.TransferSyntaxUID."
)
_INVALID_RESCALE = "The file's rescaling is invalid and was ignored."
_INVALID_WINDOW = (
    "The file's display window is invalid and was ignored; the full range of grey values is used."
)


@runtime_checkable
class DatasetLike(Protocol):
    """A pydicom Dataset, known without importing pydicom."""

    @property
    def original_encoding(self) -> tuple[bool | None, bool | None]: ...

    def get_item(self, key: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class DicomImage:
    """The first frame of a DICOM file, as displayed."""

    values: NDArray[Any]  # float32 [H, W], any range, brighter is higher; or integers [H, W, 3], RGB
    modality: str | None  # one of MODALITIES
    warnings: tuple[str, ...]  # messages about what was left out


def is_dicom(data: bytes) -> bool:
    """Return whether the bytes of a file are DICOM, whatever its name.

    Old files without a preamble begin with a little-endian element of group 2 or 8: a tag, then a value
    representation or a length within the file.
    """
    if data[128:132] == b"DICM":
        return True
    return bool(re.match(rb"[\x02\x08]\0.\0", data, re.DOTALL)) and (
        _has_explicit_vr(data) or int.from_bytes(data[4:8], "little") <= len(data) - 8
    )


def read_dicom(data: bytes) -> DicomImage:
    """Read the first frame from the bytes of a DICOM file.

    Applies the modality LUT or rescaling and then the VOI LUT or window, the first of several, as in
    PS3.3 C.11.1 and C.11.2; an invalid one is left out, with a warning. No message quotes an element,
    other than the image's size and number of frames.

    Raises InvalidImage if there is no readable image, and before decoding more than MAX_PIXELS.
    """
    _silence_pydicom()
    messages: list[str] = []
    try:
        dataset = _parse(data)
        n_frames = _number_of_frames(dataset)
        if n_frames > 1:
            messages.append(f"The file has {n_frames} frames; only the first is used.")
        values = _to_displayed(_decode(dataset), dataset, messages)
        modality = str(dataset.get("Modality"))
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # pydicom and the decoders raise many types on damaged data
        raise InvalidImage(_DAMAGED) from None  # their messages quote elements
    return DicomImage(values, modality if modality in MODALITIES else None, tuple(messages))


def encode_dataset(dataset: DatasetLike) -> bytes:
    """Return a pydicom Dataset as the bytes of a DICOM file with ELEMENTS only; `dataset` stays as it is.

    `file_meta` may be missing if the pixels are not compressed. Raises InvalidImage.
    """
    _silence_pydicom()
    try:
        return _write(dataset)
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # pydicom raises many types on invalid elements
        raise InvalidImage(_DAMAGED) from None  # their messages quote elements


def _write(dataset: DatasetLike) -> bytes:
    from pydicom.charset import default_encoding
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import correct_ambiguous_vr, write_dataset, write_file_meta_info
    from pydicom.uid import ExplicitVRBigEndian

    elements = Dataset()
    for keyword in ELEMENTS:
        if (element := dataset.get_item(keyword)) is not None:
            elements[element.tag] = _copy_element(element)
    head = FileMetaDataset()
    head.TransferSyntaxUID = _transfer_syntax(dataset, elements)
    file = DicomBytesIO()
    file.write(bytes(128) + b"DICM")
    write_file_meta_info(file, head, enforce_standard=False)

    implicit, little_endian = dataset.original_encoding
    # Some files name one encoding and use another: trust the elements.
    implicit = implicit or any(e.is_implicit_VR for e in elements.elements() if isinstance(e, RawDataElement))
    file.is_implicit_VR, file.is_little_endian = implicit, head.TransferSyntaxUID != ExplicitVRBigEndian
    correct_ambiguous_vr(elements, file.is_little_endian)
    # Elements that keep their encoding are written as they were read, even invalid ones.
    elements.set_original_encoding(implicit, little_endian, default_encoding)
    write_dataset(file, elements)
    return file.getvalue()


def _copy_element(element: "DataElement | RawDataElement") -> "DataElement | RawDataElement":
    """Copy an element of at most MAX_BYTES; copies share their bytes."""
    from pydicom.dataelem import DataElement

    value = element.value
    if isinstance(element, DataElement) and isinstance(value, io.BufferedIOBase):
        value.seek(0)
        value = value.read(MAX_BYTES + 1)
        element = DataElement(element.tag, element.VR, value, is_undefined_length=element.is_undefined_length)
    if isinstance(value, bytes) and len(value) > MAX_BYTES:
        check_file_size(len(value))
    return copy.deepcopy(element)


def _transfer_syntax(dataset: DatasetLike, elements: "Dataset") -> "UID":
    """Return the transfer syntax to write ELEMENTS in: uncompressed pixels are written as they are."""
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, UncompressedTransferSyntaxes

    head = getattr(dataset, "file_meta", None)
    syntax = head.get("TransferSyntaxUID") if head else None
    if not syntax:
        if "PixelData" in elements and elements.PixelData.startswith(_FIRST_ITEM):
            raise InvalidImage(_NO_TRANSFER_SYNTAX)
        syntax = ExplicitVRBigEndian if dataset.original_encoding[1] is False else ExplicitVRLittleEndian
    if syntax in UncompressedTransferSyntaxes and syntax != ExplicitVRBigEndian:
        return ExplicitVRLittleEndian  # implicit ones are recognized, deflated ones not deflated again
    return UID(syntax)


def _number_of_frames(dataset: "Dataset") -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _silence_pydicom() -> None:
    """Turn off pydicom's warnings and logs, which quote elements, for the whole process.

    They stay off. `warnings.catch_warnings` and pydicom's own context managers also change the whole
    process: of two threads that read at once, one would turn the other's warnings on again.
    """
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")


def _parse(data: bytes) -> "Dataset":
    """Return the ELEMENTS of a file's bytes, with the transfer syntax in `file_meta`.

    pydicom's `dcmread` would read every element of group 2 and inflate without a limit.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filereader import read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    head = FileMetaDataset(
        _read_elements(stream, ["TransferSyntaxUID"], stop_when=lambda tag, *_: tag >> 16 != 2)
    )
    syntax = head.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian).value
    body = stream.read()
    if syntax == DeflatedExplicitVRLittleEndian:
        body = _inflate(body)
    # Some files name one encoding and use another: trust the first element.
    implicit, little_endian = not _has_explicit_vr(body), syntax != ExplicitVRBigEndian
    dataset = Dataset(_read_elements(io.BytesIO(body), ELEMENTS, implicit, little_endian))
    dataset.set_original_encoding(implicit, little_endian)
    dataset.file_meta = head
    _promote_functional_groups(dataset)
    return dataset


def _read_elements(
    stream: io.BytesIO,
    keywords: Iterable[str],
    implicit: bool = False,
    little_endian: bool = True,
    stop_when: Callable[..., bool] | None = None,
) -> "dict[BaseTag, DataElement | RawDataElement]":
    from pydicom.filereader import data_element_generator
    from pydicom.tag import Tag

    tags: list[BaseTag | int] = [Tag(keyword) for keyword in keywords]
    found = data_element_generator(stream, implicit, little_endian, stop_when, specific_tags=tags)
    return {element.tag: element for element in found if element.tag in tags}


def _inflate(body: bytes) -> bytes:
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = decompressor.decompress(body, MAX_INFLATED)
    if decompressor.unconsumed_tail:
        raise InvalidImage(
            f"The DICOM file unpacks to over {MAX_INFLATED // 10**6} MB. Export it uncompressed."
        )
    return inflated


def _has_explicit_vr(data: bytes) -> bool:
    """Return whether the first element's tag is followed by a value representation, two capital letters."""
    return data[4:6].isalpha() and data[4:6].isupper()


def _promote_functional_groups(dataset: "Dataset") -> None:
    """Move the first frame's rescaling and window to where single-frame files have them (PS3.3 C.7.6.16)."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in dataset.get(groups, [])[:1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in frame.get(macro, [])[:1]:
                    dataset.update(item)


def _decode(dataset: "Dataset") -> NDArray[Any]:
    """Return the stored values of the first frame, [H, W] or RGB [H, W, 3], and drop the pixel data."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    if "PixelData" not in dataset:
        raise InvalidImage(_NO_PIXELS)
    rows, columns = dataset.Rows, dataset.Columns
    if rows * columns > MAX_PIXELS:  # before any pixel is decoded
        raise too_large(f"The image is too large ({columns}x{rows})")
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise InvalidImage(_UNSUPPORTED) from None
    if not decoder.is_available:
        raise InvalidImage(_UNSUPPORTED)
    plugin = ""
    if syntax.is_encapsulated and syntax != RLELossless:
        decoder, plugin = _unpack_first_frame(dataset, decoder)
    dataset.NumberOfFrames = 1
    values = decoder.as_array(dataset, index=0, decoding_plugin=plugin)[0]
    del dataset.PixelData  # `values` are a copy, and as large
    return values


def _unpack_first_frame(dataset: "Dataset", decoder: "Decoder") -> "tuple[Decoder, str]":
    """Replace the pixel data with the first frame, its codestream or its samples.

    Returns the decoder for it and the name of the decoder's plugin.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian, JPEGExtended12Bit

    codestream, precision = _first_codestream(dataset)
    is_12_bit_jpeg = dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and precision > 8
    if "pillow" in decoder.available_plugins and not is_12_bit_jpeg:
        dataset.PixelData = encapsulate([codestream])
        return decoder, "pillow"
    dataset.BitsAllocated = 8 if precision <= 8 else 16
    dataset.BitsStored = min(dataset.BitsStored, dataset.BitsAllocated)
    dataset.PlanarConfiguration = 0
    dataset.PixelData = _decode_in_subprocess(codestream, precision, dataset)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return get_decoder(ExplicitVRLittleEndian), ""


def _first_codestream(dataset: "Dataset") -> tuple[bytes, int]:
    """Return the first frame's JPEG, JPEG-LS or JPEG 2000 codestream and its bits per sample.

    The codestream must have the size that the file announces: decoders trust its header, and one of 7 kB
    took them 65 s and 2 GB.
    """
    from pydicom.encaps import get_frame

    stream = get_frame(dataset.PixelData, 0, number_of_frames=_number_of_frames(dataset))
    # Skip the JP2 boxes that some files have against PS3.5 A.4.4: pydicom can loop over them forever.
    stream = stream[max(stream.find(_JPEG_2000), 0) :]
    if stream.startswith(_JPEG_2000):  # ISO/IEC 15444-1 A.5.1
        right, bottom, left, top, samples, precision = struct.unpack(">4I16xHB", stream[8:43])
        rows, columns = bottom - top, right - left
    else:  # tables and comments, then the frame header: ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2
        offset = 2
        while re.match(rb"\xff[\xc4\xcc\xdb\xdd\xe0-\xef\xfe]", stream[offset : offset + 2]):
            offset += 2 + int.from_bytes(stream[offset + 2 : offset + 4])
        marker, precision, rows, columns, samples = struct.unpack(">H2xBHHB", stream[offset : offset + 10])
        if marker >> 4 != 0xFFC and marker != 0xFFF7:
            raise InvalidImage(_DAMAGED)
    announced = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    if (rows, columns, samples) != announced or samples not in (1, 3):
        raise InvalidImage(_DAMAGED)
    return stream, precision


def _decode_in_subprocess(codestream: bytes, precision: int, dataset: "Dataset") -> bytes:
    """Return the little-endian samples of a codestream, decoded by GDCM in a process of its own.

    On damaged JPEG-LS and lossless JPEG, GDCM 3.2.6 writes to the terminal and kills its process.
    """
    arguments = (
        dataset.file_meta.TransferSyntaxUID,
        dataset.Rows,
        dataset.Columns,
        dataset.SamplesPerPixel,
        dataset.BitsAllocated,
        precision,
    )
    return subprocess.run(
        [sys.executable, "-c", _GDCM_SCRIPT, *map(str, arguments)],
        input=codestream,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=DECODER_TIMEOUT,
    ).stdout


_GDCM_SCRIPT = """
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


def _to_displayed(values: NDArray[Any], dataset: "Dataset", messages: list[str]) -> NDArray[Any]:
    """Turn stored values into displayed ones by the Photometric Interpretation (PS3.3 C.7.6.3.1.2)."""
    if values.ndim == 3:  # pydicom has converted YBR to RGB
        return values
    values = values.astype(np.float32)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        palettes = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
        return np.stack([_look_up(values, dataset, palette) for palette in palettes], axis=-1)
    values = _apply_if_valid(_rescale, values, dataset, messages, _INVALID_RESCALE)
    values = _apply_if_valid(_apply_window, values, dataset, messages, _INVALID_WINDOW)
    return np.negative(values, out=values) if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def _apply_if_valid(
    step: "Callable[[NDArray[np.float32], Dataset], NDArray[Any]]",
    values: NDArray[np.float32],
    dataset: "Dataset",
    messages: list[str],
    message: str,
) -> NDArray[np.float32]:
    """Return `step(values, dataset)`; if it fails or leaves a blank image, add `message`, return `values`."""
    try:
        with np.errstate(all="ignore"):
            result = step(values, dataset).astype(np.float32, copy=False)
        if result is values:
            return values
        if np.isfinite(result).all() and (np.ptp(result) > 0 or np.ptp(values) == 0):
            return result
    except Exception:  # elements may be missing, empty, text, lists or out of range
        pass
    messages.append(message)
    return values


def _rescale(values: NDArray[np.float32], dataset: "Dataset") -> NDArray[Any]:
    """Apply the modality LUT or rescaling (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(values, dataset.ModalityLUTSequence[0], "LUT")
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    slope, intercept = 1 if slope is None else slope, 0 if intercept is None else intercept
    if (slope, intercept) == (1, 0):
        return values
    scaled = values * slope
    scaled += intercept  # in place, here and below: an image can have 40 million pixels
    return scaled


def _apply_window(values: NDArray[np.float32], dataset: "Dataset") -> NDArray[Any]:
    """Apply the VOI LUT or window (PS3.3 C.11.2), the first of several."""
    if dataset.get("VOILUTSequence"):
        return _look_up(values, dataset.VOILUTSequence[0], "LUT")
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None and width is None:
        return values
    if center is None or width is None:
        raise ValueError
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)
    elif function not in ("LINEAR_EXACT", "SIGMOID"):
        raise ValueError
    windowed = values - center
    if function == "SIGMOID":
        windowed *= -4
        windowed /= width
        np.exp(windowed, out=windowed)
        windowed += 1
        return np.reciprocal(windowed, out=windowed)
    windowed /= width
    windowed += 0.5
    return np.clip(windowed, 0, 1, out=windowed)


def _number(dataset: "Dataset", keyword: str) -> float | None:
    """Return the first number of an element, or None if it is missing or empty."""
    value = dataset.get(keyword)
    return None if value in (None, "") else float(np.ravel(value)[0])


def _look_up(values: NDArray[np.float32], dataset: "Dataset", prefix: str) -> NDArray[np.float32]:
    """Map values through the table whose elements begin with `prefix` (PS3.3 C.11.1.1, C.7.6.3.1.5).

    pydicom's own functions count the entries for a 12-bit image in 8 bits if the table's output has 8.
    """
    n_entries, first_value, _ = dataset[f"{prefix}Descriptor"].value
    n_entries = n_entries or 65536
    raw: Any = dataset.get_item(f"{prefix}Data")  # a RawDataElement: `_parse` converts no values
    one_byte_each = len(raw.value) < 2 * n_entries
    dtype = "u1" if one_byte_each else "<u2" if raw.is_little_endian else ">u2"
    table = np.frombuffer(raw.value, dtype, n_entries).astype(np.float32)
    mapped = np.empty_like(values)
    # Row by row: the indices of the whole image would be the largest array.
    for row, mapped_row in zip(values, mapped, strict=True):
        np.take(table, np.clip(row - first_value, 0, n_entries - 1).astype(np.intp), out=mapped_row)
    return mapped
