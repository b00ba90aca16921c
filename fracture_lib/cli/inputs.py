"""From an argument of the command line to image files: a path, a folder or a pattern."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fracture_lib.errors import InvalidImage
from fracture_lib.io.files import is_image_file, is_metadata, walk_files

__all__ = ["find_images", "unique"]


def find_images(argument: str) -> tuple[list[Path], int]:
    """Return the images and ZIP archives that a path, folder or pattern stands for, in alphabetical order.

    A folder is searched with its subfolders. Hidden files are left out, and so are files in a folder or of a
    pattern that plainly are not images; the second value is the number of the latter. No file is returned
    twice. A path that does not exist is returned as it is. Raises InvalidImage if there is no image, and
    OSError if a folder cannot be read.
    """
    path = Path(argument)
    if path.is_dir():
        files, place = list(walk_files(path)), "in this folder"
    elif path.exists() or not any(character in argument for character in "*?["):
        return [path], 0
    else:
        matches = map(Path, sorted(_expand(argument)))
        files = [file for match in matches for file in (walk_files(match) if match.is_dir() else [match])]
        place = "among the files that match this pattern"
        if not files:
            raise InvalidImage("No file matches this pattern. Check the path.")
    files = list(unique(files, set()))
    images = [file for file in files if is_image_file(file) or file.suffix.lower() == ".zip"]
    if not images:
        raise InvalidImage(f"There is no image {place}. Check the path.")
    return images, len(files) - len(images)


def unique(paths: Iterable[Path], seen: set[str]) -> Iterator[Path]:
    """Yield the paths whose file is not in `seen`, and add it: a link and its target are one file."""
    for path in paths:
        file = os.path.realpath(path)
        if file not in seen:
            seen.add(file)
            yield path


def _expand(pattern: str) -> Iterator[str]:
    """Yield what a pattern matches, as `glob` does, but follow no link to a folder for "**": it may loop."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern)  # noqa: PTH207, skips hidden files
        return
    at = parts.index("**")
    rest = parts[at + 1 :]
    for base in glob.iglob(str(Path(*parts[:at]))) if at else ["."]:  # noqa: PTH207
        if not rest:
            yield base
            continue
        for folder, subfolders, _ in os.walk(base):
            subfolders[:] = [name for name in subfolders if not is_metadata([name])]
            matches = map(Path, _expand(str(Path(glob.escape(folder), *rest))))
            yield from (str(m) for m in matches if not (m.is_symlink() and m.is_dir()))
