"""Which files are images, by name and leading bytes: one rule for folders, data sets and ZIP archives."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from fracture_lib.io.dicom.reader import is_dicom
from fracture_lib.io.image import IMAGE_SUFFIXES
from fracture_lib.io.raster.signatures import find_kind, has_signature_of_format

__all__ = [
    "HEAD_BYTES",
    "could_be_image",
    "is_image_file",
    "is_metadata",
    "looks_like_image",
    "walk_files",
]

HEAD_BYTES = 4096  # of a file, enough for `looks_like_image`

# Names, in lower case, of files and folders that an operating system or a tool adds, besides hidden ones.
_METADATA = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir"}
# Kinds of images that cannot be read: they are tried, so that an error names the kind.
_OTHER_IMAGES = {"AVIF", "HEIC", "JPEG 2000", "JPEG XL", "JPEG XR", "Photoshop", "NIfTI", "NRRD"}
_DICOM_DIRECTORY = "dicomdir"  # PS3.10 section 8.6
# The element (0002,0002) of a DICOM directory, PS3.10 table 7.1-1 and PS3.4 annex I.
_DIRECTORY_CLASS = b"\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10"


def is_metadata(parts: Iterable[str]) -> bool:
    """Return whether a relative path, given as its parts, is metadata of a system or tool, or lies in it.

    Metadata are hidden files and folders (`.DS_Store`, `._x.jpg`, `.ipynb_checkpoints`), `__MACOSX`,
    `Thumbs.db`, `desktop.ini` and their like.
    """
    return any(
        part.lower() in _METADATA or (part.startswith(".") and part not in (".", "..")) for part in parts
    )


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders by name, without metadata and links to folders.

    Holds the names of one folder at a time. Raises OSError if a folder cannot be read.
    """
    for name in sorted(path.name for path in folder.iterdir()):
        path = folder / name
        if is_metadata([name]):
            continue
        if path.is_dir():
            if not path.is_symlink():  # it may loop
                yield from walk_files(path)
        elif path.is_file():
            yield path


def looks_like_image(head: bytes) -> bool:
    """Return whether the first HEAD_BYTES of a file are those of DICOM or of a readable image format.

    False for a DICOM directory (DICOMDIR), which lists images but is not one.
    """
    if is_dicom(head):
        return _DIRECTORY_CLASS not in head
    return has_signature_of_format(head)


def could_be_image(name: str, head: bytes | None) -> bool:
    """Return whether a file should be tried as an image; False only if it plainly is something else.

    `name` is the file's name or path and `head` its first HEAD_BYTES, or None if they cannot be read. A
    damaged image with the suffix of an image is tried, so that its error is reported.
    """
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if path.name.lower() == _DICOM_DIRECTORY:
        return False
    if suffix in IMAGE_SUFFIXES:
        return True
    if head is None:  # names are often UIDs such as 1.2.840.10008
        return not suffix or suffix[1:].isdecimal()
    return looks_like_image(head) or find_kind(head) in _OTHER_IMAGES


def is_image_file(path: Path) -> bool:
    """Return whether a file should be tried as an image: `could_be_image`, reading it only if needed."""
    return path.suffix.lower() in IMAGE_SUFFIXES or could_be_image(path.name, _read_head(path))


def _read_head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return None
