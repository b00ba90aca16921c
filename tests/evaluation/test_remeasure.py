"""Computing a report again from stored out-of-fold logits."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fracture_lib.errors import InvalidModel
from fracture_lib.evaluation.ensemble import read_out_of_fold, write_out_of_fold
from fracture_lib.evaluation.remeasure import remeasure
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EvaluationReport, Interval, SplitResult, store_test_result


def test_remeasure_restores_a_missing_metric_and_keeps_the_rest(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    path = folder / "evaluation.json"
    content = json.loads(path.read_text())
    del content["metrics"]["macro_f1"]
    path.write_text(json.dumps(content))
    store_test_result(folder, SplitResult(140, {"accuracy": Interval(0.5, 0.4, 0.6)}))
    report = remeasure(folder)
    assert report == EvaluationReport.read(folder) and report.test.n == 140
    assert replace(report, test=None) == EvaluationReport.read(BUNDLE / "pytorch-cnn")


def test_remeasure_scores_the_views_if_they_were_kept(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    stored = read_out_of_fold(folder)
    rng = np.random.default_rng(0)
    views = stored.logits[:, None] + rng.normal(0, 1, (len(stored.logits), 4, 10))
    images = SimpleNamespace(labels=stored.labels, groups=stored.groups, fingerprint=stored.fingerprint)
    write_out_of_fold(
        folder, views.mean(axis=1), images, np.arange(len(views)), stored.training_hashes, views
    )
    report = remeasure(folder)
    assert list(report.by_views) == ["1", "3", "4"]
    assert report.by_views["4"].value == report.accuracy.value > report.by_views["1"].value


def test_remeasure_without_out_of_fold_logits_raises_invalid_model(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    (folder / "out_of_fold.safetensors").unlink()
    with pytest.raises(InvalidModel, match="out_of_fold"):
        remeasure(folder)
