"""Thousands of damaged files: each is read, or rejected with an error message, soon and in little memory.

`python -m pytest tests/io/test_fuzz.py --fuzz 200000 -s` reads more of them and prints its progress. Worker
processes read them, so that a crash or a hang can be traced to its file. A file is a pure function of its
number: `mutant(number)` builds it again.
"""

import io
import multiprocessing
import resource
import struct
import tempfile
import time
import warnings
import zipfile
import zlib
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import FractureError
from fracture_lib.inference.batch import list_inputs, predict_batch
from fracture_lib.io.image import preprocess
from fracture_lib.io.views import INPUT_SIZE, VIEWS
from tests.helpers.dicom_files import (
    DEFLATED,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    dicom,
    encapsulated,
    fragmented,
    lut,
    shipped,
)
from tests.helpers.images import DEFLATE as TIFF_DEFLATE
from tests.helpers.images import LZW, PACKBITS, encode_image, encode_png, encode_tiff, png_chunk

MAX_SECONDS = 2  # of the process's own CPU time, the fastest of three runs
MAX_MEMORY = 1_000_000_000  # bytes, resident
MAX_SILENCE = 300  # seconds without an answer from a worker
BOUNDARY_VALUES = (
    0,
    1,
    127,
    128,
    255,
    256,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)


