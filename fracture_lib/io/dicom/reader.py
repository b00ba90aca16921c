"""Read DICOM files: the pixels as a viewer would show them, and nothing about the patient.

    bytes -> _parse: ELEMENTS only -> decode: stored values of one frame -> to_displayed: as displayed

Elements that identify a person are not in ELEMENTS and are skipped. Section numbers refer to the DICOM
standard, PS3.
"""

import copy
import io
import logging
import re
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fracture_lib.errors import InvalidImage
from fracture_lib.io.dicom.decode import decode
from fracture_lib.io.dicom.display import DisplayedImage, to_displayed
from fracture_lib.io.dicom.frames import DAMAGED, is_encapsulated
from fracture_lib.io.limits import MAX_BYTES, MAX_PIXELS, check_file_size

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag
    from pydicom.uid import UID

__all__ = ["DatasetLike", "DicomImage", "encode_dataset", "is_dicom", "read_dicom"]

# With OVERLAY_ELEMENTS, the only elements that are read.
ELEMENTS = (
    "SOPClassUID",
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
    "ShutterShape",
    "ShutterLeftVerticalEdge",
    "ShutterRightVerticalEdge",
    "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge",
    "CenterOfCircularShutter",
    "RadiusOfCircularShutter",
    "VerticesOfThePolygonalShutter",
    "PixelAspectRatio",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PresentationIntentType",
    "PixelIntensityRelationshipSign",
    "PresentationLUTShape",
    "SegmentedRedPaletteColorLookupTableData",
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
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
)
OVERLAY_ELEMENTS = tuple(
    group << 16 | element
    for group in range(0x6000, 0x6020, 2)
    for element in (0x0100, 0x0102)  # Overlay Bits Allocated, Overlay Bit Position
)

# The functional groups of a frame that say how it is displayed (PS3.3 C.7.6.16.2).
FRAME_MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "FrameDisplayShutterSequence",
)

# The terms of PS3.3 C.7.3.1.1.1 for images; any other text could be about the patient.
MODALITIES = (
    *("BI", "BMD", "CR", "CT", "DG", "DX", "ES", "GM", "HC", "IO", "IVUS", "MG", "MR", "NM", "OCT", "OP"),
    *("OT", "PT", "PX", "RF", "RG", "RTIMAGE", "SM", "TG", "US", "XA", "XC"),
)

# What files without an image hold, by the start of their SOP class UID (PS3.4 B.5, PS3.3 F.1 for DICOMDIR).
OTHER_OBJECTS = {
    "1.2.840.10008.1.3.10": "a DICOMDIR, the index of a disc",
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report",
    "1.2.840.10008.5.1.4.1.1.104.": "a document, such as a PDF",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state, which only says how to display an image",
    "1.2.840.10008.5.1.4.1.1.9.": "a waveform, such as an ECG",
    "1.2.840.10008.5.1.4.1.1.66": "a registration, a surface or other data",
    "1.2.840.10008.5.1.4.1.1.481.": "a radiotherapy plan or structure set",
    "1.2.840.10008.5.1.4.38.": "a hanging protocol",
}

MAX_INFLATED = 4 * MAX_PIXELS  # bytes of a deflated data set

_NO_TRANSFER_SYNTAX = (
    "The Dataset has compressed pixels but no transfer syntax. Set file_meta.TransferSyntaxUID."
)


