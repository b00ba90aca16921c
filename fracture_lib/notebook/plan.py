"""Plans of a run: what it trains, on which images, for how long, and which images it keeps out."""

import csv
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from fracture_lib.data.dataset import LabelledImages, load_dataset_folder, store_images
from fracture_lib.data.manifest import MANIFEST
from fracture_lib.data.stored import StoredArrays
from fracture_lib.hub import BUNDLE
from fracture_lib.labels import CLASSES, ID2LABEL
from fracture_lib.registry import MODELS
from fracture_lib.training.callbacks import Callback, FitState
from fracture_lib.training.learner import build_learner
from fracture_lib.training.loop import fit
from fracture_lib.training.pretrain import find_weights
from fracture_lib.training.recipes import RECIPES, Recipe
from fracture_lib.training.sampling import make_sampler

__all__ = ["QUICK_PLAN", "HeldOut", "Plan", "Timing", "find_held_out", "select_images", "time_models"]

N_TIMED_IMAGES = 128  # two batches


class Timing(NamedTuple):
    """Seconds per image."""

    epoch: float
    view: float  # of a cached view, which all fits share


@dataclass(frozen=True)
class Plan:
    """What a run trains; with None, all folds and images, for the recipe's number of epochs."""

    models: Sequence[str]
    epochs: int | None = None
    n_folds: int = 5
    n_measured_folds: int | None = None
    images_per_class: int | None = None

    def recipe(self, name: str) -> Recipe:
        """Return the recipe of the model `name` with the plan's number of epochs."""
        return RECIPES[name] if self.epochs is None else replace(RECIPES[name], epochs=self.epochs)

    def n_images(self, images: LabelledImages) -> int:
        """Return how many of `images` are trained on."""
        counts = Counter(images.labels.tolist()).values()
        return sum(n if self.images_per_class is None else min(n, self.images_per_class) for n in counts)

    def minutes(self, images: LabelledImages, timings: Mapping[str, Timing]) -> float:
        """Return how long the plan trains on `images`, without reading, scoring and saving."""
        n_measured = self.n_folds if self.n_measured_folds is None else self.n_measured_folds
        n_fits = n_measured * (1 - 1 / self.n_folds) + 1  # each on all images but a fold; one on all
        seconds = 0.0
        for name in self.models:
            recipe, timing = self.recipe(name), timings[name]
            seconds += recipe.epochs * n_fits * timing.epoch + recipe.n_cached_views * timing.view
        return self.n_images(images) * seconds / 60


QUICK_PLAN = Plan(["pytorch-cnn"], epochs=20, n_folds=2, images_per_class=30)


class HeldOut(NamedTuple):
    """An image to explain, with its true class."""

    path: Path
    label: str
    note: str  # whether it is new to the models


def select_images(images: LabelledImages, per_class: int, folder: str | Path) -> LabelledImages:
    """Return up to `per_class` images of each class, and copy them to `folder` for `training.trainer.train`.

    The folder holds their groups, too. The same images are selected every time.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    order = np.random.default_rng(0).permutation(len(images.paths))
    selected = np.sort(np.concatenate([order[images.labels[order] == c.id][:per_class] for c in CLASSES]))
    rows = [("path", "source_group")]
    for i in selected.tolist():
        name = Path(ID2LABEL[int(images.labels[i])], f"{i}{images.paths[i].suffix}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.paths[i], folder / name)
        rows.append((name.as_posix(), str(images.groups[i])))
    with (folder / MANIFEST).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return replace(
        images,
        paths=tuple(images.paths[i] for i in selected),
        labels=images.labels[selected],
        groups=images.groups[selected],
    )


def find_held_out(data: str | Path, trained: LabelledImages) -> HeldOut:
    """Return an image of the dataset `data` of which no other image of its group is in `trained`.

    If there is none, return any, with a note that says so. Raises InvalidData and UnknownLabel like
    `data.dataset.load_dataset_folder`.
    """
    images = load_dataset_folder(data)
    paths, groups = set(trained.paths), images.groups.tolist()
    trained_groups = {group for path, group in zip(images.paths, groups, strict=True) if path in paths}
    unseen = [i for i, group in enumerate(groups) if group not in trained_groups]
    i = int(np.random.default_rng(0).choice(unseen or len(groups)))
    note = (
        f"Held out: no image of its group, by {images.grouped_by}, was trained on."
        if unseen
        else "All images of the dataset were trained on, so the prediction shows memory, not skill."
    )
    return HeldOut(images.paths[i], ID2LABEL[int(images.labels[i])], note)


def time_models(names: Iterable[str], images: LabelledImages) -> dict[str, Timing]:
    """Train each model for a few seconds, on some of `images`, and return how fast this machine is."""
    step = max(1, len(images.paths) // N_TIMED_IMAGES)
    paths = images.paths[::step][:N_TIMED_IMAGES]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        sample = store_images(paths, Path(folder) / "images.bin")
        return {name: _time_model(name, sample, Path(folder)) for name in dict.fromkeys(names)}


class _Stopwatch(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch_end(self, state: FitState) -> None:
        self.times.append(perf_counter())


def _time_model(name: str, sample: StoredArrays, folder: Path) -> Timing:
    """Train on `sample` for three epochs, of which the last counts: the first ones compile and warm up."""
    n, recipe = len(sample), RECIPES[name]
    recipe = replace(recipe, epochs=3, n_cached_views=min(1, recipe.n_cached_views))
    start, watch = find_weights(MODELS[name].pretrained), _Stopwatch()
    if start and recipe.freezes_trunk:  # the bundled one takes as long as the one that `train` prepares
        shutil.copy(BUNDLE / name / "model.onnx", folder / "trunk.onnx")
        start = replace(start, path=Path(shutil.copy(start.path, folder / "trunk.safetensors")))
    learner = build_learner(name, recipe, 0, start.path if start else None)
    targets = np.eye(len(CLASSES), dtype=np.float32)[np.arange(n) % len(CLASSES)]
    began = perf_counter()
    sampler = make_sampler(learner, recipe, sample, 0, folder / f"{name}.npy")
    view = perf_counter() - began
    fit(learner, sampler, targets, np.arange(n), recipe, 0, [watch], name)
    return Timing((watch.times[-1] - watch.times[-2]) / n, view / n)
