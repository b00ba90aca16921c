"""Where a model comes from: the bundle shipped with the code, a local folder or a Hub repository."""

import hashlib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from fracture_lib.errors import FractureError, InvalidModel, ModelUnavailable, UnknownModel
from fracture_lib.registry import ALL_MODELS, MODELS, ModelSpec

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "BUNDLE",
    "FILES_BY_RUNTIME",
    "HUB_PREFIX",
    "LOCAL_PREFIX",
    "MODEL_FILES",
    "NATIVE_WEIGHTS",
    "NOT_SERVED",
    "OUT_OF_FOLD",
    "ModelSource",
    "Reference",
    "Runtime",
    "first_line",
    "is_repo_id",
    "resolve_model",
    "resolve_pretrained",
    "split_revision",
]

Runtime = Literal["onnx", "native"]
Reference = str | Path  # a model's name, "hf-hub:owner/name[@revision]", "local-dir:path" or a Path

BUNDLE = Path(__file__).parent / "bundle"
HUB_PREFIX, LOCAL_PREFIX = "hf-hub:", "local-dir:"

# Download these files only: no pickle, and no weights of the other runtime.
_ALWAYS_NEEDED = ["config.json", "preprocessor_config.json", "evaluation.json", "head.safetensors"]
NATIVE_WEIGHTS = ["model.safetensors", "model.keras"]  # of PyTorch, of Keras; a model has one of them
_WEIGHTS: dict[Runtime, list[str]] = {"onnx": ["model.onnx"], "native": NATIVE_WEIGHTS}
OUT_OF_FOLD = "out_of_fold.safetensors"
MODEL_FILES = [*_ALWAYS_NEEDED, "README.md", *_WEIGHTS["onnx"], *NATIVE_WEIGHTS, OUT_OF_FOLD]
FILES_BY_RUNTIME = {
    runtime: [*_ALWAYS_NEEDED, "README.md", *weights] for runtime, weights in _WEIGHTS.items()
}
# Half of the bundle; a wheel and a Space serve with ONNX Runtime and leave these files out.
NOT_SERVED = frozenset({*NATIVE_WEIGHTS, OUT_OF_FOLD})
PRETRAINED_WEIGHTS = "model.safetensors"  # of a repository that `resolve_pretrained` takes
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}

TIMEOUT = 3  # seconds until a Hub that does not answer counts as unreachable
RETRY_AFTER = 60  # seconds before an unreachable Hub is tried again, so that three models wait once

_COMMIT = re.compile(r"[0-9a-f]{40}")
_last_failures: dict[str, tuple[float, Exception]] = {}  # Hub address -> (time, error)

_T = TypeVar("_T")


class _Fetch(Protocol):
    """`snapshot_download` of one repository, restricted to the files that a runtime needs."""

    def __call__(self, *, revision: str, local_files_only: bool = ...) -> str: ...


@dataclass(frozen=True)
class ModelSource:
    """A folder laid out as a Hub repository, and where it came from."""

    folder: Path
    kind: Literal["bundle", "local", "hub"]
    repo: str | None = None
    revision: str | None = None  # commit sha of a "hub" source
    note: str = ""  # why the bundle serves although a repository is configured

    def __str__(self) -> str:
        if self.kind == "hub":
            return f"Hugging Face Hub, {self.repo} at {(self.revision or '')[:12]}"
        text = "bundled weights" if self.kind == "bundle" else f"local folder {self.folder.name}"
        return f"{text} ({self.note})" if self.note else text


def resolve_model(reference: Reference, runtime: Runtime = "onnx") -> ModelSource:
    """Find a model and return its ModelSource; download what `runtime` needs if necessary.

    `reference` is a name in MODELS, "hf-hub:owner/name[@revision]", "local-dir:path" or a Path. A name
    uses its configured repository, whose revision must be pinned, and falls back to the bundle if none
    is configured or its files cannot be fetched or used.

    Raises UnknownModel for any other reference, ModelUnavailable if nothing can be reached, and
    InvalidModel if a repository holds no model of this library or only pickled weights.
    """
    if isinstance(reference, Path):
        return _local(reference)
    if not isinstance(reference, str):
        raise UnknownModel(f"Expected a model's name or a Path; got {type(reference).__name__}.")
    if reference in MODELS:
        return _by_name(MODELS[reference], runtime)
    if reference.startswith(LOCAL_PREFIX):
        return _local(Path(reference.removeprefix(LOCAL_PREFIX)).expanduser())
    if reference.startswith(HUB_PREFIX):
        repo, revision = split_revision(reference.removeprefix(HUB_PREFIX))
        if not is_repo_id(repo):
            raise UnknownModel(
                f'"{reference}" is not a Hub repository. Write it as "{HUB_PREFIX}owner/name".'
            )
        return _download(repo, revision or "main", runtime)
    raise UnknownModel(_unknown(reference))


