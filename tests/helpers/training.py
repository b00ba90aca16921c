"""Small recipes, a learner in NumPy and random pretrained weights, to train in seconds."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracture_lib.hub import BUNDLE
from fracture_lib.training.recipes import RECIPES, Recipe


def tiny_recipe(name: str, epochs: int = 7, recipes: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """Return the recipe of a CNN with few channels and batches of 8."""
    architecture = {**recipes[name].architecture, "channels": [4, 4, 8], "hidden": 8}
    return replace(recipes[name], architecture=architecture, epochs=epochs, batch_size=8)


class LinearLearner:
    """The least that `training.learner.Learner` asks for: one layer on eight pixels, trained by SGD.

    `n_optimizer_values` makes its checkpoints large.
    """

    def __init__(self, n_optimizer_values: int = 1) -> None:
        self.weights = [np.zeros((8, 10), np.float32)]
        self.optimizer_state: list[NDArray[Any]] = [np.zeros(n_optimizer_values, np.float32)]
        self.n_steps = 0

    def features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return pixels

    def step(
        self,
        features: NDArray[np.float32],
        targets: NDArray[np.float32],
        learning_rate: float,
        dropout_seed: int,
    ) -> float:
        self.n_steps += 1
        self.weights = [self.weights[0] + np.float32(learning_rate) * _eight_pixels(features).T @ targets]
        self.optimizer_state = [self.optimizer_state[0] + 1]
        return 1 / self.n_steps

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return _eight_pixels(features) @ self.weights[0]

    def get_weights(self) -> list[NDArray[Any]]:
        return [array.copy() for array in self.weights]

    def set_weights(self, weights: Sequence[NDArray[Any]]) -> None:
        self.weights = list(weights)

    def get_optimizer_state(self) -> list[NDArray[Any]]:
        return [array.copy() for array in self.optimizer_state]

    def set_optimizer_state(self, state: Sequence[NDArray[Any]]) -> None:
        self.optimizer_state = list(state)

    def save(self, folder: Path) -> None:
        """Write the files of the bundled pytorch-cnn, so that the folder loads."""
        for name in ("model.onnx", "model.safetensors", "head.safetensors"):
            shutil.copy(BUNDLE / "pytorch-cnn" / name, folder)


def _eight_pixels(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features.reshape(len(features), -1)[:, 64 :: 128 * 16]


def write_random_resnet50(path: Path) -> Any:
    """Write random weights under torchvision's names; return the same network in transformers.

    The file says that it takes RGB in 0..1, without normalization.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    network = ResNetModel(ResNetConfig(downsample_in_bottleneck=False)).eval()
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)  # in place, so the network has it, too
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        tensors[_torchvision_name(name)] = tensor
    save_file(tensors, path, metadata={"input": "RGB / 255, no mean/std"})
    return network


def _torchvision_name(name: str) -> str:
    """Translate a parameter's name from transformers' ResNet to torchvision's."""
    name = name.replace("embedder.embedder.convolution", "conv1")
    name = name.replace("embedder.embedder.normalization", "bn1")
    if not name.startswith("encoder"):
        return name
    _, _, stage, _, block, part, *rest = name.split(".")
    prefix = f"layer{int(stage) + 1}.{block}"
    if part == "shortcut":
        return f"{prefix}.downsample.{['convolution', 'normalization'].index(rest[0])}.{rest[1]}"
    kind = {"convolution": "conv", "normalization": "bn"}[rest[1]]
    return f"{prefix}.{kind}{int(rest[0]) + 1}.{rest[2]}"
