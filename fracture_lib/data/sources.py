"""Where datasets come from: a folder, an image folder of `datasets`, the Hub or Kaggle.

Each becomes a folder that `fracture_lib.data.dataset` reads, so that there is one reader of images.
"""

import csv
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fracture_lib.data.manifest import MANIFEST
from fracture_lib.errors import FractureError, InvalidData, UnknownLabel
from fracture_lib.hub import HUB_PREFIX, first_line, is_repo_id, split_revision
from fracture_lib.labels import ID2LABEL, label_id

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

__all__ = ["KAGGLE_PREFIX", "find_dataset", "resolve_dataset"]

KAGGLE_PREFIX = "kaggle:"
METADATA_FILES = ("metadata.csv", "metadata.jsonl")  # of an image folder of `datasets`


def resolve_dataset(reference: str | Path) -> Path:
    """Return the folder of a dataset; download it first if necessary and keep it for the next call.

    `reference` is "hf-hub:owner/name[@revision]", "kaggle:owner/name" or a folder, which may hold the
    metadata.csv or metadata.jsonl of an image folder of `datasets`. Raises InvalidData for anything else
    and if a dataset cannot be fetched, and UnknownLabel if it has other classes.
    """
    if isinstance(reference, str) and reference.startswith(KAGGLE_PREFIX):
        return _from_kaggle(reference.removeprefix(KAGGLE_PREFIX))
    if isinstance(reference, str) and reference.startswith(HUB_PREFIX):
        return _from_hub(reference.removeprefix(HUB_PREFIX))
    folder = Path(reference)
    if reference == "" or not folder.is_dir():  # an unset variable must not be the current folder
        raise InvalidData(
            f"There is no folder {reference or '(empty)'}. Give the folder that holds the class folders, "
            f'"{HUB_PREFIX}owner/name" or "{KAGGLE_PREFIX}owner/name".'
        )
    has_metadata = any((folder / name).exists() for name in METADATA_FILES)
    return _from_image_folder(folder) if has_metadata else folder


def find_dataset(reference: str) -> "DatasetInfo":
    """Return the Hub's description of the dataset "owner/name[@revision]". Raises InvalidData."""
    repo, revision = split_revision(reference)
    if not is_repo_id(repo):
        raise InvalidData(f'"{repo}" is not a Hub dataset. Write it as "{HUB_PREFIX}owner/name".')
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        return HfApi().dataset_info(repo, revision=revision)


def _from_hub(reference: str) -> Path:
    from datasets import load_dataset
    from huggingface_hub import snapshot_download

    info = find_dataset(reference)
    repo, sha = info.id, info.sha
    with _hub_errors(repo):
        if _has_class_folders([file.rfilename for file in info.siblings or []]):
            return Path(snapshot_download(repo, repo_type="dataset", revision=sha))
        return _write_once(f"{repo.replace('/', '--')}-{sha}", lambda: load_dataset(repo, revision=sha))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn other exceptions into InvalidData: those of the clients and their HTTP library share no base."""
    try:
        yield
    except FractureError:
        raise
    except Exception as error:
        raise InvalidData(
            f"Cannot download the dataset {repo} from the Hub ({first_line(error)}). Check its name; if it "
            "is private or gated, log in with `hf auth login` or set HF_TOKEN."
        ) from error


def _has_class_folders(names: Iterable[str]) -> bool:
    """Return whether the files of a repository lie in class folders, without metadata of `datasets`.

    `datasets` would leave out DICOM files, whose suffix it does not know, and manifest.csv.
    """
    paths = [PurePosixPath(name) for name in names]
    has_metadata = any(path.name in METADATA_FILES for path in paths)
    return not has_metadata and any(_is_class(part) for path in paths for part in path.parts[:-1])


def _is_class(name: str) -> bool:
    try:
        label_id(name)
    except UnknownLabel:
        return False
    return True


def _from_image_folder(folder: Path) -> Path:
    from datasets import load_dataset

    newest = max(p.stat().st_mtime_ns for p in folder.rglob("*"))
    try:
        return _write_once(
            f"{folder.resolve().name}-{newest}",
            lambda: load_dataset("imagefolder", data_dir=str(folder.resolve())),
        )
    except FractureError:
        raise
    except Exception as error:  # as above
        raise InvalidData(
            f"datasets cannot read {folder} as an image folder ({first_line(error)}). Correct its metadata."
        ) from error


def _from_kaggle(name: str) -> Path:
    try:
        import kagglehub
    except ImportError as error:
        raise InvalidData("Kaggle datasets need kagglehub. Run: pip install kagglehub") from error
    try:
        folder = Path(kagglehub.dataset_download(name))
    except Exception as error:  # as above
        raise InvalidData(
            f"Cannot download {name} from Kaggle ({first_line(error)}). Set KAGGLE_USERNAME and KAGGLE_KEY, "
            "or download it by hand and give its folder."
        ) from error
    while len(visible := [p for p in folder.iterdir() if not p.name.startswith(".")]) == 1:
        folder = visible[0]  # the archive wraps its folders in a folder
    return folder


def _write_once(name: str, load: Callable[[], Mapping[str, Any]]) -> Path:
    """Return the folder that is kept as `name`; write it first if necessary.

    `load` returns a DatasetDict, which is written as <split>/<class>/image and manifest.csv.
    """
    from datasets import Image, config

    kept = Path(config.HF_CACHE_HOME) / "fracture-datasets" / name
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        folder = Path(scratch) / "images"
        manifest: list[tuple[str, str | None]] = []
        for split, rows in load().items():
            labels = rows.features.get("label")
            if "image" not in rows.features or labels is None:
                raise InvalidData(
                    f"{name} lacks the columns image and label; it has {', '.join(rows.features)}."
                )
            for i, row in enumerate(rows.cast_column("image", Image(decode=False))):
                label = labels.int2str(row["label"]) if hasattr(labels, "int2str") else row["label"]
                image = row["image"]
                data = image["bytes"] or Path(image["path"]).read_bytes()
                suffix = Path(image["path"] or "image.png").suffix or ".png"
                known_label = ID2LABEL[label_id(str(label))]  # a dataset's own text never becomes a path
                path = folder / split / known_label / f"{i:06d}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                manifest.append((path.relative_to(folder).as_posix(), row.get("source_group")))
        if any(group is not None for _, group in manifest):  # the writer leaves the cell of a None empty
            with (folder / MANIFEST).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("path", "source_group"), *manifest])
        try:
            folder.replace(kept)
        except OSError:  # another process was first
            if not kept.exists():
                raise
    return kept
