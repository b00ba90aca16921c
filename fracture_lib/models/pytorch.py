"""PyTorch: the custom CNN, its training step, and its files (model.safetensors, model.onnx)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.io.views import INPUT_SIZE
from fracture_lib.labels import CLASSES
from fracture_lib.models.cam import ClassifierHead, write_head
from fracture_lib.models.config import read_config
from fracture_lib.models.forward import Forward
from fracture_lib.models.onnx import INPUT, OUTPUTS
from fracture_lib.models.onnx_export import finish_export
from fracture_lib.models.tensors import write_tensors

__all__ = ["Learner", "Muon", "ThreeBlockCNN", "apply_cnn", "build", "load", "load_blocks"]

WEIGHTS = "model.safetensors"


# ---- architecture


class ThreeBlockCNN(nn.Module):
    """Three blocks of (Conv, BatchNorm, LeakyReLU) x 2, pooling and Dropout; a two-layer head.

    The head reads the global average and the global maximum of the last feature map, so both widespread
    and local evidence count. `models.keras.three_block_cnn` has the same layers, padding and constants.

    A stride folds blocks of pixels into channels, which costs a processor less than a strided convolution.

    Input [N, 1, 128, 128] in 0..1; output (logits [N, n_outputs], feature map [N, C, h, w]).
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        pools: Sequence[int],
        dropouts: Sequence[float],
        hidden: int,
        head_dropout: float,
        n_outputs: int = len(CLASSES),
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        previous = 1
        for width, stride, pool, dropout in zip(channels, strides, pools, dropouts, strict=True):
            if stride > 1:
                blocks.append(nn.PixelUnshuffle(stride))
                previous *= stride**2
            for _ in range(2):
                blocks += [
                    nn.Conv2d(previous, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.LeakyReLU(0.1),
                ]
                previous = width
            blocks += [nn.MaxPool2d(pool), nn.Dropout2d(dropout)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Linear(2 * previous, hidden),
            nn.LeakyReLU(0.1),
            nn.Dropout(head_dropout),
            nn.Linear(hidden, n_outputs),
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        return apply_cnn(self.blocks, self.head, pixel_values)


def apply_cnn(blocks: nn.Module, head: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, 10] and the feature map [N, C, h, w] for [N, 1, 128, 128] in 0..1."""
    feature_map = blocks(pixel_values)
    pooled = torch.cat([feature_map.mean((2, 3)), feature_map.amax((2, 3))], dim=1)  # [N, 2 C]
    return head(pooled), feature_map


_FAMILIES = {"cnn": ThreeBlockCNN}


def build(architecture: Mapping[str, Any], n_outputs: int = len(CLASSES)) -> ThreeBlockCNN:
    """Return the network, with random weights, of a config's "architecture"."""
    options = dict(architecture)
    return _FAMILIES[options.pop("family")](**options, n_outputs=n_outputs)


# ---- inference


def load(folder: Path) -> Forward:
    """Return the forward function of `folder/model.safetensors`. Raises InvalidModel."""
    architecture = read_config(folder).architecture
    try:
        model = build(architecture)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError) as error:
        raise InvalidModel(f"{folder.name}/{WEIGHTS} cannot be loaded: {error}") from error

    def forward(pixels: NDArray[np.float32], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            return _run(model, pixels)
        except RuntimeError as error:  # out of memory
            raise ModelUnavailable(f"{folder.name} failed to run: {error}") from error

    return forward


def _run(
    model: ThreeBlockCNN, pixels: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run in inference mode on float32 [N, 1, 128, 128]; return logits and feature map, both float32."""
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits, feature_map = model(torch.from_numpy(pixels).to(device))
    return logits.float().cpu().numpy(), feature_map.float().cpu().numpy()


# ---- training


class Muon(torch.optim.Optimizer):
    """Step along the nearest orthogonal matrix to the momentum of each convolution kernel.

    torch.optim.Muon takes matrices only; a kernel [out, in, h, w] is the matrix [out, in * h * w].
    Source: Jordan et al., https://kellerjordan.github.io/posts/muon.
    """

    def __init__(self, kernels: Sequence[nn.Parameter], weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(kernels, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # never called with a closure
        group = self.param_groups[0]
        for kernel in group["params"]:
            state = self.state[kernel]
            if not state:
                state["momentum"] = torch.zeros_like(kernel)
            state["momentum"].mul_(group["momentum"]).add_(kernel.grad)
            ahead = kernel.grad + group["momentum"] * state["momentum"]  # Nesterov
            kernel.mul_(1 - group["lr"] * group["weight_decay"])
            kernel.sub_(group["lr"] * _orthogonalize(ahead.reshape(len(kernel), -1)).reshape(kernel.shape))


def _orthogonalize(matrix: Tensor) -> Tensor:
    """Bring all singular values near 1 with five Newton-Schulz iterations."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x


def _cpu_has_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16, which is about ten times slower without them."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last: on ARM


class Learner:
    """One network in training; implements `fracture_lib.training.learner.Learner`.

    Steps compute in bfloat16 where the hardware does, otherwise in float32. The two differ by rounding, so
    a training repeats bit for bit on one kind of CPU only.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        seed: int,
        *,
        weight_decay: float,
        clip_norm: float,
        muon_lr_scale: float,
        pretrained: Path | None = None,
        n_outputs: int = len(CLASSES),
    ) -> None:
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clip_norm = clip_norm
        self.use_bfloat16 = self.device.type == "cuda" or _cpu_has_bfloat16()
        # With bfloat16, channels_last halves an epoch on a CPU.
        self.model = build(architecture, n_outputs)
        if pretrained:
            load_blocks(self.model, pretrained)
        self.multilabel = n_outputs != len(CLASSES)
        self.model.to(device=self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's types
        kernels = [p for p in self.model.parameters() if p.ndim == 4 and muon_lr_scale]
        others = [p for p in self.model.parameters() if p.ndim != 4 or not muon_lr_scale]
        # Each optimizer with its learning rate as a multiple of that of `step`.
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(others, weight_decay=weight_decay), 1.0)
        ]
        if kernels:
            self.optimizers.append((Muon(kernels, weight_decay), muon_lr_scale))

    def features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return pixels  # all layers are trained, so there is no frozen trunk

    def step(
        self,
        features: NDArray[np.float32],
        targets: NDArray[np.float32],
        learning_rate: float,
        dropout_seed: int,
    ) -> float:
        torch.manual_seed(dropout_seed)
        self.model.train()
        for optimizer, lr_scale in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate * lr_scale
        inputs = torch.from_numpy(features).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            logits, _ = self.model(inputs)
        loss_function = F.binary_cross_entropy_with_logits if self.multilabel else F.cross_entropy
        loss = loss_function(logits.float(), torch.from_numpy(targets).to(self.device))
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        return loss.item()

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        # A copy: whoever keeps many small results must not keep PyTorch's memory around them.
        return _run(self.model, features)[0].copy()

    def get_weights(self) -> list[NDArray[Any]]:
        return [tensor.cpu().numpy().copy() for tensor in self.model.state_dict().values()]

    def set_weights(self, weights: Sequence[NDArray[Any]]) -> None:
        names = self.model.state_dict()
        self.model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in zip(names, weights, strict=True)}
        )

    def get_optimizer_state(self) -> list[NDArray[Any]]:
        return [
            moments[key].cpu().numpy().copy()
            for optimizer, _ in self.optimizers
            for moments in optimizer.state_dict()["state"].values()
            for key in _MOMENTS[type(optimizer)]
        ]

    def set_optimizer_state(self, state: Sequence[NDArray[Any]]) -> None:
        arrays = iter(state)
        for optimizer, _ in self.optimizers:
            content = optimizer.state_dict()
            content["state"] = {
                i: {key: torch.from_numpy(next(arrays)) for key in _MOMENTS[type(optimizer)]}
                for i in content["param_groups"][0]["params"]
            }
            optimizer.load_state_dict(content)

    def save_trunk(self, path: Path, source: str) -> None:
        write_tensors(
            path,
            {name: t.cpu().numpy() for name, t in self.model.blocks.state_dict().items()},
            {"source": source},
        )

    def save(self, folder: Path) -> None:
        model = self.model.cpu().eval()
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
        write_tensors(folder / WEIGHTS, {name: t.numpy() for name, t in model.state_dict().items()})
        write_head(folder, _head(model))
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, INPUT_SIZE, INPUT_SIZE),),
            folder / "model.onnx",
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
        finish_export(folder / "model.onnx")


def load_blocks(model: ThreeBlockCNN, path: Path) -> None:
    """Copy the blocks of a CNN, which `Learner.save_trunk` of either framework wrote. Raises InvalidModel."""
    try:
        model.blocks.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InvalidModel(
            f"{path.name} does not hold the blocks of this network. Give a file of `fracture pretrain`."
        ) from error


_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum",),
}


def _head(model: ThreeBlockCNN) -> ClassifierHead:
    hidden, logits = (layer for layer in model.head if isinstance(layer, nn.Linear))
    [activation] = (layer for layer in model.head if isinstance(layer, nn.LeakyReLU))
    return ClassifierHead(
        hidden_kernel=hidden.weight.detach().numpy().T,
        hidden_bias=hidden.bias.detach().numpy(),
        logits_kernel=logits.weight.detach().numpy().T,
        logits_bias=logits.bias.detach().numpy(),
        slope=np.array([activation.negative_slope], np.float32),
    )
