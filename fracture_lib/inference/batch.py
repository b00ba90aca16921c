"""Many images: files and ZIP archives in, one result or one error message per image out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias
from zipfile import ZipInfo

from fracture_lib.errors import FractureError, InvalidImage
from fracture_lib.hub import Reference
from fracture_lib.inference.archives import is_archive, list_members, read_member
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import ComparisonResult, Status
from fracture_lib.io.files import is_metadata
from fracture_lib.registry import ALL_MODELS

__all__ = [
    "MAX_IMAGES",
    "BatchInput",
    "BatchInputs",
    "BatchRow",
    "RowStatus",
    "count_left_out",
    "list_inputs",
    "number_names",
    "predict_batch",
    "tally",
]

MAX_IMAGES = 200
NO_IMAGE_IN_ZIP = "There is no image in the ZIP. Pack images into it."

RowStatus: TypeAlias = Status | Literal["unreadable"]
STATUSES: tuple[RowStatus, ...] = ("answered", "rejected", "failed", "unreadable")


@dataclass(frozen=True)
class BatchInput:
    """One image to read: a file, or a member of a ZIP archive."""

    name: str  # unique in its batch; of a member with its path inside the ZIP
    path: Path
    member: ZipInfo | None = None  # of the ZIP at `path`
    error: str = ""  # why a ZIP gives no image


@dataclass(frozen=True)
class BatchInputs:
    """The images of a batch, and a sentence about the files in ZIP archives that are not images."""

    inputs: tuple[BatchInput, ...]
    left_out: str = ""

    def __iter__(self) -> Iterator[BatchInput]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class BatchRow:
    """The outcome for one image."""

    name: str
    result: ComparisonResult | None  # None for an unreadable image
    error: str = ""  # why it is unreadable

    @property
    def status(self) -> RowStatus:
        return self.result.status if self.result else "unreadable"

    @property
    def reason(self) -> str:
        """Why the image was not classified at all; empty if it was."""
        if self.result is None:
            return self.error
        return self.result.ood.message if self.result.is_rejected and self.result.ood else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings about the image, without `reason`."""
        return tuple(w for w in self.result.warnings if w != self.reason) if self.result else ()

    @property
    def failures(self) -> Mapping[str, str]:
        """The models that failed, and why."""
        return self.result.failures if self.result else {}

    def to_dict(self, top_k: int | None = None) -> dict[str, Any]:
        """Return JSON-ready values: those of the result, or the image's name, status and error."""
        if self.result:
            return self.result.to_dict(top_k)
        return {"image": self.name, "status": self.status, "error": self.error}


def list_inputs(
    paths: Iterable[str | PathLike[str]], limit: int | None = MAX_IMAGES, full_paths: bool = False
) -> BatchInputs:
    """List all images in the files `paths`, including the members of ZIP archives.

    A file is taken as an image; of a ZIP's members only those that could be one, and `left_out` counts the
    others. Unpacks nothing to disk, so a name with ".." leads nowhere. Names are those of the files, with
    the path inside a ZIP, or with `full_paths` the paths as given; the ZIP's own name is added if there are
    several, and a number where names would still be equal. Raises InvalidImage if there is no image, or more
    than `limit`.
    """
    files = [path for path in map(Path, paths) if full_paths or not is_metadata([path.name])]
    labels = number_names(str(path) if full_paths else path.name for path in files)
    archives = {path for path in files if is_archive(path)}
    inputs: list[BatchInput] = []
    left_out: list[str] = []
    for path, label in zip(files, labels, strict=True):
        if path not in archives:
            inputs.append(BatchInput(label, path))
            continue
        try:
            members, n_left_out = list_members(path)
        except InvalidImage as error:
            inputs.append(BatchInput(label, path, error=str(error)))
            continue
        if not members:
            inputs.append(BatchInput(label, path, error=NO_IMAGE_IN_ZIP))
        folder = f"{label}/" if full_paths or len(archives) > 1 else ""
        inputs += [BatchInput(folder + member.name, path, member.info) for member in members]
        left_out += [count_left_out(n_left_out, label)] if n_left_out else []
    if not inputs:
        raise InvalidImage("Add images or a ZIP first.")
    if all(item.error for item in inputs):
        raise InvalidImage(" ".join([*dict.fromkeys(item.error for item in inputs), *left_out]))
    if limit is not None and len(inputs) > limit:
        raise InvalidImage(f"Too many images ({len(inputs)}); the limit is {limit}. Send fewer at once.")
    names = number_names(item.name for item in inputs)
    return BatchInputs(
        tuple(replace(item, name=name) for item, name in zip(inputs, names, strict=True)), " ".join(left_out)
    )


def number_names(names: Iterable[str]) -> list[str]:
    """Return names that differ: "x.png", "x.png (2)"."""
    taken: dict[str, None] = {}
    counts: Counter[str] = Counter()
    for name in names:
        numbered = name
        while numbered in taken:
            counts[name] += 1
            numbered = f"{name} ({counts[name] + 1})"
        taken[numbered] = None
    return list(taken)


def count_left_out(n: int, place: str) -> str:
    """Return the sentence about `n` files that are not images."""
    if n == 1:
        return f"1 file in {place} is not an image and was left out."
    return f"{n} files in {place} are not images and were left out."


def predict_batch(
    pipeline: InferencePipeline,
    inputs: Iterable[BatchInput],
    skip_ood_check: bool = False,
    models: Sequence[Reference] = ALL_MODELS,
) -> Iterator[BatchRow]:
    """Yield a BatchRow for each of the inputs, in order; an unreadable image does not stop the others."""
    for item in inputs:
        try:
            if item.error:
                raise InvalidImage(item.error)
            source = item.path if item.member is None else read_member(item.path, item.member)
            result = pipeline.predict(source, models, item.name, skip_ood_check)
            yield BatchRow(item.name, result)
        except FractureError as error:
            yield BatchRow(item.name, None, str(error))


def tally(statuses: Iterable[RowStatus]) -> str:
    """Return "12 images: 9 answered, 2 rejected, 1 unreadable."; the counts add up."""
    counts = Counter(statuses)
    n = counts.total()
    parts = [f"{counts[s]} {s}" for s in STATUSES if counts[s] or s == "answered"]
    return f"{n} image{'s' * (n != 1)}: {', '.join(parts)}."
