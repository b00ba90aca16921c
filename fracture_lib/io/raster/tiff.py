"""Read TIFF files: choose a page, and decode the kinds of samples that Pillow rejects or reads wrongly.

Pillow (libtiff) undoes the compression: each page is relabelled as an image of 8 bits per channel whose
values are the bytes of the samples. NumPy does the rest. Sections are those of the TIFF 6.0 specification;
the floating-point predictor is in Adobe's TIFF Technical Note 3.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin as tiff

from fracture_lib.errors import InvalidImage
from fracture_lib.io.limits import (
    MAX_PIXELS,
    BoundedFile,
    check_decoded_size,
    check_image_size,
    too_large,
)
from fracture_lib.io.raster.orientation import ORIENTATION, turn_upright

__all__ = [
    "Page",
    "decode_samples",
    "is_tiff",
    "read_pages",
    "select_page",
    "unsupported",
    "with_first_page",
]

MAX_PAGES = 100  # that are read
MAX_SAMPLES = 16  # per pixel
BLOCK_BYTES = 4_000_000  # converted at once

_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 254, 255
_THUMBNAIL_OR_MASK = 1 | 4  # bits of NewSubfileType
_WHITE_IS_ZERO, _RGB = 0, 2  # PhotometricInterpretation
_ALPHA_TYPES = (2, 999)  # ExtraSamples: unassociated alpha, for which Corel Draw writes 999
_DIFFERENCES, _FLOAT_DIFFERENCES = 2, 3  # Predictor
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # SampleFormat -> NumPy's kind; 4 is "undefined"
_DTYPES = {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}
# Compressions of bytes, whatever the bytes mean; the others know pixels.
_BYTE_COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}
_WITH_PREDICTOR = {5, 8, 32946, 34925, 50000}
_COMPRESSION_NAMES = {
    1: "no",
    2: "fax",
    3: "fax",
    4: "fax",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_PHOTOMETRIC_NAMES = {
    0: "greyscale",
    1: "greyscale",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
    32803: "raw camera",
}


@dataclass(frozen=True)
class Page:
    """A directory of a TIFF: its tags, and where it is."""

    tags: Mapping[int, Any]
    offset: int
    byte_order: str  # "<" or ">"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as stored."""
        return int(self.tags[tiff.IMAGEWIDTH]), int(self.tags[tiff.IMAGELENGTH])

    @property
    def is_thumbnail_or_mask(self) -> bool:
        """Whether NewSubfileType (or the older SubfileType) says that it is not an image of its own."""
        return bool(self.tags.get(_NEW_SUBFILE_TYPE, 0) & _THUMBNAIL_OR_MASK) or (
            self.tags.get(_SUBFILE_TYPE) == 2
        )


def is_tiff(data: bytes) -> bool:
    """Return whether a file's bytes begin as those of a TIFF or BigTIFF."""
    return data.startswith(_MAGICS)


def read_pages(data: bytes) -> list[Page]:
    """Return the first MAX_PAGES pages with a size. Raises many types on damaged directories."""
    file = BoundedFile(data)
    byte_order, prefix = ("<" if data.startswith(b"II") else ">"), data[:2]
    # Pillow finds the version of a BigTIFF where a little-endian header has it.
    header = b"II+\0" + data[4:16] if 43 in data[2:4] else data[:8]
    offset = tiff.ImageFileDirectory_v2(header, prefix).next
    pages: list[Page] = []
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MAX_PAGES:
        seen.add(offset)
        if offset >= len(data):
            break
        file.seek(offset)
        tags = tiff.ImageFileDirectory_v2(header, prefix)
        tags.load(file)
        if tiff.IMAGEWIDTH in tags and tiff.IMAGELENGTH in tags:
            pages.append(Page(tags, offset, byte_order))
        offset = tags.next
    return pages


def select_page(pages: Sequence[Page]) -> tuple[Page, tuple[str, ...]]:
    """Return the largest page, the first one of several, and warnings. Skips thumbnails and masks."""
    images = [page for page in pages if not page.is_thumbnail_or_mask] or list(pages)
    page = max(images, key=lambda page: math.prod(page.size))
    if len(images) == 1:
        return page, ()
    which = "first" if page is images[0] else "largest"
    return page, (f"The file has several pages; only the {which} one is used.",)


