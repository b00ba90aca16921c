"""Many images: files and ZIP archives in, one result or one error message per image out."""

import csv
import io
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath

from fracture_lib.errors import FractureError, InvalidImage
from fracture_lib.hub import Reference
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import ComparisonResult
from fracture_lib.io.image import MAX_BYTES
from fracture_lib.labels import LABEL2ID
from fracture_lib.registry import ALL_MODELS

__all__ = ["MAX_IMAGES", "BatchInput", "BatchRow", "list_inputs", "predict_batch", "to_csv"]

MAX_IMAGES = 200
MAX_DIRECTORY = 1_000_000  # bytes of a ZIP's directory, of which zipfile makes one object per file
MAX_UNPACKED = 1_000_000_000  # bytes of all images of a ZIP
MAX_RATIO = 200  # a mostly black 16-bit image compresses to a hundredth
MAX_NAME = 100  # characters of a name that are shown, from its end


@dataclass(frozen=True)
class BatchInput:
    """One image to read: a file, or a member of a ZIP archive."""

    name: str  # to show
    path: Path
    member: zipfile.ZipInfo | None = None  # of the ZIP at `path`


@dataclass(frozen=True)
class BatchRow:
    """The outcome for one image."""

    name: str
    result: ComparisonResult | None  # None for an unreadable image
    error: str = ""  # why it is unreadable


def list_inputs(paths: Iterable[str | PathLike[str]]) -> list[BatchInput]:
    """List all images in the files `paths`, including the members of ZIP archives.

    Unpacks nothing yet, and never to disk, so a name with ".." leads nowhere. Raises InvalidImage if
    there is no image, or too many.
    """
    inputs: list[BatchInput] = []
    for path in map(Path, paths):
        if zipfile.is_zipfile(path):
            inputs += [
                BatchInput(PurePosixPath(m.filename).name[-MAX_NAME:], path, m) for m in _members(path)
            ]
        else:
            inputs.append(BatchInput(path.name, path))
    if not inputs:
        raise InvalidImage("Add images or a ZIP first.")
    if len(inputs) > MAX_IMAGES:
        raise InvalidImage(f"Too many images ({len(inputs)}); the limit is {MAX_IMAGES}.")
    return inputs


class _BoundedFile(io.FileIO):
    """A file that rejects a single huge read, which is how zipfile reads a ZIP's directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise InvalidImage("The ZIP lists too many files or is damaged. Pack only the images.")
        return super().read(size) or b""


def _members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except InvalidImage:
        raise
    except Exception as error:  # zipfile raises many types on a damaged directory
        raise InvalidImage(f"The ZIP {path.name} is damaged. Pack it again.") from error
    if sum(info.file_size for info in members) > MAX_UNPACKED:
        raise InvalidImage(
            f"The ZIP {path.name} unpacks to more than {MAX_UNPACKED // 10**9} GB. Send fewer images at once."
        )
    return [m for m in members if not any(map(_is_metadata, PurePosixPath(m.filename).parts))]


def _is_metadata(part: str) -> bool:
    """Return whether a file or folder is one that macOS and others add to archives."""
    return part == "__MACOSX" or (part.startswith(".") and part != "..")


def _read_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    if info.flag_bits & 1:
        raise InvalidImage("The file is encrypted. Pack the ZIP without a password.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise InvalidImage("This is a link to a file. Pack the image itself.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidImage("The compression method is not supported. Pack the ZIP with Deflate.")
    if info.file_size > min(MAX_BYTES, MAX_RATIO * max(info.compress_size, 1000)):
        raise InvalidImage("The file unpacks to too much. Upload it on its own.")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            data = file.read(MAX_BYTES + 1)  # bounded, as the sizes in the header may be false
    except Exception as error:  # zipfile's and zlib's errors share no base
        raise InvalidImage("The file cannot be unpacked. Pack the ZIP again.") from error
    if zipfile.is_zipfile(io.BytesIO(data)):
        raise InvalidImage("This is a ZIP inside a ZIP. Unpack it first.")
    return data


def predict_batch(
    pipeline: InferencePipeline,
    inputs: Iterable[BatchInput],
    skip_ood_check: bool = False,
    models: Sequence[Reference] = ALL_MODELS,
) -> Iterator[BatchRow]:
    """Yield a BatchRow for each of the inputs, in order; an unreadable image does not stop the others."""
    for item in inputs:
        try:
            source = item.path if item.member is None else _read_member(item.path, item.member)
            result = pipeline.predict(source, models, item.name, skip_ood_check)
            yield BatchRow(item.name, result)
        except FractureError as error:
            yield BatchRow(item.name, None, str(error))


def to_csv(rows: Iterable[BatchRow]) -> str:
    """Return CSV text: one line per image and model, with all ten probabilities."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["image", "model", "label", *LABEL2ID, "summary", "warnings"])
    for row in rows:
        name = _escape_formula(row.name)
        warnings = " ".join(row.result.warnings) if row.result else row.error
        if not (row.result and row.result.predictions):
            writer.writerow([name, "", "", *[""] * len(LABEL2ID), "", warnings])
            continue
        for p in row.result.predictions.values():
            by_label = {s.label: f"{s.probability:.4f}" for s in p.scores}
            columns = [by_label[label] for label in LABEL2ID]
            writer.writerow([name, p.model, p.label, *columns, row.result.summary, warnings])
    return file.getvalue()


def _escape_formula(name: str) -> str:
    """Return a file name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
