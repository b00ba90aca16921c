"""Train the fracture detector on FracAtlas: measure it in grouped folds, then fit it on all images.

images -> for each fold: fit on random views of the others -> out-of-fold logits and maps
       -> fit on all images -> the weights that are kept
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from fracture_lib.data.fracatlas import FracAtlas, boxes_inside, load_fracatlas
from fracture_lib.data.reading import map_images
from fracture_lib.data.stored import StoredArrays
from fracture_lib.errors import InvalidArgument, InvalidData
from fracture_lib.evaluation.detector import measure_detector, measure_external
from fracture_lib.evaluation.localization import (
    BoxedImages,
    detector_heatmaps,
    localize,
    overlay_heatmaps,
    read_boxed_images,
)
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.io.framing import crop_borders
from fracture_lib.io.image import LoadedImage, content
from fracture_lib.io.views import DETECTOR_SIZE, make_detector_input
from fracture_lib.models.detector import read_detector
from fracture_lib.models.json_files import write_json
from fracture_lib.models.report import DataSummary, DetectorReport, Localization
from fracture_lib.registry import DETECTOR, MODELS
from fracture_lib.training.augment import Augmentation, change_tones, random_affine, warp
from fracture_lib.training.callbacks import check_same_run
from fracture_lib.training.learner import check_seed
from fracture_lib.training.pretrain import find_weights
from fracture_lib.training.recipes import one_cycle

if TYPE_CHECKING:
    from fracture_lib.models.efficientnet import DetectorLearner

__all__ = ["DETECTOR_RECIPE", "DetectorRecipe", "DetectorRun", "prepare", "train_detector"]

N_FOLDS = 5
CELLS = DETECTOR_SIZE // 16  # of the map, per side
MIN_VISIBLE = 0.3  # share of the boxes' area in a view that still shows the fracture
PROTOCOL = (
    f"out of fold: {N_FOLDS} grouped folds of FracAtlas, each scored by a detector trained on the others; "
    "calibration and thresholds are fitted on other groups than those they are measured on; the published "
    "weights are trained on all images; the overlays are those of the bundled models for types of fracture, "
    "of which the CNNs' blocks were trained on FracAtlas without its boxes"
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectorRecipe:
    """How the detector is trained."""

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.15
    weight_decay: float = 0.02
    clip_norm: float = 5.0
    negatives: float = 1.2  # images without a fracture per image with one, in an epoch
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(
            aspect=(0.0, 0.3), zoom=(0.72, 1.08), rot90_p=0.0, invert_p=0.0, erase_p=0.2
        )
    )


DETECTOR_RECIPE = DetectorRecipe()


def train_detector(
    data: str | Path,
    out: str | Path,
    pretrained: str | Path,
    seed: int = 0,
    recipe: DetectorRecipe = DETECTOR_RECIPE,
    external: str | Path | None = None,
    n_overlays: int | None = None,
    keep_checkpoints: bool = False,
) -> DetectorReport:
    """Train the detector on the FracAtlas folder `data`, write it to the folder `out` and return its report.

    `out` becomes a folder for `models.detector.read_detector`, without a card. The same call after a kill
    resumes from `out/checkpoints`, which is removed at the end unless `keep_checkpoints`. `pretrained` is an
    EfficientNet-Lite0 under timm's names, a safetensors file or "hf-hub:owner/name[@revision]". The outcomes
    are also measured on `external`, a dataset of fractures as `load_dataset_folder` takes it. The overlays of
    the bundled models for the types are measured on `n_overlays` fractured images, by default all.

    Raises InvalidArgument, InvalidData, InvalidModel if the pretrained weights do not fit, UnknownLabel, and
    ModelUnavailable if weights cannot be fetched.
    """
    check_seed(seed)
    out = Path(out)
    atlas = load_fracatlas(data)
    folds = _assign_folds(atlas)
    start = find_weights(pretrained)
    if start is None:
        raise InvalidArgument("The detector needs pretrained weights. Give a safetensors file.")
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    is_resumed = any(checkpoints.iterdir())
    settings = {
        "seed": seed,
        "recipe": asdict(recipe),
        "data": atlas.fingerprint,
        "pretrained": start.source,
        "pretrained_sha256": start.sha256,
    }
    check_same_run(checkpoints / "run.json", settings)
    began = perf_counter()
    run = prepare(data, checkpoints, start.path, recipe, seed)
    logits, maps = _cross_validate(run, folds, checkpoints)
    learner = run.fit(np.ones(len(folds), np.bool_), checkpoints / "all.safetensors", "all images")
    minutes = (perf_counter() - began) / 60

    learner.save(out / "model.onnx")
    write_json(out / "config.json", {"model_type": DETECTOR, "model_name": DETECTOR, **settings})
    images = read_boxed_images(atlas)
    report = replace(
        measure_detector(logits, atlas.fractured, atlas.groups, PROTOCOL),
        localization={
            DETECTOR: localize(detector_heatmaps(maps[atlas.fractured], images), images),
            **_localize_overlays(images, n_overlays),
        },
        data=DataSummary(len(folds), "source_group", atlas.fingerprint),
        training_minutes=None if is_resumed else round(minutes, 1),
    )
    report.write(out)
    if external:
        report = replace(report, external=measure_external(read_detector(out), external))
        report.write(out)
    if not keep_checkpoints:
        shutil.rmtree(checkpoints)
    return report


def _assign_folds(atlas: FracAtlas) -> NDArray[np.int64]:
    """Return the fold [N] of each image: stratified, a group is never divided. Raises InvalidData."""
    from sklearn.model_selection import StratifiedGroupKFold

    for kind in (atlas.fractured, ~atlas.fractured):
        if len(np.unique(atlas.groups[kind])) < N_FOLDS:
            raise InvalidData(f"{N_FOLDS} folds need {N_FOLDS} groups of images with a fracture and without.")
    folds = np.empty(len(atlas.paths), np.int64)
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(folds, atlas.fractured, atlas.groups)):
        folds[test] = fold
    return folds


def _cross_validate(
    run: "DetectorRun", folds: NDArray[np.int64], checkpoints: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits [N] and maps [N, 16, 16] from detectors that did not see the image."""
    logits, maps = np.empty(len(folds), np.float32), np.empty((len(folds), CELLS, CELLS), np.float32)
    for fold in range(N_FOLDS):
        test = folds == fold
        learner = run.fit(~test, checkpoints / f"fold-{fold}.safetensors", f"fold {fold + 1}")
        logits[test], maps[test], _ = run.predict(learner, test)
    return logits, maps


