"""Publish on the Hugging Face Hub: a model with its card, images as a dataset, the page as a Space.

A push is one commit, so a failed one changes no file. `huggingface_hub` finds the token: that of
`hf auth login`, or HF_TOKEN.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.dataset import LabelledImages, assign_folds
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidArgument, InvalidModel, PushError
from fracture_lib.hub import MODEL_FILES, NATIVE_WEIGHTS, NOT_SERVED, first_line, is_repo_id, split_revision
from fracture_lib.labels import LABEL2ID
from fracture_lib.models.config import ModelConfig, read_config
from fracture_lib.models.json_files import decode, read_json
from fracture_lib.models.report import Interval, read_headline
from fracture_lib.publishing.cards import (
    EXAMPLE_IMAGE,
    is_detector,
    render_card,
    render_dataset_card,
    render_space_notebook,
    render_space_readme,
    source_checkout,
)
from fracture_lib.registry import MODELS

if TYPE_CHECKING:
    from huggingface_hub import HfApi, SpaceHardware

__all__ = [
    "ZERO_GPU",
    "PushResult",
    "RepoFiles",
    "RepoKind",
    "collect_dataset_files",
    "collect_model_files",
    "collect_space_files",
    "push_to_hub",
    "set_space_variables",
    "variables_for",
]

RepoKind = Literal["model", "dataset", "space"]
RepoFiles: TypeAlias = Mapping[str, Path | bytes]  # path in the repository -> local file or content

REQUIRED_MODEL_FILES = {"model.onnx", "head.safetensors", "evaluation.json"}
DETECTOR_FILES = ("config.json", "model.onnx", "evaluation.json")
# What the Space needs to start, beside its README.md and requirements.txt.
SPACE_FILES = ("app.py", "model_card.md", "LICENSE", "docs/*", "fracture_lib/**/*")
ALL_REQUIREMENTS, SERVING_REQUIREMENTS = "requirements.txt", "requirements-serving.txt"
NOTEBOOK = "train_colab.ipynb"  # takes its code from the Space
ZERO_GPU = "zero-a10g"  # hosts Spaces of free accounts; cpu-basic needs a paid plan
# Files of an earlier push that match are deleted unless they are sent again.
REPLACED_FILES: dict[RepoKind, Sequence[str]] = {
    "model": MODEL_FILES,
    "dataset": ["data/*.parquet"],
    "space": ["fracture_lib/*"],
}
SHARD_SIZE = 100_000_000  # bytes of images in a Parquet file, about: memory holds one at a time
TIMEOUT = 10  # seconds to wait for the Hub before a push
ADVICE_BY_STATUS = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token with write access.",
    402: "The account needs a paid plan for this hardware, or for more than two Spaces on ZeroGPU.",
    403: "Use a token with write access to it.",
    412: "Someone else pushed to it meanwhile; try again.",
}


class PushResult(NamedTuple):
    url: str | None  # of the commit or pull request; None for a dry run
    messages: list[str]  # what was done, or would be: one line each


def collect_model_files(folder: str | Path, repo: str) -> dict[str, Path | bytes]:
    """Return the files to push for the model or the detector in `folder`, its card written for `repo`.

    Raises InvalidModel if the folder is missing or incomplete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidModel(f"There is no folder {folder}. Check the path.")
    if is_detector(folder):
        return _collect_detector_files(folder, repo)
    read_config(folder)
    files = {name: folder / name for name in MODEL_FILES if (folder / name).exists()}
    if missing := sorted(REQUIRED_MODEL_FILES - files.keys()):
        raise InvalidModel(f"{folder.name} lacks {', '.join(missing)}; train the model again.")
    if not files.keys() & set(NATIVE_WEIGHTS):
        raise InvalidModel(
            f"{folder.name} has no native weights to publish. Push from a checkout or train it."
        )
    example = io.BytesIO()
    synthetic_radiograph("Spiral").save(example, "PNG")
    return {**files, EXAMPLE_IMAGE: example.getvalue(), "README.md": render_card(folder, repo).encode()}


def _collect_detector_files(folder: Path, repo: str) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = {name: folder / name for name in DETECTOR_FILES}
    if missing := [name for name in DETECTOR_FILES if not (folder / name).exists()]:
        raise InvalidModel(f"{folder.name} lacks {', '.join(missing)}; train the detector again.")
    return {**files, "README.md": render_card(folder, repo).encode()}


