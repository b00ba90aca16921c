"""Where a model comes from: a local folder, a Hub repository, or the bundle shipped with the code."""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from time import monotonic

from fracture_lib.errors import FractureError, InvalidModel, ModelUnavailable
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = [
    "BUNDLE",
    "FILES_OF",
    "MODEL_FILES",
    "ModelSource",
    "is_hub_id",
    "locate",
    "pretrained_file",
    "reason",
]

BUNDLE = Path(__file__).parent / "bundle"

# Nothing else is downloaded, so no pickle can be. Weights of the other framework stay away too.
_NEEDED = ["config.json", "preprocessor_config.json", "evaluation.json", "head.safetensors"]
_WEIGHTS = {"onnx": ["model.onnx"], "native": ["model.safetensors", "model.keras"]}
MODEL_FILES = [*_NEEDED, "README.md", *_WEIGHTS["onnx"], *_WEIGHTS["native"], "out_of_fold.safetensors"]
FILES_OF = {runtime: [*_NEEDED, "README.md", *weights] for runtime, weights in _WEIGHTS.items()}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}

TIMEOUT = 3  # seconds until a Hub that does not answer counts as out of reach
REST = 60  # seconds for which it is then not asked again, so that three models wait once

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_silent = {}  # address of a Hub -> (when it last did not answer, why)


@dataclass(frozen=True)
class ModelSource:
    """A folder laid out as a Hub repository, and the story of how it got here."""

    folder: Path
    kind: str  # "folder", "hub" or "bundle"
    repo: str | None = None
    revision: str | None = None  # commit sha for "hub"
    note: str = ""  # why the bundle served although a repository is configured

    def __str__(self):
        if self.kind == "hub":
            return f"Hugging Face Hub, {self.repo} at {self.revision[:12]}"
        text = "bundled with the app" if self.kind == "bundle" else f"local folder {self.folder.name}"
        return f"{text} ({self.note})" if self.note else text


def locate(reference, runtime="onnx"):
    """Find a model and return its ModelSource, downloading what `runtime` needs if it must.

    `reference` is a name of MODELS, a local folder, or a Hub id "owner/name[@revision]". A name
    goes to its configured repository, whose revision must be pinned, and falls back to the bundle
    when none is configured or what is there cannot be had or used.

    Raises ModelUnavailable where nothing can be reached, InvalidModel where a repository holds no
    model of this library, or weights only in a format that can run code.
    """
    reference = str(reference)
    if reference in MODELS:
        return _by_name(MODELS[reference], runtime)
    if Path(reference).is_dir():
        return ModelSource(Path(reference), "folder")
    if is_hub_id(reference):
        repo, _, revision = reference.partition("@")
        return _download(repo, revision or "main", runtime)
    raise ModelUnavailable(
        f'"{reference}" is no model: use {", ".join((*MODELS, ENSEMBLE))}, a folder, or a Hub id '
        '"owner/name".'
    )


def is_hub_id(reference):
    """Whether this is "owner/name" or "owner/name@revision"."""
    repo, at, revision = str(reference).partition("@")
    return bool(_REPO_ID.fullmatch(repo) and (revision or not at))


def pretrained_file(reference):
    """Return the Path of pretrained weights: a safetensors file, or that of a Hub id.

    Raises ModelUnavailable.
    """
    if Path(reference).is_file():
        return Path(reference)
    if not is_hub_id(reference):
        raise ModelUnavailable(f'"{reference}" is neither a safetensors file nor a Hub id.')
    from huggingface_hub import hf_hub_download

    try:
        repo, _, revision = str(reference).partition("@")
        return Path(hf_hub_download(repo, "model.safetensors", revision=revision or None))
    except Exception as error:  # the client passes on its HTTP library's exceptions
        raise ModelUnavailable(
            f"Cannot get the pretrained weights {reference} from the Hub ({reason(error)}); give a "
            "safetensors file with torchvision's names instead."
        ) from error


def _by_name(spec, runtime):
    bundled = BUNDLE / spec.name
    configured = spec.configured_hub()
    if not configured:
        return ModelSource(bundled, "bundle")
    repo, _, revision = configured.partition("@")
    if not (is_hub_id(configured) and revision):
        raise ModelUnavailable(f'{spec.hub_variable} is "{configured}": write it as "owner/name@revision".')
    try:
        return _download(repo, revision, runtime)
    except FractureError as error:
        return ModelSource(bundled, "bundle", note=str(error))


