"""Where films come from: a folder, a `datasets` image folder, a dataset on the Hub, or one on Kaggle.

All become a folder that `fracture_lib.data.load_films` reads, so there is one reader of films.
"""

import csv
import tempfile
from pathlib import Path

from fracture_lib.errors import FractureError, InvalidData
from fracture_lib.hub import is_hub_id, reason
from fracture_lib.labels import ID2LABEL, label_id

__all__ = ["KAGGLE", "film_folder"]

KAGGLE = "kaggle:"


def film_folder(reference):
    """Return the Path of the folder of films that `reference` names, fetched first where it must be.

    `reference` is a folder, which may hold the metadata.csv or metadata.jsonl of a `datasets` image
    folder; a Hub dataset "owner/name[@revision]"; or "kaggle:owner/name". What is fetched is kept and
    not fetched again. Raises InvalidData with what to do, UnknownLabel where a class is none of ours.
    """
    reference = str(reference)
    if Path(reference).is_dir():
        described = any((Path(reference) / name).exists() for name in ("metadata.csv", "metadata.jsonl"))
        return _from_image_folder(Path(reference)) if described else Path(reference)
    if reference.startswith(KAGGLE):
        return _from_kaggle(reference.removeprefix(KAGGLE))
    if is_hub_id(reference):
        return _from_hub(reference)
    raise InvalidData(
        f"There is no folder {reference}: give the one that holds the class folders, a Hub dataset "
        f'"owner/name", or "{KAGGLE}owner/name".'
    )


def _from_hub(reference):
    from datasets import load_dataset
    from huggingface_hub import HfApi

    repo, _, revision = reference.partition("@")
    try:
        sha = HfApi().dataset_info(repo, revision=revision or None).sha
        return _laid_out(f"{repo.replace('/', '--')}-{sha}", lambda: load_dataset(repo, revision=sha))
    except FractureError:
        raise
    except Exception as error:  # the clients' own errors and their HTTP library's share no base
        raise InvalidData(
            f"Cannot get the dataset {repo} from the Hub ({reason(error)}): check its name; if it is private "
            "or gated, log in with `hf auth login` or set HF_TOKEN."
        ) from error


def _from_image_folder(folder):
    from datasets import load_dataset

    changed = max(p.stat().st_mtime_ns for p in folder.rglob("*"))
    try:
        return _laid_out(
            f"{folder.resolve().name}-{changed}",
            lambda: load_dataset("imagefolder", data_dir=str(folder.resolve())),
        )
    except FractureError:
        raise
    except Exception as error:
        raise InvalidData(f"{folder} is no image folder that datasets can read: {reason(error)}") from error


def _from_kaggle(name):
    try:
        import kagglehub
    except ImportError as error:
        raise InvalidData("Kaggle's films need its client: pip install kagglehub.") from error
    try:
        folder = Path(kagglehub.dataset_download(name))
    except Exception as error:
        raise InvalidData(
            f"Cannot get {name} from Kaggle ({reason(error)}): set KAGGLE_USERNAME and KAGGLE_KEY, or "
            "download it by hand and give its folder."
        ) from error
    while len(inside := [p for p in folder.iterdir() if not p.name.startswith(".")]) == 1:
        folder = inside[0]  # the archive wraps its folders in a folder
    return folder


def _laid_out(name, load):
    """Write what `load` returns, a DatasetDict, as <split>/<class>/film and manifest.csv; once for a name."""
    from datasets import Image, config

    kept = Path(config.HF_CACHE_HOME) / "fracture-films" / name
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        folder = Path(scratch) / "films"
        listed = []
        for split, rows in load().items():
            labels = rows.features.get("label")
            if "image" not in rows.features or labels is None:
                raise InvalidData(
                    f"{name} lacks the columns image and label: it has {', '.join(rows.features)}."
                )
            for i, row in enumerate(rows.cast_column("image", Image(decode=False))):
                label = labels.int2str(row["label"]) if hasattr(labels, "int2str") else row["label"]
                image = row["image"]
                data = image["bytes"] or Path(image["path"]).read_bytes()
                suffix = Path(image["path"] or "film.png").suffix or ".png"
                known = ID2LABEL[label_id(str(label))]  # never a stranger's words as a path
                path = folder / split / known / f"{i:06d}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                listed.append((path.relative_to(folder).as_posix(), row.get("source_group")))
        if all(group is not None for _, group in listed):
            with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("path", "source_group"), *listed])
        try:
            folder.replace(kept)
        except OSError:  # another process was first
            if not kept.exists():
                raise
    return kept