def collect_dataset_files(images: LabelledImages, folder: Path, n_folds: int = 5) -> dict[str, Path | bytes]:
    """Return the files to push for a dataset of `images`: a card, and Parquet files written to `folder`.

    Fold 0 of `n_folds` is the split "validation", the others are "train"; groups stay whole. Raises
    InvalidArgument or InvalidData if the images do not allow that many folds.
    """
    folds = assign_folds(images, n_folds)
    sizes = np.array([path.stat().st_size for path in images.paths])
    files: dict[str, Path | bytes] = {}
    splits = {}
    for split, mask in (("train", folds > 0), ("validation", folds == 0)):
        n_shards = int(sizes[mask].sum()) // SHARD_SIZE + 1
        for shard, indices in enumerate(np.array_split(np.flatnonzero(mask), n_shards)):
            name = f"{split}-{shard:05d}-of-{n_shards:05d}.parquet"
            _write_shard(folder / name, images, folds, indices)
            files[f"data/{name}"] = folder / name
        splits[split] = int(mask.sum())
    return {**files, "README.md": render_dataset_card(images, splits).encode()}


def _write_shard(
    path: Path, images: LabelledImages, folds: NDArray[np.int64], indices: NDArray[np.int64]
) -> None:
    """Write the images `indices` to a Parquet file."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=list(LABEL2ID)),
            "source_group": Value("int64"),
            "fold": Value("int64"),
        }
    )
    rows = [
        {
            "image": {"bytes": images.paths[i].read_bytes(), "path": images.paths[i].name},
            "label": int(images.labels[i]),
            "source_group": int(images.groups[i]),
            "fold": int(folds[i]),
        }
        for i in indices
    ]
    Dataset.from_list(rows, features).to_parquet(path)


def collect_space_files(
    repo: str, models: Sequence[str] = (), datasets: Sequence[str] = (), full: bool = False
) -> dict[str, Path | bytes]:
    """Return the files to push for the page as the Space `repo`.

    `models` are Hub repositories "owner/name@commit" that the Space serves: its README preloads them.
    `datasets` are Hub repositories that the README links. The Space installs what serving needs; with
    `full`, also what training and publishing need. Raises InvalidData unless this package runs from a
    source checkout, and InvalidArgument for what is not a dataset.
    """
    if wrong := [name for name in datasets if not is_repo_id(name)]:
        raise InvalidArgument(f'"{wrong[0]}" is not a dataset of the Hub. Write it as "owner/name".')
    root = source_checkout()
    paths = [path for pattern in SPACE_FILES for path in sorted(root.glob(pattern)) if path.is_file()]
    files = {
        path.relative_to(root).as_posix(): path
        for path in paths
        if not {"__pycache__", "checkpoints"} & set(path.parts) and path.name not in NOT_SERVED
    }
    return {
        **files,
        "README.md": render_space_readme(root / "README.md", repo, models, datasets).encode(),
        NOTEBOOK: render_space_notebook(root / NOTEBOOK, repo).encode(),
        "requirements.txt": root / (ALL_REQUIREMENTS if full else SERVING_REQUIREMENTS),
    }


def push_to_hub(
    files: RepoFiles,
    repo: str,
    kind: RepoKind = "model",
    private: bool = False,
    create_pr: bool = False,
    force: bool = False,
    dry_run: bool = False,
    hardware: str | None = None,
) -> PushResult:
    """Commit `files`, from one of the functions above, to the repository `repo`, "owner/name".

    Creates the repository, `private` or public, if it does not exist. With `create_pr`, opens a pull
    request instead of changing the main branch; with `dry_run`, sends nothing. A model that was measured
    to be better is only replaced with `force`. A Space runs on `hardware`; without it, a new Space runs
    on ZeroGPU, and an existing one keeps its hardware.

    Raises PushError, or InvalidModel if a model's evaluation.json has no accuracy or AUROC; no file of
    the repository is changed then.
    """
    if not is_repo_id(repo):
        raise PushError(f'"{repo}" is not a repository. Nothing was changed. Write it as "owner/name".')
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    flavor = None if hardware is None else _parse_hardware(hardware)
    api = HfApi()
    head, existing = _read_head(api, repo, kind)
    if kind == "space" and head is None:
        flavor = flavor or _parse_hardware(ZERO_GPU)
    obsolete = [
        path
        for path in existing
        if path not in files and any(fnmatch(path, pattern) for pattern in REPLACED_FILES[kind])
    ]
    messages = [
        f"{'update' if head else 'create'} the {'private ' if private else ''}{kind} {repo}"
        + (" by a pull request" if create_pr else ""),
        *(f"  {_size(content):>12,}  {path}" for path, content in files.items()),
        *(f"  {'deleted':>12}  {path}" for path in obsolete),
        *([f"hardware {flavor.value}"] if flavor else []),
    ]
    if kind == "model":
        messages.append(_compare_headlines(api, repo, head, files["evaluation.json"], force))
    if dry_run:
        return PushResult(None, messages)
    with _push_errors(repo):
        if head is None:
            sdk = "gradio" if kind == "space" else None
            api.create_repo(
                repo, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk, space_hardware=flavor
            )
            head, _ = _read_head(api, repo, kind)
        elif flavor:
            api.request_space_hardware(repo, flavor)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(path, content) for path, content in files.items()]
            + [CommitOperationDelete(path) for path in obsolete],
            commit_message=f"Push {len(files)} files of a {kind} with fracture_lib",
            repo_type=kind,
            create_pr=create_pr,
            parent_commit=head,  # fail instead of overwriting what someone else pushed meanwhile
        )
    return PushResult(commit.pr_url or commit.commit_url, [*messages, f"commit {commit.oid}"])


def variables_for(models: Sequence[str]) -> dict[str, str]:
    """Return {environment variable: "owner/name@commit"} with which the page serves `models` from the Hub.

    Raises PushError if one is not pinned, cannot be read or is not a model of this library.
    """
    from huggingface_hub import hf_hub_download

    variables = {}
    for model in models:
        repo, commit = split_revision(model)
        if not (is_repo_id(repo) and commit):
            raise PushError(f'"{model}" is not pinned. Nothing was changed. Write it as "owner/name@commit".')
        try:
            path = Path(hf_hub_download(repo, "config.json", revision=commit))
            name = decode(ModelConfig, read_json(path), "config.json").model_name
            if name not in MODELS:
                raise InvalidModel(f'its config names the model "{name}"')
        except Exception as error:  # the client passes on exceptions of its HTTP library
            raise PushError(
                f"Cannot use {model}: {_reason(error)}. Nothing was changed. "
                "Check that it is a model of this library and that you can read it."
            ) from error
        variables[MODELS[name].hub_variable] = model
    return variables


def set_space_variables(space: str, variables: Mapping[str, str]) -> None:
    """Set environment variables of the Space `space`, "owner/name". Raises PushError."""
    from huggingface_hub import HfApi

    try:
        for name, value in variables.items():
            HfApi().add_space_variable(space, name, value)
    except Exception as error:  # the client passes on exceptions of its HTTP library
        settings = ", ".join(f"{name}={value}" for name, value in variables.items())
        raise PushError(
            f"{space} was pushed, but its variables could not be set: {_reason(error)}. It serves its "
            f"bundled models. Set the variables in the Space's settings: {settings}"
        ) from error


def _parse_hardware(name: str) -> "SpaceHardware":
    """Return the hardware that the Hub calls `name`. Raises PushError."""
    from huggingface_hub import SpaceHardware

    try:
        return SpaceHardware(name)
    except ValueError as error:
        names = ", ".join(hardware.value for hardware in SpaceHardware)
        raise PushError(
            f'"{name}" is not hardware of a Space. Nothing was changed. Choose from {names}.'
        ) from error


def _read_head(api: "HfApi", repo: str, kind: RepoKind) -> tuple[str | None, list[str]]:
    """Return (commit sha, file names) of a repository; (None, []) if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo, repo_type=kind, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        return None, []
    except Exception as error:  # the client passes on exceptions of its HTTP library
        raise PushError(
            f"Cannot read {repo} on the Hub: {_reason(error)}. Nothing was changed. Try again later."
        ) from error
    return info.sha, [file.rfilename for file in getattr(info, "siblings", None) or []]


