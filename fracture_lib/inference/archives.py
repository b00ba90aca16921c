"""ZIP archives: which of their members are images, what these are called, and their bytes, within limits.

`zipfile` reads the directory only. A member is read from its offset, so that a name which differs between
directory and member, or is in no known encoding, does not make an image unreadable.
"""

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fracture_lib.errors import InvalidImage
from fracture_lib.inference.zip_names import decode_names, unicode_path
from fracture_lib.io.files import HEAD_BYTES, could_be_image, is_metadata, looks_like_image
from fracture_lib.io.limits import MAX_BYTES

__all__ = ["Member", "is_archive", "list_members", "read_member"]

MAX_DIRECTORY = 1_000_000  # bytes of a ZIP's directory, of which zipfile makes one object per file
MAX_UNPACKED = 1_000_000_000  # bytes of all images of a ZIP
MAX_RATIO = 200  # a mostly black 16-bit image compresses to a hundredth
READ_RESERVE = 100_000  # more than the bytes that Deflate adds to what it cannot compress

# Of a member's header, the end of the directory, and PKZIP's mark of an archive that it did not have to split
_SIGNATURES = (b"PK\3\4", b"PK\5\6", b"PK00PK\3\4")
_UTF_8, _WAS_UTF_8 = 1 << 11, 1 << 15  # general purpose bits; the standard does not use the latter
_ENTRY, _HEADER = 46, 30  # bytes of a directory entry and of a member's header, without name and extra field


@dataclass(frozen=True)
class Member:
    """A file in a ZIP archive."""

    name: str  # its path inside the archive, with "/" and without ".." and drives
    info: zipfile.ZipInfo


def is_archive(path: Path) -> bool:
    """Return whether a file is a ZIP: not if it begins as an image, even with a ZIP behind it."""
    if not path.is_file():  # a pipe can be read only once, and a device without end
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        # One that unpacks itself begins as a program.
        return _begins_as_zip(head) or (not looks_like_image(head) and zipfile.is_zipfile(path))
    except (OSError, ValueError):  # reported when the file is read
        return False


def _begins_as_zip(data: bytes) -> bool:
    return data.startswith(_SIGNATURES)


def list_members(path: Path, is_trusted: bool = False) -> tuple[list[Member], int]:
    """Return a ZIP's members that could be images, and the number of other files.

    Members that an operating system adds are in neither. Reads the beginning of each member and unpacks
    nothing to disk. Raises InvalidImage if the ZIP is damaged or, unless it `is_trusted`, too large.
    """
    try:
        opened = _TrustedArchive(path) if is_trusted else _Archive(path)
        with opened as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            files = [m for m in _name(infos) if not is_metadata(m.name.split("/"))]
            images = [m for m in files if _could_be_image(file, m)]
    except InvalidImage:
        raise
    except Exception as error:  # zipfile raises many types on a damaged directory
        raise InvalidImage(f"The ZIP {path.name} is damaged. Pack it again.") from error
    if not is_trusted and sum(m.info.file_size for m in images) > MAX_UNPACKED:
        raise InvalidImage(
            f"The ZIP {path.name} unpacks to more than {MAX_UNPACKED // 10**9} GB. Send fewer images at once."
        )
    return images, len(files) - len(images)


class _TrustedArchive(io.FileIO):
    """A ZIP for zipfile, which would fail at one badly encoded name.

    Without the UTF-8 bit, zipfile decodes a name as cp437, from which its bytes can be restored.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        return _without_utf_8_bits(super().read(size) or b"")


class _Archive(_TrustedArchive):
    """The same with a limit: zipfile would read a directory of any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise InvalidImage("The ZIP lists too many files or is damaged. Pack only the images.")
        return super().read(size)


