"""PyTorch: the fracture detector, an EfficientNet-Lite0 with a map of fractures, and its training step."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fracture_lib.errors import InvalidModel
from fracture_lib.io.views import DETECTOR_SIZE
from fracture_lib.models.detector import OUTPUTS
from fracture_lib.models.onnx import INPUT, clear_traces, open_session

__all__ = ["DetectorLearner", "FractureDetector", "Tail", "Trunk", "load_pretrained"]

# (expansion, channels, blocks, stride, kernel) of each stage. Source: Tan and Le, EfficientNet,
# https://arxiv.org/abs/1905.11946, and TensorFlow's EfficientNet-Lite, without squeeze-and-excitation.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
N_FROZEN_STAGES = 3  # they keep the values of the pretraining, and their output is cached
FINE_STAGE = 4  # at a sixteenth of the resolution, as the map
NEW_LAYERS = ("fine", "coarse", "mix", "norm", "heat", "head")  # of `Tail`, which no pretrained file has
WIDTH = 96  # channels of the map's features
# Weights of the losses beside that of "fractured": of region and view, of the map, of its fractured places.
OTHER_FINDINGS_WEIGHT, MAP_WEIGHT, POSITIVE_WEIGHT = 0.5, 5.0, 4.0
EMA_DECAY = 0.99  # per step, of the moving average of weights that is kept


def _same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a convolution with TensorFlow's "same" padding, whose odd pixel is at the end."""
    total = conv.kernel_size[0] - conv.stride[0]
    return conv(F.pad(x, (total // 2, total - total // 2) * 2) if total > 0 else x)


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, groups=channels, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.05)


class _Separable(nn.Module):
    """The block of the first stage, which does not expand."""

    def __init__(self, previous: int, width: int, stride: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = _depthwise(previous, kernel, stride), _norm(previous)
        self.conv_pw, self.bn2 = nn.Conv2d(previous, width, 1, bias=False), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(F.relu6(self.bn1(_same(x, self.conv_dw)))))


class _InvertedResidual(nn.Module):
    def __init__(self, previous: int, width: int, stride: int, kernel: int, expansion: int) -> None:
        super().__init__()
        wide = previous * expansion
        self.conv_pw, self.bn1 = nn.Conv2d(previous, wide, 1, bias=False), _norm(wide)
        self.conv_dw, self.bn2 = _depthwise(wide, kernel, stride), _norm(wide)
        self.conv_pwl, self.bn3 = nn.Conv2d(wide, width, 1, bias=False), _norm(width)
        self.is_residual = stride == 1 and previous == width

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.conv_pw(x)))
        y = self.bn3(self.conv_pwl(F.relu6(self.bn2(_same(y, self.conv_dw)))))
        return x + y if self.is_residual else y


def _stages(first: int, last: int) -> nn.ModuleList:
    stages = nn.ModuleList()
    previous = 32 if first == 0 else STAGES[first - 1][1]
    for expansion, width, n_blocks, stage_stride, kernel in STAGES[first:last]:
        blocks = nn.ModuleList()
        for i in range(n_blocks):
            stride = stage_stride if i == 0 else 1
            blocks.append(
                _Separable(previous, width, stride, kernel)
                if expansion == 1
                else _InvertedResidual(previous, width, stride, kernel, expansion)
            )
            previous = width
        stages.append(nn.Sequential(*blocks))
    return stages


class Trunk(nn.Module):
    """The frozen stages: gray [N, 1, H, W] in 0..1 -> [N, 40, H / 8, W / 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(1, 32, 3, 2, bias=False), _norm(32)
        self.blocks = _stages(0, N_FROZEN_STAGES)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu6(self.bn1(_same((255 * pixels - 127) / 128, self.conv_stem)))
        for stage in self.blocks:
            x = stage(x)
        return x


class Tail(nn.Module):
    """The trained stages and a head: [N, 40, h, w] -> logits, map of logits, pooled features.

    The map [N, h / 2, w / 2] holds the logit of a fracture at each place. The logit of the image is a linear
    function of the map's maximum and soft maximum and of pooled features.
    """

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.blocks = _stages(N_FROZEN_STAGES, len(STAGES))
        fine, coarse = STAGES[FINE_STAGE][1], STAGES[-1][1]
        self.fine, self.coarse = nn.Conv2d(fine, WIDTH, 1), nn.Conv2d(coarse, WIDTH, 1)
        self.mix, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), _norm(WIDTH)
        self.heat = nn.Conv2d(WIDTH, 1, 1)
        nn.init.constant_(self.heat.get_parameter("bias"), -3.0)  # few places show a fracture
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * WIDTH + coarse + 2, n_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for i, stage in enumerate(self.blocks, N_FROZEN_STAGES):
            x = stage(x)
            if i == FINE_STAGE:
                fine = x
        y = self.fine(fine) + F.interpolate(self.coarse(x), scale_factor=2.0, mode="bilinear")
        y = F.relu(self.norm(self.mix(F.relu(y))))
        heat = self.heat(y)[:, 0]
        places = heat.flatten(1)
        pooled = torch.cat([y.mean((2, 3)), y.amax((2, 3)), x.mean((2, 3))], dim=1)
        peaks = torch.stack([places.amax(1), places.logsumexp(1)], dim=1)
        return self.head(torch.cat([self.dropout(pooled), peaks], dim=1)), heat, pooled


class FractureDetector(nn.Module):
    """Gray [N, 1, H, W] in 0..1 -> logit [N, 1], map of logits [N, H / 16, W / 16], embedding [N, D]."""

    def __init__(self, trunk: Trunk, tail: Tail) -> None:
        super().__init__()
        self.trunk, self.tail = trunk, tail

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, heat, pooled = self.tail(self.trunk(pixels))
        return logits[:, :1], heat, pooled


def _export(network: nn.Module, path: Path, outputs: Sequence[str]) -> None:
    """Write a network that takes [N, 1, 256, 256] as ONNX."""
    import onnx

    network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # not in its types
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, DETECTOR_SIZE, DETECTOR_SIZE),),
        path,
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )
    graph = onnx.load(path)
    clear_traces(graph)
    onnx.save(graph, path)


def load_pretrained(trunk: Trunk, tail: Tail, path: Path) -> None:
    """Copy an EfficientNet-Lite0's stages, safetensors under timm's names. Raises InvalidModel."""
    try:
        tensors = load_file(path)
        # One gray channel takes the sum of the three kernels of RGB.
        tensors["conv_stem.weight"] = tensors["conv_stem.weight"].sum(1, keepdim=True)
        names = trunk.state_dict().keys()
        _copy(trunk, {name: tensors[name] for name in names if name in tensors})
        moved = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "blocks" and (stage := int(rest.split(".")[0])) >= N_FROZEN_STAGES:
                moved[f"blocks.{stage - N_FROZEN_STAGES}.{rest.partition('.')[2]}"] = tensor
        _copy(tail, moved)
    except (KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise InvalidModel(f"{path.name} is not an EfficientNet-Lite0 under timm's names: {error}") from error


def _copy(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into the layers that they name; only new layers and BatchNorm's counters may have none."""
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    absent = [n for n in missing if not n.startswith(NEW_LAYERS) and not n.endswith("num_batches_tracked")]
    if absent or unexpected:
        raise KeyError(f"it lacks {absent} and has {unexpected}")


