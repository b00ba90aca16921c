"""Train the layers before the head to recognize fracture, region and view on FracAtlas.

A model that starts from them has seen thousands of radiographs more than the fracture types offer.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from fracture_lib.data.dataset import store_images
from fracture_lib.data.examples import EXAMPLES
from fracture_lib.data.fracatlas import FINDINGS, load_fracatlas
from fracture_lib.errors import InvalidArgument, InvalidModel
from fracture_lib.hub import first_line, resolve_pretrained
from fracture_lib.io.image import content
from fracture_lib.registry import MODELS
from fracture_lib.training.callbacks import Checkpoint, ProgressBar, WeightAverage, check_same_run
from fracture_lib.training.learner import build_learner, check_name_and_seed
from fracture_lib.training.loop import fit
from fracture_lib.training.recipes import PRETRAINING, Recipe
from fracture_lib.training.sampling import augment_all, make_sampler

__all__ = ["PretrainedWeights", "find_weights", "pretrain", "quantize"]

N_CALIBRATION_VIEWS = 64  # of the examples
FRACTURED_REPEATS = 3  # how often an epoch shows an image with a fracture, for one view of any other


@dataclass(frozen=True)
class PretrainedWeights:
    """A safetensors file from which a training starts."""

    path: Path
    source: str  # from the file's metadata, or else its name or reference
    sha256: str


def pretrain(
    name: str, data: str | Path, out: str | Path, pretrained: str | Path | None = None, seed: int = 0
) -> None:
    """Train the layers before the head of the model `name` and write them to the safetensors file `out`.

    `data` is a FracAtlas folder. Training starts from `pretrained`, a safetensors file or
    "hf-hub:owner/name[@revision]"; by default from what the registry names for the model, or random weights.
    Both CNNs read the file of either. The same call after a kill resumes from a checkpoint beside `out`.

    Raises UnknownModel, InvalidArgument, InvalidData if the dataset or the checkpoint does not fit,
    InvalidModel if the pretrained weights do not, and ModelUnavailable if they cannot be fetched.
    """
    check_name_and_seed(name, seed)
    out, recipe = Path(out), PRETRAINING[name]
    if out.is_dir():
        raise InvalidArgument(f"{out} is a folder. Give the file to write.")
    atlas = load_fracatlas(data)
    start = find_weights(pretrained or MODELS[name].pretrained)
    checkpoint, run, partial = (out.with_suffix(end) for end in (".checkpoint", ".run.json", ".partial"))
    settings = {
        "model": name,
        "seed": seed,
        "recipe": asdict(recipe),
        "data": atlas.fingerprint,
        "pretrained": start.sha256 if start else None,
    }
    learner = build_learner(name, recipe, seed, start.path if start else None, n_outputs=len(FINDINGS))
    out.parent.mkdir(parents=True, exist_ok=True)
    check_same_run(run, settings)

    indices = np.concatenate(
        [np.flatnonzero(~atlas.fractured), *FRACTURED_REPEATS * [np.flatnonzero(atlas.fractured)]]
    )
    callbacks = [WeightAverage(recipe.ema_decay), Checkpoint(checkpoint), ProgressBar()]
    cache = out.with_suffix(".views.npy")  # of a recipe with `n_cached_views`
    stored = out.with_suffix(".images")
    sample = make_sampler(learner, recipe, store_images(atlas.paths, stored), seed, cache)
    fit(learner, sample, atlas.findings, indices, recipe, seed, callbacks, "FracAtlas")
    origin = f", from {start.source}" if start else ""
    learner.save_trunk(partial, source=f"FracAtlas, {len(atlas.paths)} radiographs{origin}")
    partial.replace(out)  # a kill while writing leaves no damaged file
    for path in (checkpoint, run, cache, stored):
        path.unlink(missing_ok=True)


def find_weights(reference: str | Path | None) -> PretrainedWeights | None:
    """Return the weights that `hub.resolve_pretrained` finds; None without a reference.

    Raises ModelUnavailable, and InvalidModel if the file is not safetensors.
    """
    if not reference:
        return None
    path = resolve_pretrained(reference)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InvalidModel(
            f"{path.name} is not a readable safetensors file ({first_line(error)}). Give another file."
        ) from error
    name = path.name if path == Path(reference) else str(reference)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return PretrainedWeights(path, metadata.get("source", name), sha256)


def quantize(start: PretrainedWeights, recipe: Recipe, path: Path, seed: int) -> PretrainedWeights:
    """Write the pretrained trunk of a recipe so that it runs in eight bits; return what was written.

    Random views of the examples calibrate it, so that no image of the types does. Does nothing if `path`
    exists. Raises InvalidModel if the weights do not fit.
    """
    if not path.exists():
        from fracture_lib.models.keras import write_int8_trunk

        images = [content(example) for example in EXAMPLES.values()]
        rng = np.random.default_rng(seed)
        views = [*augment_all(islice(cycle(images), N_CALIBRATION_VIEWS), recipe.augmentation, rng)]
        write_int8_trunk(recipe.architecture, start.path, np.stack(views), path, start.source)
    return replace(start, path=path)
