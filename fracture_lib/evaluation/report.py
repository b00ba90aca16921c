"""Score a trained model on a folder of labelled images; assemble the report of a measurement."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.dataset import LabelledImages, load_dataset_folder, stream_pixels
from fracture_lib.data.duplicates import near_duplicate_groups
from fracture_lib.data.stored import stack_chunks
from fracture_lib.errors import InvalidArgument, InvalidData
from fracture_lib.evaluation.calibration import conformal_sets, cross_fit_temperature
from fracture_lib.evaluation.metrics import (
    Ints,
    accuracy_by_views,
    calibration_bins,
    classification_report,
    selective_risk,
)
from fracture_lib.hub import Reference, Runtime
from fracture_lib.models.functional import Floats
from fracture_lib.models.model import BaseModel, read_model
from fracture_lib.models.report import DataSummary, EvaluationReport, SplitResult

__all__ = ["evaluate", "evaluation_report", "out_of_fold_report", "split_result", "summarize_data"]

_logger = logging.getLogger(__name__)


def evaluate(
    model: Reference,
    data: str | Path,
    split: str | None = None,
    runtime: Runtime = "onnx",
    exclude_duplicates_of: str | None = None,
) -> EvaluationReport:
    """Return the report of `model`, as `read_model` takes it, on the dataset `data`.

    `data` and `split` are those of `load_dataset_folder`; without `split`, all images are scored. With
    `exclude_duplicates_of`, the name of the split that was trained on, `deduplicated` is a second report,
    on the images without a near-duplicate there; it is None if there is no such image.

    Raises InvalidArgument if `exclude_duplicates_of` is `split`, UnknownModel, ModelUnavailable,
    InvalidModel, UnknownLabel, and InvalidData also if the folder lacks a split.
    """
    if exclude_duplicates_of and exclude_duplicates_of.lower() == (split or "").lower():
        raise InvalidArgument(
            f"The images of {split} cannot be compared with themselves. Name the split that was trained on."
        )
    loaded = read_model(model, runtime)
    images = load_dataset_folder(data, split)
    unique = None
    if exclude_duplicates_of:
        others = load_dataset_folder(data, exclude_duplicates_of)
        if others.split is None:
            raise InvalidData(
                f"The dataset has no split folders, so no {exclude_duplicates_of} to compare with. Put the "
                "images that were trained on into one."
            )
        unique = _has_no_duplicate(images, others)
    chunks = stack_chunks(stream_pixels(images.paths))
    probabilities = np.concatenate([loaded.predict_proba(chunk) for chunk in chunks])
    report = EvaluationReport(
        model=loaded.name,
        protocol=_protocol(loaded, images),
        source=str(loaded.source),
        runtime=runtime,
        data=summarize_data(images),
        **vars(classification_report(probabilities, images.labels, images.groups)),
    )
    if unique is None:
        return report
    if not unique.any():
        _logger.warning("Every image has a near-duplicate in %s; none is left.", exclude_duplicates_of)
        return report
    deduplicated = EvaluationReport(
        model=loaded.name,
        protocol=f"those images without a near-duplicate in {exclude_duplicates_of}",
        **vars(classification_report(probabilities[unique], images.labels[unique], images.groups[unique])),
    )
    return replace(report, deduplicated=deduplicated)


def _has_no_duplicate(images: LabelledImages, others: LabelledImages) -> NDArray[np.bool_]:
    """Return a mask [N] of the images without a near-duplicate among the others."""
    groups = near_duplicate_groups([*images.paths, *others.paths])
    n = len(images.paths)
    return ~np.isin(groups[:n], groups[n:])


def _protocol(model: BaseModel, images: LabelledImages) -> str:
    protocol = f"the given model on the images of {images.split or 'the whole folder'}"
    trained_on = model.report.data
    if trained_on and images.fingerprint == trained_on.fingerprint:
        protocol += ", which it was trained on: this measures memory, not accuracy"
    return protocol


def split_result(report: EvaluationReport) -> SplitResult:
    """Return what the report of one split adds to that of its model."""
    return SplitResult(
        n=report.n,
        metrics=report.metrics,
        protocol=report.protocol,
        deduplicated=split_result(report.deduplicated) if report.deduplicated else None,
    )


def out_of_fold_report(
    logits: Floats,
    labels: Ints,
    groups: Ints,
    *,
    model: str,
    protocol: str,
    view_logits: Floats | None = None,
) -> EvaluationReport:
    """Return the `evaluation_report` for `logits` [N, 10] from models that did not see the image.

    Each image's temperature is fitted on other groups' images. `view_logits` [N, V, 10], whose means over
    the views are `logits`, add the accuracy of fewer views.
    """
    probabilities = cross_fit_temperature(logits, labels, groups)
    report = evaluation_report(probabilities, labels, groups, model=model, protocol=protocol)
    if view_logits is None:
        return report

    def predict_proba(n: int) -> Floats:
        return cross_fit_temperature(logits, labels, groups, scored=view_logits[:, :n].mean(axis=1))

    return replace(report, by_views=accuracy_by_views(predict_proba, view_logits.shape[1], labels, groups))


def evaluation_report(
    probabilities: Floats, labels: Ints, groups: Ints, *, model: str, protocol: str
) -> EvaluationReport:
    """Return metrics, calibration, selective risk and conformal sets of `probabilities` [N, 10].

    Nothing that the probabilities depend on may be fitted on their own images. `model` is its name;
    `protocol` says in words how the images were scored.
    """
    return EvaluationReport(
        model=model,
        protocol=protocol,
        **vars(classification_report(probabilities, labels, groups)),
        calibration=calibration_bins(probabilities, labels, groups),
        selective_risk=selective_risk(probabilities, labels, groups),
        conformal=conformal_sets(probabilities, labels, groups),
    )


def summarize_data(images: LabelledImages) -> DataSummary:
    """Return what a report says about the images behind it."""
    return DataSummary(
        n_images=len(images.labels),
        grouped_by=images.grouped_by,
        fingerprint=images.fingerprint,
        split=images.split,
        hub=images.hub,
    )
