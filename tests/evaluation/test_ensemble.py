"""Fitting and measuring the ensemble."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fracture_lib.errors import InvalidData, InvalidModel
from fracture_lib.evaluation.ensemble import (
    OUT_OF_FOLD,
    measure_ensemble,
    read_out_of_fold,
    write_out_of_fold,
)
from fracture_lib.hub import BUNDLE
from fracture_lib.models.model import EnsembleModel, read_model
from fracture_lib.models.report import EvaluationReport
from fracture_lib.registry import MODELS


@pytest.fixture
def members(tmp_path):
    """Copies of the bundled members' files that are measured, to edit."""
    for name in MODELS:
        (tmp_path / name).mkdir()
        for file in ("config.json", "preprocessor_config.json", "evaluation.json", OUT_OF_FOLD):
            shutil.copy(BUNDLE / name / file, tmp_path / name / file)
    return [tmp_path / name for name in MODELS]


@pytest.mark.slow
def test_measure_ensemble_of_bundled_members_equals_the_bundled_report(tmp_path):
    report = measure_ensemble([BUNDLE / name for name in MODELS], tmp_path / "new" / "folder")
    assert report == EvaluationReport.read(BUNDLE / "ensemble")
    assert report == EvaluationReport.read(tmp_path / "new" / "folder")


def test_measure_ensemble_of_members_with_different_images_raises_invalid_data(members, tmp_path):
    path = members[1] / OUT_OF_FOLD
    arrays = load_file(path)
    fingerprint = {"fingerprint": read_out_of_fold(members[1]).fingerprint}
    for changed, metadata in (
        (arrays, {"fingerprint": "another"}),
        (arrays | {"indices": arrays["indices"][::-1].copy()}, fingerprint),
    ):
        save_file(changed, path, metadata)
        with pytest.raises(InvalidData, match="tensorflow-cnn and pytorch-cnn were measured on different"):
            measure_ensemble(members, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_measure_ensemble_without_out_of_fold_logits_raises_invalid_model(members, tmp_path):
    path = members[2] / OUT_OF_FOLD
    arrays = load_file(path)

    def check():
        with pytest.raises(InvalidModel, match=r"resnet50 has no readable out_of_fold\.safetensors; train"):
            measure_ensemble(members, tmp_path / "out")

    save_file(arrays, path)  # without a fingerprint
    check()
    save_file({"logits": arrays["logits"]}, path, {"fingerprint": "any"})
    check()
    path.write_bytes(b"damaged")
    check()
    path.unlink()
    check()


def test_write_out_of_fold_keeps_the_measured_images(tmp_path):
    images = SimpleNamespace(labels=np.arange(5), groups=10 + np.arange(5), fingerprint="abc")
    logits, indices = np.eye(10)[:2], np.array([4, 1])
    write_out_of_fold(tmp_path, logits, images, indices)
    found = read_out_of_fold(tmp_path)
    assert found.logits.dtype == np.float32 and (found.logits == logits).all()
    assert (found.labels.tolist(), found.groups.tolist()) == ([4, 1], [14, 11])
    assert (found.indices.tolist(), found.fingerprint) == ([4, 1], "abc")
    assert found.training_hashes is None


def test_measure_ensemble_of_the_same_model_twice_names_it(members, tmp_path):
    with pytest.raises(InvalidData, match=r"^resnet50 is given more than once\. Give each model once\.$"):
        measure_ensemble([*members, members[2]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "entries",
    [{"weights": None}, {"temperature": None}, {"weights": {"pytorch-cnn": 1.0}}],
    ids=["no weights", "no temperature", "other members"],
)
def test_ensemble_model_without_fitted_weights_raises_invalid_model(tmp_path, monkeypatch, entries):
    content = json.loads((BUNDLE / "ensemble" / "evaluation.json").read_text()) | entries
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "evaluation.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    members = {name: read_model(name) for name in MODELS}
    monkeypatch.setattr("fracture_lib.models.model.BUNDLE", tmp_path)
    with pytest.raises(InvalidModel, match=r"ensemble/evaluation\.json"):
        EnsembleModel(members)
