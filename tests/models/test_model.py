"""The contract that every model keeps, whatever framework trained it, and what its folder must hold."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from fracture_lib import (
    CLASSES,
    MODELS,
    FractureError,
    InvalidModel,
    ModelUnavailable,
    UnknownLabel,
    UnknownModel,
)
from fracture_lib.hub import BUNDLE
from fracture_lib.io.image import PREPROCESSOR_CONFIG
from fracture_lib.io.views import VIEWS
from fracture_lib.models.model import read_model
from fracture_lib.models.report import EvaluationReport

RUNTIMES = ["onnx", "native"]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def models():
    return {(name, runtime): read_model(name, runtime) for name in MODELS for runtime in RUNTIMES}


@pytest.fixture
def model_folder(tmp_path):
    """A copy of a bundled model, to damage."""
    return shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")


# ---- the contract


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_model_output_holds_probabilities_maps_and_features(models, pixels, name, runtime):
    model = models[name, runtime]
    output = model.forward(pixels)
    assert output.probabilities.shape == (10, 10) and (output.probabilities >= 0).all()
    np.testing.assert_allclose(output.probabilities.sum(axis=1), 1, atol=1e-6)
    assert output.features.shape[:2] == pixels.shape[:2] == (10, len(VIEWS))
    assert output.cam.shape == (10, len(VIEWS), 10, 8, 8)
    assert output.milliseconds > 0
    assert (model.name, model.runtime, model.source.kind) == (name, runtime, "bundle")
    assert model.info.accuracy == model.report.accuracy and model.info.size_bytes > 10_000


@pytest.mark.parametrize("name", MODELS)
def test_model_in_native_runtime_and_onnx_agrees(models, pixels, name):
    """Up to ResNet50's activations, which only ONNX Runtime rounds to eight bits."""
    native = models[name, "native"].predict_proba(pixels)
    onnx = models[name, "onnx"].predict_proba(pixels)
    assert np.abs(native - onnx).max() < (0.2 if name == "resnet50" else 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_model_predictions_depend_on_the_image(models, pixels, name):
    assert models[name, "onnx"].predict_proba(pixels).std(axis=0).max() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_model_on_batch_equals_model_on_single_images(models, pixels, name):
    model = models[name, "onnx"]
    singly = np.concatenate([model.predict_proba(image[None]) for image in pixels])
    np.testing.assert_allclose(model.predict_proba(pixels), singly, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_model_averages_the_logits_of_the_views(models, pixels, name):
    """The softmax of mean logits is the geometric mean of the views' probabilities, scaled to sum to 1."""
    model = models[name, "onnx"]
    views = np.stack([model.predict_proba(pixels[:, [v]]) for v in range(len(VIEWS))])
    mean = np.exp(np.log(views).mean(axis=0))
    expected = mean / mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_model_on_extreme_input_gives_finite_probabilities(models, name, runtime):
    checkerboard = np.float32(np.indices((128, 128)).sum(axis=0) % 2)[None, None]
    for pixels in (checkerboard, np.zeros_like(checkerboard), np.ones_like(checkerboard)):
        assert np.isfinite(models[name, runtime].predict_proba(pixels)).all()


@pytest.mark.parametrize("name", MODELS)
def test_onnx_graph_has_the_documented_signature(name, single_views):
    import onnxruntime

    session = onnxruntime.InferenceSession(BUNDLE / name / "model.onnx")
    assert [i.name for i in session.get_inputs()] == ["pixel_values"]
    assert {o.name for o in session.get_outputs()} == {"logits", "feature_map"}
    logits, features = session.run(["logits", "feature_map"], {"pixel_values": single_views})
    assert logits.shape == (10, 10)
    n, channels, height, width = features.shape
    assert n == 10 and channels > 0 and height == width and height >= 4


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].framework == "keras"])
def test_native_keras_file_loads_with_keras_alone(name, single_views):
    import keras

    model = keras.saving.load_model(BUNDLE / name / "model.keras")
    probabilities = model.predict_on_batch(single_views.reshape(-1, 128, 128, 1))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_ensemble_is_the_calibrated_weighted_mean_of_its_members(models, pixels):
    ensemble, report = read_model("ensemble"), EvaluationReport.read(BUNDLE / "ensemble")
    weights = np.array([report.weights[name] for name in MODELS])
    assert weights.sum() == pytest.approx(1, abs=2e-4) and (weights >= 0).all()
    members = [models[name, "onnx"].predict_proba(pixels) for name in MODELS]
    mean = np.tensordot(weights / weights.sum(), members, axes=1)
    tempered = mean ** (1 / report.temperature)
    expected = tempered / tempered.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ensemble.predict_proba(pixels), expected, atol=1e-6)
    assert str(ensemble.source) == "bundled weights"


# ---- the bundle


