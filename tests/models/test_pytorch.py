"""The network, optimizer and files in PyTorch."""

import shutil

import numpy as np
import pytest
import torch

from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.models.pytorch import Learner, Muon, build, load
from fracture_lib.training.recipes import RECIPES
from tests.helpers.training import tiny_recipe

ARCHITECTURE = tiny_recipe("pytorch-cnn").architecture
OPTIONS = {"weight_decay": 0.05, "clip_norm": 5.0}


@pytest.fixture
def model_folder(tmp_path):
    """A copy of the bundled model, to damage."""
    return shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")


def test_build_gives_logits_and_feature_map():
    network = build(RECIPES["pytorch-cnn"].architecture).eval()
    logits, feature_map = network(torch.zeros(2, 1, 128, 128))
    assert logits.shape == (2, 10) and feature_map.shape == (2, 128, 4, 4)


def test_load_with_damaged_weights_raises_invalid_model(model_folder):
    (model_folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InvalidModel, match=r"model/model\.safetensors cannot be loaded"):
        load(model_folder)


@pytest.mark.parametrize(("old", "new"), [('"family": "cnn"', '"family": "vit"'), ('"hidden"', '"hiden"')])
def test_load_with_unknown_architecture_raises_invalid_model(model_folder, old, new):
    config = model_folder / "config.json"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(InvalidModel, match="cannot be loaded"):
        load(model_folder)


def test_muon_steps_along_an_orthogonal_matrix():
    kernel = torch.nn.Parameter(torch.zeros(4, 2, 3, 3))
    optimizer = Muon([kernel], weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 1.0
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    singular_values = torch.linalg.svdvals(kernel.detach().reshape(4, -1))
    assert (singular_values - 1).abs().max() < 0.35, "Newton-Schulz brings them near 1"


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_learner_on_a_cpu_computes_in_bfloat16_only_with_its_instructions(
    single_views, monkeypatch, capabilities, dtype
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    learner = Learner(ARCHITECTURE, 0, muon_lr_scale=0.0, **OPTIONS)
    seen = []
    learner.model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    learner.step(single_views, np.eye(10, dtype=np.float32), 1e-3, 0)
    assert seen == [dtype]


@pytest.mark.parametrize("muon_lr_scale", [0.0, 20.0])
def test_learner_with_restored_state_continues_identically(single_views, muon_lr_scale):
    targets = np.eye(10, dtype=np.float32)
    first = Learner(ARCHITECTURE, 0, muon_lr_scale=muon_lr_scale, **OPTIONS)
    first.step(single_views, targets, 1e-3, 0)
    other = Learner(ARCHITECTURE, 1, muon_lr_scale=muon_lr_scale, **OPTIONS)
    other.set_weights(first.get_weights())
    other.set_optimizer_state(first.get_optimizer_state())
    for learner in (first, other):
        learner.step(single_views, targets, 1e-3, 1)
    for one, same in zip(first.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
