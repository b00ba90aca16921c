"""Decode the pixels of a DICOM data set: its stored values, before any transformation.

    pixel data -> frames -> pixel cells -> stored values -> RGB if they are YBR

Section numbers refer to the DICOM standard, PS3.
"""

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.errors import InvalidImage
from fracture_lib.io.dicom.bits import extend_sign, extract_stored_bits, is_smoother
from fracture_lib.io.dicom.elements import (
    announced_frames,
    check_size,
    complete_bits,
    complete_colors,
    embedded_overlay_bits,
    report_defaults,
)
from fracture_lib.io.dicom.frames import (
    DAMAGED,
    Codestream,
    is_encapsulated,
    parse_codestream,
    parse_rle,
    split_frames,
)
from fracture_lib.io.dicom.mask import replace_large_padding
from fracture_lib.io.limits import MAX_PIXELS
from fracture_lib.io.raster.jpeg import decode_without_end

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

__all__ = ["DecodedFrame", "decode"]

DECODER_TIMEOUT = 60  # seconds
MAX_FRAMES_SEARCHED = 16  # for one that is not blank
# Keyword of the pixel data -> bits of each value; 0 where BitsAllocated says so
PIXELS = {"PixelData": 0, "FloatPixelData": 32, "DoubleFloatPixelData": 64}
SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")

