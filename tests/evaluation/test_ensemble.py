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
    assert found.training_hashes is None and found.view_logits is None
    write_out_of_fold(tmp_path, logits, images, indices, view_logits=np.stack([logits, logits], axis=1))
    assert read_out_of_fold(tmp_path).view_logits.shape == (2, 2, 10)


def make_members(folders, logits, labels, n_views=None):
    """Give the model folders these out-of-fold logits [M][N, 10], all views alike."""
    images = SimpleNamespace(labels=labels, groups=np.arange(len(labels)), fingerprint="abc")
    for folder, member in zip(folders, logits, strict=True):
        views = np.repeat(member[:, None], n_views, axis=1) if n_views else None
        write_out_of_fold(folder, member, images, np.arange(len(labels)), view_logits=views)


def test_measure_ensemble_of_equal_members_gives_them_equal_weights(members, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 300)
    make_members(members, 2 * np.eye(10)[labels] + rng.normal(0, 1.5, (3, 300, 10)), labels, n_views=4)
    report = measure_ensemble(members, tmp_path / "out")
    assert set(report.weights.values()) == {0.3333}
    assert report.protocol.endswith("fitted weights are not better than equal ones beyond chance")
    assert report.minus_equal_weights["negative_log_likelihood"].high > 0
    for difference in report.minus_members.values():
        assert difference["accuracy"].value > 0 > difference["negative_log_likelihood"].value
    assert report.by_views.keys() == {"1", "3", "4"}
    for row in report.by_views.values():
        assert row.value == report.accuracy.value


def test_measure_ensemble_with_a_useless_member_serves_fitted_weights(members, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 300)
    logits = rng.normal(0, 1, (3, 300, 10))
    logits[0] += 4 * np.eye(10)[labels]
    make_members(members, logits, labels)
    report = measure_ensemble(members, tmp_path / "out")
    assert report.weights["pytorch-cnn"] > 0.9
    assert report.protocol.endswith("weights and calibration of the members' mean are fitted on other groups")
    assert report.minus_equal_weights["negative_log_likelihood"].high < 0
    assert report.by_views is None


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