@pytest.mark.parametrize("name", MODELS)
def test_bundled_folder_is_laid_out_like_a_hub_repository(name):
    folder = BUNDLE / name
    weights = {"pytorch": "model.safetensors", "keras": "model.keras"}[MODELS[name].framework]
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "evaluation.json",
        "head.safetensors",
        "out_of_fold.safetensors",
        "README.md",
        "model.onnx",
        weights,
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {str(c.id): c.label for c in CLASSES}
    assert json.loads((folder / "preprocessor_config.json").read_text()) == PREPROCESSOR_CONFIG


def test_bundle_holds_no_path_of_the_machine_that_trained_it():
    for path in BUNDLE.rglob("*"):
        if path.is_file():
            assert not re.search(rb"site-packages|File \"|/home/|/root/", path.read_bytes()), path.name


def test_bundle_stays_within_its_size_limits():
    sizes = [p.stat().st_size for p in BUNDLE.rglob("*") if p.is_file()]
    assert max(sizes) < 60 * MEGABYTE and sum(sizes) < 120 * MEGABYTE


# ---- what cannot be loaded


def test_read_model_with_unknown_runtime_lists_the_runtimes():
    with pytest.raises(FractureError, match='"onnx" or "native"'):
        read_model("resnet50", runtime="cuda")


def test_read_model_with_unknown_name_suggests_the_nearest_name():
    with pytest.raises(UnknownModel, match=r'Did you mean "resnet50".*pytorch-cnn, tensorflow-cnn, resnet50'):
        read_model("resnet51")


def test_read_model_with_missing_folder_raises_model_unavailable(tmp_path):
    with pytest.raises(ModelUnavailable, match="no model folder"):
        read_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    "missing",
    ["config.json", "preprocessor_config.json", "evaluation.json", "model.onnx", "head.safetensors"],
)
def test_read_model_with_missing_file_names_the_file(model_folder, missing):
    (model_folder / missing).unlink()
    with pytest.raises(InvalidModel, match=missing):
        read_model(model_folder)


def test_read_model_with_damaged_graph_or_config_names_the_file(model_folder):
    (model_folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(InvalidModel, match=r"model\.onnx cannot be read"):
        read_model(model_folder)
    (model_folder / "config.json").write_text("{")
    with pytest.raises(InvalidModel, match=r"config\.json cannot be read"):
        read_model(model_folder)


def edit_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"id2label": {str(i): "Torus" for i in range(10)}}, UnknownLabel, "Torus"),
        ({"id2label": None}, InvalidModel, "id2label"),
        ({"temperature": 0}, InvalidModel, "temperature 0"),
        ({"temperature": "warm"}, InvalidModel, "temperature"),
        ({"model_name": "vgg16"}, InvalidModel, "vgg16"),
    ],
)
def test_read_model_with_wrong_config_entry_names_it(model_folder, entries, error, message):
    edit_config(model_folder, **entries)
    with pytest.raises(error, match=message):
        read_model(model_folder)


def test_read_model_with_other_preprocessing_raises_invalid_model(model_folder):
    (model_folder / "preprocessor_config.json").write_text('{"size": 224}')
    with pytest.raises(InvalidModel, match="different preprocessing"):
        read_model(model_folder)


def test_read_model_in_native_runtime_without_its_framework_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fracture_lib.models.pytorch", None)
    with pytest.raises(ModelUnavailable, match=r"native runtime of pytorch-cnn needs .*train"):
        read_model("pytorch-cnn", "native")


def test_read_model_with_existing_folder_as_name_suggests_local_dir(model_folder):
    with pytest.raises(UnknownModel, match=f'Did you mean "local-dir:{model_folder}"'):
        read_model(str(model_folder))


@pytest.mark.parametrize("reference", [None, 3, ["resnet50"]])
def test_read_model_with_reference_of_wrong_type_raises_unknown_model(reference):
    with pytest.raises(UnknownModel, match="Expected a model's name or a Path"):
        read_model(reference)


def test_read_model_in_native_runtime_without_native_weights_suggests_onnx(model_folder):
    (model_folder / "model.safetensors").unlink()
    assert read_model(model_folder).name == "pytorch-cnn"
    with pytest.raises(InvalidModel, match=r'no native weights.*Use runtime "onnx"'):
        read_model(model_folder, "native")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_read_model_with_truncated_weights_raises_invalid_model(tmp_path, name, runtime):
    folder = shutil.copytree(BUNDLE / name, tmp_path / "model")
    for path in folder.glob("model.*"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidModel, match="model"):
        read_model(folder, runtime)


def test_read_model_from_local_folder_equals_the_bundled_model(models, model_folder, pixels):
    model = read_model(f"local-dir:{model_folder}")
    assert str(model.source) == "local folder model"
    np.testing.assert_array_equal(
        model.predict_proba(pixels), models["pytorch-cnn", "onnx"].predict_proba(pixels)
    )
