"""manifest.csv: which images of a dataset come from the same patient or figure.

Spreadsheets write such a file in many ways, and a group that is lost lets images of one patient onto both
sides of a split. So every row either counts or raises an error that names its line.
"""

import csv
import io
import logging
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from fracture_lib.errors import InvalidData
from fracture_lib.io.files import is_metadata

__all__ = ["MANIFEST", "read_source_groups"]

MANIFEST = "manifest.csv"
_COLUMNS = ("path", "source_group")
_DELIMITERS = (",", ";", "\t", "|")
# Tried in turn. The first reads nearly no other text; the last reads any.
_ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WITHOUT_MARK = {(False, True): "utf-16-le", (True, False): "utf-16-be"}  # which of two bytes are zero

_logger = logging.getLogger(__name__)

_Row = tuple[int, str, str]  # line, path, source group


def read_source_groups(folder: Path, images: Sequence[Path], used: Sequence[Path]) -> dict[Path, str]:
    """Return the source group of each image that manifest.csv in `folder` gives one.

    `images` are all images in `folder`, of which `used` will be grouped. Empty if there is no manifest. A
    manifest may be UTF-8, UTF-16 or Windows-1252, with commas, semicolons, tabs or bars between the cells.
    Its paths are relative to `folder` or to a folder above it, with slashes or backslashes; letter case and
    the form of accents count only where they tell two images apart. Rows of images that are not in `folder`
    are ignored, and so is an empty source_group.

    Raises InvalidData, which names the line, for a row that is incomplete, fits several images or
    contradicts another; if no row fits an image; and if rows have no image while images that are used have
    no row, as their paths may be misspelled.
    """
    path = _find(folder)
    if path is None:
        if (folder.resolve().parent / MANIFEST).is_file():  # `folder` may be a split folder
            _logger.warning(
                "%s beside %s is not used. Give the folder above and a split.", MANIFEST, folder.name
            )
        return {}
    finder = _ImageFinder(folder, images)
    groups: dict[Path, str] = {}
    lines: dict[Path, int] = {}
    without_image: list[_Row] = []
    for row in _read_rows(path.read_bytes()):
        line, name, group = row
        found = finder.find(name)
        if len(found) > 1:
            _fail(line, f"{name} fits several images. Write its path as it is spelled in the folder")
        if not found:
            without_image.append(row)
            continue
        [image] = found
        if image in lines and groups[image] != group:
            _fail(line, f"{name} has another source_group than in line {lines[image]}. Keep one of them")
        groups[image], lines[image] = group, line
    if not groups:
        raise InvalidData(
            f"{MANIFEST} lists none of the images in {folder.name}. Correct its paths, such as "
            f"{images[0].relative_to(folder).as_posix()}, or remove the file."
        )
    unlisted = [image for image in used if image not in groups]
    if unlisted and without_image:
        line, name, _ = without_image[0]
        raise InvalidData(
            f"{MANIFEST} does not fit the images in {folder.name}. Rows without an image: "
            f"{len(without_image)}, such as line {line} ({name}); images without a row: {len(unlisted)}, "
            f"such as {unlisted[0].relative_to(folder).as_posix()}. Save it as UTF-8 with the paths as they "
            "are, and list every image; source_group may be empty."
        )
    return {image: group for image, group in groups.items() if group}


def _find(folder: Path) -> Path | None:
    """Return the manifest of `folder`. Raises InvalidData if there are several, or one in a subfolder."""
    paths = sorted(p for p in folder.rglob("*") if p.name.lower() == MANIFEST and p.is_file())
    paths = [path for path in paths if not is_metadata(path.relative_to(folder).parts)]
    names = [path.relative_to(folder).as_posix() for path in paths]
    if len(paths) > 1:
        raise InvalidData(f"{folder.name} holds {' and '.join(names)}. Keep one, directly in {folder.name}.")
    if paths and paths[0].parent != folder:
        raise InvalidData(f"{names[0]} is in a subfolder. Move it to {folder.name} or remove it.")
    return paths[0] if paths else None


def _fail(line: int, problem: str) -> NoReturn:
    raise InvalidData(f"{MANIFEST}, line {line}: {problem}.")


class _ImageFinder:
    """Finds images by paths that were written on another machine."""

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        self._exact: dict[str, set[Path]] = {}
        self._composed: dict[str, set[Path]] = {}
        self._folded: dict[str, set[Path]] = {}
        for image in images:
            name = image.relative_to(folder).as_posix()
            self._exact[name] = {image}
            self._composed.setdefault(_compose(name), set()).add(image)
            self._folded.setdefault(_compose(name).casefold(), set()).add(image)

    def find(self, name: str) -> set[Path]:
        """Return the images that a path fits, those spelled most alike; none, one or several."""
        if name in self._exact:
            return self._exact[name]
        parts = posixpath.normpath(_compose(name)).strip("/").split("/")
        for start in range(len(parts)):  # the whole path first, then what remains below a parent folder
            tail = "/".join(parts[start:])
            found = self._composed.get(tail) or self._folded.get(tail.casefold())
            if found:
                return found
        return set()


def _compose(name: str) -> str:
    """Return a path with slashes and composed accents, which macOS writes decomposed."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _read_rows(data: bytes) -> Iterator[_Row]:
    """Yield the rows of a manifest. Raises InvalidData."""
    # Not `splitlines`, which also splits at characters that a name may hold.
    lines = _decode(data).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    n_skipped = next((i for i, line in enumerate(lines) if not _is_preamble(line)), len(lines))
    header = lines[n_skipped] if lines[n_skipped:] else ""
    delimiter, columns = _read_header(header)
    body = io.StringIO("\n".join(lines[n_skipped + 1 :]), newline="")
    reader = csv.reader(body, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            line = n_skipped + 1 + reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) < len(columns) or any(cell.strip() for cell in cells[len(columns) :]):
                _fail(
                    line,
                    f"it has {len(cells)} cells, not {len(columns)}. Add what is missing, or quote a cell "
                    f'that holds "{delimiter}"',
                )
            name, group = (cells[columns.index(column)].strip() for column in _COLUMNS)
            if not name:
                _fail(line, "the path is empty. Add it or remove the line")
            yield line, name, unicodedata.normalize("NFC", group)
    except csv.Error as error:
        _fail(n_skipped + 1 + reader.line_num, f"it cannot be read ({error}). Correct its quotes")


def _is_preamble(line: str) -> bool:
    """Return whether a line before the header says nothing; Excel reads "sep=;" there."""
    return not line.strip() or line.strip().lower().startswith("sep=")


def _read_header(header: str) -> tuple[str, list[str]]:
    """Return the delimiter and the names of the columns. Raises InvalidData."""
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        columns = [cell.strip().lower().replace(" ", "_") for cell in cells]
        while columns and not columns[-1]:
            columns.pop()
        if set(_COLUMNS) <= set(columns):
            if any(columns.count(column) > 1 for column in _COLUMNS):
                raise InvalidData(f"{MANIFEST} has a column twice. Keep one path and one source_group.")
            return delimiter, columns
    raise InvalidData(
        f"{MANIFEST} needs the columns {_COLUMNS[0]} and {_COLUMNS[1]}. Add them or remove the file."
    )


def _decode(data: bytes) -> str:
    encodings: Sequence[str] = _ENCODINGS
    if encoding := _BYTE_ORDER_MARKS.get(data[:2]) or _WITHOUT_MARK.get(
        (data[:1] == b"\0", data[1:2] == b"\0")
    ):
        encodings = [encoding]
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InvalidData(f"{MANIFEST} is not a text file. Save it as UTF-8.")