def _unknown(reference: str) -> str:
    guesses = [f"{LOCAL_PREFIX}{reference}"] if reference and Path(reference).is_dir() else []
    guesses += get_close_matches(reference, ALL_MODELS, n=1)
    suggestion = f' Did you mean "{guesses[0]}"?' if guesses else ""
    return (
        f'Unknown model "{reference}".{suggestion} Choose from {", ".join(ALL_MODELS)}, '
        f'"{LOCAL_PREFIX}path" or "{HUB_PREFIX}owner/name".'
    )


def _local(folder: Path) -> ModelSource:
    if not folder.is_dir():
        raise ModelUnavailable(f"There is no model folder {folder}. Check the path.")
    return ModelSource(folder, "local")


def is_repo_id(text: str) -> bool:
    """Return whether `text` is "owner/name", as the Hub allows it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def split_revision(repo: str) -> tuple[str, str | None]:
    """Split "owner/name@revision" into ("owner/name", revision or None)."""
    repo, _, revision = repo.partition("@")
    return repo, revision or None


def resolve_pretrained(reference: str | Path) -> Path:
    """Return the path of a safetensors file: `reference` itself, or that of "hf-hub:owner/name[@revision]".

    An unreachable Hub is noticed within seconds; a cached copy then serves. Raises ModelUnavailable.
    """
    path = Path(reference)
    if path.is_file():
        return path
    repo, revision = split_revision(str(reference).removeprefix(HUB_PREFIX))
    if not (str(reference).startswith(HUB_PREFIX) and is_repo_id(repo)):
        raise ModelUnavailable(
            f'There is no file {reference}. Give a safetensors file or "{HUB_PREFIX}owner/name".'
        )
    from huggingface_hub import HfApi, hf_hub_download

    download = partial(hf_hub_download, repo, PRETRAINED_WEIGHTS)
    try:
        sha, _ = _look_up(HfApi(), repo, revision or "main")
        return Path(download(revision=sha))
    except Exception as error:  # the client passes on exceptions of its HTTP library
        with suppress(OSError, ValueError):
            return Path(download(revision=revision, local_files_only=True))
        raise ModelUnavailable(
            f"Cannot download the pretrained weights {repo} from the Hub ({first_line(error)}). "
            "Give a safetensors file with torchvision's names instead."
        ) from error


def _by_name(spec: ModelSpec, runtime: Runtime) -> ModelSource:
    bundled = BUNDLE / spec.name
    if not (configured := spec.configured_repo):
        return ModelSource(bundled, "bundle")
    repo, revision = split_revision(configured)
    if not (is_repo_id(repo) and revision):
        raise ModelUnavailable(f'{spec.hub_variable} is "{configured}". Write it as "owner/name@revision".')
    try:
        return _download(repo, revision, runtime)
    except FractureError as error:
        return ModelSource(bundled, "bundle", note=str(error))


def _download(repo: str, revision: str, runtime: Runtime) -> ModelSource:
    """Return the ModelSource of a Hub repository, from the cache if the Hub is unreachable."""
    from huggingface_hub import snapshot_download  # imported here: only a configured Hub needs it

    fetch: _Fetch = partial(snapshot_download, repo, allow_patterns=FILES_BY_RUNTIME[runtime])
    folder = None
    if _COMMIT.fullmatch(revision):  # a commit never changes, so a complete cached copy needs no request
        folder = _find_cached(fetch, revision, runtime)
    if folder is None:
        folder = _fetch_from_hub(fetch, repo, revision, runtime)
    if _repair(folder, fetch, repo):
        raise ModelUnavailable(f"The files of {repo} do not match their checksums. Try again later.")
    if not (folder / "config.json").exists():
        raise InvalidModel(f"{repo} has no config.json; it is not a model of this library.")
    return ModelSource(folder, "hub", repo=repo, revision=folder.name)  # snapshots/<commit sha>


def _find_cached(fetch: _Fetch, revision: str, runtime: Runtime) -> Path | None:
    """Return the cached folder of a revision, or None if it lacks a file that `runtime` needs."""
    with suppress(OSError, ValueError):
        folder = Path(fetch(revision=revision, local_files_only=True))
        # The client vouches for completeness only after a full download of its own.
        present = {path.name for path in folder.iterdir() if path.exists()}
        if present >= set(_ALWAYS_NEEDED) and present & set(_WEIGHTS[runtime]):
            return folder
    return None


def _fetch_from_hub(fetch: _Fetch, repo: str, revision: str, runtime: Runtime) -> Path:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        sha, names = _look_up(api, repo, revision)
        _reject_pickle(repo, names, runtime)
        return Path(fetch(revision=sha))
    except FractureError:
        raise
    except Exception as error:  # the client passes on exceptions of its HTTP library
        if folder := _find_cached(fetch, revision, runtime):
            return folder
        raise ModelUnavailable(f"Cannot download {repo} from the Hub: {first_line(error)}") from error


def _look_up(api: "HfApi", repo: str, revision: str) -> tuple[str, list[str]]:
    """Return (commit sha, file names) of a revision; fail at once while the Hub is known to be down.

    This comes before the download, which would be retried for half a minute.
    """
    when, cause = _last_failures.get(api.endpoint, (-RETRY_AFTER, OSError()))
    if monotonic() - when < RETRY_AFTER:
        raise cause
    try:
        info = _retry_once(partial(api.model_info, repo, revision=revision, timeout=TIMEOUT))
    except Exception as error:
        if getattr(error, "response", None) is None:  # no HTTP response, not even an error
            _last_failures[api.endpoint] = monotonic(), error
        raise
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def _retry_once(request: Callable[[], _T]) -> _T:
    """Repeat a request that failed at once: the server may have closed an idle connection."""
    start = monotonic()
    try:
        return request()
    except Exception as error:
        if getattr(error, "response", None) is not None or monotonic() - start >= TIMEOUT:
            raise
    return request()


def _reject_pickle(repo: str, names: Iterable[str], runtime: Runtime) -> None:
    """Raise InvalidModel unless a repository offers weights in a safe format."""
    names = list(names)
    if any(fnmatch(name, pattern) for name in names for pattern in _WEIGHTS[runtime]):
        return
    if pickles := [name for name in names if PurePosixPath(name).suffix in PICKLE_SUFFIXES]:
        raise InvalidModel(
            f"{repo} offers its weights only as {', '.join(pickles)}, a format that can run code when it is "
            "opened. Nothing was downloaded; use a repository with safetensors, .keras or ONNX files."
        )
    raise InvalidModel(f"{repo} has no {' or '.join(_WEIGHTS[runtime])}; it is not a model of this library.")


def _repair(folder: Path, fetch: _Fetch, repo: str) -> list[Path]:
    """Download the damaged files of a snapshot again; return those that are still damaged."""
    damaged = _damaged_files(folder)
    if not damaged:
        return []
    for path in damaged:
        path.resolve().unlink(missing_ok=True)
    try:
        fetch(revision=folder.name)
    except Exception as error:
        raise ModelUnavailable(
            f"The cached copy of {repo} is damaged and cannot be downloaded again: {first_line(error)}"
        ) from error
    if not all(path.exists() for path in damaged):  # older clients return what they have
        raise ModelUnavailable(f"The cached copy of {repo} is damaged and cannot be downloaded again.")
    return _damaged_files(folder)


def _damaged_files(folder: Path) -> list[Path]:
    """Return the files of a snapshot whose content does not match the hash in their blob's name.

    The Hub's client compares sizes only. Its cache names a large blob by sha256 and a small one by
    git's sha1, so a copy can be checked offline; file systems without links have no such names.
    """
    damaged = []
    for path in folder.rglob("*"):
        name = path.resolve().name
        if path.is_file() and (_COMMIT.fullmatch(name) or re.fullmatch("[0-9a-f]{64}", name)):
            with path.open("rb") as file:
                if len(name) == 64:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                else:
                    data = file.read()
                    digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if digest != name:
                damaged.append(path)
    return damaged


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the error's type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
