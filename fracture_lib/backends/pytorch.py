"""PyTorch: the custom CNN, its training step, and its files (model.safetensors, model.onnx)."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from fracture_lib.backends.onnx import INPUT, OUTPUTS, finish_export
from fracture_lib.config import read_config
from fracture_lib.errors import InvalidModel
from fracture_lib.labels import CLASSES
from fracture_lib.maps import Head, write_head
from fracture_lib.preprocess import INPUT_SIZE

__all__ = ["Learner", "ThreeBlockCNN", "build", "load"]

WEIGHTS = "model.safetensors"


class ThreeBlockCNN(nn.Module):
    """Three blocks of (Conv, BatchNorm, LeakyReLU) x 2, pooling and Dropout; a two-layer head.

    The head reads the global average and the global maximum of the last feature map, so evidence
    that fills the film and evidence in one spot both count.

    Input [N, 1, 128, 128] in 0..1; output (logits [N, 10], feature map [N, C, h, w]).
    `tensorflow-cnn` has the same layers, padding and constants in Keras.
    """

    def __init__(self, channels, strides, pools, dropouts, hidden, head_dropout):
        super().__init__()
        blocks, previous = [], 1
        for width, stride, pool, dropout in zip(channels, strides, pools, dropouts, strict=True):
            for step in (stride, 1):
                kernel = 5 if step > 1 else 3  # a wider look where positions are skipped
                blocks += [
                    nn.Conv2d(previous, width, kernel, step, kernel // 2, bias=False),
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
            nn.Linear(hidden, len(CLASSES)),
        )

    def forward(self, pixel_values):
        feature_map = self.blocks(pixel_values)
        pooled = torch.cat([feature_map.mean((2, 3)), feature_map.amax((2, 3))], dim=1)
        return self.head(pooled), feature_map


_FAMILIES = {"cnn": ThreeBlockCNN}


def build(architecture):
    options = dict(architecture)
    return _FAMILIES[options.pop("family")](**options)


def _forward(model, pixels):
    """float32 array [N, 1, 128, 128] -> logits [N, 10] and feature map [N, C, h, w], dropout off."""
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        return [output.float().cpu().numpy() for output in model(torch.from_numpy(pixels).to(device))]


def load(folder):
    """Return the forward function of a model folder, as `backends.onnx.load`. Raises InvalidModel."""
    model = build(read_config(folder)["architecture"])
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InvalidModel(f"{folder.name}/{WEIGHTS} cannot be loaded: {error}") from error
    return lambda pixels: _forward(model, pixels)


class Muon(torch.optim.Optimizer):
    """Steps along the nearest orthogonal matrix to the momentum of each convolution kernel.

    torch.optim.Muon takes matrices only; a kernel [out, in, h, w] is the matrix [out, in * h * w].
    Source: Jordan et al., https://kellerjordan.github.io/posts/muon.
    """

    def __init__(self, kernels, weight_decay, momentum=0.95):
        super().__init__(kernels, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for kernel in group["params"]:
            state = self.state[kernel]
            if not state:
                state["momentum"] = torch.zeros_like(kernel)
            state["momentum"].mul_(group["momentum"]).add_(kernel.grad)
            ahead = kernel.grad + group["momentum"] * state["momentum"]  # Nesterov
            kernel.mul_(1 - group["lr"] * group["weight_decay"])
            kernel.sub_(group["lr"] * _orthogonalized(ahead.reshape(len(kernel), -1)).reshape(kernel.shape))


def _orthogonalized(matrix):
    """Five Newton-Schulz iterations, after which all singular values are near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


class Learner:
    """One network in training; see `fracture_lib.training` for the protocol."""

    def __init__(self, recipe, seed, pretrained=None):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.recipe = recipe
        # With the bfloat16 of `step`, channels_last halves an epoch on a CPU that has bfloat16.
        self.model = build(recipe.architecture).to(self.device, memory_format=torch.channels_last)
        parameters = list(self.model.parameters())
        kernels = [p for p in parameters if p.ndim == 4] if recipe.muon else []
        rest = [p for p in parameters if not any(p is k for k in kernels)]
        decay = {"weight_decay": recipe.weight_decay}
        self.optimizers = {torch.optim.AdamW(rest, **decay): 1.0}  # its rate, a multiple of `step`'s
        if kernels:
            self.optimizers[Muon(kernels, **decay)] = recipe.muon

    def features(self, pixels):
        return pixels  # every layer is trained: no frozen trunk

    def step(self, features, targets, learning_rate, seed):
        torch.manual_seed(seed)  # dropout, so that a resumed run repeats an uninterrupted one
        self.model.train()
        for optimizer, multiple in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = learning_rate * multiple
        inputs = torch.from_numpy(features).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits, _ = self.model(inputs)
        loss = F.cross_entropy(logits.float(), torch.from_numpy(targets).to(self.device))
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def logits(self, features):
        return _forward(self.model, features)[0]

    def get_weights(self):
        return [tensor.cpu().numpy().copy() for tensor in self.model.state_dict().values()]

    def set_weights(self, arrays):
        names = self.model.state_dict()
        self.model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        )

    def get_optimizer(self):
        return [
            moments[key].cpu().numpy().copy()
            for optimizer in self.optimizers
            for moments in optimizer.state_dict()["state"].values()
            for key in _MOMENTS[type(optimizer)]
        ]

    def set_optimizer(self, arrays):
        arrays = iter(arrays)
        for optimizer in self.optimizers:
            state = optimizer.state_dict()
            state["state"] = {
                i: {key: torch.from_numpy(next(arrays)) for key in _MOMENTS[type(optimizer)]}
                for i in state["param_groups"][0]["params"]
            }
            optimizer.load_state_dict(state)

    def save(self, folder):
        """Write the native weights and the ONNX graph of the current weights."""
        model = self.model.cpu().to(memory_format=torch.contiguous_format).eval()
        save_file(model.state_dict(), folder / WEIGHTS)
        hidden, activation, _, logits = model.head
        layers = [array for layer in (hidden, logits) for array in (layer.weight.T, layer.bias)]
        slope = torch.tensor([activation.negative_slope])
        write_head(folder, Head(*(array.detach().numpy() for array in (*layers, slope))))
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


_MOMENTS = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}
