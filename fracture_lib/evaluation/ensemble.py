"""Fit and measure the ensemble: the weighted mean of its members' calibrated probabilities, calibrated again.

Weights and temperature are fitted on the images that every member left out, from the logits that training
writes beside each model. `measure_ensemble` scores each of these images with weights and temperatures
fitted on other groups; `models.model.EnsembleModel` serves those fitted on all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fracture_lib.data.dataset import LabelledImages
from fracture_lib.errors import InvalidData, InvalidModel
from fracture_lib.evaluation.calibration import cross_fit_ensemble, fit_ensemble_weights, fit_temperature
from fracture_lib.evaluation.metrics import paired_difference
from fracture_lib.evaluation.report import evaluation_report
from fracture_lib.hub import OUT_OF_FOLD
from fracture_lib.models.config import read_config
from fracture_lib.models.functional import linear_pool_logits, softmax
from fracture_lib.models.report import EvaluationReport
from fracture_lib.models.tensors import write_tensors
from fracture_lib.registry import ENSEMBLE

__all__ = ["OutOfFold", "measure_ensemble", "read_out_of_fold", "write_out_of_fold"]


@dataclass(frozen=True)
class OutOfFold:
    """The content of out_of_fold.safetensors: M images, each scored by a model that did not see it."""

    logits: NDArray[np.float32]  # [M, 10]
    labels: NDArray[np.int64]  # [M]
    groups: NDArray[np.int64]  # [M]
    indices: NDArray[np.int64]  # [M], positions in the order of the dataset's paths
    fingerprint: str  # of the dataset
    # [N, 8], `perceptual_hashes` of all N images of the dataset; None in files of older versions
    training_hashes: NDArray[np.uint8] | None = None


def write_out_of_fold(
    folder: Path,
    logits: NDArray[np.float32],
    images: LabelledImages,
    indices: NDArray[np.int64],
    training_hashes: NDArray[np.uint8] | None = None,
) -> None:
    """Write `logits` [M, 10] of the images `indices` [M], each from a model that did not see the image.

    `training_hashes` [N, 8] are the `perceptual_hashes` of all images that the kept weights are trained on.
    """
    arrays: dict[str, NDArray[Any]] = {
        "logits": logits.astype(np.float32),
        "labels": images.labels[indices],
        "groups": images.groups[indices],
        "indices": indices,
    }
    if training_hashes is not None:
        arrays["training_hashes"] = training_hashes
    write_tensors(folder / OUT_OF_FOLD, arrays, {"fingerprint": images.fingerprint})


def read_out_of_fold(folder: Path) -> OutOfFold:
    """Read what `write_out_of_fold` wrote. Raises InvalidModel."""
    try:
        with safe_open(folder / OUT_OF_FOLD, "np") as file:
            logits, labels, groups, indices = map(file.get_tensor, ("logits", "labels", "groups", "indices"))
            names = file.keys()
            hashes = file.get_tensor("training_hashes") if "training_hashes" in names else None
            return OutOfFold(logits, labels, groups, indices, file.metadata()["fingerprint"], hashes)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InvalidModel(f"{folder.name} has no readable {OUT_OF_FOLD}; train the model again.") from error


def measure_ensemble(folders: Sequence[str | Path], out: str | Path) -> EvaluationReport:
    """Measure the ensemble of the models in `folders`; write evaluation.json into `out` and return it.

    The report holds the members' `weights` and the `temperature` to serve; `minus_equal_weights` is what
    fitting the weights adds to accuracy and negative log-likelihood.

    Raises InvalidModel if a folder lacks its out-of-fold logits, and InvalidData if a model is given twice
    or the members were not measured on the same images.
    """
    member_folders = [Path(folder) for folder in folders]
    members = [read_out_of_fold(folder) for folder in member_folders]
    first = members[0]
    for folder, member in zip(member_folders, members, strict=True):
        if not _same_images(first, member):
            raise InvalidData(
                f"{folder.name} and {member_folders[0].name} were measured on different images or groups. "
                "Train them with the same data, manifest.csv, split and folds."
            )
    configs = [read_config(folder) for folder in member_folders]
    names = [config.model_name for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidData(f"{', '.join(twice)} is given more than once. Give each model once.")
    labels, groups = first.labels, first.groups
    logits = [member.logits for member in members]
    # Serving calibrates each member by its one temperature, so fit what is served on that.
    served = [softmax(m, config.temperature) for m, config in zip(logits, configs, strict=True)]
    weights = fit_ensemble_weights(served, labels).round(4).tolist()
    probabilities = cross_fit_ensemble(logits, labels, groups)
    equally_weighted = cross_fit_ensemble(logits, labels, groups, lambda *_: None)
    first_report = EvaluationReport.read(member_folders[0])
    report = replace(
        evaluation_report(
            probabilities,
            labels,
            groups,
            model=ENSEMBLE,
            protocol=first_report.protocol.partition(";")[0]
            + "; weights and calibration of the members' mean are fitted on other groups",
        ),
        data=first_report.data,
        members=names,
        weights=dict(zip(names, weights, strict=True)),
        temperature=round(fit_temperature(linear_pool_logits(served, weights), labels), 4),
        minus_equal_weights=paired_difference(probabilities, equally_weighted, labels, groups),
    )
    Path(out).mkdir(parents=True, exist_ok=True)
    report.write(Path(out))
    return report


def _same_images(one: OutOfFold, other: OutOfFold) -> bool:
    return one.fingerprint == other.fingerprint and all(
        np.array_equal(getattr(one, key), getattr(other, key)) for key in ("labels", "groups", "indices")
    )
