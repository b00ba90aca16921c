"""Train a model: measure its recipe on held-out folds, then fit it once more on all images.

    images -> folds -> for each measured fold: fit on the others -> out-of-fold logits -> report
                    -> fit on all images -> the weights that are kept

A fit runs all epochs of the recipe and keeps the moving average of its weights. No image chooses an epoch,
so a held-out fold measures and does nothing else.

On one kind of CPU, a fit repeats bit for bit, and a killed one resumes from its last checkpoint with the same
result: every epoch draws its random numbers from (seed, epoch) alone. No framework is imported here; see
`fracture_lib.training.learner`.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fracture_lib.data.dataset import Transform, assign_folds, load_dataset_folder, load_pixels
from fracture_lib.data.duplicates import perceptual_hashes
from fracture_lib.errors import InvalidArgument, InvalidData, InvalidModel, UnknownModel
from fracture_lib.evaluation.calibration import fit_temperature
from fracture_lib.evaluation.ensemble import write_out_of_fold
from fracture_lib.evaluation.metrics import mean_with_interval
from fracture_lib.evaluation.perturbations import PERTURBATIONS
from fracture_lib.evaluation.report import out_of_fold_report, summarize_data
from fracture_lib.hub import resolve_pretrained
from fracture_lib.labels import CLASSES
from fracture_lib.models import onnx
from fracture_lib.models.config import ModelConfig, write_config
from fracture_lib.models.functional import softmax
from fracture_lib.models.json_files import read_json, write_json
from fracture_lib.models.report import EpochMetrics, EvaluationReport, TrainingSummary
from fracture_lib.registry import MODELS
from fracture_lib.training.callbacks import (
    Callback,
    Checkpoint,
    FitState,
    LearningCurve,
    LiveCurve,
    ProgressBar,
    WeightAverage,
)
from fracture_lib.training.learner import Learner, build_learner, compute_features, compute_logits, in_chunks
from fracture_lib.training.recipes import RECIPES, Recipe
from fracture_lib.training.sampling import Sampler, make_sampler

__all__ = ["CrossValidation", "TrainingRun", "cross_validate", "fit", "one_cycle", "train"]

ORIGINAL = "original"  # beside the names of perturbations

_logger = logging.getLogger(__name__)


def train(
    name: str,
    data: str | Path,
    out: str | Path,
    split: str | None = "Train",
    n_folds: int = 5,
    n_measured_folds: int | None = None,
    seed: int = 0,
    pretrained: str | Path | None = None,
    recipe: Recipe | None = None,
    callback: LiveCurve | None = None,
    keep_checkpoints: bool = False,
) -> EvaluationReport:
    """Train the model `name` on the dataset `data`, write it to the folder `out` and return its report.

    `out` becomes a model folder without a card, which `publishing.cards.write_card` adds. The same call
    after a kill resumes from `out/checkpoints`, which is removed at the end unless `keep_checkpoints`.
    `data` and `split` are those of `load_dataset_folder`. `n_measured_folds` of the `n_folds` are measured,
    by default all. `pretrained`, only for a model that starts from weights, is a safetensors file or
    "hf-hub:owner/name[@revision]". `recipe` replaces the model's own. `callback(title, history)` gets the
    curve of each measured fold every five epochs.

    Raises UnknownModel, InvalidArgument, InvalidModel if the pretrained weights do not fit,
    ModelUnavailable if they cannot be fetched, UnknownLabel, and InvalidData if the images or the
    checkpoints do not fit.
    """
    if name not in MODELS:
        raise UnknownModel(f'Unknown model "{name}". Choose from {", ".join(MODELS)}.')
    n_measured_folds = n_folds if n_measured_folds is None else n_measured_folds
    if not 1 <= n_measured_folds <= n_folds:
        raise InvalidArgument(
            f"n_measured_folds is {n_measured_folds}; use 1 to n_folds, which is {n_folds}."
        )
    if not 0 <= seed < 2**32:
        raise InvalidArgument(f"seed is {seed}; use 0 to 2**32 - 1.")
    if pretrained and not MODELS[name].pretrained:
        raise InvalidArgument(f"{name} starts from random weights. Leave out the pretrained weights.")
    spec, recipe, out = MODELS[name], recipe or RECIPES[name], Path(out)
    images = load_dataset_folder(data, split)
    folds = assign_folds(images, n_folds)
    start = resolve_pretrained(pretrained or spec.pretrained) if spec.pretrained else None
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": name,
        "seed": seed,
        "n_folds": n_folds,
        "recipe": asdict(recipe),
        "data": asdict(summarize_data(images)),
        "pretrained": start and hashlib.sha256(start.read_bytes()).hexdigest(),
    }
    _check_same_run(checkpoints / "run.json", settings)

    transforms: dict[str, Transform] = {ORIGINAL: lambda image: image, **PERTURBATIONS}
    perturbed = load_pixels(images, transforms)
    pixels = perturbed.pop(ORIGINAL)
    run = TrainingRun(name, recipe, seed, start, pixels, images.labels, checkpoints)
    measured = cross_validate(run, folds, n_measured_folds, perturbed, callback)
    learner = run.fit_all()

    labels, groups = images.labels[measured.indices], images.groups[measured.indices]
    hashes = perceptual_hashes(images.paths)
    write_out_of_fold(out, measured.logits, images, measured.indices, hashes)
    stored_change = _save_and_compare(learner, out, pixels)
    temperature = round(fit_temperature(measured.logits, labels), 4)
    write_config(out, ModelConfig(name, recipe.architecture, temperature, asdict(recipe), seed))
    protocol = (
        f"out of fold: {n_measured_folds} of {n_folds} grouped folds, each scored by a model trained on the "
        "other folds; the published weights are trained on all images"
    )
    report = replace(
        out_of_fold_report(measured.logits, labels, groups, model=name, protocol=protocol),
        robustness={
            perturbation: mean_with_interval((logits.argmax(axis=1) == labels).astype(float), groups)
            for perturbation, logits in measured.perturbed_logits.items()
        },
        data=summarize_data(images),
        training=TrainingSummary(
            n_folds=n_folds,
            n_measured_folds=n_measured_folds,
            pretrained=_origin(start),
            stored_probability_change=stored_change,
            history=measured.history,
        ),
    )
    report.write(out)
    if not keep_checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    _logger.info("Wrote %s to %s.", name, out)
    return report


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What the fits of one model on N images share."""

    name: str
    recipe: Recipe
    seed: int
    pretrained: Path | None
    pixels: NDArray[np.float32]  # [N, 1, 128, 128]
    labels: NDArray[np.int64]  # [N]
    checkpoints: Path  # folder

    def fit_fold(
        self, test_mask: NDArray[np.bool_], fold: int, n_folds: int, callback: LiveCurve | None
    ) -> tuple[Learner, list[EpochMetrics]]:
        """Fit on the images outside `test_mask` [N]; return the learner and its curve on those inside."""
        learner = self._build_learner()
        test_features = compute_features(learner, self.pixels[test_mask])
        curve = LearningCurve(test_features, self.labels[test_mask], callback)
        title, checkpoint = f"fold {fold + 1} of {n_folds}", f"fold-{fold}.safetensors"
        return self._fit(learner, np.flatnonzero(~test_mask), title, checkpoint, [curve])

    def fit_all(self) -> Learner:
        """Fit on all images."""
        indices = np.arange(len(self.labels))
        return self._fit(self._build_learner(), indices, "all images", "all.safetensors", [])[0]

    def _build_learner(self) -> Learner:
        return build_learner(self.name, self.recipe, self.seed, self.pretrained)

    def _fit(
        self,
        learner: Learner,
        indices: NDArray[np.int64],
        title: str,
        checkpoint: str,
        scores: Sequence[Callback],
    ) -> tuple[Learner, list[EpochMetrics]]:
        callbacks = [
            WeightAverage(self.recipe.ema_decay),
            *scores,
            Checkpoint(self.checkpoints / checkpoint),
            ProgressBar(),
        ]
        cache = self.checkpoints / "views.npy"
        sample = make_sampler(learner, self.recipe, self.pixels, self.seed, cache)
        state = fit(learner, sample, self.labels, indices, self.recipe, self.seed, callbacks, title)
        return learner, state.history


