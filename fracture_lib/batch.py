"""Many films: files and ZIP archives in, one Result or one sentence a film out, as they come."""

import csv
import io
import stat
import zipfile
from pathlib import Path, PurePosixPath

from fracture_lib.errors import FractureError, InvalidImage
from fracture_lib.labels import LABEL2ID
from fracture_lib.panel import in_words
from fracture_lib.preprocess import MAX_BYTES

__all__ = ["MAX_FILMS", "ask_each", "collect", "to_csv"]

MAX_FILMS = 200
MAX_DIRECTORY = 1_000_000  # bytes of a ZIP's list of its files, of which zipfile makes an object each
MAX_UNPACKED = 1_000_000_000  # bytes of all films of a ZIP
MAX_RATIO = 200  # a 16-bit film that is mostly black packs to a hundredth
MAX_NAME = 100  # characters of a name that are shown, the last


def collect(paths):
    """Return [(name, path, member)] of all films in the files `paths`, ZIP archives looked into.

    `member` is the ZipInfo of a film in the ZIP at `path`, None for a file of its own. Nothing is unpacked
    yet, and nothing ever to disk, so names with ".." lead nowhere. Raises InvalidImage where there is
    nothing or too much.
    """
    films = []
    for path in map(Path, paths):
        if zipfile.is_zipfile(path):
            films += [(PurePosixPath(m.filename).name[-MAX_NAME:], path, m) for m in _members(path)]
        else:
            films.append((path.name, path, None))
    if not films:
        raise InvalidImage("There is no film to look at: add files, or a ZIP that holds some.")
    if len(films) > MAX_FILMS:
        raise InvalidImage(f"{len(films)} films are too many at once: give {MAX_FILMS} or fewer.")
    return films


class _Listed(io.FileIO):
    """A ZIP of which the list of files is read, in one go, if it is not too long."""

    def read(self, size=-1):
        if size > MAX_DIRECTORY:
            raise InvalidImage("A ZIP lists too many files, or is damaged: pack the films alone.")
        return super().read(size)


def _members(path):
    try:
        with _Listed(path) as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except InvalidImage:
        raise
    except Exception as error:  # zipfile raises many types on a damaged list
        raise InvalidImage(f"The ZIP {path.name} is damaged: pack it again.") from error
    if sum(info.file_size for info in members) > MAX_UNPACKED:
        raise InvalidImage(
            f"The ZIP {path.name} unpacks to over {MAX_UNPACKED // 10**9} GB: give fewer films at once."
        )
    return [m for m in members if not any(map(_is_litter, PurePosixPath(m.filename).parts))]


def _is_litter(part):
    """Whether a folder or file is one that macOS and others add to archives on their own."""
    return part == "__MACOSX" or (part.startswith(".") and part != "..")


def _read_member(path, info):
    if info.flag_bits & 1:
        raise InvalidImage("It is encrypted: pack the ZIP without a password.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise InvalidImage("It is a link to a file: pack the film itself.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidImage("It is packed in a rare way: pack the ZIP again.")
    if info.file_size > min(MAX_BYTES, MAX_RATIO * max(info.compress_size, 1000)):
        raise InvalidImage("It unpacks to too much: send it as a file of its own.")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            data = file.read(MAX_BYTES + 1)  # without a number, zipfile would believe no header and no limit
    except Exception as error:  # zipfile's and zlib's own errors share no base
        raise InvalidImage("It cannot be unpacked: pack the ZIP again.") from error
    if zipfile.is_zipfile(io.BytesIO(data)):
        raise InvalidImage("It is a ZIP inside a ZIP: unpack that one first.")
    return data


def ask_each(panel, films, anyway=False):
    """Yield (name, Result or None, sentence) for each of `collect`'s films, in order.

    A film that cannot be read gives None and a sentence; the others go on.
    """
    for name, path, member in films:
        try:
            source = path if member is None else _read_member(path, member)
            yield name, panel.ask(source, name=name, anyway=anyway), ""
        except FractureError as error:
            yield name, None, str(error)


def to_csv(rows):
    """`ask_each`'s rows -> a CSV text: a line a film and model, all ten probabilities."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["film", "model", "answer", *LABEL2ID, "in_words", "note"])
    for name, result, sentence in rows:
        name = _inert(name)
        if not (result and result.predictions):
            note = sentence or result.verdict.sentence
            writer.writerow([name, "", "", *[""] * len(LABEL2ID), "", note])
            continue
        for p in result.predictions.values():
            probability = {s.label: f"{s.probability:.4f}" for s in p.scores}
            notes = " ".join([*result.notices, result.verdict.sentence]).strip()
            columns = [probability[label] for label in LABEL2ID]
            writer.writerow([name, p.model, p.scores[0].label, *columns, in_words(result), notes])
    return file.getvalue()


def _inert(name):
    """A file name that a spreadsheet will not take for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
