"""Publish on the Hugging Face Hub: a model with its card, films as a dataset, the page as a Space.

A push is one commit, so a failed one leaves a repository as it was. `huggingface_hub` finds the token:
that of `hf auth login`, or HF_TOKEN.
"""

import io
import json
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from fracture_lib.cards import (
    EXAMPLE_FILM,
    TEMPLATE,
    percent,
    render_card,
    render_dataset_card,
    render_space_readme,
)
from fracture_lib.config import read_config, read_json
from fracture_lib.data import folds
from fracture_lib.drawing import draw_film
from fracture_lib.errors import InvalidModel, PushRefused
from fracture_lib.hub import MODEL_FILES, is_hub_id, reason
from fracture_lib.labels import LABEL2ID
from fracture_lib.registry import MODELS

__all__ = ["plan_dataset", "plan_model", "plan_space", "push", "set_variables", "variables_for"]

ROOT = TEMPLATE.parent
# What a Space needs to install and start; the bundle without what only native runtimes and training read.
SPACE_FILES = ("app.py", "requirements.txt", "model_card.md", "LICENSE", "docs/*.png", "fracture_lib/**/*")
# What a push replaces as a whole: files of an earlier one that match and are not sent again go.
REPLACED = {"model": MODEL_FILES, "dataset": ["data/*.parquet"], "space": ["fracture_lib/*"]}
NOT_IN_SPACE = {"model.keras", "model.safetensors", "out_of_fold.safetensors"}


def plan_model(folder, repo):
    """Return {path in the repository: Path or bytes} of the model in `folder`, its card made for `repo`.

    Raises InvalidModel where the folder is no whole model.
    """
    folder = Path(folder)
    read_config(folder)
    files = {name: folder / name for name in MODEL_FILES if (folder / name).exists()}
    if missing := {"model.onnx", "head.safetensors", "evaluation.json"} - files.keys():
        raise InvalidModel(f"{folder.name} lacks {', '.join(sorted(missing))}: train the model again.")
    example = io.BytesIO()
    draw_film("Spiral").save(example, "PNG")
    return {**files, EXAMPLE_FILM: example.getvalue(), "README.md": render_card(folder, repo).encode()}


def plan_dataset(films, count=5):
    """Return {path in the dataset: bytes} of labelled films (data.Films): Parquet files and a card.

    A `count`th of the films is in the split "validation", the rest in "train", and each row has its
    group and fold, all drawn by `data.folds`: films of one group are never on both sides. Raises
    InvalidData where so many folds cannot be had.
    """
    from datasets import ClassLabel, Dataset, Features, Image, Value

    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=list(LABEL2ID)),
            "source_group": Value("int64"),
            "fold": Value("int64"),
        }
    )
    fold = folds(films, count)
    files, sizes = {}, {}
    for split, chosen in (("train", fold > 0), ("validation", fold == 0)):
        rows = [
            {
                "image": {"bytes": films.paths[i].read_bytes(), "path": films.paths[i].name},
                "label": int(films.labels[i]),
                "source_group": int(films.groups[i]),
                "fold": int(fold[i]),
            }
            for i in np.flatnonzero(chosen)
        ]
        parquet = io.BytesIO()
        Dataset.from_list(rows, features).to_parquet(parquet)
        files[f"data/{split}-00000-of-00001.parquet"], sizes[split] = parquet.getvalue(), len(rows)
    return {**files, "README.md": render_dataset_card(films, sizes).encode()}


def plan_space(repo, models=(), datasets=()):
    """Return {path in the Space: Path or bytes} of the page, as it will stand in `repo`.

    `models` are Hub ids "owner/name@commit" that the Space will draw from: its README preloads them.
    `datasets` are Hub ids for it to name.
    """
    paths = [path for pattern in SPACE_FILES for path in sorted(ROOT.glob(pattern))]
    kept = [p for p in paths if p.is_file() and "__pycache__" not in p.parts and p.name not in NOT_IN_SPACE]
    files = {path.relative_to(ROOT).as_posix(): path for path in kept}
    return {**files, "README.md": render_space_readme(ROOT / "README.md", repo, models, datasets).encode()}


