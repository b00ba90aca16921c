"""Compute a model's report again from its stored out-of-fold logits, after a metric was added or changed."""

from dataclasses import replace
from pathlib import Path

from fracture_lib.evaluation.ensemble import read_out_of_fold
from fracture_lib.evaluation.report import out_of_fold_report
from fracture_lib.models.report import EvaluationReport

__all__ = ["remeasure"]


def remeasure(folder: Path) -> EvaluationReport:
    """Rewrite evaluation.json of a model folder and return it; keep what the logits do not tell.

    That is the robustness under perturbations, the data, the training and a test result. Raises
    InvalidModel if the folder lacks its report or its out-of-fold logits.
    """
    old, measured = EvaluationReport.read(folder), read_out_of_fold(folder)
    report = out_of_fold_report(
        measured.logits,
        measured.labels,
        measured.groups,
        model=old.model,
        protocol=old.protocol,
        view_logits=measured.view_logits,
    )
    report = replace(report, robustness=old.robustness, data=old.data, training=old.training, test=old.test)
    report.write(folder)
    return report