def _describe(page: Page) -> str:
    """Return what kind of TIFF a page is, such as "16-bit RGB TIFF with LZW compression"."""
    bits = max(page.tags.get(tiff.BITSPERSAMPLE, (1,)))
    photometric = page.tags.get(tiff.PHOTOMETRIC_INTERPRETATION, 0)
    kind = _PHOTOMETRIC_NAMES.get(photometric, "unusual")
    compression = page.tags.get(tiff.COMPRESSION, 1)
    name = _COMPRESSION_NAMES.get(compression, "unknown")
    return f"{bits}-bit {kind} TIFF with {name} compression"


def decode_samples(data: bytes, page: Page) -> NDArray[Any] | None:
    """Decode a page of grayscale or RGB samples, 1 to 24 bits or integers or floats of 8 to 64 bits.

    Returns [H, W] or [H, W, C] upright, the channels gray, gray and alpha, RGB or RGBA, black the smallest
    value; or None for other pages, which Pillow reads: palettes, YCbCr, Lab, CMYK, fax and JPEG.

    Raises InvalidImage if it is too large or not supported, and many types if it is damaged.
    """
    tags = page.tags
    photometric = tags.get(tiff.PHOTOMETRIC_INTERPRETATION, 0)
    if photometric > _RGB or tags.get(tiff.COMPRESSION, 1) not in _BYTE_COMPRESSIONS:
        return None
    layout = _read_layout(page)
    n_colors = 3 if photometric == _RGB else 1
    extra = tags.get(tiff.EXTRASAMPLES, ())
    # Writers of RGBA without ExtraSamples are common. Associated alpha is already multiplied in, as on black.
    alpha = layout.samples > n_colors and (extra[0] in _ALPHA_TYPES if extra else photometric == _RGB)
    if layout.samples < n_colors or (alpha and layout.bits % 8):
        raise unsupported(page)
    values = _decode_channels(data, page, layout, n_colors + alpha)
    if photometric == _WHITE_IS_ZERO:
        _invert(values[..., 0], layout.bits, alpha)
    values = values if values.shape[2] > 1 else values[..., 0]
    return turn_upright(values, tags.get(ORIENTATION, 1))


def with_first_page(data: bytes, page: Page) -> bytes:
    """Return the file with a header that makes a page the first one."""
    is_big = 43 in data[2:4]
    start, code = (8, "Q") if is_big else (4, "I")
    offset = struct.pack(page.byte_order + code, page.offset)
    return data[:start] + offset + data[start + len(offset) :]


