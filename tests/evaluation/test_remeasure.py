"""Computing a report again from stored out-of-fold logits."""

import json
import shutil

import pytest

from fracture_lib.errors import InvalidModel
from fracture_lib.evaluation.remeasure import remeasure
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EvaluationReport


def test_remeasure_restores_a_missing_metric_and_keeps_the_rest(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    path = folder / "evaluation.json"
    content = json.loads(path.read_text())
    del content["metrics"]["macro_f1"]
    path.write_text(json.dumps(content))
    assert remeasure(folder) == EvaluationReport.read(folder) == EvaluationReport.read(BUNDLE / "pytorch-cnn")


def test_remeasure_without_out_of_fold_logits_raises_invalid_model(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    (folder / "out_of_fold.safetensors").unlink()
    with pytest.raises(InvalidModel, match="out_of_fold"):
        remeasure(folder)
