"""Damaged files by the thousand: each is read as a film or refused with a sentence, soon, in little memory.

`python -m pytest tests/test_fuzz.py --fuzz 200000 -s` tries as many and says how far it is. Workers of their
own read them, so that a crash or a hang names its file. A file is a pure function of its number:
`mutant(number)` makes it again.
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
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from bad_images import saved
from PIL import Image
from test_dicom import DEFLATED, IMPLICIT, JPEG, JPEG_2000, dicom, lut, packed, shipped

from fracture_lib import FractureError, preprocess
from fracture_lib.batch import ask_each, collect
from fracture_lib.drawing import draw_film

SECONDS = 2  # of this process's own computing, the fastest of three times; waiting does not count
BYTES = 1_000_000_000  # resident
HANGS = 300  # seconds without an answer
INTERESTING = (0, 1, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@cache
def seeds():
    """Name -> bytes of one small whole file of each kind."""
    film = draw_film("Spiral", width=48, height=64)
    grey = np.asarray(film)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    clear = Image.fromarray(np.dstack([grey, grey, grey, 255 - grey]), "RGBA")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    windowed = {"WindowCenter": "128", "WindowWidth": "200", "RescaleSlope": "2", "RescaleIntercept": "-9"}
    entries = {
        f"{c}PaletteColorLookupTable{part}": value
        for c in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", np.arange(256, dtype="u2").tobytes()))
    }
    rle = shipped("MR_small_RLE.dcm")
    found = {
        "jpeg": saved(film, "JPEG", exif=exif),
        "jpeg progressive": saved(film.convert("RGB"), "JPEG", progressive=True),
        "mpo": saved(film, "MPO", save_all=True, append_images=[film.resize((24, 32))]),
        "png": saved(film),
        "png deep": saved(deep),
        "png palette": saved(film.convert("P"), transparency=3),
        "png alpha": saved(clear, exif=exif),
        "png animated": saved(film, save_all=True, append_images=[film.rotate(90)]),
        "tiff": saved(film, "TIFF"),
        "tiff lzw": saved(film.convert("RGB"), "TIFF", compression="tiff_lzw"),
        "tiff deflate": saved(film, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": saved(film, "TIFF", compression="jpeg"),
        "tiff fax": saved(film.convert("1"), "TIFF", compression="group4"),
        "tiff deep": saved(deep, "TIFF"),
        "tiff float": saved(film.convert("F"), "TIFF", compression="tiff_lzw"),
        "gif": saved(film, "GIF"),
        "gif animated": saved(film, "GIF", save_all=True, append_images=[film.rotate(90)]),
        "webp": saved(film, "WEBP"),
        "webp lossless": saved(clear, "WEBP", lossless=True, exif=exif),
        "bmp": saved(film, "BMP"),
        "bmp colour": saved(film.convert("RGB"), "BMP"),
        "dicom": dicom(grey),
        "dicom windowed": dicom(grey.astype("u2") * 16, **windowed),
        "dicom implicit": dicom(grey, IMPLICIT, NumberOfFrames=1),
        "dicom bare": dicom(grey)[132:],
        "dicom table": dicom(grey, VOILUTSequence=lut(np.arange(256))),
        "dicom palette": dicom(grey, PhotometricInterpretation="PALETTE COLOR", **entries),
        "dicom colour": dicom(np.dstack([grey] * 3), PhotometricInterpretation="YBR_FULL"),
        "dicom deflated": dicom(grey, DEFLATED),
        "dicom rle": rle,
        "dicom jpeg": packed(saved(film, "JPEG"), grey, JPEG),
        "dicom jpeg 2000": packed(saved(film, "JPEG2000"), grey, JPEG_2000),
        "dicom jpeg-ls": shipped("MR_small_jpeg_ls_lossless.dcm"),
        "dicom jpeg lossless": shipped("SC_rgb_gdcm_KY.dcm"),
    }
    for name, method in (("zip", zipfile.ZIP_DEFLATED), ("zip stored", zipfile.ZIP_STORED)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("one.png", found["png"])
            archive.writestr("folder/two.jpg", found["jpeg"])
        found[name] = buffer.getvalue()
    return found


# What another process decodes costs its start; a few of those will do.
RARE = {"dicom jpeg-ls": 0.05, "dicom jpeg lossless": 0.05}


def mutant(number):
    """The file of that number: the name of the seed that it came from, and its bytes."""
    rng = np.random.default_rng(number)
    names = list(seeds())
    shares = np.array([RARE.get(name, 1) for name in names])
    name, other = rng.choice(names, 2, p=shares / shares.sum())
    data = bytearray(seeds()[name])
    if rng.random() < 0.03:  # splice two files
        data[rng.integers(len(data)) :] = seeds()[other][rng.integers(len(seeds()[other])) :]
    for _ in range(rng.choice([1, 2, 4, 16])):
        change = CHANGES[rng.integers(len(CHANGES))]
        # Half of the changes fall on the first bytes, where headers are.
        reach = len(data) if rng.random() < 0.5 else min(len(data), int(rng.choice([32, 200, 800])))
        change(data, int(rng.integers(reach)) if reach else 0, rng)
    data = bytes(data)
    return str(name), _with_checksums(data) if rng.random() < 0.8 else data


def _flip(data, at, rng):
    data[at : at + 1] = bytes(byte ^ 1 << rng.integers(8) for byte in data[at : at + 1])


def _overwrite(data, at, rng):
    length = len(data[at : at + rng.integers(1, 40)])
    data[at : at + length] = rng.bytes(length) if rng.random() < 0.5 else bytes([rng.integers(256)]) * length


def _number(data, at, rng):
    size, order = rng.choice([1, 2, 4]), "<>"[rng.integers(2)]
    value = INTERESTING[rng.integers(len(INTERESTING))] & (1 << 8 * int(size)) - 1
    data[at : at + size] = struct.pack(order + {1: "B", 2: "H", 4: "I"}[size], value)


def _cut(data, at, rng):
    del data[at if rng.random() < 0.3 else len(data) - min(len(data), int(rng.integers(1, 300))) :]


def _delete(data, at, rng):
    del data[at : at + rng.integers(1, 60)]


def _double(data, at, rng):
    data[at:at] = data[at : at + rng.integers(1, 200)] * rng.integers(1, 4)


def _swap(data, at, rng):
    middle = at + int(rng.integers(1, 60))
    end = middle + int(rng.integers(1, 60))
    data[at:end] = data[middle:end] + data[at:middle]


CHANGES = (_flip, _flip, _overwrite, _number, _number, _number, _cut, _delete, _double, _swap)


def _with_checksums(data):
    """A PNG with each chunk's checksum made right, so that readers look further; other bytes as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    data, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 <= len(data):
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def outcome(name, data, folder):
    """What is wrong with how a file is read, or "" """
    try:
        if name.startswith("zip"):
            path = folder / "films.zip"
            path.write_bytes(data)
            panel = SimpleNamespace(ask=lambda source, **_: preprocess(source))
            rows = list(ask_each(panel, collect([path])))
        else:
            rows = [("", preprocess(data), "")]
    except FractureError as error:
        rows = [("", None, str(error))]
    except BaseException as error:
        return f"raised {error!r}"
    for _, pixels, sentence in rows:
        if pixels is None:
            if not sentence.endswith(".") or "\n" in sentence:
                return f"said {sentence!r}"
        elif (pixels.shape, pixels.dtype) != ((128, 128), np.float32) or not (
            pixels.min() >= 0 and pixels.max() <= 1  # false for NaN
        ):
            return f"gave {pixels!r}"
    return ""


