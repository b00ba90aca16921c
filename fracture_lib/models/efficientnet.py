"""PyTorch: the fracture detector, an EfficientNet-Lite0 with a map of fractures, and its training step."""

from collections.abc import Mapping
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
from fracture_lib.models.onnx import INPUT
from fracture_lib.models.onnx_export import clear_traces

__all__ = ["DetectorLearner", "FractureDetector", "load_pretrained"]

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
FINE_STAGE = 4  # at a sixteenth of the resolution, as the map
NEW_LAYERS = ("fine", "coarse", "mix", "norm", "heat", "head")  # which no pretrained file has
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


def _stages() -> nn.ModuleList:
    stages = nn.ModuleList()
    previous = 32
    for expansion, width, n_blocks, stage_stride, kernel in STAGES:
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


class FractureDetector(nn.Module):
    """Gray [N, 1, H, W] in 0..1 -> logits [N, n_outputs], map [N, H / 16, W / 16], embedding [N, D].

    The map holds the logit of a fracture at each place. The logits of the image are linear functions of the
    map's maximum and soft maximum and of pooled features.
    """

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(1, 32, 3, 2, bias=False), _norm(32)
        self.blocks = _stages()
        fine, coarse = STAGES[FINE_STAGE][1], STAGES[-1][1]
        self.fine, self.coarse = nn.Conv2d(fine, WIDTH, 1), nn.Conv2d(coarse, WIDTH, 1)
        self.mix, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), _norm(WIDTH)
        self.heat = nn.Conv2d(WIDTH, 1, 1)
        nn.init.constant_(self.heat.get_parameter("bias"), -3.0)  # few places show a fracture
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * WIDTH + coarse + 2, n_outputs)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu6(self.bn1(_same((255 * pixels - 127) / 128, self.conv_stem)))
        for i, stage in enumerate(self.blocks):
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


def load_pretrained(network: FractureDetector, path: Path) -> None:
    """Copy an EfficientNet-Lite0's stages, safetensors under timm's names. Raises InvalidModel."""
    try:
        tensors = load_file(path)
        # One gray channel takes the sum of the three kernels of RGB.
        tensors["conv_stem.weight"] = tensors["conv_stem.weight"].sum(1, keepdim=True)
        names = network.state_dict().keys()
        known = {name: tensor for name, tensor in tensors.items() if name in names}
        missing, _ = network.load_state_dict(known, strict=False)
        # BatchNorm's counters are not used.
        needed = [name for name in missing if not name.endswith("num_batches_tracked")]
        if absent := [name for name in needed if not name.startswith(NEW_LAYERS)]:
            raise KeyError(f"it lacks {absent}")
    except (KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise InvalidModel(
            f"{path.name} is not an EfficientNet-Lite0 under timm's names. Give another file."
        ) from error


class DetectorLearner:
    """A detector in training with AdamW. On a GPU, steps compute in bfloat16."""

    def __init__(
        self, pretrained: Path, n_outputs: int, seed: int, weight_decay: float, clip_norm: float
    ) -> None:
        """Start from an EfficientNet-Lite0, as `load_pretrained` takes it. Raises InvalidModel."""
        torch.manual_seed(seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = FractureDetector(n_outputs)
        load_pretrained(self.network, pretrained)
        self.network.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's types
        self.clip_norm = clip_norm
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=weight_decay)
        self.averages = [p.detach().clone() for p in self.network.parameters()]
        self.n_steps = 0

    def step(
        self,
        pixels: NDArray[np.float32],
        findings: NDArray[np.float32],
        places: NDArray[np.float32],
        learning_rate: float,
    ) -> tuple[float, float]:
        """Make one step on views [B, H, W] in 0..1; return the losses of the findings and of the map.

        `findings` [B, K] are 0 or 1, the first of them "fractured"; `places` [B, H / 16, W / 16] are the
        share of each place that lies in a box.
        """
        self.network.train()
        for module in (self.network.bn1, *self.network.blocks.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # keeps the statistics of the pretraining
        self.optimizer.param_groups[0]["lr"] = learning_rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits, heat, _ = self.network(self._to_tensor(pixels))
        targets = torch.from_numpy(findings).to(self.device)
        losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(0)
        map_loss = F.binary_cross_entropy_with_logits(
            heat.float(),
            torch.from_numpy(places).to(self.device),
            pos_weight=torch.tensor(POSITIVE_WEIGHT, device=self.device),
        )
        self.optimizer.zero_grad()
        (losses[0] + OTHER_FINDINGS_WEIGHT * losses[1:].mean() + MAP_WEIGHT * map_loss).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.optimizer.step()
        self.n_steps += 1
        decay = min(EMA_DECAY, self.n_steps / (9 + self.n_steps))
        torch._foreach_lerp_(self.averages, list(self.network.parameters()), 1 - decay)
        return losses[0].item(), map_loss.item()

    def use_averages(self) -> None:
        """End the training with the moving average of the weights."""
        with torch.no_grad():
            for parameter, average in zip(self.network.parameters(), self.averages, strict=True):
                parameter.copy_(average)

    def get_weights(self) -> dict[str, NDArray[Any]]:
        """Return copies of the weights and statistics."""
        return {name: t.cpu().numpy().copy() for name, t in self.network.state_dict().items()}

    def set_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `get_weights` returned."""
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})

    def save(self, path: Path) -> None:
        """Write the graph that `models.detector` serves, whose one logit is "fractured". Ends training."""
        import onnx

        network = self.network.cpu().eval()
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
        network.head.weight = nn.Parameter(network.head.weight[:1])
        network.head.bias = nn.Parameter(network.head.bias[:1])
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, DETECTOR_SIZE, DETECTOR_SIZE),),
            path,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
        graph = onnx.load(path)
        clear_traces(graph)
        onnx.save(graph, path)

    def predict(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Return logits [N], maps [N, H / 16, W / 16] and embeddings [N, D] for views [N, H, W]."""
        self.network.eval()
        with torch.inference_mode():
            logits, heat, pooled = self.network(self._to_tensor(pixels))
        return tuple(t.float().cpu().numpy() for t in (logits[:, 0], heat, pooled))

    def _to_tensor(self, pixels: NDArray[np.float32]) -> Tensor:
        tensor = torch.from_numpy(pixels[:, None])
        return tensor.to(self.device, memory_format=torch.channels_last)
