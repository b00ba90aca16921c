"""Train a model: measure its recipe on held-out folds, then fit it once more on all images.

    images -> folds -> for each measured fold: fit on the others -> out-of-fold logits -> report
                    -> fit on all images -> the weights that are kept

A fit runs all epochs of the recipe and keeps the moving average of its weights. No image chooses an epoch,
so a held-out fold measures and does nothing else. The fits themselves are in `fracture_lib.training.loop`.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.dataset import (
    assign_folds,
    load_dataset_folder,
    store_images,
    stream_transformed,
)
from fracture_lib.data.duplicates import perceptual_hashes
from fracture_lib.data.fracatlas import load_fracatlas
from fracture_lib.data.stored import StoredArrays
from fracture_lib.errors import InvalidArgument
from fracture_lib.evaluation.calibration import fit_temperature
from fracture_lib.evaluation.ensemble import write_out_of_fold
from fracture_lib.evaluation.metrics import mean_with_interval
from fracture_lib.evaluation.perturbations import PERTURBATIONS
from fracture_lib.evaluation.report import out_of_fold_report, summarize_data
from fracture_lib.io.views import FAST_VIEWS, VIEWS, View, make_views
from fracture_lib.labels import CLASSES
from fracture_lib.models import onnx
from fracture_lib.models.config import ModelConfig, write_config
from fracture_lib.models.functional import softmax
from fracture_lib.models.report import EpochMetrics, EvaluationReport, TrainingSummary
from fracture_lib.registry import MODELS
from fracture_lib.training.callbacks import (
    Callback,
    Checkpoint,
    LearningCurve,
    LiveCurve,
    ProgressBar,
    WeightAverage,
    check_same_run,
)
from fracture_lib.training.learner import (
    Learner,
    build_learner,
    check_name_and_seed,
    check_pretrained,
    compute_features,
    compute_view_logits,
    pixels_to_logits,
)
from fracture_lib.training.loop import fit
from fracture_lib.training.pretrain import find_weights, pretrain, quantize
from fracture_lib.training.recipes import PRETRAINING, RECIPES, Recipe
from fracture_lib.training.sampling import make_sampler

__all__ = ["CrossValidation", "TrainingRun", "cross_validate", "train"]

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
    pretrain_on: str | Path | None = None,
    recipe: Recipe | None = None,
    callback: LiveCurve | None = None,
    keep_checkpoints: bool = False,
) -> EvaluationReport:
    """Train the model `name` on the dataset `data`, write it to the folder `out` and return its report.

    `out` becomes a model folder without a card, which `publishing.cards.write_card` adds. The same call
    after a kill resumes from `out/checkpoints`, which is removed at the end unless `keep_checkpoints`.
    `data` and `split` are those of `load_dataset_folder`. `n_measured_folds` of the `n_folds` are measured,
    by default all. `recipe` replaces the model's own. `callback(title, history)` gets the curve of each
    measured fold every five epochs.

    Training starts from `pretrained`: a file that `pretrain` wrote, or for resnet50 any safetensors file or
    "hf-hub:owner/name[@revision]" with torchvision's names. Without it, a CNN starts from random weights and
    resnet50 from what the registry names. With a FracAtlas folder `pretrain_on`, the layers before the head
    are first trained by `pretrain`, from the same start.

    Raises UnknownModel, InvalidArgument, InvalidModel if the pretrained weights do not fit,
    ModelUnavailable if they cannot be fetched, UnknownLabel, and InvalidData if the images or the
    checkpoints do not fit.
    """
    check_name_and_seed(name, seed)
    n_measured_folds = n_folds if n_measured_folds is None else n_measured_folds
    if not 1 <= n_measured_folds <= n_folds:
        raise InvalidArgument(
            f"n_measured_folds is {n_measured_folds}; use 1 to n_folds, which is {n_folds}."
        )
    recipe, out = recipe or RECIPES[name], Path(out)
    # Before the images, which take longer, and before anything is written
    start = find_weights(pretrained or MODELS[name].pretrained)
    if start:
        check_pretrained(name, recipe, start.path)
    images = load_dataset_folder(data, split)
    folds = assign_folds(images, n_folds)
    pretraining = None
    if pretrain_on:
        pretraining = {"data": load_fracatlas(pretrain_on).fingerprint, "recipe": asdict(PRETRAINING[name])}
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": name,
        "seed": seed,
        "n_folds": n_folds,
        "recipe": asdict(recipe),
        "data": asdict(summarize_data(images)),
        "pretrained": start.sha256 if start else None,
        "pretraining": pretraining,
    }
    is_resumed = check_same_run(checkpoints / "run.json", settings)
    began = perf_counter()
    if pretrain_on:
        file = checkpoints / "pretrained.safetensors"
        if not file.exists():
            pretrain(name, pretrain_on, file, pretrained, seed)
        start = find_weights(file)
    if start and recipe.freezes_trunk:
        start = quantize(start, recipe, checkpoints / "trunk.safetensors", seed)

    run = TrainingRun(
        name=name,
        recipe=recipe,
        seed=seed,
        pretrained=start.path if start else None,
        paths=images.paths,
        images=store_images(images.paths, checkpoints / "images.bin"),
        labels=images.labels,
        checkpoints=checkpoints,
    )
    measured = cross_validate(run, folds, n_measured_folds, callback)
    learner = run.fit_all()
    minutes = (perf_counter() - began) / 60

    labels, groups = images.labels[measured.indices], images.groups[measured.indices]
    hashes = perceptual_hashes(images.paths)
    write_out_of_fold(out, measured.logits, images, measured.indices, hashes, measured.view_logits)
    stored_logits, stored_change = _save_and_compare(learner, out, run.images)
    temperature = round(fit_temperature(measured.logits, labels), 4)
    write_config(out, ModelConfig(name, recipe.architecture, temperature, asdict(recipe), seed))
    protocol = (
        f"out of fold: {n_measured_folds} of {n_folds} grouped folds, each scored by a model trained on the "
        "other folds; the published weights are trained on all images"
    )
    report = replace(
        out_of_fold_report(
            measured.logits,
            labels,
            groups,
            model=name,
            protocol=protocol,
            view_logits=measured.view_logits,
        ),
        robustness={
            perturbation: mean_with_interval((logits.argmax(axis=1) == labels).astype(float), groups)
            for perturbation, logits in measured.perturbed_logits.items()
        },
        data=summarize_data(images),
        training=TrainingSummary(
            n_folds=n_folds,
            n_measured_folds=n_measured_folds,
            pretrained=start.source if start else None,
            stored_probability_change=stored_change,
            history=measured.history,
            train_accuracy=round(float((stored_logits.argmax(axis=1) == images.labels).mean()), 4),
            minutes=None if is_resumed else round(minutes, 1),
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
    paths: tuple[Path, ...]  # of the N images
    images: StoredArrays  # [h, w] each, as `io.image.content` returns them
    labels: NDArray[np.int64]  # [N]
    checkpoints: Path  # folder

    def fit_fold(
        self,
        test_mask: NDArray[np.bool_],
        fold: int,
        n_folds: int,
        callback: LiveCurve | None,
    ) -> tuple[Learner, list[EpochMetrics]]:
        """Fit on the images outside `test_mask` [N]; return the learner and its curve on those inside.

        The curve is that of the first view.
        """
        learner = self._build_learner()
        views = _stream_views(self.images, np.flatnonzero(test_mask), FAST_VIEWS)
        test_features = StoredArrays(self.checkpoints / "held-out.bin", compute_features(learner, views))
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
        sample = make_sampler(learner, self.recipe, self.images, self.seed, cache)
        targets = np.eye(len(CLASSES), dtype=np.float32)[self.labels]
        state = fit(learner, sample, targets, indices, self.recipe, self.seed, callbacks, title)
        return learner, state.history


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """M images, each scored by a model that did not see it."""

    indices: NDArray[np.int64]  # [M], positions among all images
    view_logits: NDArray[np.float32]  # [M, V, 10]
    perturbed_logits: dict[str, NDArray[np.float32]]  # [M, 10] each, by perturbation
    history: list[EpochMetrics]  # means over the measured folds

    @property
    def logits(self) -> NDArray[np.float32]:
        """The mean over the views, [M, 10]."""
        return self.view_logits.mean(axis=1)


def cross_validate(
    run: TrainingRun,
    folds: NDArray[np.int64],
    n_measured_folds: int,
    callback: LiveCurve | None = None,
) -> CrossValidation:
    """For each of the first `n_measured_folds` of `folds` [N], fit on the others and score it.

    `callback` is that of `train`.
    """
    n_folds = int(folds.max()) + 1
    test_sets, view_logits, perturbed_logits, histories = [], [], [], []
    for fold in range(n_measured_folds):
        learner, history = run.fit_fold(folds == fold, fold, n_folds, callback)
        histories.append(history)
        test_set = np.flatnonzero(folds == fold)
        test_sets.append(test_set)
        forward = pixels_to_logits(learner)
        views = _stream_views(run.images, test_set)
        view_logits.append(compute_view_logits(forward, views, len(VIEWS)))
        paths = [run.paths[i] for i in test_set]
        perturbed = stream_transformed(paths, list(PERTURBATIONS.values()), *FAST_VIEWS)
        perturbed_logits.append(compute_view_logits(forward, perturbed, len(PERTURBATIONS)))
    by_perturbation = np.concatenate(perturbed_logits).swapaxes(0, 1)
    return CrossValidation(
        indices=np.concatenate(test_sets),
        view_logits=np.concatenate(view_logits),
        perturbed_logits=dict(zip(PERTURBATIONS, by_perturbation, strict=True)),
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


def _stream_views(
    images: StoredArrays, indices: Iterable[int], views: Sequence[View] = VIEWS
) -> Iterator[NDArray[np.float32]]:
    """Yield the model inputs float32 [V, 128, 128] of the images `indices`."""
    return (make_views(images[i], views) for i in indices)


def _save_and_compare(
    learner: Learner, folder: Path, images: StoredArrays
) -> tuple[NDArray[np.float32], float]:
    """Save the model; return its logits [N, 10] on the images and the change from saving it.

    The logits are means over the views. The change is the largest of a probability, in the first view.
    """
    indices = range(len(images))
    trained = compute_view_logits(pixels_to_logits(learner), _stream_views(images, indices, FAST_VIEWS), 1)
    learner.save(folder)
    forward = onnx.load(folder)
    stored = compute_view_logits(lambda chunk: forward(chunk)[0], _stream_views(images, indices), len(VIEWS))
    change = float(np.abs(softmax(stored[:, 0]) - softmax(trained[:, 0])).max())
    return stored.mean(axis=1), change