def _localize_overlays(images: BoxedImages, n: int | None) -> dict[str, Localization]:
    """Measure the overlays of the bundled models on n of the images, drawn at random, or on all."""
    indices = np.arange(len(images.paths))
    if n is not None and n < len(indices):
        indices = np.sort(np.random.default_rng(0).choice(indices, n, replace=False))
    if not len(indices):
        return {}
    chosen = images[indices]
    heatmaps = overlay_heatmaps(chosen, tuple(MODELS), InferencePipeline())
    return {name: localize(maps, chosen) for name, maps in heatmaps.items()}


@dataclass(frozen=True, eq=False)
class DetectorRun:
    """What the fits on N images share."""

    atlas: FracAtlas
    recipe: DetectorRecipe
    seed: int
    pretrained: Path
    images: StoredArrays  # N of [h, w], what views are cut from
    boxes: Sequence[NDArray[np.float32]]  # N of [K, 4], on these, in 0..1

    def fit(self, train: NDArray[np.bool_], path: Path, title: str) -> "DetectorLearner":
        """Return a learner trained on the images `train` [N]; its weights are kept in the file `path`."""
        from fracture_lib.models.efficientnet import DetectorLearner

        recipe = self.recipe
        learner = DetectorLearner(
            self.pretrained, self.atlas.findings.shape[1], self.seed, recipe.weight_decay, recipe.clip_norm
        )
        if path.exists():
            learner.set_weights(load_file(path))
            return learner
        positives, negatives = (np.flatnonzero(train & (self.atlas.fractured == y)) for y in (True, False))
        n_negatives = min(len(negatives), round(recipe.negatives * len(positives)))
        n_steps = max(1, (len(positives) + n_negatives) // recipe.batch_size)
        for epoch in tqdm(range(recipe.epochs), desc=title, unit="epoch"):
            rng = np.random.default_rng((self.seed, epoch))
            chosen = np.concatenate([positives, rng.choice(negatives, n_negatives, replace=False)])
            rng.shuffle(chosen)
            losses = []
            for step in range(n_steps):
                batch = chosen[step * recipe.batch_size : (step + 1) * recipe.batch_size]
                views, places, fractured = zip(*(self._random_view(i, rng) for i in batch), strict=True)
                findings = self.atlas.findings[batch].copy()
                findings[:, 0] = fractured
                rate = one_cycle((epoch + step / n_steps) / recipe.epochs, recipe)
                losses.append(learner.step(np.stack(views), findings, np.stack(places), rate))
            _logger.info("%s, epoch %d: losses %s", title, epoch + 1, np.mean(losses, 0).round(4))
        learner.use_averages()
        partial = path.with_suffix(".partial")
        save_file(learner.get_weights(), partial)
        partial.replace(path)  # a kill while writing leaves no damaged file
        return learner

    def _random_view(
        self, i: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
        """Return a view [256, 256] of image i, the share of each place in a box, and if a fracture shows."""
        image, strength = self.images[i], self.recipe.augmentation
        affine = random_affine(image.shape, strength, rng, DETECTOR_SIZE)
        view = change_tones(warp(image, affine, DETECTOR_SIZE), strength, rng)
        if not len(self.boxes[i]):
            return view, np.zeros((CELLS, CELLS), np.float32), False
        mask = _draw_boxes(image.shape, self.boxes[i])
        shown = warp(mask, affine, DETECTOR_SIZE)
        # One pixel of the view covers |ad - bc| pixels of the image.
        area = shown.sum() * abs(affine[0] * affine[4] - affine[1] * affine[3])
        places = shown.reshape(CELLS, 16, CELLS, 16).mean((1, 3))
        return view, places, bool(area >= MIN_VISIBLE * mask.sum())

    def predict(
        self, learner: "DetectorLearner", chosen: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], ...]:
        """Return the logits [M], maps [M, 16, 16] and embeddings [M, D] of the images `chosen` [N]."""
        indices = np.flatnonzero(chosen)
        parts = [
            learner.predict(np.concatenate([make_detector_input(self.images[i]) for i in chunk]))
            for chunk in np.array_split(indices, max(1, len(indices) // 64))
        ]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def prepare(
    data: str | Path, folder: Path, pretrained: Path, recipe: DetectorRecipe, seed: int
) -> DetectorRun:
    """Read the images of a FracAtlas folder into a file in `folder`. Raises InvalidData."""
    atlas = load_fracatlas(data)
    boxes = []

    def read() -> Iterator[NDArray[np.float32]]:
        images = map_images(_read_content, atlas.paths, "reading images")
        for (pixels, shape, frame), image_boxes in zip(images, atlas.boxes, strict=True):
            boxes.append(boxes_inside(image_boxes, shape, frame))
            yield pixels

    return DetectorRun(atlas, recipe, seed, pretrained, StoredArrays(folder / "images.bin", read()), boxes)


def _read_content(
    image: LoadedImage,
) -> tuple[NDArray[np.float32], tuple[int, int], tuple[slice, slice]]:
    """Return what views are cut from, the height and width before, and the rows and columns it shows."""
    return content(image, DETECTOR_SIZE), image.pixels.shape, crop_borders(image.pixels)


def _draw_boxes(shape: tuple[int, int], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 [h, w]: 1 inside the boxes [K, 4], which are in 0..1."""
    mask = np.zeros(shape, np.float32)
    height, width = shape
    for x0, y0, x1, y1 in boxes:
        mask[int(y0 * height) : round(y1 * height) + 1, int(x0 * width) : round(x1 * width) + 1] = 1
    return mask
