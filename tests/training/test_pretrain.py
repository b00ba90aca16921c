"""`pretrain`: what it trains on and writes, and that both frameworks start from it."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fracture_lib.data.fracatlas import FINDINGS
from fracture_lib.errors import InvalidArgument, InvalidData, InvalidModel, ModelUnavailable, UnknownModel
from fracture_lib.models import keras as keras_models
from fracture_lib.models import keras_networks
from fracture_lib.models import pytorch as pytorch_models
from fracture_lib.models.report import EvaluationReport
from fracture_lib.training import pretrain as pretrain_module
from fracture_lib.training.learner import build_learner
from fracture_lib.training.pretrain import PretrainedWeights, find_weights, pretrain, quantize
from fracture_lib.training.recipes import PRETRAINING, RECIPES
from fracture_lib.training.trainer import train
from tests.helpers.training import tiny_recipe, write_random_resnet50

CNNS = {"pytorch-cnn": pytorch_models, "tensorflow-cnn": keras_models}


@pytest.fixture
def tiny(monkeypatch):
    """Let pretraining use tiny CNNs for six epochs; return a function that changes that recipe."""

    def change(**options):
        for name in CNNS:
            recipe = tiny_recipe(name, epochs=6, recipes=PRETRAINING)
            monkeypatch.setitem(PRETRAINING, name, replace(recipe, **options))

    change()
    return change


def source(path):
    with safe_open(path, "np") as file:
        return file.metadata()["source"]


def feature_map(learner, views):
    """Return the last feature map [N, C, h, w] of a network of either framework."""
    if isinstance(learner, pytorch_models.Learner):
        return pytorch_models._run(learner.model, views)[1]
    model = keras_networks.keras.Model(learner.model.input, learner.model.get_layer("feature_map").output)
    return model.predict_on_batch(views.reshape(-1, 128, 128, 1)).transpose(0, 3, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CNNS)
def test_pretrain_writes_layers_that_both_cnns_start_from_alike(
    tiny, fracatlas_folder, tmp_path, single_views, name
):
    out = tmp_path / "new" / "cnn.safetensors"
    pretrain(name, fracatlas_folder, out)
    assert [path.name for path in out.parent.iterdir()] == [out.name], "no checkpoint is left"
    assert source(out) == "FracAtlas, 24 radiographs"
    started = [build_learner(name, tiny_recipe(name), 5, out) for name in CNNS]
    maps = [feature_map(learner, single_views) for learner in started]
    assert np.ptp(maps[0]) > 0.1
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-4)
    fresh = build_learner(name, tiny_recipe(name), 5, None)
    assert np.abs(feature_map(fresh, single_views) - maps[0]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", CNNS)
def test_pretrain_killed_and_resumed_writes_the_same_layers(
    tiny, fracatlas_folder, tmp_path, monkeypatch, name
):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    pretrain(name, fracatlas_folder, whole, seed=3)
    step, calls = CNNS[name].Learner.step, []

    def kill(self, *arguments):
        calls.append(1)
        if len(calls) == 5 * 5 + 2:  # 16 + 3 * 8 images by 8 are five steps; a checkpoint follows five epochs
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(CNNS[name].Learner, "step", kill)
    with pytest.raises(KeyboardInterrupt):
        pretrain(name, fracatlas_folder, killed, seed=3)
    assert not killed.exists()
    with pytest.raises(InvalidData, match="a run with another seed"):
        pretrain(name, fracatlas_folder, killed, seed=4)
    pretrain(name, fracatlas_folder, killed, seed=3)
    assert len(calls) == 5 * 5 + 2 + 5, "the sixth epoch again, and no more"
    for key, array in load_file(whole).items():
        np.testing.assert_array_equal(load_file(killed)[key], array)


def test_pretrain_shows_fractured_images_three_times_as_often(tiny, fracatlas_folder, tmp_path, monkeypatch):
    tiny(epochs=1, batch_size=40)
    seen = []

    def step(self, features, targets, learning_rate, dropout_seed):
        seen.append((features, targets))
        return 0.0

    monkeypatch.setattr(pytorch_models.Learner, "step", step)
    pretrain("pytorch-cnn", str(fracatlas_folder), str(tmp_path / "cnn.safetensors"))
    [(features, targets)] = seen
    assert features.shape == (40, 1, 128, 128) and targets.shape == (40, len(FINDINGS))
    assert targets[:, 0].sum() == 3 * 8 and set(np.unique(targets)) == {0.0, 1.0}
    fractured = features[targets[:, 0] > 0]
    assert len(np.unique(fractured.reshape(24, -1), axis=0)) == 24, "another view each time"


def test_pretrain_from_weights_names_both_sources(tiny, fracatlas_folder, tmp_path):
    tiny(epochs=1)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    pretrain("pytorch-cnn", fracatlas_folder, first)
    pretrain("pytorch-cnn", fracatlas_folder, second, pretrained=first)
    assert source(second) == "FracAtlas, 24 radiographs, from FracAtlas, 24 radiographs"
    assert find_weights(str(second)).source == source(second)


@pytest.mark.slow
def test_pretrain_of_resnet50_tunes_its_last_stage_alone(
    fracatlas_folder, tmp_path, monkeypatch, single_views
):
    start, out = tmp_path / "start.safetensors", tmp_path / "resnet50.safetensors"
    write_random_resnet50(start)
    recipe = replace(PRETRAINING["resnet50"], epochs=1, batch_size=20)
    monkeypatch.setitem(PRETRAINING, "resnet50", recipe)
    learners = []
    build = pretrain_module.build_learner
    monkeypatch.setattr(
        pretrain_module, "build_learner", lambda *a, **k: learners.append(build(*a, **k)) or learners[-1]
    )
    pretrain("resnet50", fracatlas_folder, out, pretrained=start)
    assert source(out) == "FracAtlas, 24 radiographs, from start.safetensors"
    before, after = load_file(start), load_file(out)
    assert {name.split(".")[0] for name in after} == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    np.testing.assert_array_equal(after["layer2.0.conv1.weight"], before["layer2.0.conv1.weight"])
    assert (after["layer3.0.conv1.weight"] != before["layer3.0.conv1.weight"]).any()
    started = build_learner(
        "resnet50", replace(recipe, architecture={**recipe.architecture, "tuned_stages": 0}), 1, out
    )
    np.testing.assert_allclose(
        feature_map(started, single_views), feature_map(learners[0], single_views), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_train_pretrains_first_and_resumes_after_it(
    tiny, fracatlas_folder, dataset_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("fracture_lib.training.trainer.PERTURBATIONS", {"same": lambda image: image})
    options = {"n_folds": 4, "n_measured_folds": 1, "recipe": tiny_recipe("pytorch-cnn", epochs=1)}
    options |= {"pretrain_on": fracatlas_folder, "keep_checkpoints": True}
    report = train("pytorch-cnn", dataset_folder, tmp_path / "out", **options)
    assert report.training.pretrained == "FracAtlas, 24 radiographs"
    assert report == EvaluationReport.read(tmp_path / "out") and report.training.minutes is not None
    file = tmp_path / "out" / "checkpoints" / "pretrained.safetensors"
    expected = tmp_path / "expected.safetensors"
    pretrain("pytorch-cnn", fracatlas_folder, expected)
    assert file.read_bytes() == expected.read_bytes(), "the same as in two commands"
    monkeypatch.setattr("fracture_lib.training.trainer.pretrain", None)
    again = train("pytorch-cnn", dataset_folder, tmp_path / "out", **options)
    assert again.training.minutes is None and again.accuracy == report.accuracy
    with pytest.raises(InvalidData, match="another pretraining"):
        train("pytorch-cnn", dataset_folder, tmp_path / "out", **{**options, "pretrain_on": None})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "resnet51"}, UnknownModel, 'Unknown model "resnet51". Choose from pytorch-cnn, '),
        ({"seed": -1}, InvalidArgument, "seed is -1; use 0 to"),
        ({"data": "no folder"}, InvalidData, r"manifest\.csv cannot be read"),
        ({"pretrained": "no file"}, ModelUnavailable, "There is no file no file"),
        ({"pretrained": __file__}, InvalidModel, r"test_pretrain\.py is not a readable safetensors file"),
        ({"out": "."}, InvalidArgument, "is a folder. Give the file to write"),
    ],
)
def test_pretrain_with_wrong_argument_raises_before_it_writes(
    fracatlas_folder, tmp_path, options, error, message
):
    arguments = {"name": "pytorch-cnn", "data": fracatlas_folder, "out": tmp_path / "new" / "cnn.safetensors"}
    with pytest.raises(error, match=message):
        pretrain(**{**arguments, **options})
    assert list(tmp_path.iterdir()) == []


def test_pretrain_with_missing_image_names_it(tiny, fracatlas_folder, tmp_path):
    manifest = (fracatlas_folder / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(manifest)
    with pytest.raises(InvalidData, match=r"^0\.png cannot be read"):
        pretrain("pytorch-cnn", tmp_path, tmp_path / "cnn.safetensors")


@pytest.mark.parametrize("name", [pytest.param("tensorflow-cnn", marks=pytest.mark.slow), "pytorch-cnn"])
@pytest.mark.parametrize("content", ["other", "fewer", "resnet50", "damaged"])
def test_learner_with_layers_of_another_network_raises_invalid_model(tmp_path, name, content):
    path, recipe = tmp_path / "weights.safetensors", tiny_recipe("pytorch-cnn")
    if content == "damaged":
        path.write_bytes(b"damaged")
    elif content == "resnet50":
        save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, path)
    else:
        channels = {"other": [4, 4, 12], "fewer": [4, 4]}[content]
        architecture = {**recipe.architecture, "channels": channels}
        for key in ("strides", "pools", "dropouts"):
            architecture[key] = architecture[key][: len(channels)]
        build_learner("pytorch-cnn", replace(recipe, architecture=architecture), 0, None).save_trunk(
            path, "test"
        )
    with pytest.raises(InvalidModel, match=r"weights\.safetensors does not hold the blocks of this network"):
        build_learner(name, recipe, 0, path)


@pytest.mark.slow
def test_keras_learner_with_more_layers_than_its_own_raises_invalid_model(tmp_path):
    recipe = tiny_recipe("tensorflow-cnn")
    architecture = {**recipe.architecture, "channels": [4, 4]}
    for key in ("strides", "pools", "dropouts"):
        architecture[key] = architecture[key][:2]
    path = tmp_path / "weights.safetensors"
    build_learner("pytorch-cnn", recipe, 0, None).save_trunk(path, "test")
    with pytest.raises(InvalidModel, match="does not hold the blocks"):
        build_learner("tensorflow-cnn", replace(recipe, architecture=architecture), 0, path)


def test_quantize_writes_a_trunk_once(tmp_path, monkeypatch):
    calls = []

    def write(architecture, pretrained, pixels, path, source):
        calls.append((pretrained, pixels.shape, source))
        path.touch()

    monkeypatch.setattr(keras_models, "write_int8_trunk", write)
    start, path = (
        PretrainedWeights(tmp_path / "start.safetensors", "Test", "0"),
        tmp_path / "trunk.safetensors",
    )
    for _ in range(2):
        assert quantize(start, RECIPES["resnet50"], path, 0) == replace(start, path=path)
    assert calls == [(start.path, (64, 1, 128, 128), "Test")]
