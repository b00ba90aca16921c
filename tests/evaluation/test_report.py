"""Reports: the bundled figures, `evaluate` on a folder, and evaluation.json as typed records."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from fracture_lib.data.dataset import load_dataset_folder, stream_pixels
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidArgument, InvalidData, UnknownModel
from fracture_lib.evaluation.perturbations import PERTURBATIONS
from fracture_lib.evaluation.report import (
    evaluate,
    evaluation_report,
    out_of_fold_report,
    split_result,
    summarize_data,
)
from fracture_lib.hub import BUNDLE
from fracture_lib.labels import CLASSES
from fracture_lib.models.model import read_model
from fracture_lib.models.report import EvaluationReport
from fracture_lib.registry import ALL_MODELS, MODELS


@pytest.fixture
def model_folder(tmp_path):
    """A copy of a bundled model, to edit."""
    return shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory):
    """A folder <class>/<split>/*.png: in Test, a mirrored copy of each image in Train, and another image."""
    root = tmp_path_factory.mktemp("splits")
    for c in CLASSES[:3]:
        train, test = root / c.label / "Train", root / c.label / "Test"
        train.mkdir(parents=True)
        test.mkdir(parents=True)
        image = synthetic_radiograph(c.label)
        image.save(train / "image.png")
        ImageOps.mirror(image).save(test / "copy.png")
        blobs = np.random.default_rng(c.id).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(blobs).resize((128, 128)).save(test / "other.png")
    return root


def edit_report(folder, **entries):
    """Change entries of evaluation.json; None removes one."""
    path = folder / "evaluation.json"
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# Bundled figures


@pytest.mark.parametrize("name", ALL_MODELS)
def test_bundled_model_is_measured_out_of_fold_and_calibrated(name):
    report = EvaluationReport.read(BUNDLE / name)
    assert report.protocol.startswith("out of fold: 5 of 5 grouped folds")
    assert report.accuracy.low > 0.25, "always predicting the most common class scores 13.9 %"
    assert report.metrics["expected_calibration_error"].value < 0.08
    assert report.n == report.data.n_images == np.sum(report.confusion_matrix)
    if name != "ensemble":  # its members agree on too few Longitudinal images: EXPERIMENTS.md
        assert all(row.recall > 0 for row in report.per_class)
    at = {float(coverage): accuracy.value for coverage, accuracy in report.selective_risk.accuracy_at.items()}
    assert at[0.5] > at[0.8] > at[1.0] == report.accuracy.value
    assert report.conformal.coverage.value == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model_is_measured_under_every_perturbation_and_saved_faithfully(name):
    report = EvaluationReport.read(BUNDLE / name)
    assert set(report.robustness) == set(PERTURBATIONS)
    assert report.training.stored_probability_change < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_out_of_fold_report_of_bundled_logits_equals_the_bundled_report(name):
    arrays = load_file(BUNDLE / name / "out_of_fold.safetensors")
    bundled = EvaluationReport.read(BUNDLE / name)
    report = out_of_fold_report(
        arrays["logits"],
        arrays["labels"],
        arrays["groups"],
        model=name,
        protocol=bundled.protocol,
        view_logits=arrays.get("view_logits"),
    )
    assert (
        replace(
            report,
            robustness=bundled.robustness,
            data=bundled.data,
            training=bundled.training,
            test=bundled.test,
        )
        == bundled
    )


# evaluate


def test_evaluate_scores_the_models_predictions(dataset_folder):
    report = evaluate("pytorch-cnn", dataset_folder, split="Train")
    images = load_dataset_folder(dataset_folder, "Train")
    y_pred = read_model("pytorch-cnn").predict_proba(np.stack([*stream_pixels(images.paths)])).argmax(axis=1)
    assert report.accuracy.value == pytest.approx(np.mean(y_pred == images.labels), abs=1e-4)
    assert report.n == report.n_groups == 40
    assert (report.model, report.runtime, report.source) == ("pytorch-cnn", "onnx", "bundled weights")
    assert report.protocol == "the given model on the images of Train"
    assert report.data == summarize_data(images) and report.data.grouped_by == "source_group"
    assert report.deduplicated is None and report.calibration is None


def test_evaluate_without_split_scores_the_whole_folder(dataset_folder):
    report = evaluate("ensemble", dataset_folder)
    assert report.model == "ensemble" and report.n == 40
    assert report.protocol == "the given model on the images of the whole folder"
    assert report.data.split is None


def test_evaluate_excluding_duplicates_also_scores_the_other_images(split_folder):
    report = evaluate("pytorch-cnn", split_folder, "Test", exclude_duplicates_of="Train")
    assert (report.n, report.deduplicated.n) == (6, 3)
    assert report.protocol == "the given model on the images of Test"
    assert report.deduplicated.protocol == "those images without a near-duplicate in Train"
    assert report.deduplicated.model == "pytorch-cnn"
    result = split_result(report)
    assert (result.n, result.deduplicated.n, result.deduplicated.deduplicated) == (6, 3, None)
    assert (result.metrics, result.protocol, result.checksum) == (report.metrics, report.protocol, None)


def test_evaluate_excluding_its_own_images_has_no_deduplicated_report(dataset_folder, caplog):
    with caplog.at_level(logging.WARNING):
        report = evaluate("pytorch-cnn", dataset_folder, exclude_duplicates_of="Train")
    assert report.deduplicated is None and "near-duplicate in Train" in caplog.text


@pytest.mark.parametrize("split", ["Train", "train", "TRAIN"])
def test_evaluate_excluding_duplicates_of_its_own_split_raises_invalid_argument(dataset_folder, split):
    with pytest.raises(InvalidArgument, match="cannot be compared with themselves"):
        evaluate("pytorch-cnn", dataset_folder, "Train", exclude_duplicates_of=split)


def test_evaluate_excluding_duplicates_of_a_missing_split_names_those_it_found(split_folder):
    with pytest.raises(InvalidData, match=r"no images of the split Valid\..*splits: test, train"):
        evaluate("pytorch-cnn", split_folder, "Test", exclude_duplicates_of="Valid")


@pytest.mark.parametrize("split", ["Test", None])
def test_evaluate_excluding_duplicates_in_a_folder_without_splits_raises_invalid_data(tmp_path, split):
    (tmp_path / "Spiral").mkdir()
    synthetic_radiograph("Spiral").save(tmp_path / "Spiral" / "0.png")
    with pytest.raises(InvalidData, match="no split folders, so no Train to compare with"):
        evaluate("pytorch-cnn", tmp_path, split, exclude_duplicates_of="Train")


def test_evaluate_on_training_images_says_so(model_folder, dataset_folder):
    fingerprint = load_dataset_folder(dataset_folder).fingerprint
    edit_report(model_folder, data={"n_images": 40, "grouped_by": "source_group", "fingerprint": fingerprint})
    protocol = evaluate(model_folder, dataset_folder, "Train").protocol
    assert protocol == (
        "the given model on the images of Train, which it was trained on: this measures memory, not accuracy"
    )


def test_evaluate_model_whose_report_lacks_data_succeeds(model_folder, dataset_folder):
    edit_report(model_folder, data=None)
    report = evaluate(model_folder, dataset_folder, "Train")
    assert report.n == 40 and report.protocol == "the given model on the images of Train"


def test_evaluate_in_batches_equals_one_batch(dataset_folder, monkeypatch):
    whole = evaluate("pytorch-cnn", dataset_folder)
    monkeypatch.setattr("fracture_lib.data.stored.CHUNK_SIZE", 7)
    assert evaluate("pytorch-cnn", dataset_folder) == whole


def test_evaluate_unknown_model_or_folder_raises(dataset_folder, tmp_path):
    with pytest.raises(UnknownModel, match="resnet50"):
        evaluate("resnet", dataset_folder)
    with pytest.raises(InvalidData):
        evaluate("pytorch-cnn", tmp_path / "missing")


def test_evaluation_report_holds_every_measurement():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), 50)
    report = evaluation_report(
        probabilities, rng.integers(0, 10, 50), np.arange(50), model="resnet50", protocol="by hand"
    )
    assert (report.model, report.protocol, report.n) == ("resnet50", "by hand", 50)
    assert sum(b.n for b in report.calibration) == 50
    assert report.selective_risk and report.conformal and report.data is None