@dataclass(frozen=True)
class _Layout:
    """How the samples of a page are stored (sections 7, 14 and 15); a strip counts as one wide tile."""

    samples: int  # per pixel
    bits: int  # per sample
    dtype: np.dtype[Any]  # of a stored sample; of an unpacked one if `bits` are not whole bytes
    planar: bool  # one plane per channel
    predictor: int
    tile_width: int
    tile_length: int
    tiles: tuple[int, int]  # number across and down
    offsets: Sequence[int]
    byte_counts: Sequence[int]

    @property
    def samples_together(self) -> int:
        """Samples of a pixel in one tile."""
        return 1 if self.planar else self.samples

    @property
    def tile_row_bytes(self) -> int:
        """Bytes of a row of a tile."""
        return -(-self.tile_width * self.samples_together * self.bits // 8)


def _read_layout(page: Page) -> _Layout:
    tags = page.tags
    width, height = page.size
    check_image_size(width, height)
    samples = int(tags.get(tiff.SAMPLESPERPIXEL, 1))
    all_bits, formats = tags.get(tiff.BITSPERSAMPLE, (1,)), tags.get(tiff.SAMPLEFORMAT, (1,))
    bits, kind = int(all_bits[0]), _KINDS.get(formats[0], "")
    is_tiled = tiff.TILEOFFSETS in tags
    tile_width = int(tags[tiff.TILEWIDTH]) if is_tiled else width
    tile_length = int(tags[tiff.TILELENGTH] if is_tiled else min(tags.get(tiff.ROWSPERSTRIP, height), height))
    if tile_width * tile_length > MAX_PIXELS:
        raise too_large("A tile of the TIFF is too large")
    # As in libtiff, only these compressions have a predictor.
    predictor = tags.get(tiff.PREDICTOR, 1) if tags.get(tiff.COMPRESSION) in _WITH_PREDICTOR else 1
    dtype = _dtype(kind, bits, page.byte_order)
    is_uniform = len(set(all_bits)) == len(set(formats)) == 1
    fits_bytes = not is_tiled or tile_width * bits % 8 == 0
    has_known_predictor = (
        predictor == 1
        or (predictor == _DIFFERENCES and bits in (8, 16, 32, 64))
        or (predictor == _FLOAT_DIFFERENCES and kind == "f")
    )
    if dtype is None or not (
        is_uniform and fits_bytes and has_known_predictor and 1 <= samples <= MAX_SAMPLES
    ):
        raise unsupported(page)
    return _Layout(
        samples,
        bits,
        dtype,
        tags.get(tiff.PLANAR_CONFIGURATION, 1) == 2 and samples > 1,
        predictor,
        tile_width,
        tile_length,
        (-(-width // tile_width), -(-height // tile_length)),
        tags[tiff.TILEOFFSETS if is_tiled else tiff.STRIPOFFSETS],
        tags.get(tiff.TILEBYTECOUNTS if is_tiled else tiff.STRIPBYTECOUNTS, ()),
    )


def _dtype(kind: str, bits: int, byte_order: str) -> np.dtype[Any] | None:
    """Return the dtype of a stored sample, or of an unpacked one of 1 to 24 bits; None if unsupported."""
    name = f"{kind}{bits // 8}"
    if bits % 8 == 0 and name in _DTYPES:
        return np.dtype(byte_order + name)
    if kind != "u" or not 0 < bits < 25 or (bits == 24 and byte_order == "<"):
        return None
    return np.dtype("u1" if bits < 8 else "u2" if bits < 16 else "u4")


def _decode_channels(data: bytes, page: Page, layout: _Layout, n_channels: int) -> NDArray[Any]:
    """Return the first `n_channels` [H, W, C], in native byte order."""
    width, height = page.size
    n_planes = n_channels if layout.planar else 1
    row_bytes = layout.tiles[0] * layout.tile_row_bytes
    check_decoded_size(row_bytes * height * n_planes)
    check_decoded_size(layout.tile_row_bytes * layout.tile_length)
    values = np.empty((height, width, n_channels), layout.dtype.newbyteorder("="))
    step = max(1, BLOCK_BYTES // row_bytes)
    for plane in range(n_planes):
        relabelled = BoundedFile(_relabel(data, page, layout, plane))
        channels = slice(plane, plane + 1) if layout.planar else slice(n_channels)
        with tiff.TiffImageFile(relabelled) as image:
            image.load()
            for top in range(0, height, step):
                rows = slice(top, min(top + step, height))
                block = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
                samples = _to_samples(block.reshape(len(block), row_bytes), layout)
                values[rows, :, channels] = samples[:, :width, :n_channels]
    return values


def _relabel(data: bytes, page: Page, layout: _Layout, plane: int) -> bytes:
    """Return the TIFF with a directory, at its end, that says one plane has channels of 8 bits.

    It is little-endian and not a BigTIFF, as all offsets are below MAX_BYTES. It has up to four channels, as
    Pillow takes too many pixels for a decompression bomb.
    """
    fill_order = page.tags.get(tiff.FILLORDER, 1)
    sizes = (4, 3) if fill_order == 1 else ()
    channels = next((size for size in sizes if layout.tile_row_bytes % size == 0), 1)
    n_tiles = math.prod(layout.tiles)
    tiles = slice(plane * n_tiles, (plane + 1) * n_tiles)
    offsets = layout.offsets[tiles]
    if len(offsets) < n_tiles:
        raise ValueError("strips or tiles are missing")
    tags: dict[int, Sequence[int]] = {
        tiff.IMAGEWIDTH: [layout.tiles[0] * layout.tile_row_bytes // channels],
        tiff.IMAGELENGTH: [page.size[1]],
        tiff.BITSPERSAMPLE: [8] * channels,
        tiff.COMPRESSION: [page.tags.get(tiff.COMPRESSION, 1)],
        tiff.PHOTOMETRIC_INTERPRETATION: [_RGB if channels > 1 else 1],
        tiff.FILLORDER: [fill_order],
        tiff.SAMPLESPERPIXEL: [channels],
    }
    byte_counts = layout.byte_counts[tiles]
    if tiff.TILEOFFSETS in page.tags:
        tags |= {tiff.TILEWIDTH: [layout.tile_row_bytes // channels], tiff.TILELENGTH: [layout.tile_length]}
        tags |= {tiff.TILEOFFSETS: offsets, tiff.TILEBYTECOUNTS: byte_counts}
    else:
        tags |= {tiff.ROWSPERSTRIP: [layout.tile_length], tiff.STRIPOFFSETS: offsets}
        tags |= {tiff.STRIPBYTECOUNTS: byte_counts}
    return _with_directory(data, {tag: values for tag, values in tags.items() if len(values)})


def _with_directory(data: bytes, tags: Mapping[int, Sequence[int]]) -> bytes:
    file = bytearray(data)
    file += bytes(len(data) % 2)
    entries = b""
    for tag, values in sorted(tags.items()):
        packed = np.array(values, np.uint32).astype("<u4").tobytes()
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack("<I", len(file))
        if len(values) > 1:
            file += packed
    file[:8] = struct.pack("<2sHI", b"II", 42, len(file))
    file += struct.pack("<H", len(tags)) + entries + bytes(4)
    return bytes(file)


def _to_samples(rows: NDArray[np.uint8], layout: _Layout) -> NDArray[Any]:
    """Turn the bytes of rows into samples [H, W, C], `predictor` undone (section 14, Technical Note 3)."""
    shape = (len(rows), layout.tiles[0], layout.tile_width, layout.samples_together)
    per_tile = rows.reshape(len(rows), layout.tiles[0], layout.tile_row_bytes)
    if layout.bits % 8 or layout.bits == 24:
        samples = _unpack(per_tile, layout.bits, layout.tile_width * layout.samples_together, layout.dtype)
    elif layout.predictor == _FLOAT_DIFFERENCES:
        # Differences of bytes, after the bytes of each row were sorted from the most significant on.
        differences = per_tile.reshape(*shape[:2], -1, layout.samples_together)
        summed = np.cumsum(differences, axis=2, dtype=np.uint8)
        planes = summed.reshape(*shape[:2], layout.bits // 8, -1)
        samples = np.ascontiguousarray(planes.swapaxes(2, 3)).view(f">f{layout.bits // 8}")
    else:
        samples = per_tile.view(layout.dtype)
        if layout.predictor == _DIFFERENCES:
            unsigned = samples.view(f"{layout.dtype.byteorder}u{layout.bits // 8}").reshape(shape)
            summed = np.cumsum(unsigned, axis=2, dtype=f"u{layout.bits // 8}")
            samples = summed.view(layout.dtype.newbyteorder("="))
    return samples.reshape(len(rows), -1, layout.samples_together)


def _unpack(rows: NDArray[np.uint8], bits: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Unpack `count` samples of 1 to 24 bits from the last axis, most significant bit first."""
    group = 8 // math.gcd(bits, 8)  # samples that fill whole bytes
    group_bytes = bits * group // 8
    n_groups = -(-count // group)
    padded = np.zeros((*rows.shape[:-1], n_groups * group_bytes), np.uint8)
    padded[..., : rows.shape[-1]] = rows
    groups = padded.reshape(*rows.shape[:-1], n_groups, group_bytes)
    samples = np.empty((*rows.shape[:-1], n_groups, group), dtype)
    for i in range(group):
        first, last = i * bits // 8, ((i + 1) * bits - 1) // 8
        value = groups[..., first].astype(np.uint32)
        for j in range(first + 1, last + 1):
            value = value << np.uint32(8) | groups[..., j]
        samples[..., i] = value >> 8 * (last + 1) - (i + 1) * bits & (1 << bits) - 1
    return samples.reshape(*rows.shape[:-1], -1)[..., :count]


def _invert(values: NDArray[Any], bits: int, alpha: bool) -> None:
    """Make black the smallest value, in place."""
    if values.dtype.kind == "f":
        np.subtract(1.0 if alpha else 0.0, values, out=values)
    elif bits % 8 or bits == 24:
        np.subtract((1 << bits) - 1, values, out=values)
    else:
        np.invert(values, out=values)


def unsupported(page: Page) -> InvalidImage:
    """Return the error for a kind of TIFF that cannot be read."""
    return InvalidImage(f"{_describe(page)} is not supported. Save it as PNG.")
