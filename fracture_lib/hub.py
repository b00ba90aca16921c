"""Where a model comes from: a local folder, a Hub repository, or the bundle shipped with the code."""

import re
from dataclasses import dataclass
from pathlib import Path

from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = ["BUNDLE", "ModelSource", "locate", "pretrained_file"]

BUNDLE = Path(__file__).parent / "bundle"

# Nothing else is downloaded, so no pickle can be. Weights of the other framework stay away too.
_ALWAYS = ["config.json", "preprocessor_config.json", "evaluation.json", "head.safetensors", "README.md"]
_WEIGHTS = {"onnx": ["model.onnx"], "native": ["model.safetensors", "model.keras"]}

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    when none is configured or it cannot be reached. Raises ModelUnavailable.
    """
    reference = str(reference)
    if reference in MODELS:
        return _by_name(MODELS[reference], runtime)
    if Path(reference).is_dir():
        return ModelSource(Path(reference), "folder")
    repo, _, revision = reference.partition("@")
    if _REPO_ID.fullmatch(repo):
        return _download(repo, revision or "main", runtime)
    raise ModelUnavailable(
        f'"{reference}" is no model: use {", ".join((*MODELS, ENSEMBLE))}, a folder, or a Hub id '
        '"owner/name".'
    )


def pretrained_file(reference):
    """Return the Path of pretrained weights: a safetensors file, or that of a Hub id.

    Raises ModelUnavailable.
    """
    if Path(reference).is_file():
        return Path(reference)
    if not _REPO_ID.fullmatch(str(reference)):
        raise ModelUnavailable(f'"{reference}" is neither a safetensors file nor a Hub id.')
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(reference, "model.safetensors"))
    except (OSError, EntryNotFoundError) as error:
        raise ModelUnavailable(
            f"Cannot get the pretrained weights {reference} from the Hub ({_reason(error)}); give a "
            "safetensors file with torchvision's names instead."
        ) from error


def _by_name(spec, runtime):
    bundled = BUNDLE / spec.name
    configured = spec.configured_hub()
    if not configured:
        return ModelSource(bundled, "bundle")
    repo, _, revision = configured.partition("@")
    if not (_REPO_ID.fullmatch(repo) and revision):
        raise ModelUnavailable(f'{spec.hub_variable} is "{configured}": write it as "owner/name@revision".')
    try:
        return _download(repo, revision, runtime)
    except ModelUnavailable as error:
        return ModelSource(bundled, "bundle", note=str(error))


def _download(repo, revision, runtime):
    """Return the ModelSource of a Hub repository, from the cache where the Hub is out of reach."""
    # Imported here: only a configured Hub needs it.
    from huggingface_hub import HfApi, snapshot_download

    files = {"allow_patterns": _ALWAYS + _WEIGHTS[runtime]}
    try:
        # One question first: unlike a download it is not tried again for half a minute.
        commit = HfApi().model_info(repo, revision=revision, timeout=3).sha
        folder = snapshot_download(repo, revision=commit, **files)
    except Exception as error:  # the client passes on its HTTP library's exceptions
        try:
            folder = snapshot_download(repo, revision=revision, local_files_only=True, **files)
        except OSError:
            raise ModelUnavailable(f"cannot get {repo} from the Hub: {_reason(error)}") from error
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise InvalidModel(f"{repo} has no config.json: it is not a model of this library.")
    return ModelSource(folder, "hub", repo=repo, revision=folder.name)  # snapshots/<commit sha>


def _reason(error):
    """The first sentence of a client's error, which may run over many lines."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