@runtime_checkable
class DatasetLike(Protocol):
    """A pydicom Dataset, known without importing pydicom."""

    @property
    def original_encoding(self) -> tuple[bool | None, bool | None]: ...

    def get_item(self, key: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class DicomImage:
    """One frame of a DICOM file, as displayed."""

    displayed: DisplayedImage
    modality: str | None  # one of MODALITIES
    warnings: tuple[str, ...]  # messages about what was corrected, ignored or guessed


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
    """Read the first frame that is not blank from the bytes of a DICOM file.

    Fills in what the Image Pixel Module lacks (PS3.3 C.7.6.3), applies the modality LUT or rescaling and
    then the VOI LUT or window, the first of several, as in PS3.3 C.11.1 and C.11.2; an invalid one is left
    out. A warning says so. No message quotes an element, other than sizes and counts.

    Raises InvalidImage if there is no readable image, and before decoding more than MAX_PIXELS.
    """
    _silence_pydicom()
    messages: list[str] = []
    try:
        dataset = _parse(data)
        _check_has_image(dataset)
        frame, index = decode(dataset, messages)
        _promote_functional_groups(dataset, index)
        displayed = to_displayed(frame.values, dataset, messages)
        if frame.invalid is not None:
            blank_mask = (
                frame.invalid if displayed.blank_mask is None else displayed.blank_mask | frame.invalid
            )
            displayed = replace(displayed, blank_mask=blank_mask)
        modality = str(dataset.get("Modality"))
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # pydicom and the decoders raise many types on damaged data
        raise InvalidImage(DAMAGED) from None  # their messages quote elements
    return DicomImage(displayed, modality if modality in MODALITIES else None, tuple(messages))


def _check_has_image(dataset: "Dataset") -> None:
    """Raise InvalidImage if there are no pixels and the SOP class says what the file is instead."""
    if any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return
    classes = [str(dataset.file_meta.get("MediaStorageSOPClassUID")), str(dataset.get("SOPClassUID"))]
    for prefix, what in OTHER_OBJECTS.items():
        if any(name.startswith(prefix) for name in classes):
            raise InvalidImage(f"The DICOM file has no image: it is {what}. Choose an image file.")


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
        raise InvalidImage(DAMAGED) from None  # their messages quote elements


def _write(dataset: DatasetLike) -> bytes:
    from pydicom.charset import default_encoding
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import correct_ambiguous_vr, write_dataset, write_file_meta_info
    from pydicom.uid import ExplicitVRBigEndian

    elements = Dataset()
    for key in (*ELEMENTS, *OVERLAY_ELEMENTS):
        if (element := dataset.get_item(key)) is not None:
            elements[element.tag] = _copy_element(element)
    head = FileMetaDataset()
    head.TransferSyntaxUID = _transfer_syntax(dataset, elements)
    if sop_class := (getattr(dataset, "file_meta", None) or {}).get("MediaStorageSOPClassUID"):
        head.MediaStorageSOPClassUID = sop_class
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
        if "PixelData" in elements and is_encapsulated(elements.PixelData):
            raise InvalidImage(_NO_TRANSFER_SYNTAX)
        syntax = ExplicitVRBigEndian if dataset.original_encoding[1] is False else ExplicitVRLittleEndian
    if syntax in UncompressedTransferSyntaxes and syntax != ExplicitVRBigEndian:
        return ExplicitVRLittleEndian  # implicit ones are recognized, deflated ones not deflated again
    return UID(syntax)


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
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    head = FileMetaDataset(
        _read_elements(
            stream,
            ["TransferSyntaxUID", "MediaStorageSOPClassUID"],
            stop_when=lambda tag, *_: tag >> 16 != 2,
        )
    )
    syntax = head.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian).value
    body = stream.read()
    if syntax == DeflatedExplicitVRLittleEndian:
        body = _inflate(body)
    # Some files name one encoding and use another: trust the first element, whose group is below 256.
    implicit, little_endian = not _has_explicit_vr(body), not body.startswith(b"\0")
    dataset = Dataset(
        _read_elements(io.BytesIO(body), (*ELEMENTS, *OVERLAY_ELEMENTS), implicit, little_endian)
    )
    dataset.set_original_encoding(implicit, little_endian)
    dataset.file_meta = head
    return dataset


def _read_elements(
    stream: io.BytesIO,
    keys: Iterable[str | int],
    implicit: bool = False,
    little_endian: bool = True,
    stop_when: Callable[..., bool] | None = None,
) -> "dict[BaseTag, DataElement | RawDataElement]":
    from pydicom.filereader import data_element_generator
    from pydicom.tag import Tag

    tags: list[BaseTag | int] = [Tag(key) for key in keys]
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


def _promote_functional_groups(dataset: "Dataset", index: int) -> None:
    """Move FRAME_MACROS to where single-frame files have them (PS3.3 C.7.6.16).

    The groups of the frame, whose index is from 0, replace those that all frames share.
    """
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (*shared[:1], *per_frame[index : index + 1]):
        for macro in FRAME_MACROS:
            for item in groups.get(macro, [])[:1]:
                dataset.update(item)
