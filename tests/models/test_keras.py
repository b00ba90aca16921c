"""The networks in Keras, and that they equal those in PyTorch and transformers."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

from fracture_lib.errors import InvalidArgument, InvalidModel
from fracture_lib.models import keras as keras_models
from fracture_lib.models import keras_networks
from fracture_lib.models import pytorch as pytorch_models
from fracture_lib.training.learner import build_learner
from fracture_lib.training.recipes import PRETRAINING, RECIPES
from tests.helpers.training import tiny_recipe, write_random_resnet50


@pytest.fixture
def twins(monkeypatch):
    """A learner in PyTorch and one in Keras with the same weights, without dropout, in float32."""
    monkeypatch.setattr(pytorch_models.torch, "autocast", lambda *_, **__: nullcontext())
    recipe = RECIPES["pytorch-cnn"]
    architecture = {**recipe.architecture, "dropouts": [0, 0, 0], "head_dropout": 0}
    recipe = replace(recipe, architecture=architecture)
    torch_learner, keras_learner = (
        build_learner(name, recipe, 0, None) for name in ("pytorch-cnn", "tensorflow-cnn")
    )
    keras_learner.set_weights(to_keras_layout(torch_learner.get_weights()))
    return torch_learner, keras_learner


def to_keras_layout(weights):
    """Transpose a PyTorch CNN's weights; its counters of batches have no counterpart."""
    return [w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T for w in weights if w.dtype.kind == "f"]


def test_cnn_with_the_same_weights_gives_the_same_logits_in_both_frameworks(twins, single_views):
    torch_learner, keras_learner = twins
    assert np.abs(torch_learner.logits(single_views) - keras_learner.logits(single_views)).max() < 1e-4


@pytest.mark.slow
def test_training_steps_are_the_same_in_both_frameworks(twins, single_views):
    targets = np.eye(10, dtype=np.float32)
    losses = np.array([[learner.step(single_views, targets, 1e-4, 0) for learner in twins] for _ in range(4)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-3)
    assert losses[-1, 0] < losses[0, 0]


# ResNet50


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(file of random ResNet50 weights, the same network in transformers)."""
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    return path, write_random_resnet50(path)


@pytest.mark.slow
@pytest.mark.parametrize("n_stages", [3, 4])
def test_resnet50_equals_transformers_resnet50_on_gray_images(pretrained, single_views, n_stages):
    """Version 1.5, which torchvision's and the Hub's weights expect."""
    path, network = pretrained
    architecture = {**RECIPES["resnet50"].architecture, "n_stages": n_stages}
    model = build_learner("resnet50", replace(RECIPES["resnet50"], architecture=architecture), 0, path).model
    features = keras_networks.keras.Model(model.input, model.get_layer("feature_map").output)
    with torch.no_grad():
        output = network(torch.from_numpy(single_views).expand(-1, 3, -1, -1), output_hidden_states=True)
    expected = output.hidden_states[n_stages].numpy()
    found = features.predict_on_batch(single_views.reshape(-1, 128, 128, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_load_pretrained_of_imagenet_weights_folds_in_the_normalization(pretrained, tmp_path):
    """Without the note "no mean/std", the weights expect (x - mean) / std."""
    path, network = pretrained
    save_torch_file(load_torch_file(path), tmp_path / "imagenet.safetensors")
    model = build_learner("resnet50", RECIPES["resnet50"], 0, tmp_path / "imagenet.safetensors").model
    gray = np.full((1, 1, 128, 128), 0.3, np.float32)
    mean, std = (
        torch.tensor(v)[None, :, None, None]
        for v in (keras_networks.IMAGENET_MEAN, keras_networks.IMAGENET_STD)
    )
    with torch.no_grad():
        stem = network.embedder.embedder((torch.from_numpy(gray).expand(-1, 3, -1, -1) - mean) / std)
    first_norm = keras_networks.keras.Model(model.input, model.get_layer("bn1").output)
    found = np.maximum(first_norm.predict_on_batch(gray.reshape(1, 128, 128, 1)), 0)
    # In the middle, away from the padded border
    np.testing.assert_allclose(found[0, 32, 32], stem[0, :, 32, 32].numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recipes", [RECIPES, PRETRAINING], ids=["head", "last stage"])
def test_resnet50_learner_trains_only_its_tuned_stages_and_head(pretrained, single_views, recipes):
    learner = build_learner("resnet50", recipes["resnet50"], 0, pretrained[0])
    trunk, tail = learner.trunk.get_weights(), learner.get_weights()
    learner.step(learner.features(single_views), np.eye(10, dtype=np.float32), 1e-3, 0)
    for before, after in zip(trunk, learner.trunk.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    changed = [(a != b).any() for a, b in zip(tail, learner.get_weights(), strict=True)]
    # Two dense layers and the scale and center of the normalization before them; its mean and variance follow
    # the images. The kernels of the last stage: three in each of six blocks, one more in the first.
    n_trained = 6 + (19 if recipes is PRETRAINING else 0)
    assert sum(changed) - 2 == len(learner.tail.trainable_weights) == n_trained


@pytest.mark.slow
def test_resnet50_answers_with_the_mean_of_its_heads(pretrained, single_views):
    learner = build_learner("resnet50", RECIPES["resnet50"], 0, pretrained[0])
    features, targets = learner.features(single_views), np.eye(10, dtype=np.float32)
    heads = learner.trained_tail.predict_on_batch(features)
    assert heads.shape == (10, 4, 10) and np.ptp(heads, axis=1).max() > 0.1
    np.testing.assert_allclose(learner.logits(features), heads.mean(axis=1), rtol=1e-5)
    kernels = learner.model.get_layer("heads").get_weights()[0]
    learner.step(features, targets, 1e-3, 0)
    changed = kernels != learner.model.get_layer("heads").get_weights()[0]
    assert changed.any(axis=(1, 2)).all(), "every head has a loss"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch-cnn", "tensorflow-cnn"])
def test_learner_of_findings_trains_on_labels_of_which_several_apply(single_views, name):
    learner = build_learner(name, tiny_recipe(name, recipes=PRETRAINING), 0, None, n_outputs=9)
    targets = np.tile(np.float32([1, 0, 1, 0, 0, 0, 0, 1, 0]), (10, 1))
    logits = learner.logits(single_views)
    loss = learner.step(single_views, targets, 0.0, 0)
    assert logits.shape == (10, 9) and 0.3 < loss < 2, "near log 2 at first, and no softmax over the labels"


def test_resnet50_learner_with_weights_of_another_network_raises_invalid_model(tmp_path):
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(InvalidModel, match=r"w\.safetensors is not a ResNet50 under torchvision's names"):
        build_learner("resnet50", RECIPES["resnet50"], 0, tmp_path / "w.safetensors")


@pytest.mark.slow
def test_resnet50_learner_with_weights_that_are_not_finite_raises_invalid_model(pretrained, tmp_path):
    tensors = load_torch_file(pretrained[0])
    tensors["bn1.running_mean"][3] = float("nan")
    save_torch_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InvalidModel, match=r"\(bn1\.running_mean is not finite\)\. Give another file"):
        build_learner("resnet50", RECIPES["resnet50"], 0, tmp_path / "w.safetensors")


def test_resnet50_learner_without_pretrained_weights_raises_invalid_argument():
    with pytest.raises(InvalidArgument, match="starts from pretrained weights"):
        build_learner("resnet50", RECIPES["resnet50"], 0, None)


def test_load_with_damaged_file_raises_invalid_model(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"damaged")
    with pytest.raises(InvalidModel, match=r"model\.keras cannot be loaded"):
        keras_models.load(tmp_path)
