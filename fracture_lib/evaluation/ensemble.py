"""Fit and measure the ensemble: the weighted mean of its members' calibrated probabilities, calibrated again.

The temperature and, where it helps, the weights are fitted on the images that every member left out, from
the logits that training writes beside each model. `measure_ensemble` scores each of these images with
weights and temperatures fitted on other groups; `models.model.EnsembleModel` serves those fitted on all.
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
from fracture_lib.evaluation.calibration import (
    FitWeights,
    cross_fit_ensemble,
    cross_fit_temperature,
    fit_ensemble_weights,
    fit_temperature,
)
from fracture_lib.evaluation.metrics import accuracy_by_views, paired_difference
from fracture_lib.evaluation.report import evaluation_report
from fracture_lib.hub import OUT_OF_FOLD
from fracture_lib.models.config import read_config
from fracture_lib.models.functional import Floats, linear_pool_logits, softmax
from fracture_lib.models.report import EvaluationReport, Interval, ViewAccuracy
from fracture_lib.models.tensors import write_tensors
from fracture_lib.registry import ENSEMBLE

__all__ = ["OutOfFold", "measure_ensemble", "read_out_of_fold", "write_out_of_fold"]


@dataclass(frozen=True)
class OutOfFold:
    """The content of out_of_fold.safetensors: M images, each scored by a model that did not see it."""

    logits: NDArray[np.float32]  # [M, 10], means over the views
    labels: NDArray[np.int64]  # [M]
    groups: NDArray[np.int64]  # [M]
    indices: NDArray[np.int64]  # [M], positions in the order of the dataset's paths
    fingerprint: str  # of the dataset
    # None in files of older versions:
    training_hashes: NDArray[np.uint8] | None = None  # [N, 8], `perceptual_hashes` of the dataset's N images
    view_logits: NDArray[np.float32] | None = None  # [M, V, 10]


def write_out_of_fold(
    folder: Path,
    logits: NDArray[np.float32],
    images: LabelledImages,
    indices: NDArray[np.int64],
    training_hashes: NDArray[np.uint8] | None = None,
    view_logits: NDArray[np.float32] | None = None,
) -> None:
    """Write `logits` [M, 10] of the images `indices` [M], each from a model that did not see the image.

    `training_hashes` [N, 8] are the `perceptual_hashes` of all images that the kept weights are trained on,
    `view_logits` [M, V, 10] the logits of each view.
    """
    arrays: dict[str, NDArray[Any]] = {
        "logits": logits.astype(np.float32),
        "labels": images.labels[indices],
        "groups": images.groups[indices],
        "indices": indices,
    }
    if training_hashes is not None:
        arrays["training_hashes"] = training_hashes
    if view_logits is not None:
        arrays["view_logits"] = view_logits.astype(np.float32)
    write_tensors(folder / OUT_OF_FOLD, arrays, {"fingerprint": images.fingerprint})


def read_out_of_fold(folder: Path) -> OutOfFold:
    """Read what `write_out_of_fold` wrote. Raises InvalidModel."""
    try:
        with safe_open(folder / OUT_OF_FOLD, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            required = {name: arrays[name] for name in ("logits", "labels", "groups", "indices")}
            return OutOfFold(
                **required,
                fingerprint=file.metadata()["fingerprint"],
                training_hashes=arrays.get("training_hashes"),
                view_logits=arrays.get("view_logits"),
            )
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InvalidModel(f"{folder.name} has no readable {OUT_OF_FOLD}; train the model again.") from error


def measure_ensemble(folders: Sequence[str | Path], out: str | Path) -> EvaluationReport:
    """Measure the ensemble of the models in `folders`; write evaluation.json into `out` and return it.

    The members count alike, unless weights fitted on other groups improve the likelihood beyond chance: then
    fitted ones serve. `minus_equal_weights` is what fitting adds to accuracy and negative log-likelihood,
    `minus_members` what the ensemble adds to each member.

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
    fitted = cross_fit_ensemble(logits, labels, groups, fit_ensemble_weights)
    equally_weighted = cross_fit_ensemble(logits, labels, groups)
    minus_equal = paired_difference(fitted, equally_weighted, labels, groups)
    is_better = _is_below_zero(minus_equal["negative_log_likelihood"])
    fit_weights = fit_ensemble_weights if is_better else None
    probabilities = fitted if is_better else equally_weighted

    # Serving calibrates each member by its one temperature, so fit what is served on that.
    served = [softmax(m, config.temperature) for m, config in zip(logits, configs, strict=True)]
    equal = np.full(len(served), 1 / len(served))
    weights = (fit_weights(served, labels) if fit_weights else equal).round(4).tolist()
    first_report = EvaluationReport.read(member_folders[0])
    report = replace(
        evaluation_report(
            probabilities,
            labels,
            groups,
            model=ENSEMBLE,
            protocol=f"{first_report.protocol.partition(';')[0]}; {_describe_weights(is_better)}",
        ),
        by_views=_by_views(members, fit_weights),
        data=first_report.data,
        members=names,
        weights=dict(zip(names, weights, strict=True)),
        temperature=round(fit_temperature(linear_pool_logits(served, weights), labels), 4),
        minus_equal_weights=minus_equal,
        minus_members={
            name: paired_difference(
                probabilities, cross_fit_temperature(member, labels, groups), labels, groups
            )
            for name, member in zip(names, logits, strict=True)
        },
    )
    Path(out).mkdir(parents=True, exist_ok=True)
    report.write(Path(out))
    return report


def _is_below_zero(difference: Interval) -> bool:
    return difference.high is not None and difference.high < 0


def _describe_weights(is_better: bool) -> str:
    if is_better:
        return "weights and calibration of the members' mean are fitted on other groups"
    return (
        "the mean of the members, calibrated on other groups; fitted weights are not better than equal ones "
        "beyond chance"
    )


def _by_views(members: Sequence[OutOfFold], fit_weights: FitWeights | None) -> dict[str, ViewAccuracy] | None:
    """Return the accuracy of fewer views, or None if a member's views were not kept."""
    views = [member.view_logits for member in members if member.view_logits is not None]
    if len(views) < len(members):
        return None
    labels, groups = members[0].labels, members[0].groups
    logits = [member.logits for member in members]

    def predict_proba(n: int) -> Floats:
        scored = [view_logits[:, :n].mean(axis=1) for view_logits in views]
        return cross_fit_ensemble(logits, labels, groups, fit_weights, scored)

    return accuracy_by_views(predict_proba, views[0].shape[1], labels, groups)


def _same_images(one: OutOfFold, other: OutOfFold) -> bool:
    return one.fingerprint == other.fingerprint and all(
        np.array_equal(getattr(one, key), getattr(other, key)) for key in ("labels", "groups", "indices")
    )
