"""The fracture detector in PyTorch: its network and its training step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fracture_lib.errors import InvalidModel
from fracture_lib.models.efficientnet import DetectorLearner, FractureDetector, load_pretrained
from tests.helpers.detector import write_random_efficientnet


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_random_efficientnet(tmp_path_factory.mktemp("weights") / "efficientnet.safetensors")


def test_network_has_a_map_at_a_sixteenth_of_the_resolution():
    logits, heat, pooled = FractureDetector(3).eval()(torch.rand(2, 1, 256, 256))
    assert logits.shape == (2, 3) and heat.shape == (2, 16, 16) and pooled.shape == (2, 512)


def test_load_pretrained_turns_kernels_of_rgb_into_those_of_gray(pretrained):
    network = FractureDetector(1)
    load_pretrained(network, pretrained)
    kernels = load_file(pretrained)["conv_stem.weight"]
    gray = torch.rand(1, 1, 9, 9)
    torch.testing.assert_close(
        torch.conv2d(gray.repeat(1, 3, 1, 1), kernels), torch.conv2d(gray, network.conv_stem.weight)
    )


@pytest.mark.parametrize("change", ["renamed", "missing", "other shape"])
def test_load_pretrained_names_a_file_of_another_network(pretrained, tmp_path, change):
    tensors = load_file(pretrained)
    name = "blocks.4.1.conv_pw.weight"
    tensor = tensors.pop(name)
    if change != "missing":
        other = name.replace("conv_pw", "conv_xy") if change == "renamed" else name
        tensors[other] = tensor[:3].clone()
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(InvalidModel, match=r"other\.safetensors is not an EfficientNet-Lite0"):
        load_pretrained(FractureDetector(1), tmp_path / "other.safetensors")


def test_load_pretrained_of_another_file_raises_invalid_model(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InvalidModel, match=r"weights\.safetensors is not an EfficientNet-Lite0"):
        load_pretrained(FractureDetector(1), tmp_path / "weights.safetensors")


def test_steps_lower_both_losses_and_keep_the_statistics_of_the_pretraining(pretrained):
    learner = DetectorLearner(pretrained, 2, seed=1, weight_decay=0.0, clip_norm=5.0)
    rng = np.random.default_rng(1)
    pixels = 0.2 * rng.random((4, 64, 64), np.float32)
    pixels[[0, 2], 16:32, 16:32] = 1
    findings = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
    places = np.zeros((4, 4, 4), np.float32)
    places[[0, 2], 1, 1] = 1
    before = learner.get_weights()
    losses = np.array([learner.step(pixels, findings, places, 1e-3) for _ in range(60)])
    after = learner.get_weights()
    assert (losses[-3:].mean(0) < losses[:3].mean(0)).all()
    kept = [name for name in before if name.startswith("blocks") and "running" in name]
    assert kept and all((before[name] == after[name]).all() for name in kept)
    assert (before["norm.running_mean"] != after["norm.running_mean"]).any()


def test_use_averages_lies_between_the_start_and_the_last_step(pretrained):
    learner = DetectorLearner(pretrained, 1, seed=0, weight_decay=0.0, clip_norm=5.0)
    start = learner.get_weights()["head.bias"]
    pixels = np.random.default_rng(2).random((2, 32, 32), np.float32)
    for _ in range(3):
        learner.step(pixels, np.ones((2, 1), np.float32), np.zeros((2, 2, 2), np.float32), 1e-2)
    end = learner.get_weights()["head.bias"]
    learner.use_averages()
    assert start < learner.get_weights()["head.bias"] < end


def test_set_weights_restores_the_predictions(pretrained):
    learner = DetectorLearner(pretrained, 3, seed=0, weight_decay=0.0, clip_norm=5.0)
    pixels = np.random.default_rng(3).random((2, 64, 64), np.float32)
    other = DetectorLearner(pretrained, 3, seed=5, weight_decay=0.0, clip_norm=5.0)
    other.set_weights(learner.get_weights())
    for one, two in zip(learner.predict(pixels), other.predict(pixels), strict=True):
        np.testing.assert_array_equal(one, two)