class DetectorLearner:
    """A detector in training: a frozen trunk, and a tail trained with AdamW on the trunk's output."""

    def __init__(
        self, pretrained: Path, n_outputs: int, seed: int, weight_decay: float, clip_norm: float
    ) -> None:
        """Start from an EfficientNet-Lite0, as `load_pretrained` takes it. Raises InvalidModel."""
        torch.manual_seed(seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.trunk, self.tail = Trunk(), Tail(n_outputs)
        load_pretrained(self.trunk, self.tail, pretrained)
        self.tail.to(self.device)
        self.tail.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's types
        self.clip_norm = clip_norm
        self.optimizer = torch.optim.AdamW(self.tail.parameters(), weight_decay=weight_decay)
        self.averages = [p.detach().clone() for p in self.tail.parameters()]
        self.n_steps = 0

    def features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the trunk's output [N, h, w, 40] for float32 [N, H, W] in 0..1."""
        output: NDArray[np.float32] = self._trunk_session.run(None, {INPUT: pixels[:, None]})[0]
        return np.moveaxis(output, 1, -1)

    @cached_property
    def _trunk_session(self) -> Any:
        """The frozen trunk in ONNX Runtime, which takes a quarter of PyTorch's time on a CPU."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trunk.onnx"
            _export(self.trunk, path, ["features"])
            return open_session(path, torch.get_num_threads())

    def step(
        self,
        features: NDArray[np.float32],
        findings: NDArray[np.float32],
        places: NDArray[np.float32],
        learning_rate: float,
    ) -> tuple[float, float]:
        """Make one step on features [B, h, w, 40]; return the losses of the findings and of the map.

        `findings` [B, K] are 0 or 1, the first of them "fractured"; `places` [B, h / 2, w / 2] are the share
        of each place that lies in a box.
        """
        self.tail.train()
        for module in self.tail.blocks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # keeps the statistics of the pretraining
        self.optimizer.param_groups[0]["lr"] = learning_rate
        logits, heat, _ = self.tail(self._to_tensor(features))
        targets = torch.from_numpy(findings).to(self.device)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(0)
        map_loss = F.binary_cross_entropy_with_logits(
            heat, torch.from_numpy(places).to(self.device), pos_weight=torch.tensor(POSITIVE_WEIGHT)
        )
        self.optimizer.zero_grad()
        (losses[0] + OTHER_FINDINGS_WEIGHT * losses[1:].mean() + MAP_WEIGHT * map_loss).backward()
        nn.utils.clip_grad_norm_(self.tail.parameters(), self.clip_norm)
        self.optimizer.step()
        self.n_steps += 1
        decay = min(EMA_DECAY, self.n_steps / (9 + self.n_steps))
        torch._foreach_lerp_(self.averages, list(self.tail.parameters()), 1 - decay)
        return losses[0].item(), map_loss.item()

    def use_averages(self) -> None:
        """End the training with the moving average of the weights."""
        with torch.no_grad():
            for parameter, average in zip(self.tail.parameters(), self.averages, strict=True):
                parameter.copy_(average)

    def get_weights(self) -> dict[str, NDArray[Any]]:
        """Return copies of the tail's weights and statistics."""
        return {name: t.cpu().numpy().copy() for name, t in self.tail.state_dict().items()}

    def set_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `get_weights` returned."""
        self.tail.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})

    def save(self, path: Path) -> None:
        """Write the graph that `models.detector` serves; this ends the training."""
        _export(FractureDetector(self.trunk, self.tail).cpu(), path, OUTPUTS)

    def predict(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Return the logits [N], maps [N, h, w] and pooled features [N, D] for features of N images."""
        self.tail.eval()
        with torch.inference_mode():
            logits, heat, pooled = self.tail(self._to_tensor(features))
        return tuple(t.float().cpu().numpy() for t in (logits[:, 0], heat, pooled))

    def _to_tensor(self, features: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(features).to(self.device).permute(0, 3, 1, 2)  # channels_last, no copy
