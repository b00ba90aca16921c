"""`train`: first with a learner in NumPy, then with small networks of both frameworks."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fracture_lib.data.dataset import load_dataset_folder, stream_pixels
from fracture_lib.data.duplicates import perceptual_hashes
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidArgument, InvalidData, InvalidModel, ModelUnavailable, UnknownModel
from fracture_lib.evaluation.ensemble import measure_ensemble, read_out_of_fold
from fracture_lib.evaluation.perturbations import PERTURBATIONS
from fracture_lib.evaluation.report import evaluate
from fracture_lib.models import keras as keras_models
from fracture_lib.models import pytorch as pytorch_models
from fracture_lib.models.config import read_config
from fracture_lib.models.model import read_model
from fracture_lib.models.report import EvaluationReport, Interval
from fracture_lib.training.pretrain import pretrain
from fracture_lib.training.recipes import RECIPES
from fracture_lib.training.trainer import train
from tests.helpers.dicom_files import dicom
from tests.helpers.training import LinearLearner, tiny_recipe, write_random_resnet50

ROOT = Path(__file__).parent.parent.parent
CNNS = {"pytorch-cnn": pytorch_models, "tensorflow-cnn": keras_models}
RECIPE = replace(RECIPES["pytorch-cnn"], epochs=7, batch_size=8)


@pytest.fixture
def learners(monkeypatch) -> list[LinearLearner]:
    """Replace the networks by LinearLearners; the list holds those that were built."""
    built: list[LinearLearner] = []

    def build(name, recipe, seed, pretrained):
        built.append(LinearLearner())
        return built[-1]

    monkeypatch.setattr("fracture_lib.training.trainer.build_learner", build)
    return built


def train_linear(data, out, **options):
    return train("pytorch-cnn", data, out, **{"n_folds": 4, "recipe": RECIPE, **options})


# Any learner


def test_train_reports_what_was_measured(dataset_folder, tmp_path, learners):
    report = train_linear(dataset_folder, tmp_path, n_measured_folds=2)
    assert report == EvaluationReport.read(tmp_path)
    assert report.protocol == (
        "out of fold: 2 of 4 grouped folds, each scored by a model trained on the other folds; "
        "the published weights are trained on all images"
    )
    assert (report.model, report.n, report.n_groups) == ("pytorch-cnn", 20, 20)
    assert (report.data.n_images, report.data.grouped_by, report.data.split) == (40, "source_group", "Train")
    assert (report.training.n_folds, report.training.n_measured_folds) == (4, 2)
    assert report.training.pretrained is None
    assert [point.epoch for point in report.training.history] == [5, 7]
    assert all(0 <= point.held_out_accuracy <= 1 for point in report.training.history)
    assert report.training.minutes >= 0
    assert report.robustness.keys() == PERTURBATIONS.keys()
    assert report.conformal and report.calibration and report.selective_risk and report.test is None


def test_train_fits_measured_folds_and_then_all_images(dataset_folder, tmp_path, learners):
    train_linear(dataset_folder, tmp_path, n_measured_folds=2, keep_checkpoints=True)
    assert [learner.n_steps for learner in learners] == [7 * 3, 7 * 3, 7 * 5]  # of 30, 30 and 40 images, by 8
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "run.json",
        "images.bin",
        "held-out.bin",
        "fold-0.safetensors",
        "fold-1.safetensors",
        "all.safetensors",
    }


def test_train_removes_its_checkpoints_when_it_ends(dataset_folder, tmp_path, learners):
    train_linear(dataset_folder, tmp_path, n_measured_folds=1)
    assert not (tmp_path / "checkpoints").exists() and read_model(tmp_path).name == "pytorch-cnn"


def test_train_measures_all_folds_by_default(dataset_folder, tmp_path, learners):
    report = train_linear(dataset_folder, tmp_path, recipe=replace(RECIPE, epochs=1))
    assert (report.n, report.training.n_measured_folds, len(learners)) == (40, 4, 5)
    assert sorted(read_out_of_fold(tmp_path).indices) == list(range(40))


def test_train_writes_config_and_out_of_fold_logits(dataset_folder, tmp_path, learners):
    report = train_linear(dataset_folder, tmp_path, n_measured_folds=1, seed=5)
    config = read_config(tmp_path)
    assert (config.model_name, config.seed) == ("pytorch-cnn", 5)
    assert config.recipe["epochs"] == 7 and config.architecture == RECIPE.architecture
    out_of_fold = read_out_of_fold(tmp_path)
    assert out_of_fold.fingerprint == report.data.fingerprint
    images = load_dataset_folder(dataset_folder)
    np.testing.assert_array_equal(out_of_fold.training_hashes, perceptual_hashes(images.paths))
    y_pred = out_of_fold.logits.argmax(axis=1)
    assert np.mean(y_pred == out_of_fold.labels) == pytest.approx(report.accuracy.value, abs=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask for reading")
def test_train_writes_files_that_the_umask_allows_others_to_read(dataset_folder, tmp_path, learners):
    previous = os.umask(0o022)
    try:
        train_linear(dataset_folder, tmp_path, n_measured_folds=1)
    finally:
        os.umask(previous)
    written = [tmp_path / name for name in ("out_of_fold.safetensors", "config.json", "evaluation.json")]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o644}


def test_train_with_dicom_and_metadata_among_the_images_learns_from_all_images(
    dataset_folder, tmp_path, learners
):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    (data / "manifest.csv").unlink()
    folder = data / "Spiral fracture" / "Train"
    for name in ("a.dcm", "1.2.840.1"):
        (folder / name).write_bytes(dicom(np.asarray(synthetic_radiograph("Spiral", 7))))
    (folder / "._0.png").write_bytes(b"resource fork")
    report = train_linear(data, tmp_path / "out", n_measured_folds=1, recipe=replace(RECIPE, epochs=1))
    assert report.data.n_images == 42


def test_train_writes_no_card(dataset_folder, tmp_path, learners):
    train_linear(dataset_folder, tmp_path, n_measured_folds=1)
    assert not (tmp_path / "README.md").exists()


def test_train_scores_the_mean_of_the_views_out_of_fold(dataset_folder, tmp_path, learners):
    train_linear(dataset_folder, tmp_path, n_measured_folds=1)
    out_of_fold = read_out_of_fold(tmp_path)
    pixels = np.stack(
        [*stream_pixels([load_dataset_folder(dataset_folder).paths[i] for i in out_of_fold.indices])]
    )
    views = np.stack([learners[0].logits(pixels[:, [v]]) for v in range(pixels.shape[1])])
    np.testing.assert_allclose(out_of_fold.logits, views.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_train_reports_the_accuracy_of_what_it_wrote_on_its_images(dataset_folder, tmp_path, learners):
    report = train_linear(dataset_folder, tmp_path, n_measured_folds=1)
    images = load_dataset_folder(dataset_folder)
    y_pred = read_model(tmp_path).predict_proba(np.stack([*stream_pixels(images.paths)])).argmax(axis=1)
    assert report.training.train_accuracy == pytest.approx(np.mean(y_pred == images.labels), abs=1e-4)


def test_train_calls_back_with_the_curve_of_each_measured_fold(dataset_folder, tmp_path, learners):
    calls = []
    train_linear(
        dataset_folder,
        tmp_path,
        n_measured_folds=2,
        callback=lambda title, history: calls.append((title, [point.epoch for point in history])),
    )
    assert calls == [
        ("fold 1 of 4", [5]),
        ("fold 1 of 4", [5, 7]),
        ("fold 2 of 4", [5]),
        ("fold 2 of 4", [5, 7]),
    ]


def test_train_again_restores_the_finished_fits(dataset_folder, tmp_path, learners, caplog):
    first = train_linear(dataset_folder, tmp_path, n_measured_folds=1, keep_checkpoints=True)
    with caplog.at_level(logging.INFO, "fracture_lib"):
        again = train_linear(dataset_folder, tmp_path, n_measured_folds=1)
    assert first.training.minutes is not None and again.training.minutes is None
    timed = replace(again, training=replace(again.training, minutes=first.training.minutes))
    assert timed == first and [learner.n_steps for learner in learners[2:]] == [0, 0]
    assert "Resuming fold 1 of 4 after epoch 7." in caplog.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"n_folds": 3}, "n_folds"),
        ({"recipe": replace(RECIPE, epochs=8)}, "recipe"),
        ({"split": None}, "data"),
    ],
)
def test_train_over_checkpoints_of_another_run_names_the_difference(
    dataset_folder, tmp_path, learners, change, named
):
    train_linear(dataset_folder, tmp_path, n_measured_folds=1, keep_checkpoints=True)
    with pytest.raises(InvalidData, match=f"another {named}. Choose another output folder or delete them"):
        train_linear(dataset_folder, tmp_path, n_measured_folds=1, **change)


def test_train_with_cached_views_computes_them_once(dataset_folder, tmp_path, learners):
    recipe = replace(RECIPE, epochs=1, n_cached_views=3)
    train_linear(dataset_folder, tmp_path, n_measured_folds=2, recipe=recipe, keep_checkpoints=True)
    views = np.load(tmp_path / "checkpoints" / "views.npy")
    assert views.shape == (3, 40, 1, 128, 128) and views.dtype == np.float16
    assert (views[0] != views[1]).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "resnet51"}, UnknownModel, 'Unknown model "resnet51". Choose from pytorch-cnn, '),
        ({"name": "ensemble"}, UnknownModel, "Choose from pytorch-cnn"),
        ({"n_measured_folds": 6}, InvalidArgument, "n_measured_folds is 6; use 1 to n_folds, which is 4"),
        ({"n_measured_folds": 0}, InvalidArgument, "n_measured_folds is 0; use 1 to"),
        ({"n_folds": 400}, InvalidArgument, "n_folds is 400; these images allow 2 to 4"),
        ({"n_folds": 1}, InvalidArgument, "n_folds is 1; these images allow 2 to 4"),
        ({"seed": -1}, InvalidArgument, "seed is -1; use 0 to"),
        ({"split": "Valid"}, InvalidData, "no images of the split Valid"),
        ({"data": "no folder"}, InvalidData, "There is no folder no folder"),
        ({"name": "resnet50", "pretrained": "no file"}, ModelUnavailable, "There is no file no file"),
        ({"pretrained": "no file"}, ModelUnavailable, "There is no file no file"),
        ({"pretrained": __file__}, InvalidModel, r"test_trainer\.py is not a readable safetensors file"),
        ({"pretrain_on": "no folder"}, InvalidData, r"manifest\.csv cannot be read"),
    ],
)
def test_train_with_wrong_argument_raises_before_it_writes(dataset_folder, tmp_path, options, error, message):
    arguments = {"name": "pytorch-cnn", "data": dataset_folder, "out": tmp_path / "out", "n_folds": 4}
    with pytest.raises(error, match=message):
        train(**{**arguments, **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [train, pretrain])
def test_weights_of_another_network_are_named_before_anything_is_written(
    dataset_folder, fracatlas_folder, tmp_path, command
):
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, tmp_path / "resnet50.safetensors")
    data = dataset_folder if command is train else fracatlas_folder
    with pytest.raises(InvalidModel, match=r"resnet50\.safetensors does not hold the blocks"):
        command("pytorch-cnn", data, tmp_path / "new" / "out", pretrained=tmp_path / "resnet50.safetensors")
    assert not (tmp_path / "new").exists()


# Networks


@pytest.fixture(scope="module", params=CNNS)
def trained(request, dataset_folder, tmp_path_factory) -> tuple[str, Path]:
    """(name, folder) of a small network, measured on one of four folds."""
    out = tmp_path_factory.mktemp(request.param)
    train(
        request.param, dataset_folder, out, n_folds=4, n_measured_folds=1, recipe=tiny_recipe(request.param)
    )
    return request.param, out


@pytest.mark.slow
def test_train_writes_a_model_folder_that_loads_in_both_runtimes(trained, pixels):
    name, out = trained
    native, onnx = (read_model(out, runtime) for runtime in ("native", "onnx"))
    assert native.name == onnx.name == name
    assert np.abs(native.predict_proba(pixels) - onnx.predict_proba(pixels)).max() < 1e-4
    assert onnx.report.training.stored_probability_change < 1e-4


@pytest.mark.slow
def test_train_killed_and_resumed_gives_identical_probabilities(
    trained, dataset_folder, tmp_path, pixels, monkeypatch
):
    name, uninterrupted = trained
    learner = CNNS[name].Learner
    step, calls = learner.step, []

    def killed(self, *arguments):
        calls.append(1)
        if len(calls) == 3 * 6:  # three steps per epoch; a checkpoint follows the fifth epoch
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(learner, "step", killed)
    options = {"n_folds": 4, "n_measured_folds": 1, "recipe": tiny_recipe(name)}
    with pytest.raises(KeyboardInterrupt):
        train(name, dataset_folder, tmp_path, **options)
    train(name, dataset_folder, tmp_path, **options)
    assert len(calls) == 3 * 7 + 5 * 7 + 3, "three steps of the sixth epoch again, and no more"
    resumed, expected = (read_model(folder).predict_proba(pixels) for folder in (tmp_path, uninterrupted))
    np.testing.assert_array_equal(resumed, expected)


@pytest.mark.slow
def test_evaluate_of_trained_model_on_its_images_says_so(trained, dataset_folder):
    name, out = trained
    report = evaluate(out, dataset_folder, "Train")
    assert (report.model, report.n) == (name, 40) and report.source.startswith("local folder")
    assert "this measures memory, not accuracy" in report.protocol


@pytest.mark.slow
def test_measure_ensemble_of_one_model_equals_that_model(trained, tmp_path):
    _, out = trained
    single = EvaluationReport.read(out)
    alone = measure_ensemble([out], tmp_path)
    assert alone.members == [single.model] and alone.weights == {single.model: 1}
    assert (alone.n, alone.confusion_matrix) == (single.n, single.confusion_matrix)
    assert alone.minus_equal_weights["accuracy"] == Interval(0, 0, 0)


@pytest.mark.slow
def test_train_keras_model_without_tensorflow_gives_the_same_file(dataset_folder, tmp_path, pixels):
    """Keras's torch backend trains it; the file then predicts alike with TensorFlow and ONNX Runtime."""
    code = f"""
import sys
sys.modules["tensorflow"] = None  # importing it fails, as if it were not installed
from fracture_lib.training.trainer import train
from tests.helpers.training import tiny_recipe
train("tensorflow-cnn", {str(dataset_folder)!r}, {str(tmp_path)!r}, n_folds=4, n_measured_folds=1,
      recipe=tiny_recipe("tensorflow-cnn", epochs=2))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    native, onnx = (read_model(tmp_path, runtime).predict_proba(pixels) for runtime in ("native", "onnx"))
    assert np.abs(native - onnx).max() < 1e-4


@pytest.mark.slow
def test_train_resnet50_on_cached_features_writes_a_model_that_loads_in_both_runtimes(
    dataset_folder, tmp_path, pixels, monkeypatch
):
    monkeypatch.setattr("fracture_lib.training.trainer.PERTURBATIONS", {"same": lambda image: image})  # fast
    write_random_resnet50(tmp_path / "weights.safetensors")
    recipe = replace(
        RECIPES["resnet50"],
        architecture={**RECIPES["resnet50"].architecture, "n_stages": 1},
        epochs=1,
        batch_size=30,
        learning_rate=1e-6,
        n_cached_views=1,
    )
    report = train(
        "resnet50",
        dataset_folder,
        tmp_path / "out",
        n_folds=4,
        n_measured_folds=1,
        pretrained=tmp_path / "weights.safetensors",
        recipe=recipe,
        keep_checkpoints=True,
    )
    assert report.training.pretrained == "weights.safetensors"
    native, onnx = (
        read_model(tmp_path / "out", runtime).predict_proba(pixels) for runtime in ("native", "onnx")
    )
    np.testing.assert_allclose(native, onnx, atol=0.1)  # activations are rounded in one of them
    assert report.training.stored_probability_change < 1e-4, "the head was trained on the int8 features"
    run = json.loads((tmp_path / "out" / "checkpoints" / "run.json").read_text())
    assert run["recipe"]["n_cached_views"] == 1