def fit(
    learner: Learner,
    sample: Sampler,
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    recipe: Recipe,
    seed: int,
    callbacks: Sequence[Callback],
    title: str,
) -> FitState:
    """Train on the images `indices` [M] of those that `labels` [N] and `sample` know."""
    state = FitState(title, learner, recipe.epochs)
    targets = _smooth_one_hot(labels, recipe.label_smoothing)  # [N, 10]
    batch_size = min(recipe.batch_size, len(indices))
    n_steps = len(indices) // batch_size  # the remainder waits for the next epoch's order

    for callback in callbacks:
        callback.on_fit_start(state)  # a checkpoint moves `n_epochs_done`
    for epoch in range(state.n_epochs_done, recipe.epochs):
        rng = np.random.default_rng((seed, epoch))  # so a resumed fit repeats an uninterrupted one
        order = rng.permutation(indices)
        state.losses = []
        for step in range(n_steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            learning_rate = one_cycle((epoch + step / n_steps) / recipe.epochs, recipe)
            dropout_seed = int(rng.integers(2**31))
            features = sample(batch, rng)  # [B, ...], one random view per image
            state.losses.append(learner.step(features, targets[batch], learning_rate, dropout_seed))
        state.n_epochs_done = epoch + 1
        for callback in callbacks:
            callback.on_epoch_end(state)
    for callback in callbacks:
        callback.on_fit_end(state)
    return state


def one_cycle(progress: float, recipe: Recipe) -> float:
    """Return the learning rate at `progress` 0..1: cosine up to the peak, cosine down to nearly zero.

    Source: Smith and Topin, Super-Convergence, https://arxiv.org/abs/1708.07120.
    """
    peak, warmup = recipe.learning_rate, recipe.warmup_fraction
    if progress < warmup:
        start, end, share = peak / 25, peak, progress / warmup
    else:
        start, end, share = peak, peak / 1e4, (progress - warmup) / (1 - warmup)
    return float(start + (end - start) * (1 - np.cos(np.pi * share)) / 2)


def _smooth_one_hot(labels: NDArray[np.int64], smoothing: float) -> NDArray[np.float32]:
    """Return soft targets float32 [N, 10]: `smoothing` is spread over all classes."""
    rows = (1 - smoothing) * np.eye(len(CLASSES)) + smoothing / len(CLASSES)
    return rows.astype(np.float32)[labels]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """M images, each scored by a model that did not see it."""

    indices: NDArray[np.int64]  # [M], positions among all images
    logits: NDArray[np.float32]  # [M, 10]
    perturbed_logits: dict[str, NDArray[np.float32]]  # [M, 10] each, by perturbation
    history: list[EpochMetrics]  # means over the measured folds


def cross_validate(
    run: TrainingRun,
    folds: NDArray[np.int64],
    n_measured_folds: int,
    perturbed: Mapping[str, NDArray[np.float32]] | None = None,
    callback: LiveCurve | None = None,
) -> CrossValidation:
    """For each of the first `n_measured_folds` of `folds` [N], fit on the others and score it.

    `perturbed` holds further inputs [N, 1, 128, 128] to score, by name. `callback` is that of `train`.
    """
    n_folds = int(folds.max()) + 1
    inputs = {ORIGINAL: run.pixels, **(perturbed or {})}
    logits: dict[str, list[NDArray[np.float32]]] = {name: [] for name in inputs}
    test_sets, histories = [], []
    for fold in range(n_measured_folds):
        test_mask = folds == fold
        learner, history = run.fit_fold(test_mask, fold, n_folds, callback)
        test_sets.append(np.flatnonzero(test_mask))
        histories.append(history)
        for name, pixels in inputs.items():
            logits[name].append(compute_logits(learner, compute_features(learner, pixels[test_mask])))
    joined = {name: np.concatenate(parts) for name, parts in logits.items()}
    return CrossValidation(
        indices=np.concatenate(test_sets),
        logits=joined.pop(ORIGINAL),
        perturbed_logits=joined,
        history=_mean_history(histories, [len(test_set) for test_set in test_sets]),
    )


def _mean_history(histories: Sequence[list[EpochMetrics]], sizes: Sequence[int]) -> list[EpochMetrics]:
    """Average the curves of folds that hold out `sizes` images: each fold's loss and each image alike."""
    return [
        EpochMetrics(
            epoch=points[0].epoch,
            loss=round(float(np.mean([point.loss for point in points])), 4),
            held_out_accuracy=round(
                float(np.average([point.held_out_accuracy for point in points], weights=sizes)), 4
            ),
        )
        for points in zip(*histories, strict=True)
    ]


def _check_same_run(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run, or raise InvalidData if the checkpoints there have other settings."""
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if path.exists() and (previous := read_json(path)) != settings:
        changed = ", ".join(key for key in settings if previous.get(key) != settings[key])
        raise InvalidData(
            f"{path.parent} holds checkpoints of a run with another {changed}. "
            "Choose another output folder or delete them."
        )
    write_json(path, settings)


def _origin(pretrained: Path | None) -> str | None:
    """Return what a file of pretrained weights says about its source, or its name."""
    if pretrained is None:
        return None
    try:
        with safe_open(pretrained, "np") as file:
            return (file.metadata() or {}).get("source", pretrained.name)
    except (OSError, SafetensorError) as error:
        raise InvalidModel(f"{pretrained.name} is not a readable safetensors file: {error}") from error


def _save_and_compare(learner: Learner, folder: Path, pixels: NDArray[np.float32]) -> float:
    """Save the model; return the largest change in probability, over `pixels`, from saving it."""
    trained = softmax(compute_logits(learner, compute_features(learner, pixels)))
    learner.save(folder)
    forward = onnx.load(folder)
    stored = softmax(in_chunks(lambda chunk: forward(chunk)[0], pixels))
    return float(np.abs(stored - trained).max())