def complaint(number, folder):
    """What is wrong with how the file of that number is read, how fast or in what memory, or "" """
    name, data = mutant(number)
    for _ in range(3):
        started = time.process_time()
        said = outcome(name, data, folder)
        seconds = time.process_time() - started
        if seconds <= SECONDS:
            break
    else:
        said = said or f"took {seconds:.1f} s"
    # Not its own ru_maxrss: that is at least what the process that started this one had.
    own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    peak = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    if 1024 * peak > BYTES:
        said = said or f"took {peak} kB"
    return said and f"{name}: {said}"


def work(connection, numbers):
    """Send each number before its file is read, and what is wrong with how it was."""
    warnings.simplefilter("ignore")
    for name in ("png", "dicom"):  # what these import shall not be laid at the first file's door
        preprocess(seeds()[name])
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            connection.send((number, ""))
            connection.send((number, complaint(number, Path(folder))))


def findings(count, workers):
    """Number -> complaint, of all files below `count` that are read wrongly."""
    context, found, at = multiprocessing.get_context("spawn"), {}, {}

    def start(numbers):
        if numbers:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(theirs, numbers), daemon=True)
            process.start()
            theirs.close()
            at[ours] = process, numbers[0], time.monotonic()

    for first in range(workers):
        start(range(first, count, workers))
    while at:
        wait(list(at), HANGS)
        for connection, (process, number, heard) in list(at.items()):
            if not connection.poll():
                if time.monotonic() - heard > HANGS:
                    process.kill()
                continue
            try:
                number, said = connection.recv()
                at[connection] = process, number, time.monotonic()
            except EOFError:
                del at[connection]
                process.join()
                if process.exitcode == 0:
                    continue
                said = f"{mutant(number)[0]}: ended its process ({process.exitcode}; -9 if it hung)"
                start(range(number + workers, count, workers))
            if said:
                found[number] = said
                print(f"{number}: {said}", flush=True)
            elif number % 10_000 == 0:
                print(f"{number} of {count}", flush=True)
    return found


def test_damaged_files_are_read_or_refused_with_a_sentence(request):
    count = request.config.getoption("--fuzz")
    assert findings(count, workers=2) == {}
