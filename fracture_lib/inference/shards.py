"""A folder of Parquet shards with one row per image, which a run that was killed resumes.

`_index.parquet` lists the images, row group k those of shard k, and holds the settings. `part-00000.parquet`
and so on are written whole or not at all, so a shard that can be read is done. Tools that read a folder of
Parquet files leave out names that begin with "_" or ".".
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from fracture_lib.errors import InvalidArgument, InvalidImage
from fracture_lib.hub import Runtime
from fracture_lib.inference.batch import BatchRow, RowStatus
from fracture_lib.inference.sources import RESULTS_KEY, SourceImage, list_images
from fracture_lib.labels import LABEL2ID

__all__ = ["Settings", "Shards", "open_shards", "to_record"]

INDEX = "_index.parquet"

# Addresses are binary, as the name of a file may hold bytes that are not text.
_INDEX_SCHEMA = pa.schema([("image", pa.string()), ("address", pa.binary()), ("position", pa.int64())])


@dataclass(frozen=True)
class Settings:
    """What the rows depend on; a run with other settings does not resume."""

    source: str
    models: Mapping[str, str]  # the names of the models, and where their weights come from
    runtime: Runtime
    fast: bool
    skip_ood_check: bool
    shard_size: int  # images
    version: str  # of this library


@dataclass(frozen=True)
class Shards:
    """The shards of one source in a folder."""

    folder: Path
    settings: Settings
    n_images: int
    n_left_out: int  # files of the source that are not images
    n_shards: int

    def pending(self) -> list[int]:
        """Return the numbers of the shards that are not written yet."""
        return [number for number in range(self.n_shards) if not self.is_written(number)]

    def is_written(self, number: int) -> bool:
        """Return whether a shard is there and whole; one damaged since then is not."""
        try:
            return bool(pq.read_metadata(self._path(number)).num_rows == self.n_rows(number))
        except (OSError, pa.ArrowInvalid):
            return False

    def images(self, number: int) -> list[SourceImage]:
        """Return the images of a shard, in order."""
        rows = pq.ParquetFile(self.folder / INDEX).read_row_group(number).to_pylist()
        return [SourceImage(row["image"], os.fsdecode(row["address"]), row["position"]) for row in rows]

    def n_rows(self, number: int) -> int:
        """Return the number of images in a shard."""
        size = self.settings.shard_size
        return min(size, self.n_images - number * size)

    def write(self, number: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a shard; `records` are those of its images, from `to_record`."""
        schema = _schema(self.settings)
        with _written_whole(self._path(number)) as path:
            pq.write_table(pa.Table.from_pylist(list(records), schema), path, compression="zstd")

    def outcomes(self) -> tuple[Counter[RowStatus], int]:
        """Return the number of images with each status, and of those with an error; all must be written."""
        counts: Counter[RowStatus] = Counter()
        n_errors = 0
        for number in range(self.n_shards):
            table = pq.read_table(self._path(number), columns=["status", "error"])
            counts.update(table["status"].to_pylist())
            n_errors += len(table) - table["error"].null_count
        return counts, n_errors

    def remove_scratch(self) -> None:
        """Remove the files that killed runs were writing."""
        for path in self.folder.glob(".*.parquet.*"):
            path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.parquet"


def open_shards(folder: Path, settings: Settings) -> Shards:
    """List the source and return its shards in a folder, which is made or holds those of an earlier run.

    Raises InvalidArgument if the earlier run had other settings or images, or if the folder holds other
    files or a damaged index, InvalidImage if there is no image, and what `list_images` raises.
    """
    index = folder / INDEX
    if index.exists():
        _check_settings(folder, settings)
    elif folder.exists() and any(not path.name.startswith(f".{INDEX}") for path in folder.iterdir()):
        raise InvalidArgument(f"{folder} holds other files. Choose a new folder for --out.")
    with _kept_if_used(folder), _written_whole(index) as path:
        n_left_out = _write_index(path, settings)
        metadata = pq.read_metadata(path)
        if metadata.num_rows == 0:
            raise InvalidImage(f"There is no image in {settings.source}. Check the path.")
        if index.exists() and pq.read_metadata(index).metadata != metadata.metadata:
            raise InvalidArgument(
                f"The images in {settings.source} are not those that {folder} was begun with. "
                "Choose a new folder for --out."
            )
    return Shards(folder, settings, metadata.num_rows, n_left_out, metadata.num_row_groups)