_NO_PIXELS = "The DICOM file has no image (it may be a report) or is incomplete. Choose another one."
_NO_SYNTAX = (
    "The DICOM file has compressed pixels but no valid TransferSyntaxUID. Export it again, uncompressed."
)
_NOT_NUMBERS = "Pixels that are not numbers were left out."
_UNSIGNED = "The file's PixelRepresentation does not fit its pixels; they were read as unsigned."
_UNSUPPORTED = (
    "The DICOM file is a video or compressed in an unsupported way. Export it as an uncompressed still image."
)


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One frame of a file."""

    values: NDArray[Any]  # stored values [H, W] or RGB [H, W, 3], integers; or float32 [H, W]
    messages: list[str]  # about what was corrected, ignored or guessed
    invalid: NDArray[np.bool_] | None = None  # [H, W]: not numbers, or padding; these got another value


DecodeFrame: TypeAlias = Callable[[int], DecodedFrame]  # by its index


def decode(dataset: "Dataset", messages: list[str]) -> tuple[DecodedFrame, int]:
    """Return the first frame that is not blank, or the first of all, with its index; drop the pixel data.

    Fills in what the Image Pixel Module lacks (PS3.3 C.7.6.3) in `dataset`. For a compressed frame, the
    header of its codestream counts. Adds a message for everything that is corrected, ignored or guessed.

    Raises InvalidImage if there is no image, and before decoding more than MAX_PIXELS.
    """
    keyword = next((keyword for keyword in PIXELS if dataset.get(keyword)), None)
    if keyword is None:
        raise InvalidImage(_NO_PIXELS)
    check_size(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    _check_supported(syntax)
    if keyword != "PixelData":
        prepare = _prepare_floats
    elif syntax.is_encapsulated and is_encapsulated(dataset.PixelData):
        prepare = _prepare_codestreams
    else:
        prepare = _prepare_native
    n_frames, decode_frame = prepare(dataset, messages)
    frame, index = _first_not_blank(decode_frame, n_frames, dataset.Rows * dataset.Columns)
    if n_frames > 1:
        messages.append(_which_frame(n_frames, index))
    messages += frame.messages
    if frame.values.dtype.kind in "iu":
        dataset.PixelRepresentation = int(frame.values.dtype.kind == "i")
    del dataset[keyword]  # the values are a copy, and as large
    return frame, index


def _check_supported(syntax: "UID") -> None:
    from pydicom.pixels import get_decoder

    try:
        is_available = get_decoder(syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        raise InvalidImage(_UNSUPPORTED)


def _first_not_blank(decode_frame: DecodeFrame, n_frames: int, n_pixels: int) -> tuple[DecodedFrame, int]:
    first = frame = decode_frame(0)
    n_searched = min(n_frames, MAX_FRAMES_SEARCHED, max(2, MAX_PIXELS // n_pixels))
    for index in range(n_searched):
        if index > 0:
            frame = decode_frame(index)
        if any((row != frame.values[0, 0]).any() for row in frame.values):
            return frame, index
    return first, 0


def _which_frame(n_frames: int, index: int) -> str:
    if index == 0:
        return f"The file has {n_frames} frames; only the first is used."
    blank = "frame 1 is blank" if index == 1 else f"frames 1 to {index} are blank"
    return f"The file has {n_frames} frames; only frame {index + 1} is used, as {blank}."


def _report_frame_count(announced: int | None, found: int, messages: list[str]) -> None:
    if announced not in (None, found):
        frames = "1 frame" if announced == 1 else f"{announced} frames"
        messages.append(f"The file announces {frames} but holds {found}.")


# Uncompressed


def _prepare_native(dataset: "Dataset", messages: list[str]) -> tuple[int, DecodeFrame]:
    """Return the number of frames and the function that decodes one, uncompressed (PS3.5 8.1)."""
    data = dataset.PixelData
    lacking: list[str] = []
    announced = announced_frames(dataset, lacking)
    frame_size = len(data) // (announced or 1)
    if is_encapsulated(data) and len(data) < dataset.Rows * dataset.Columns:
        raise InvalidImage(_NO_SYNTAX)
    complete_colors(dataset, None, frame_size, lacking)
    complete_bits(dataset, None, frame_size, lacking)
    report_defaults(lacking, messages)
    n_frames = _count_frames(dataset, dataset.BitsAllocated, len(data))
    _report_frame_count(announced, n_frames, messages)
    decoder = _native_decoder(dataset)
    options = _decoder_options(dataset) | {
        "bits_allocated": dataset.BitsAllocated,
        "bits_stored": dataset.BitsStored,
        "pixel_representation": dataset.PixelRepresentation,
        "number_of_frames": n_frames,
        "pixel_vr": dataset["PixelData"].VR,
        "correct_unused_bits": False,
    }
    overlay_bits = embedded_overlay_bits(dataset)

    def decode_frame(index: int) -> DecodedFrame:
        frame_messages: list[str] = []
        values = decoder.as_array(data, index=index, raw=True, **options)[0]
        padding = replace_large_padding(values, dataset, frame_messages)
        if dataset.BitsAllocated > 1:
            values = extract_stored_bits(
                values, dataset.BitsStored, dataset.HighBit, overlay_bits, frame_messages
            )
        values = _to_rgb(values, dataset.PhotometricInterpretation, dataset)
        return DecodedFrame(values, frame_messages, padding)

    return n_frames, decode_frame


def _prepare_floats(dataset: "Dataset", messages: list[str]) -> tuple[int, DecodeFrame]:
    """As `_prepare_native`, for Float or Double Float Pixel Data (PS3.3 C.7.6.24 and C.7.6.25)."""
    keyword = "FloatPixelData" if dataset.get("FloatPixelData") else "DoubleFloatPixelData"
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:  # these are never compressed
        raise InvalidImage(_UNSUPPORTED)
    data = dataset[keyword].value
    lacking: list[str] = []
    announced = announced_frames(dataset, lacking)
    dataset.SamplesPerPixel = 1  # the only value allowed
    complete_colors(dataset, 1, len(data), lacking)
    report_defaults(lacking, messages)
    bits_allocated = PIXELS[keyword]
    n_frames = _count_frames(dataset, bits_allocated, len(data))
    _report_frame_count(announced, n_frames, messages)
    decoder = _native_decoder(dataset)
    options = _decoder_options(dataset) | {
        "pixel_keyword": keyword,
        "bits_allocated": bits_allocated,
        "number_of_frames": n_frames,
    }

    def decode_frame(index: int) -> DecodedFrame:
        with np.errstate(over="ignore"):  # to infinity
            values = decoder.as_array(data, index=index, raw=True, **options)[0].astype(np.float32)
        invalid = ~np.isfinite(values)
        if not invalid.any():
            return DecodedFrame(values, [])
        values[invalid] = 0 if invalid.all() else values[~invalid].min()
        return DecodedFrame(values, [_NOT_NUMBERS], invalid)

    return n_frames, decode_frame


def _count_frames(dataset: "Dataset", bits_allocated: int, n_bytes: int) -> int:
    """Return how many whole frames there are. Raises InvalidImage if there are none."""
    n_bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * bits_allocated
    if dataset.PhotometricInterpretation in SUBSAMPLED:
        n_bits = n_bits // 3 * 2
    n_frames = 8 * n_bytes // n_bits
    if n_frames == 0:
        raise InvalidImage(
            f"The DICOM file is incomplete: it has {n_bytes} bytes of pixels instead of {-(-n_bits // 8)}. "
            "Copy or export it again."
        )
    return n_frames


def _native_decoder(dataset: "Dataset") -> "Decoder":
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    is_little_endian = dataset.original_encoding[1] is not False
    return get_decoder(ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian)


def _decoder_options(dataset: "Dataset") -> dict[str, Any]:
    """Return the options of pydicom's decoders that are the same for all pixel data and frames."""
    term = dataset.PhotometricInterpretation
    return {
        "pixel_keyword": "PixelData",
        "rows": dataset.Rows,
        "columns": dataset.Columns,
        "samples_per_pixel": dataset.SamplesPerPixel,
        # pydicom knows one subsampled layout
        "photometric_interpretation": "YBR_FULL_422" if term in SUBSAMPLED else term,
        "planar_configuration": dataset.get("PlanarConfiguration", 0),
    }