def push(files, repo, kind="model", private=False, create_pr=False, force=False, dry_run=False):
    """Commit `files`, as planned above, to the repository `repo`; return (address, lines of what was done).

    Makes the repository where there is none. Of a model, refuses to go over one that was measured to
    be better, unless `force`. With `dry_run` nothing is sent and the address is None.

    Raises PushRefused with what to do; the repository is then as it was.
    """
    if not is_hub_id(repo) or "@" in repo:
        raise PushRefused(f'"{repo}" is no repository: write it as "owner/name".')
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    head, there = _look(api, repo, kind)
    gone = [path for path in there if path not in files and any(fnmatch(path, p) for p in REPLACED[kind])]
    lines = [
        f"{'change' if head else 'make'} the {'private ' if private else ''}{kind} {repo}"
        + (" by a pull request" if create_pr else ""),
        *(f"  {_size(content):>12,}  {path}" for path, content in files.items()),
        *(f"  {'deleted':>12}  {path}" for path in gone),
    ]
    if kind == "model":
        lines.append(_compare(api, repo, head, files["evaluation.json"], force))
    if dry_run:
        return None, lines
    with _refusals(repo):
        if head is None:
            space = {"space_sdk": "gradio"} if kind == "space" else {}
            api.create_repo(repo, repo_type=kind, private=private, exist_ok=True, **space)
            head, _ = _look(api, repo, kind)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(path, content) for path, content in files.items()]
            + [CommitOperationDelete(path) for path in gone],
            commit_message=f"Push {len(files)} files of a {kind} with fracture_lib",
            repo_type=kind,
            create_pr=create_pr,
            parent_commit=head,  # what somebody else pushed meanwhile is not overwritten
        )
    return commit.pr_url or commit.commit_url, [*lines, f"commit {commit.oid}"]


def variables_for(models):
    """Return {environment variable: "owner/name@commit"} that make the page draw from these `models`.

    Raises PushRefused where one is not pinned, cannot be read, or is no model of this library.
    """
    from huggingface_hub import hf_hub_download

    variables = {}
    for model in models:
        repo, _, commit = model.partition("@")
        if not (is_hub_id(model) and commit):
            raise PushRefused(f'"{model}" is not pinned: write it as "owner/name@commit".')
        try:
            config = read_json(Path(hf_hub_download(repo, "config.json", revision=commit)))
            variables[MODELS[config["model_name"]].hub_variable] = model
        except Exception as error:  # the client's, or a config of another library
            raise PushRefused(f"cannot draw from {model}: {reason(error)}") from error
    return variables


def set_variables(space, variables):
    """Set the environment variables of a Space. Raises PushRefused."""
    from huggingface_hub import HfApi

    try:
        for name, value in variables.items():
            HfApi().add_space_variable(space, name, value)
    except Exception as error:
        raise PushRefused(
            f"{space} is pushed but draws from its bundle, as its variables could not be set: {reason(error)}"
        ) from error


def _look(api, repo, kind):
    """(commit that `repo` is at, its files); (None, []) where there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo, repo_type=kind, timeout=10)
    except RepositoryNotFoundError:
        return None, []
    except Exception as error:
        raise PushRefused(f"cannot look at {repo} on the Hub: {reason(error)}") from error
    return info.sha, [file.rfilename for file in info.siblings]


def _compare(api, repo, head, evaluation, force):
    """Say what the repository's model is worth beside this one; raise PushRefused where it is better."""
    ours = read_json(evaluation)["metrics"]["accuracy"]
    theirs = head and _their_accuracy(api, repo, head)
    if not theirs:
        return f"accuracy out of fold {percent(ours)}; nothing measured is there yet"
    told = f"{repo} holds a model of {percent(theirs)}, this one has {percent(ours)}"
    if theirs["value"] > ours["value"] and not force:
        raise PushRefused(f"{told}: it is the better one. --force pushes over it all the same.")
    return told


def _their_accuracy(api, repo, head):
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = api.hf_hub_download(repo, "evaluation.json", revision=head)
        return json.loads(Path(path).read_text(encoding="utf-8"))["metrics"]["accuracy"]
    except (EntryNotFoundError, ValueError, KeyError):
        return None  # somebody else's repository, perhaps, but no figure of ours to lose
    except Exception as error:
        raise PushRefused(f"cannot see what {repo} holds now: {reason(error)}") from error


def _size(content):
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@contextmanager
def _refusals(repo):
    """Turn whatever the client raises into a sentence."""
    try:
        yield
    except PushRefused:
        raise
    except Exception as error:  # its own, its HTTP library's and the system's share no base
        cause = error.__cause__ if getattr(error, "response", None) is None else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        advice = {
            401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
            403: "your token may not write there",
            412: "somebody pushed to it meanwhile: try again",
        }.get(status, "try again")
        raise PushRefused(
            f"cannot push to {repo}: {reason(error)} (nothing of it was changed; {advice})"
        ) from error