def _check_settings(folder: Path, settings: Settings) -> None:
    try:
        metadata = pq.read_metadata(folder / INDEX).metadata
    except pa.ArrowInvalid as error:
        raise InvalidArgument(f"{folder / INDEX} is damaged. Choose a new folder for --out.") from error
    earlier = json.loads(metadata.get(RESULTS_KEY, b"{}"))
    changed = [name for name, value in asdict(settings).items() if earlier.get(name) != value]
    if changed:
        others = ", ".join(f"{name} {json.dumps(earlier.get(name))}" for name in changed)
        raise InvalidArgument(
            f"{folder} was begun with other settings: {others}. Use the same to resume, or choose a new "
            "folder for --out."
        )


def _write_index(path: Path, settings: Settings) -> int:
    """List the images of the source; return the number of its other files."""
    n_left_out = 0
    digest = hashlib.sha256()

    def images() -> Iterator[SourceImage]:
        nonlocal n_left_out
        for image in list_images(settings.source):
            if image is None:
                n_left_out += 1
            else:
                yield image

    remaining = images()
    with pq.ParquetWriter(path, _INDEX_SCHEMA.with_metadata({RESULTS_KEY: _to_json(settings)})) as writer:
        while shard := [_to_index_row(image) for image in islice(remaining, settings.shard_size)]:
            digest.update(repr(shard).encode())
            writer.write_table(pa.Table.from_pylist(shard, _INDEX_SCHEMA))
        writer.add_key_value_metadata({b"images": digest.hexdigest()})
    return n_left_out


def _to_index_row(image: SourceImage) -> dict[str, Any]:
    name = image.name.encode(errors="backslashreplace").decode()
    return {"image": name, "address": os.fsencode(image.address), "position": image.position}


@contextmanager
def _kept_if_used(folder: Path) -> Iterator[None]:
    """Make a folder; remove it again if it is new and stays empty, as for a mistyped source."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a file that takes the place of `path` when it is written."""
    scratch = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield scratch
        with scratch.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _schema(settings: Settings) -> pa.Schema:
    """Return the columns of a shard."""
    return pa.schema(
        [
            ("image", pa.string()),
            ("status", pa.string()),  # as in the CSV file
            ("error", pa.string()),  # why it is unreadable or rejected, or which model failed
            ("warnings", pa.list_(pa.string())),
            ("ood_score", pa.float32()),
            ("fracture", pa.string()),  # the detector's outcome
            ("fracture_probability", pa.float32()),
            *((_column(model, label), pa.float32()) for model in settings.models for label in LABEL2ID),
        ],
        metadata={RESULTS_KEY: _to_json(settings)},
    )


def _column(model: str, label: str) -> str:
    """Return the name of the column of a class's probability."""
    return f"{model}.{label}"


def _to_json(settings: Settings) -> str:
    return json.dumps(asdict(settings))


def to_record(row: BatchRow) -> dict[str, Any]:
    """Return the row of a shard for an image; what was not computed is None."""
    ood = row.result.ood if row.result else None
    fracture = row.result.fracture if row.result else None
    predictions = row.result.predictions.values() if row.result else ()
    errors = [row.reason, *(f"{model}: {reason}" for model, reason in row.failures.items())]
    return {
        "image": row.name,
        "status": row.status,
        "error": " ".join(filter(None, errors)) or None,
        "warnings": list(row.warnings),
        "ood_score": ood.score if ood else None,
        "fracture": fracture.outcome if fracture else None,
        "fracture_probability": fracture.probability if fracture else None,
        **{_column(p.model, s.label): s.probability for p in predictions for s in p.scores},
    }