def _to_rgb(values: NDArray[Any], term: str, dataset: "Dataset") -> NDArray[Any]:
    """Convert YBR colors [H, W, 3] to RGB (PS3.3 C.7.6.3.1.2); return others as they are."""
    from pydicom.pixels import convert_color_space

    if values.ndim == 2 or term not in ("YBR_FULL", *SUBSAMPLED):
        return values
    if values.dtype != np.uint8:  # the only type that is converted
        values = (values >> max(0, dataset.BitsStored - 8)).clip(0, 255).astype(np.uint8)
    if dataset.PhotometricInterpretation == "YBR_PARTIAL_422":  # luminance 16 to 235, color 16 to 240
        table = np.arange(256)[:, np.newaxis] - [16, 128, 128]
        table = (table * [255 / 219, 255 / 224, 255 / 224] + [0, 128, 128]).round().clip(0, 255)
        values = np.take_along_axis(table.astype(np.uint8), values.reshape(-1, 3), axis=0).reshape(
            values.shape
        )
    return convert_color_space(values, "YBR_FULL", "RGB")


# Compressed


def _prepare_codestreams(dataset: "Dataset", messages: list[str]) -> tuple[int, DecodeFrame]:
    """Return the number of frames and the function that decodes one, compressed (PS3.5 8.2, A.4)."""
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    lacking: list[str] = []
    announced = announced_frames(dataset, lacking)
    frames, n_frames = split_frames(dataset.PixelData, syntax, MAX_FRAMES_SEARCHED)
    if not frames:
        raise InvalidImage(DAMAGED)

    def parse(index: int) -> Codestream:
        data = b"".join(frames[index])
        if syntax == RLELossless:
            return parse_rle(data, dataset.SamplesPerPixel, syntax)
        return parse_codestream(data, syntax)

    if syntax == RLELossless:
        complete_colors(dataset, None, None, lacking)
    else:
        default_term = "YBR_FULL_422" if parse(0).syntax == JPEGBaseline8Bit else "RGB"
        complete_colors(dataset, parse(0).samples, None, lacking, default_term)
    complete_bits(dataset, parse(0).precision, None, lacking)
    report_defaults(lacking, messages)
    _report_frame_count(announced, n_frames, messages)

    def decode_frame(index: int) -> DecodedFrame:
        codestream = parse(index)
        frame_messages: list[str] = []
        _check_announced(codestream, dataset)
        cells, term = _decode_codestream(codestream, dataset, frame_messages)
        bits_stored, high_bit = _bits_of_codestream(codestream, dataset, frame_messages)
        overlay_bits = embedded_overlay_bits(dataset)
        padding = replace_large_padding(cells, dataset, frame_messages)
        values = extract_stored_bits(cells, bits_stored, high_bit, overlay_bits, frame_messages)
        return DecodedFrame(_to_rgb(values, term, dataset), frame_messages, padding)

    return n_frames, decode_frame


def _check_announced(codestream: Codestream, dataset: "Dataset") -> None:
    """Check that a codestream has the size and samples that the elements announce.

    Decoders trust its header, and one of 7 kB took them 65 s and 2 GB.
    """
    if codestream.samples not in (None, dataset.SamplesPerPixel):
        raise InvalidImage(DAMAGED)
    size = codestream.columns, codestream.rows
    if size not in ((None, None), (dataset.Columns, dataset.Rows)):
        raise InvalidImage(
            f"The DICOM file announces {dataset.Columns}x{dataset.Rows} pixels "
            f"but holds {size[0]}x{size[1]}. Export it again."
        )


def _bits_of_codestream(codestream: Codestream, dataset: "Dataset", messages: list[str]) -> tuple[int, int]:
    """Return the bits stored and the high bit of a decoded codestream, which its precision limits."""
    precision, bits_stored = codestream.precision, int(dataset.BitsStored)
    if precision < bits_stored or precision > dataset.BitsAllocated:
        messages.append(f"The compressed pixels have {precision} bits, not the {bits_stored} of BitsStored.")
        return precision, precision - 1
    return bits_stored, max(bits_stored - 1, min(dataset.HighBit, precision - 1))