@cache
def seeds() -> dict[str, bytes]:
    """Name -> a small valid file of each kind."""
    image = synthetic_radiograph("Spiral", width=48, height=64)
    gray = np.asarray(image)
    deep_array = gray.astype(np.uint16) * 257
    deep = Image.fromarray(deep_array)
    color = np.dstack([gray, 255 - gray, gray // 2]).astype(np.uint16) * 250
    transparent = Image.fromarray(np.dstack([gray, gray, gray, 255 - gray]), "RGBA")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    window = {"WindowCenter": "128", "WindowWidth": "200", "RescaleSlope": "2", "RescaleIntercept": "-9"}
    palette = {
        f"{color}PaletteColorLookupTable{part}": value
        for color in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", np.arange(256, dtype="u2").tobytes()))
    }
    shutter = {
        "ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"],
        "ShutterLeftVerticalEdge": 3,
        "ShutterRightVerticalEdge": 40,
        "ShutterUpperHorizontalEdge": 5,
        "ShutterLowerHorizontalEdge": 60,
        "CenterOfCircularShutter": [30, 20],
        "RadiusOfCircularShutter": 25,
        "VerticesOfThePolygonalShutter": [1, 20, 60, 45, 60, 3],
    }
    files = {
        "jpeg": encode_image(image, "JPEG", exif=exif),
        "jpeg progressive": encode_image(image.convert("RGB"), "JPEG", progressive=True),
        "mpo": encode_image(image, "MPO", save_all=True, append_images=[image.resize((24, 32))]),
        "png": encode_image(image),
        "png deep": encode_image(deep),
        "png palette": encode_image(image.convert("P"), transparency=3),
        "png alpha": encode_image(transparent, exif=exif),
        "png animated": encode_image(image, save_all=True, append_images=[image.rotate(90)]),
        "png deep color": encode_png(color),
        "png deep alpha": encode_png(np.dstack([color, color[..., 0]])),
        "png deep gray alpha": encode_png(color[..., :2], interlaced=True),
        "png text": encode_png(gray, png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(99)))),
        "jpeg without end": encode_image(image.convert("RGB"), "JPEG", restart_marker_blocks=4)[:-2],
        "jpeg progressive without end": encode_image(image, "JPEG", progressive=True)[:-2],
        "tiff": encode_image(image, "TIFF"),
        "tiff lzw": encode_image(image.convert("RGB"), "TIFF", compression="tiff_lzw"),
        "tiff deflate": encode_image(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encode_image(image, "TIFF", compression="jpeg"),
        "tiff fax": encode_image(image.convert("1"), "TIFF", compression="group4"),
        "tiff deep": encode_image(deep, "TIFF"),
        "tiff float": encode_image(image.convert("F"), "TIFF", compression="tiff_lzw"),
        "tiff white is zero": encode_tiff(
            {"values": color[..., 0], "photometric": 0, "compression": LZW, "predictor": 2}, byte_order=">"
        ),
        "tiff float tiles": encode_tiff(
            {"values": color.astype("f4"), "compression": TIFF_DEFLATE, "predictor": 3, "tile": (16, 32)}
        ),
        "tiff 12 bits": encode_tiff({"values": color[..., 0] >> 4, "bits": 12, "compression": PACKBITS}),
        "tiff planes": encode_tiff({"values": color, "planar": True, "compression": TIFF_DEFLATE}, big=True),
        "tiff alpha": encode_tiff({"values": np.dstack([color, color[..., 0]]), "tags": {338: [2]}}),
        "tiff pages": encode_tiff(
            {"values": gray[:20, :20], "tags": {254: [1]}}, {"values": gray.astype("f8")}, {"values": gray}
        ),
        "gif": encode_image(image, "GIF"),
        "gif animated": encode_image(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "webp": encode_image(image, "WEBP"),
        "webp lossless": encode_image(transparent, "WEBP", lossless=True, exif=exif),
        "bmp": encode_image(image, "BMP"),
        "bmp color": encode_image(image.convert("RGB"), "BMP"),
        "dicom": dicom(gray),
        "dicom window": dicom(gray.astype("u2") * 16, **window),
        "dicom implicit": dicom(gray, IMPLICIT, NumberOfFrames=1),
        "dicom without preamble": dicom(gray)[132:],
        "dicom lut": dicom(gray, VOILUTSequence=lut(np.arange(256))),
        "dicom palette": dicom(gray, PhotometricInterpretation="PALETTE COLOR", **palette),
        "dicom color": dicom(np.dstack([gray] * 3), PhotometricInterpretation="YBR_FULL"),
        "dicom deflated": dicom(gray, DEFLATED),
        "dicom rle": shipped("MR_small_RLE.dcm"),
        "dicom jpeg": encapsulated(encode_image(image, "JPEG"), gray, JPEG),
        "dicom jpeg 2000": encapsulated(encode_image(image, "JPEG2000"), gray, JPEG_2000),
        "dicom high bit": dicom(gray.astype("u2") << 6, BitsStored=10, HighBit=13),
        "dicom low bits stored": dicom(gray.astype("u2") * 16, BitsStored=10, HighBit=9),
        "dicom signed": dicom(gray.astype("i2") * 16 - 2048, BitsStored=12, HighBit=11),
        "dicom few elements": dicom(gray, PhotometricInterpretation="Monochrome", BitsAllocated=None),
        "dicom float": dicom(gray, PixelData=None, FloatPixelData=gray.astype("f4").tobytes()),
        "dicom double": dicom(gray, PixelData=None, DoubleFloatPixelData=gray.astype("f8").tobytes()),
        "dicom 1 bit": dicom(gray, BitsAllocated=1, BitsStored=1, HighBit=0),
        "dicom frames": dicom(gray, NumberOfFrames=4, PixelData=bytes(2 * gray.size) + 2 * gray.tobytes()),
        "dicom fragments": dicom(
            gray, JPEG_2000, NumberOfFrames=2, PixelData=fragmented([encode_image(image, "JPEG2000")] * 2, 3)
        ),
        "dicom overlay": encapsulated(encode_image(deep, "JPEG2000"), deep_array, JPEG_2000, BitsStored=12),
        "dicom color subsampled": dicom(
            np.dstack([gray] * 3), PhotometricInterpretation="YBR_FULL_422", PixelData=2 * gray.tobytes()
        ),
        "dicom jpeg-ls": shipped("MR_small_jpeg_ls_lossless.dcm"),
        "dicom jpeg lossless": shipped("SC_rgb_gdcm_KY.dcm"),
        "dicom padding": dicom(gray.astype("u2"), PixelPaddingValue=65535, PixelPaddingRangeLimit=200),
        "dicom shutter": dicom(gray, **shutter),
        "dicom aspect": dicom(gray, PixelAspectRatio=[2, 1], PixelSpacing=["0.2", "0.1"]),
        "dicom raw": dicom(
            gray,
            PresentationIntentType="FOR PROCESSING",
            PixelIntensityRelationshipSign=1,
            PresentationLUTShape="INVERSE",
        ),
        "dicom modality lut": dicom(gray.view("i1"), ModalityLUTSequence=lut(np.arange(256), 65408)),
    }
    for name, compression in (("zip", zipfile.ZIP_DEFLATED), ("zip stored", zipfile.ZIP_STORED)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            archive.writestr("one.png", files["png"])
            archive.writestr("folder/two.jpg", files["jpeg"])
        files[name] = buffer.getvalue()
    return files


# Rare, as each one starts a process of its own to decode it.
WEIGHTS = {"dicom jpeg-ls": 0.05, "dicom jpeg lossless": 0.05}


def mutant(number: int) -> tuple[str, bytes]:
    """Return the name of the seed that file `number` is made from, and its bytes."""
    rng = np.random.default_rng(number)
    names = list(seeds())
    weights = np.array([WEIGHTS.get(name, 1) for name in names])
    name, other = rng.choice(names, 2, p=weights / weights.sum())
    data = bytearray(seeds()[name])
    if rng.random() < 0.03:  # splice two files
        data[rng.integers(len(data)) :] = seeds()[other][rng.integers(len(seeds()[other])) :]
    for _ in range(rng.choice([1, 2, 4, 16])):
        mutate = MUTATIONS[rng.integers(len(MUTATIONS))]
        # Half of the mutations fall on the first bytes, where headers are.
        end = len(data) if rng.random() < 0.5 else min(len(data), int(rng.choice([32, 200, 800])))
        mutate(data, int(rng.integers(end)) if end else 0, rng)
    mutated = bytes(data)
    return str(name), _with_valid_checksums(mutated) if rng.random() < 0.8 else mutated


def _flip_bit(data: bytearray, offset: int, rng: np.random.Generator) -> None:
    data[offset : offset + 1] = bytes(byte ^ 1 << rng.integers(8) for byte in data[offset : offset + 1])


def _overwrite(data: bytearray, offset: int, rng: np.random.Generator) -> None:
    length = len(data[offset : offset + rng.integers(1, 40)])
    replacement = rng.bytes(length) if rng.random() < 0.5 else bytes([rng.integers(256)]) * length
    data[offset : offset + length] = replacement


def _write_boundary_value(data: bytearray, offset: int, rng: np.random.Generator) -> None:
    size, byte_order = rng.choice([1, 2, 4]), "<>"[rng.integers(2)]
    value = BOUNDARY_VALUES[rng.integers(len(BOUNDARY_VALUES))] & (1 << 8 * int(size)) - 1
    data[offset : offset + size] = struct.pack(byte_order + {1: "B", 2: "H", 4: "I"}[size], value)


def _truncate(data: bytearray, offset: int, rng: np.random.Generator) -> None:
    del data[offset if rng.random() < 0.3 else len(data) - min(len(data), int(rng.integers(1, 300))) :]


def _delete(data: bytearray, offset: int, rng: np.random.Generator) -> None:
    del data[offset : offset + rng.integers(1, 60)]


def _repeat(data: bytearray, offset: int, rng: np.random.Generator) -> None:
    data[offset:offset] = data[offset : offset + rng.integers(1, 200)] * rng.integers(1, 4)


def _swap(data: bytearray, offset: int, rng: np.random.Generator) -> None:
    middle = offset + int(rng.integers(1, 60))
    end = middle + int(rng.integers(1, 60))
    data[offset:end] = data[middle:end] + data[offset:middle]


MUTATIONS = (
    *(_flip_bit, _flip_bit, _overwrite),
    *(_write_boundary_value, _write_boundary_value, _write_boundary_value),
    *(_truncate, _delete, _repeat, _swap),
)


def _with_valid_checksums(data: bytes) -> bytes:
    """Correct the checksum of each chunk of a PNG, so that readers get past it; return others as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    png, offset = bytearray(data), 8
    while offset + 12 <= len(png):
        end = offset + 8 + int.from_bytes(png[offset : offset + 4])
        if end + 4 <= len(png):
            png[end : end + 4] = struct.pack(">I", zlib.crc32(png[offset + 4 : end]))
        offset = end + 4
    return bytes(png)


def check_outcome(name: str, data: bytes, folder: Path) -> str:
    """Read a file and return what is wrong with the pixels or the error message, or ""."""
    results: list[tuple[Any, str]]  # pixels or None, error message
    try:
        if name.startswith("zip"):
            path = folder / "images.zip"
            path.write_bytes(data)
            pipeline: Any = SimpleNamespace(predict=lambda source, *_: preprocess(source))
            results = [(row.result, row.error) for row in predict_batch(pipeline, list_inputs([path]))]
        else:
            results = [(preprocess(data), "")]
    except FractureError as error:
        results = [(None, str(error))]
    except BaseException as error:
        return f"raised {error!r}"
    for pixels, message in results:
        if pixels is None:
            if not message.endswith(".") or "\n" in message:
                return f"gave the message {message!r}"
        elif (pixels.shape, pixels.dtype) != ((len(VIEWS), INPUT_SIZE, INPUT_SIZE), np.float32) or not (
            pixels.min() >= 0 and pixels.max() <= 1  # false for NaN
        ):
            return f"returned {pixels!r}"
    return ""


def find_fault(number: int, folder: Path) -> str:
    """Return what is wrong with the outcome, the time or the memory of reading file `number`, or ""."""
    name, data = mutant(number)
    for _ in range(3):
        started = time.process_time()
        fault = check_outcome(name, data, folder)
        seconds = time.process_time() - started
        if seconds <= MAX_SECONDS:
            break
    else:
        fault = fault or f"took {seconds:.1f} s"
    # Not RUSAGE_SELF: its maximum is at least what the parent process used.
    own_peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    peak = max(own_peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    if 1024 * peak > MAX_MEMORY:
        fault = fault or f"took {peak} kB"
    return fault and f"{name}: {fault}"


def work(connection: Connection, numbers: range) -> None:
    """Send each number before its file is read, and again with the fault found, or ""."""
    warnings.simplefilter("ignore")
    for name in ("png", "dicom"):  # so that importing the decoders does not count for the first file
        preprocess(seeds()[name])
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            connection.send((number, ""))
            connection.send((number, find_fault(number, Path(folder))))


def find_faults(count: int, n_workers: int) -> dict[int, str]:
    """Read all files below `count` and return number -> fault."""
    context = multiprocessing.get_context("spawn")
    faults: dict[int, str] = {}
    running: dict[Connection, tuple[BaseProcess, int, float]] = {}  # process, number, last heard of

    def start(numbers: range) -> None:
        if numbers:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(sender, numbers), daemon=True)
            process.start()
            sender.close()
            running[receiver] = process, numbers[0], time.monotonic()

    for first in range(n_workers):
        start(range(first, count, n_workers))
    while running:
        wait(list(running), MAX_SILENCE)
        for receiver, (process, number, last_heard) in list(running.items()):
            if not receiver.poll():
                if time.monotonic() - last_heard > MAX_SILENCE:
                    process.kill()
                continue
            try:
                number, fault = receiver.recv()
                running[receiver] = process, number, time.monotonic()
            except EOFError:
                del running[receiver]
                process.join()
                if process.exitcode == 0:
                    continue
                fault = f"{mutant(number)[0]}: ended its process ({process.exitcode}; -9 if it hung)"
                start(range(number + n_workers, count, n_workers))
            if fault:
                faults[number] = fault
                print(f"{number}: {fault}", flush=True)
            elif number % 10_000 == 0:
                print(f"{number} of {count}", flush=True)
    return faults


@pytest.mark.fuzz
def test_preprocess_with_damaged_files_returns_pixels_or_raises_a_message(request):
    count = request.config.getoption("--fuzz")
    assert find_faults(count, n_workers=2) == {}
