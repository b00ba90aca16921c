"""Build DICOM files in memory, with pydicom and GDCM, and read those that pydicom ships."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

# Transfer syntaxes
EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG, JPEG_12_BIT = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
HTJ2K, MPEG2 = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.100"


def dicom(pixels: NDArray[Any], syntax: str = EXPLICIT, **elements: Any) -> bytes:
    """Return the bytes of a DICOM file with integers [H, W] or [H, W, 3]; `elements` are by keyword.

    An element that is None is left out.
    """
    return encode_dicom(build_dataset(pixels, **elements), syntax)


def build_dataset(pixels: NDArray[Any], **elements: Any) -> Dataset:
    """Return a minimal Dataset, without `file_meta`, of integers [H, W] or [H, W, 3]."""
    bits = 8 * pixels.itemsize
    is_rgb = pixels.ndim == 3
    defaults = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if is_rgb else 1,
        "PlanarConfiguration": 0 if is_rgb else None,
        "PhotometricInterpretation": "RGB" if is_rgb else "MONOCHROME2",
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


def encode_dicom(dataset: Dataset, syntax: str = EXPLICIT) -> bytes:
    """Return the bytes of a DICOM file with the Dataset, which gets a `file_meta`."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    if dataset.file_meta.TransferSyntaxUID.is_compressed and syntax != DEFLATED and "PixelData" in dataset:
        dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def encapsulated(codestream: bytes, pixels: NDArray[Any], syntax: str, **elements: Any) -> bytes:
    """Return a DICOM file with one codestream, whose other elements describe `pixels`."""
    return dicom(pixels, syntax, **elements, PixelData=encapsulate([codestream]))


def fragmented(codestreams: Sequence[bytes], n_fragments: int, table: str = "empty") -> bytes:
    """Return pixel data with each codestream in `n_fragments`; the offset table is empty, right or wrong."""
    pixel_data = encapsulate(list(codestreams), fragments_per_frame=n_fragments, has_bot=table == "right")
    if table != "wrong":
        return pixel_data
    offsets = struct.pack("<3I", 0, 8, 99_999)
    return pixel_data[:4] + struct.pack("<I", len(offsets)) + offsets + pixel_data[8:]


def with_elements(data: bytes, **elements: Any) -> bytes:
    """Return a DICOM file with other elements, by keyword; those that are None are left out."""
    dataset = dcmread(io.BytesIO(data))
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return encode_dicom(dataset, dataset.file_meta.TransferSyntaxUID)


def compressed_by_gdcm(pixels: NDArray[Any], syntax: str, folder: Path) -> bytes:
    """Return a DICOM file compressed by GDCM, which works in `folder`."""
    import gdcm

    source, target = folder / "source.dcm", folder / "target.dcm"
    source.write_bytes(dicom(pixels))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target.read_bytes()


def shipped(name: str) -> bytes:
    """Return one of the test files that are installed with pydicom."""
    return shipped_path(name).read_bytes()


def shipped_path(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def lut(table: ArrayLike, first: int = 0, bits: int = 16, dtype: str = "<u2") -> Sequence[Dataset]:
    """Return a sequence with one lookup table, whose first entry is for the value `first`."""
    entries = np.asarray(table, dtype)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", entries.tobytes())
    return [item]
