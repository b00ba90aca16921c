"""Image files in memory, also of kinds that Pillow does not write."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RAW, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773  # compressions of a TIFF

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def encode_image(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of a file that holds a Pillow image; `options` are those of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return a chunk of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def encode_png(values: NDArray[Any], chunks: bytes = b"", interlaced: bool = False) -> bytes:
    """Return a PNG of integers of 8 or 16 bits, [H, W] or [H, W, C]; `chunks` precede the pixels."""
    height, width, channels = (*values.shape, 1)[:3]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, color_type, 0, 0, int(interlaced))
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(_filter_rows(values[top::down, left::right]) for top, left, down, right in passes)
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + data + png_chunk(b"IEND")


def _filter_rows(values: NDArray[Any]) -> bytes:
    """Return the bytes of the rows; each has the next of the five filters (PNG specification, section 9)."""
    step = values.itemsize * (values.shape[2] if values.ndim == 3 else 1)  # bytes per pixel
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(len(values), -1).view(np.uint8).astype(int)
    padded = np.pad(rows, ((1, 0), (step, 0)))
    left, up, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    estimate = left + up - corner
    distances = np.abs([estimate - left, estimate - up, estimate - corner])
    paeth = np.choose(distances.argmin(axis=0), [left, up, corner])
    predictions = [0 * rows, left, up, (left + up) // 2, paeth]
    filtered = b""
    for i, row in enumerate(rows):
        filtered += bytes([i % 5]) + (row - predictions[i % 5][i]).astype(np.uint8).tobytes()
    return filtered


def encode_tiff(*pages: Mapping[str, Any], byte_order: str = "<", big: bool = False) -> bytes:
    """Return a TIFF, or a BigTIFF, of pages; each has the arguments of `_tiff_page`."""
    magic, offset_code, count_code = (43, "Q", "Q") if big else (42, "I", "H")
    start = {"<": b"II", ">": b"MM"}[byte_order] + struct.pack(byte_order + "H", magic)
    file = bytearray(start + (struct.pack(byte_order + "HH", 8, 0) if big else b""))
    pointer = len(file)  # to the next directory
    file += bytes(struct.calcsize(offset_code))
    for page in pages:
        tags, strips = _tiff_page(byte_order=byte_order, **page)
        key = 324 if 322 in tags else 273
        tags[key], tags[key + (1 if key == 324 else 6)] = [], [len(strip) for strip in strips]
        for strip in strips:
            tags[key].append(len(file))
            file += strip
        entries = b""
        for tag, numbers in sorted(tags.items()):
            packed = struct.pack(f"{byte_order}{len(numbers)}I", *numbers)
            entries += struct.pack(f"{byte_order}HH{offset_code}", tag, 4, len(numbers))
            if len(packed) <= struct.calcsize(offset_code):
                entries += packed.ljust(struct.calcsize(offset_code), b"\0")
            else:
                entries += struct.pack(byte_order + offset_code, len(file))
                file += packed
        struct.pack_into(byte_order + offset_code, file, pointer, len(file))
        file += struct.pack(byte_order + count_code, len(tags)) + entries
        pointer = len(file)
        file += bytes(struct.calcsize(offset_code))
    return bytes(file)


def _tiff_page(
    values: NDArray[Any],
    *,
    byte_order: str,
    bits: int = 0,
    photometric: int | None = None,
    compression: int = RAW,
    predictor: int = 1,
    tile: tuple[int, int] | None = None,
    rows_per_strip: int = 17,
    planar: bool = False,
    tags: Mapping[int, Sequence[int]] | None = None,
) -> tuple[dict[int, list[int]], list[bytes]]:
    """Return the tags of a page, without those of its strips or tiles (length, width), and their bytes.

    `values` are [H, W] or [H, W, C]; samples have `bits` bits, or as many as the dtype.
    """
    values = values[..., None] if values.ndim == 2 else values
    height, width, samples = values.shape
    length, columns = tile or (rows_per_strip, width)
    page = {
        256: [width],
        257: [height],
        258: [bits or 8 * values.itemsize] * samples,
        259: [compression],
        262: [(2 if samples > 2 else 1) if photometric is None else photometric],
        277: [samples],
        284: [2 if planar else 1],
        317: [predictor],
        339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * samples,
    }
    page |= {322: [columns], 323: [length]} if tile else {278: [length]}
    page |= {tag: list(numbers) for tag, numbers in (tags or {}).items()}
    strips = []
    for plane in [values[..., [i]] for i in range(samples)] if planar else [values]:
        if tile:
            plane = np.pad(plane, ((0, -height % length), (0, -width % columns), (0, 0)))
        for top in range(0, len(plane), length):
            for left in range(0, plane.shape[1], columns):
                part = plane[top : top + length, left : left + columns]
                strips.append(_compress(_sample_bytes(part, byte_order, bits, predictor), compression))
    return page, strips


def _sample_bytes(values: NDArray[Any], byte_order: str, bits: int, predictor: int) -> bytes:
    size = values.itemsize
    if bits and bits != 8 * size:
        samples = values.reshape(len(values), -1, 1) >> np.arange(bits)[::-1] & 1
        return np.packbits(samples.reshape(len(values), -1), axis=1).tobytes()
    if predictor == 3:
        ordered = values.astype(values.dtype.newbyteorder(">")).reshape(len(values), -1, 1).view(np.uint8)
        values = ordered.swapaxes(1, 2).reshape(len(values), -1, values.shape[2])
    if predictor in (2, 3):
        unsigned = values.view(f"u{values.itemsize}")
        values = np.diff(unsigned, axis=1, prepend=np.zeros_like(unsigned[:, :1]))
    return values.astype(values.dtype.newbyteorder(byte_order)).tobytes()


def _compress(data: bytes, compression: int) -> bytes:
    if compression == DEFLATE:
        return zlib.compress(data)
    if compression == PACKBITS:
        return b"".join(bytes([len(part) - 1]) + part for part in _parts(data, 128))
    if compression == LZW:  # the code "clear", 256, keeps the codes at nine bits
        codes = [code for part in _parts(data, 200) for code in (256, *part)]
        bits = "".join(f"{code:09b}" for code in (*codes, 257))
        return bytes(int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8))
    return data


def _parts(data: bytes, length: int) -> Iterable[bytes]:
    return (data[start : start + length] for start in range(0, len(data), length))