def _decode_codestream(
    codestream: Codestream, dataset: "Dataset", messages: list[str]
) -> tuple[NDArray[Any], str]:
    """Return the samples of a codestream, and the photometric interpretation after decoding."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGBaseline8Bit, RLELossless

    syntax, precision = codestream.syntax, codestream.precision
    is_signed = dataset.PixelRepresentation == 1
    is_jpeg_2000 = syntax in JPEG2000TransferSyntaxes
    term = str(dataset.PhotometricInterpretation)
    if syntax == RLELossless:
        cells = _decode_rle(codestream, dataset)
    elif syntax == JPEGBaseline8Bit and dataset.SamplesPerPixel == 1 and _lacks_end(codestream.data):
        cells = _decode_jpeg_without_end(codestream.data)
    elif syntax == JPEGBaseline8Bit or (is_jpeg_2000 and (dataset.SamplesPerPixel == 1 or precision <= 8)):
        options = _decoder_options(dataset) | {
            "bits_allocated": 8 if precision <= 8 else 16,
            "bits_stored": precision,
            # Of these, JPEG 2000 alone can be signed, and says so.
            "pixel_representation": int(is_signed and is_jpeg_2000),
            "number_of_frames": 1,
            "correct_unused_bits": False,
        }
        cells, properties = get_decoder(syntax).as_array(
            encapsulate([codestream.data]), index=0, raw=True, decoding_plugin="pillow", **options
        )
        term = str(properties["photometric_interpretation"])
    else:
        cells = _decode_in_subprocess(codestream, dataset)
    if is_signed and cells.dtype.kind == "u":
        cells = _to_signed(cells, codestream, dataset, messages)
    return cells, term


def _lacks_end(data: bytes) -> bool:
    """Return whether a JPEG codestream lacks its end marker; a fragment can end with a byte of padding."""
    return not data.removesuffix(b"\0").endswith(b"\xff\xd9")


def _decode_jpeg_without_end(data: bytes) -> NDArray[Any]:
    """Return the samples of a JPEG codestream that has all of them. Raises InvalidImage."""

    def decode(complete: bytes) -> Image.Image:
        with Image.open(io.BytesIO(complete), formats=["JPEG"]) as image:
            return image.convert("L")

    image = decode_without_end(data.removesuffix(b"\0"), decode)
    if image is None:
        raise InvalidImage(DAMAGED)
    return np.array(image)


def _to_signed(
    cells: NDArray[Any], codestream: Codestream, dataset: "Dataset", messages: list[str]
) -> NDArray[Any]:
    """Return the unsigned samples of JPEG or JPEG-LS as signed, two's complement (PS3.5 8.2.1, 8.2.3).

    If these do not have the announced bits, or are of lossy JPEG, which is never signed (table 8.2.1-1), they
    can be unsigned, too: the pixels decide.
    """
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

    signed = extend_sign(cells, codestream.precision)
    is_doubtful = (
        codestream.syntax in (JPEGBaseline8Bit, JPEGExtended12Bit)
        or codestream.precision < dataset.BitsStored
    )
    if is_doubtful and is_smoother(cells, signed):
        messages.append(_UNSIGNED)
        return cells
    return signed


def _decode_rle(codestream: Codestream, dataset: "Dataset") -> NDArray[Any]:
    """Return the cells of an RLE frame: a segment for each byte of each sample, the highest first (PS3.5 G).

    A segment is a row of PackBits, which Pillow decodes no further than the pixels need.
    """
    rows, columns, samples = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    n_bytes = codestream.precision // 8
    offsets = struct.unpack_from(f"<{samples * n_bytes}I", codestream.data, 4)
    planes = np.empty((samples, rows, columns, n_bytes), np.uint8)
    for i, (start, end) in enumerate(zip(offsets, (*offsets[1:], None), strict=True)):
        sample, byte = divmod(i, n_bytes)
        segment = Image.frombytes("L", (rows * columns, 1), codestream.data[start:end], "packbits", "L")
        planes[sample, :, :, n_bytes - 1 - byte] = np.asarray(segment).reshape(rows, columns)
    cells = planes.view(f"<u{n_bytes}")[..., 0]
    return cells[0] if samples == 1 else np.ascontiguousarray(np.moveaxis(cells, 0, -1))


def _decode_in_subprocess(codestream: Codestream, dataset: "Dataset") -> NDArray[Any]:
    """Return the samples of a codestream, decoded by GDCM in a process of its own.

    On damaged JPEG-LS and lossless JPEG, GDCM 3.2.6 writes to the terminal and kills its process.
    """
    shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    bits_allocated = 8 if codestream.precision <= 8 else 16
    arguments = (codestream.syntax, *shape, bits_allocated, codestream.precision)
    samples = subprocess.run(
        [sys.executable, "-c", _GDCM_SCRIPT, *map(str, arguments)],
        input=codestream.data,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=DECODER_TIMEOUT,
    ).stdout
    cells = np.frombuffer(bytearray(samples), f"<u{bits_allocated // 8}")
    return cells.reshape(shape[:2] if shape[2] == 1 else shape)


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
