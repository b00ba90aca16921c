"""Decode the pixels of a DICOM data set: its stored values, before any transformation.

Section numbers are of the DICOM standard, PS3.
"""

import re
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fracture_lib.errors import InvalidImage
from fracture_lib.io.limits import MAX_PIXELS, too_large

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder

__all__ = ["DAMAGED", "decode", "number_of_frames"]

DECODER_TIMEOUT = 60  # seconds
DAMAGED = "The DICOM file is damaged, incomplete or compressed in a rare way. Export it again, uncompressed."

_JPEG_2000 = b"\xff\x4f\xff\x51"  # how a JPEG 2000 codestream begins
_NO_PIXELS = "The DICOM file has no image (it may be a report) or is incomplete. Choose another one."
_UNSUPPORTED = (
    "The DICOM file is a video or compressed in an unsupported way. Export it as an uncompressed still image."
)


def number_of_frames(dataset: "Dataset") -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def decode(dataset: "Dataset") -> NDArray[Any]:
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

    stream = get_frame(dataset.PixelData, 0, number_of_frames=number_of_frames(dataset))
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
            raise InvalidImage(DAMAGED)
    announced = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    if (rows, columns, samples) != announced or samples not in (1, 3):
        raise InvalidImage(DAMAGED)
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