def _without_utf_8_bits(directory: bytes) -> bytes:
    """Return a ZIP's directory with the UTF-8 bit of each entry moved; other bytes as they are."""
    changed, start = bytearray(directory), 0
    while changed[start : start + 4] == b"PK\1\2" and len(changed) >= start + _ENTRY:
        (flags,) = struct.unpack_from("<H", changed, start + 8)
        moved = (flags & ~_UTF_8) | (_WAS_UTF_8 if flags & _UTF_8 else 0)
        struct.pack_into("<H", changed, start + 8, moved)
        start += _ENTRY + sum(struct.unpack_from("<3H", changed, start + 28))
    return bytes(changed)


def _name(infos: Iterable[zipfile.ZipInfo]) -> list[Member]:
    """Return the members that are files, with their names decoded."""
    known: dict[zipfile.ZipInfo, str] = {}
    unknown: dict[zipfile.ZipInfo, bytes] = {}
    for info in infos:
        raw = info.orig_filename.encode("cp437")
        name = unicode_path(info.extra, raw)
        if name is None and info.flag_bits & _WAS_UTF_8:
            name = _decode_utf_8(raw)
        if name is None:
            unknown[info] = raw
        else:
            known[info] = name
    known |= zip(unknown, decode_names(list(unknown.values())), strict=True)
    names = {info: known[info].partition("\0")[0].replace("\\", "/") for info in infos}
    return [Member(_clean(name), info) for info, name in names.items() if not name.endswith("/")]


def _decode_utf_8(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _clean(name: str) -> str:
    """Return a path inside a ZIP without what leads out of it: a root, a drive and ".."."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    if len(parts) > 1 and len(parts[0]) == 2 and parts[0][1] == ":":
        del parts[0]
    return "/".join(parts) or "file without a name"


def _could_be_image(file: io.FileIO, member: Member) -> bool:
    """Return whether a member should be tried; a ZIP is, as its error says what to do."""
    return member.name.lower().endswith(".zip") or could_be_image(member.name, _read_head(file, member.info))


def _read_head(file: io.FileIO, info: zipfile.ZipInfo) -> bytes | None:
    """Return a member's first HEAD_BYTES, or None if they cannot be unpacked."""
    try:
        _check_readable(info)
        return _unpack(_read_packed(file, info, 2 * HEAD_BYTES), info, HEAD_BYTES)
    except (InvalidImage, OSError, zlib.error, struct.error):
        return None


def read_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a ZIP's member. Raises InvalidImage."""
    _check_readable(info)
    if info.file_size > min(MAX_BYTES, MAX_RATIO * max(info.compress_size, 1000)):
        raise InvalidImage("The file is too large once unpacked. Upload it on its own.")
    try:
        with io.FileIO(path) as file:
            packed = _read_packed(file, info, MAX_BYTES + READ_RESERVE)
        data = _unpack(packed, info, info.file_size + 1)  # bounded, as the size may be false
    except (OSError, zlib.error, struct.error) as error:
        raise InvalidImage("The file cannot be unpacked. Pack the ZIP again.") from error
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise InvalidImage("The file cannot be unpacked. Pack the ZIP again.")
    if _begins_as_zip(data):
        raise InvalidImage("This is a ZIP inside a ZIP. Unpack it first.")
    return data


def _check_readable(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise InvalidImage("The file is encrypted. Pack the ZIP without a password.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise InvalidImage("This is a link to a file. Pack the image itself.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidImage("The compression method is not supported. Pack the ZIP with Deflate.")


def _read_packed(file: io.FileIO, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Return a member's bytes as they are in the archive, at most `limit` (APPNOTE 4.3.7)."""
    file.seek(info.header_offset)
    header = file.read(_HEADER)
    if not header.startswith(b"PK\3\4"):
        raise InvalidImage("The file cannot be unpacked. Pack the ZIP again.")
    file.seek(sum(struct.unpack_from("<2H", header, 26)), os.SEEK_CUR)
    left = os.fstat(file.fileno()).st_size - file.tell()  # `read` allocates as much as it is asked for
    return file.read(max(0, min(info.compress_size, limit, left)))


def _unpack(packed: bytes, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Return at most `limit` bytes of a member."""
    if info.compress_type == zipfile.ZIP_STORED:
        return packed[:limit]
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit)
