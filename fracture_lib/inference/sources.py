"""A source of many images: a stream of what it holds, in a fixed order, and the bytes of each.

A source is a folder, a ZIP archive, a text file that lists paths, a dataset of the Hub, or an address or
pattern that fsspec knows, such as "s3://bucket/scans" or "scans/**/*.dcm". Files in it may also be ZIP
archives, and Parquet files with a column `image`, as `datasets` writes them.
"""

import codecs
import errno
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, repeat
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any
from zipfile import ZipInfo

from fracture_lib.data.sources import find_dataset
from fracture_lib.errors import FractureError, InvalidData, InvalidImage
from fracture_lib.hub import HUB_PREFIX, first_line
from fracture_lib.inference.archives import list_members, read_member
from fracture_lib.inference.batch import number_names
from fracture_lib.io.files import HEAD_BYTES, could_be_image, is_metadata, walk_files
from fracture_lib.io.image import IMAGE_SUFFIXES
from fracture_lib.io.limits import MAX_BYTES

__all__ = ["RESULTS_KEY", "SourceImage", "list_images", "read_image"]

LIST_SUFFIX = ".txt"
RESULTS_KEY = b"fracture_lib"  # in the metadata of a Parquet file: holds results, with these settings
IMAGE_COLUMN = "image"  # of a Parquet file: the bytes of a file, or a struct that has them as `bytes`

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:(//|:)", re.IGNORECASE)
_PATTERN = re.compile(r"[*?\[]")
# Reasons why a file can never be read; after any other, such as a lost connection, another try may succeed.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


@dataclass(frozen=True)
class SourceImage:
    """Where one image is."""

    name: str  # unique in its source, unless a list names a file twice
    address: str  # an absolute path, or what fsspec knows
    position: int | None = None  # of the image in a ZIP or a Parquet file, from 0


def list_images(source: str) -> Iterator[SourceImage | None]:
    """Yield the images of a source in a fixed order, and None for each file that is not an image.

    Holds the names of one folder at a time, or those of one ZIP. Results of this library are neither: DIR may
    be inside its source. A file of a list that does not exist and a ZIP or Parquet file that is damaged are
    yielded, so that reading them tells why. Raises InvalidImage if there is no such source, InvalidData if it
    cannot be listed, and OSError if a folder cannot be read.
    """
    for name, address in _list_files(source):
        yield from _images_in(name, address)


def _list_files(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name and address of each file that may hold images."""
    path = Path(source)
    if source.startswith(HUB_PREFIX):
        info = find_dataset(source.removeprefix(HUB_PREFIX))
        yield from _list_remote(f"hf://datasets/{info.id}@{info.sha}")
    elif _ADDRESS.match(source) or (_PATTERN.search(source) and not path.exists()):
        yield from _list_remote(source)
    elif path.is_dir():
        yield from _list_folder(path)
    elif path.suffix.lower() == LIST_SUFFIX and path.is_file():
        yield from _read_list(path)
    elif path.is_file():
        yield path.name, str(path.absolute())
    else:
        raise InvalidImage(f"There is no {source}. Give a folder, a ZIP, a list of paths or an address.")


def _list_folder(folder: Path) -> Iterator[tuple[str, str]]:
    for file in walk_files(folder):
        yield file.relative_to(folder).as_posix(), str(file.absolute())


def _read_list(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the files that a list names and those in folders that it names, one a line.

    Relative paths are those of the current folder. A line that begins with "#" is a comment.
    """
    with path.open("rb") as file:
        is_utf_16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Windows PowerShell writes
    encoding, errors = ("utf-16", "replace") if is_utf_16 else ("utf-8-sig", "surrogateescape")
    with path.open(encoding=encoding, errors=errors) as lines:
        for line in lines:
            name = line.rstrip("\r\n")
            if not name.strip() or name.startswith("#"):
                continue
            if _ADDRESS.match(name):
                yield name, name
            elif os.path.isdir(name) and os.access(name, os.R_OK | os.X_OK):  # noqa: PTH112  it never raises
                for path_inside, address in _list_folder(Path(name)):
                    yield f"{name.rstrip('/')}/{path_inside}", address
            else:
                yield name, str(Path(name).absolute())


def _list_remote(address: str) -> Iterator[tuple[str, str]]:
    """Yield the files at an address, or that a pattern matches."""
    from fsspec.core import url_to_fs

    chain = address.partition("::")[2]  # such as the ZIP that a "zip://" address looks into
    try:
        files, root = url_to_fs(address)
        if match := _PATTERN.search(root):
            folder = root[: root.rfind("/", 0, match.start()) + 1]
            matches = files.glob(root, detail=True).items()
            paths = iter(sorted(path for path, info in matches if info["type"] != "directory"))
        elif files.isdir(root):
            folder, paths = f"{root.rstrip('/')}/", _walk(files, root)
        elif files.exists(root):
            folder, paths = root[: root.rfind("/") + 1], iter([root])
        else:
            raise InvalidImage(f"There is nothing at {address}. Check the address.")
        for path in paths:
            name = path.removeprefix(folder)
            if not is_metadata(name.split("/")):
                yield name, files.unstrip_protocol(path) + (f"::{chain}" if chain else "")
    except FractureError:
        raise
    except Exception as error:  # each file system raises its own types
        raise InvalidData(
            f"Cannot list {address} ({first_line(error)}). Check the address and your access to it."
        ) from error


def _walk(files: Any, root: str) -> Iterator[str]:
    """Yield the paths of the files in a folder of an fsspec file system, in a fixed order."""
    for folder, subfolders, names in files.walk(root, on_error="raise"):
        subfolders[:] = sorted(name for name in subfolders if not is_metadata([name]))
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        yield from (prefix + name for name in sorted(names))


def _images_in(name: str, address: str) -> Iterator[SourceImage | None]:
    """Yield the image that a file is, or those that it holds."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".zip" and _ADDRESS.match(address):
        for member, member_address in _list_remote(f"zip://::{address}"):
            yield from _images_in(f"{name}/{member}", member_address)
    elif suffix == ".zip":
        try:
            members, n_left_out = _list_zip(address)
        except InvalidImage:
            yield SourceImage(name, address, 0)
            return
        yield from repeat(None, n_left_out)
        for position, (member, _) in enumerate(members):
            yield SourceImage(f"{name}/{member}", address, position)
    elif suffix == ".parquet":
        try:
            first_rows = _first_rows(address)
        except InvalidImage:
            yield SourceImage(name, address, 0)
            return
        if not first_rows and not _is_result(address):
            yield None
        for row in range(first_rows[-1] if first_rows else 0):
            yield SourceImage(f"{name}/{row}", address, row)
    elif suffix in IMAGE_SUFFIXES:
        yield SourceImage(name, address)
    else:
        head = _read_head(address)
        yield SourceImage(name, address) if head is None or could_be_image(name, head) else None


def read_image(image: SourceImage) -> bytes:
    """Return the bytes of an image's file.

    Raises InvalidImage if it cannot be read at all, and InvalidData if another try may succeed: such an image
    must not be recorded as unreadable.
    """
    try:
        if image.position is None:
            return _read(image.address, MAX_BYTES + 1)
        if PurePosixPath(image.address).suffix.lower() == ".zip":
            return read_member(Path(image.address), _list_zip(image.address)[0][image.position][1])
        return _read_row(image.address, image.position)
    except FractureError:
        raise
    except Exception as error:  # each file system raises its own types
        if isinstance(error, _LASTING) or getattr(error, "errno", None) in _LASTING_NUMBERS:
            reason = getattr(error, "strerror", None) or "it is not there or may not be read"
            raise InvalidImage(f"Cannot open the file: {reason}.") from error
        missing = isinstance(error, ImportError)
        advice = "Install what it needs on every node" if missing else "Run the same command again to resume"
        raise InvalidData(f"Cannot read {image.name} ({first_line(error)}). {advice}.") from error


def _read(address: str, n_bytes: int) -> bytes:
    if not _ADDRESS.match(address):
        if "\0" in address:
            raise FileNotFoundError(errno.ENOENT, "the path holds a null character")
        with Path(address).open("rb") as file:
            # `read` allocates as much as it is asked for.
            return file.read(min(n_bytes, os.fstat(file.fileno()).st_size))
    from fsspec.core import url_to_fs

    files, path = url_to_fs(address)
    with files.open(path, "rb") as file:
        data: bytes = file.read(n_bytes)
        return data


def _read_head(address: str) -> bytes | None:
    try:
        return _read(address, HEAD_BYTES)
    except Exception:  # as above; reading the image gives the reason
        return None


@lru_cache(maxsize=2)  # images are read in order, at the end of one ZIP with the beginning of the next
def _list_zip(path: str) -> tuple[list[tuple[str, ZipInfo]], int]:
    """Return the name and directory entry of each image in a local ZIP, and the number of other files."""
    members, n_left_out = list_members(Path(path), is_trusted=True)
    names = number_names(member.name for member in members)
    return [(name, member.info) for name, member in zip(names, members, strict=True)], n_left_out


_parquet_lock = Lock()  # lets threads that need one row group read it once


@contextmanager
def _naming_damage(address: str) -> Iterator[None]:
    """Raise InvalidImage for what a damaged Parquet file makes Arrow raise."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, IndexError, OSError) as error:
        is_of_system = isinstance(error, OSError) and (error.errno or _ADDRESS.match(address))
        if is_of_system or isinstance(error, MemoryError):
            raise
        raise InvalidImage("The Parquet file is damaged. Copy or download it again.") from error


@lru_cache(maxsize=2)
def _open_parquet(address: str) -> Any:
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(address)
        with _naming_damage(address):
            return pq.ParquetFile(files.open(path, "rb"))
    except FractureError:
        raise
    except Exception as error:  # as above
        raise InvalidData(
            f"Cannot read {address} ({first_line(error)}). Check the file and the connection."
        ) from error


def _is_result(address: str) -> bool:
    """Return whether a Parquet file holds results of this library."""
    return RESULTS_KEY in (_open_parquet(address).schema_arrow.metadata or {})


def _first_rows(address: str) -> list[int]:
    """Return the number of rows before each row group, and of all; empty without a column of images."""
    import pyarrow as pa

    file = _open_parquet(address)
    columns = {field.name: field.type for field in file.schema_arrow.empty_table().flatten().schema}
    found = {columns.get(IMAGE_COLUMN), columns.get(f"{IMAGE_COLUMN}.bytes")}
    if not found & {pa.binary(), pa.large_binary()}:
        return []
    sizes = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
    return list(accumulate(sizes, initial=0))


def _read_row(address: str, row: int) -> bytes:
    with _parquet_lock, _naming_damage(address):
        first_rows = _first_rows(address)
        group = bisect_right(first_rows, row) - 1
        value = _read_row_group(address, group)[row - first_rows[group]].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if not data:
        raise InvalidImage("The row holds no bytes.")
    return bytes(data)


@lru_cache(maxsize=2)
def _read_row_group(address: str, group: int) -> Any:
    return _open_parquet(address).read_row_group(group, columns=[IMAGE_COLUMN]).column(0)