def _download(repo, revision, runtime):
    """Return the ModelSource of a Hub repository, from the cache where the Hub is out of reach."""
    # Imported here: only a configured Hub needs it.
    from huggingface_hub import snapshot_download

    fetch = partial(snapshot_download, repo, allow_patterns=FILES_OF[runtime])
    folder = None
    if _COMMIT.fullmatch(revision):  # it never changes, so a whole copy of it needs no question
        folder = _cached(fetch, revision, runtime)
    if folder is None:
        folder = _ask_hub(fetch, repo, revision, runtime)
    if _mend(folder, fetch, repo):
        raise ModelUnavailable(f"what the Hub sends of {repo} does not match its checksum: try again later")
    if not (folder / "config.json").exists():
        raise InvalidModel(f"{repo} has no config.json: it is not a model of this library.")
    return ModelSource(folder, "hub", repo=repo, revision=folder.name)  # snapshots/<commit sha>


def _cached(fetch, revision, runtime):
    """The folder of a revision in the cache; None where it, or a file of it that is needed, is not there."""
    with suppress(OSError):
        folder = Path(fetch(revision=revision, local_files_only=True))
        # The client vouches for all files only where it has fetched all itself.
        has = {path.name for path in folder.iterdir() if path.exists()}
        if has >= set(_NEEDED) and has & set(_WEIGHTS[runtime]):
            return folder
    return None


def _ask_hub(fetch, repo, revision, runtime):
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        when, why = _silent.get(api.endpoint, (-REST, None))
        if monotonic() - when < REST:
            raise why
        try:
            # A question first: unlike a download it is not tried again for half a minute.
            info = _twice(partial(api.model_info, repo, revision=revision, timeout=TIMEOUT))
        except Exception as error:
            if getattr(error, "response", None) is None:  # not even a refusal
                _silent[api.endpoint] = monotonic(), error
            raise
        _refuse_pickle(repo, [file.rfilename for file in info.siblings], runtime)
        return Path(fetch(revision=info.sha))
    except FractureError:
        raise
    except Exception as error:  # the client passes on its HTTP library's exceptions
        if folder := _cached(fetch, revision, runtime):
            return folder
        raise ModelUnavailable(f"cannot get {repo} from the Hub: {reason(error)}") from error


def _twice(question):
    """Ask again what failed at once without an answer: the other side may have closed an idle connection."""
    start = monotonic()
    try:
        return question()
    except Exception as error:
        if getattr(error, "response", None) is not None or monotonic() - start >= TIMEOUT:
            raise
    return question()


def _refuse_pickle(repo, names, runtime):
    """Raise InvalidModel unless a repository has weights that are safe to open."""
    if any(fnmatch(name, pattern) for name in names for pattern in _WEIGHTS[runtime]):
        return
    pickles = [name for name in names if PurePosixPath(name).suffix in PICKLES]
    if pickles:
        raise InvalidModel(
            f"{repo} offers its weights only as {', '.join(pickles)}, a format that can run code when it is "
            "opened, so nothing was downloaded: ask its owner for safetensors, .keras or ONNX."
        )
    raise InvalidModel(f"{repo} has no {' or '.join(_WEIGHTS[runtime])}: it is not a model of this library.")


def _mend(folder, fetch, repo):
    """Download again the files of a snapshot that are not what their checksum says; return those left."""
    if broken := _broken(folder):
        for path in broken:
            path.resolve().unlink(missing_ok=True)
        try:
            fetch(revision=folder.name)
        except Exception as error:
            raise ModelUnavailable(
                f"the cached copy of {repo} is damaged and cannot be had anew: {reason(error)}"
            ) from error
    return broken and _broken(folder)


def _broken(folder):
    """Files of a snapshot whose content is not what the cache has filed it under.

    The Hub's client checks sizes only. It files a large file under its sha256 and a small one under
    git's sha1, so a copy can be checked without asking anybody; a file system without links has no
    such names, and nothing is checked there.
    """
    broken = []
    for path in folder.rglob("*"):
        name = path.resolve().name
        if path.is_file() and (_COMMIT.fullmatch(name) or re.fullmatch("[0-9a-f]{64}", name)):
            with path.open("rb") as file:
                if len(name) == 64:
                    found = hashlib.file_digest(file, "sha256")
                else:
                    data = file.read()
                    found = hashlib.sha1(b"blob %d\0" % len(data) + data)
            if found.hexdigest() != name:
                broken.append(path)
    return broken


def reason(error):
    """The first sentence of a client's error, which may run over many lines."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