def _compare_headlines(api: "HfApi", repo: str, head: str | None, report: Path | bytes, force: bool) -> str:
    """Return a message about the accuracy, or a detector's AUROC, of this model and of the repository's.

    Raises PushError if the repository's is better, unless `force`.
    """
    title, ours = read_headline(report if isinstance(report, bytes) else report.read_bytes()) or ("", None)
    if ours is None or ours.value is None:
        raise InvalidModel("evaluation.json has no accuracy; train the model again.")
    theirs = _read_their_headline(api, repo, head, title) if head else None
    if theirs is None or theirs.value is None:
        return f"{title} {ours.percent()}; the repository has no measured model yet"
    if theirs.value > ours.value and not force:
        raise PushError(
            f"{repo} holds a better model: its {title} is {theirs.percent()}, this one's {ours.percent()}. "
            "Nothing was changed. Use --force to replace it."
        )
    return f"{title} {ours.percent()}; the model in the repository has {theirs.percent()}"


def _read_their_headline(api: "HfApi", repo: str, head: str, title: str) -> Interval | None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        data = Path(api.hf_hub_download(repo, "evaluation.json", revision=head)).read_bytes()
    except EntryNotFoundError:
        return None
    except Exception as error:  # the client passes on exceptions of its HTTP library
        raise PushError(
            f"Cannot read the {title} of the model in {repo}: {_reason(error)}. "
            "Nothing was changed. Try again later."
        ) from error
    headline = read_headline(data)
    return headline[1] if headline and headline[0] == title else None


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@contextmanager
def _push_errors(repo: str) -> Iterator[None]:
    """Raise whatever the client raises as a PushError with advice."""
    try:
        yield
    except PushError:
        raise
    except Exception as error:  # the client, its HTTP library and the system share no base class
        cause = error.__cause__ if getattr(error, "response", None) is None else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        advice = ADVICE_BY_STATUS.get(status, "Try again later.") if status else "Try again later."
        raise PushError(f"Cannot push to {repo}: {_reason(error)}. No file was changed. {advice}") from error


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".")
