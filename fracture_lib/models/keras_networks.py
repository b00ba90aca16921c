"""The networks that Keras 3 trains, and their weights under PyTorch's names.

Nothing here names TensorFlow, so the same code trains on Keras's torch backend where TensorFlow is
missing. The saved models hold no custom objects.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if "KERAS_BACKEND" not in os.environ and not importlib.util.find_spec("tensorflow"):
    os.environ["KERAS_BACKEND"] = "torch"  # read once, when Keras is imported

# PyTorch's build for CUDA brings Triton, which crashes the process if it is imported after TensorFlow.
with suppress(ImportError):
    importlib.import_module("triton")

import keras
from keras import layers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from fracture_lib.errors import InvalidModel
from fracture_lib.io.views import INPUT_SIZE
from fracture_lib.labels import CLASSES
from fracture_lib.models.tensors import write_tensors

__all__ = [
    "KerasTensor",
    "build",
    "keras",
    "layers",
    "load_blocks",
    "load_pretrained",
    "read_int8_graph",
    "resnet50",
    "save_trunk",
    "stage_output",
    "three_block_cnn",
    "trunk_layers",
]

INT8_GRAPH = "int8_graph"  # the name of a tensor uint8 [n] in a file of `save_trunk`
GRAY_INPUT = "one gray channel in 0..1, no mean/std"  # in the metadata of `save_trunk`'s files
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

KerasTensor: TypeAlias = Any  # Keras ships no types

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # of ResNet50: width inside a block, number of blocks
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


# ---- architectures: input [N, 128, 128, 1]; layers named "feature_map", "logits" and "probabilities"


def three_block_cnn(
    channels: Sequence[int],
    strides: Sequence[int],
    pools: Sequence[int],
    dropouts: Sequence[float],
    hidden: int,
    head_dropout: float,
    n_outputs: int = len(CLASSES),
) -> keras.Model:
    """Return the layers of `models.pytorch.ThreeBlockCNN`; output probabilities [N, n_outputs].

    Convolutions and BatchNorms are named after their positions in its blocks.
    """
    x = pixels = keras.Input((INPUT_SIZE, INPUT_SIZE, 1))
    position = 0
    for width, stride, pool, dropout in zip(channels, strides, pools, dropouts, strict=True):
        if stride > 1:
            x = _fold_pixels(x, stride)
            position += 1
        for _ in range(2):
            x = _conv_and_norm(x, width, 3, names=(f"blocks_{position}", f"blocks_{position + 1}"))
            x = layers.LeakyReLU(0.1)(x)
            position += 3
        x = layers.SpatialDropout2D(dropout)(layers.MaxPooling2D(pool)(x))
        position += 2
    x = feature_map = layers.Identity(name="feature_map")(x)
    x = layers.Concatenate()(
        [layers.GlobalAveragePooling2D()(feature_map), layers.GlobalMaxPooling2D()(feature_map)]
    )
    x = layers.LeakyReLU(0.1)(layers.Dense(hidden)(x))
    logits = layers.Dense(n_outputs, name="logits")(layers.Dropout(head_dropout)(x))
    return keras.Model(pixels, layers.Softmax(name="probabilities")(logits))


def _fold_pixels(x: KerasTensor, stride: int) -> KerasTensor:
    """Fold stride x stride pixels of one channel into channels, as torch.nn.PixelUnshuffle does."""
    _, height, width, channels = x.shape
    assert channels == 1  # the order of the folded channels would differ
    height, width = height // stride, width // stride
    x = layers.Reshape((height, stride, width, stride))(x)
    return layers.Reshape((height, width, stride**2))(layers.Permute((1, 3, 2, 4))(x))


def resnet50(
    n_stages: int,
    hidden: int,
    head_dropout: float,
    tuned_stages: int,
    n_heads: int = 1,
    n_outputs: int = len(CLASSES),
) -> keras.Model:
    """Return ResNet50 v1.5 (stride on the 3x3 convolution) with a new head; output probabilities.

    It reads one gray channel; on gray input, the sum of the three input kernels is the same function. It has
    the first `n_stages` of the four stages. Only the last `tuned_stages` of these and the head are trained,
    and BatchNorm keeps the statistics of the pretraining. The logits are the mean over `n_heads` heads of
    `hidden` units, each trained by a loss of its own: an ensemble at the cost of a wider layer. Source: He
    et al., https://arxiv.org/abs/1512.03385.
    """
    x = pixels = keras.Input((INPUT_SIZE, INPUT_SIZE, 1))
    x = layers.ReLU(name="relu")(_conv_and_norm(x, 64, 7, 2, names=("conv1", "bn1")))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))  # after a ReLU, zero is the minimum
    for stage, (width, depth) in enumerate(STAGES[:n_stages], 1):
        for i in range(depth):
            prefix = f"layer{stage}_{i}_"  # torchvision's names, with "_" for "."
            stride = 2 if i == 0 and stage > 1 else 1
            y = _conv_and_norm(x, width, 1, 1, names=(prefix + "conv1", prefix + "bn1"))
            y = layers.ReLU(name=prefix + "relu1")(y)
            y = _conv_and_norm(y, width, 3, stride, names=(prefix + "conv2", prefix + "bn2"))
            y = layers.ReLU(name=prefix + "relu2")(y)
            y = _conv_and_norm(y, 4 * width, 1, 1, names=(prefix + "conv3", prefix + "bn3"))
            if i == 0:
                names = (prefix + "downsample_0", prefix + "downsample_1")
                x = _conv_and_norm(x, 4 * width, 1, stride, names=names)
            x = layers.ReLU(name=prefix + "relu3")(layers.Add()([y, x]))
    backbone = keras.Model(pixels, x)
    frozen = keras.Model(pixels, stage_output(backbone, n_stages - tuned_stages)).layers
    for layer in backbone.layers:
        layer.trainable = layer not in frozen and not isinstance(layer, layers.BatchNormalization)
    x = feature_map = layers.Identity(name="feature_map")(x)
    x = layers.Concatenate()(
        [layers.GlobalAveragePooling2D()(feature_map), layers.GlobalMaxPooling2D()(feature_map)]
    )
    x = layers.BatchNormalization(momentum=0.9, name="pooled_norm")(x)  # a few channels have huge values
    x = layers.Dense(n_heads * hidden, activation="relu")(x)
    x = layers.Reshape((n_heads, hidden))(layers.Dropout(head_dropout)(x))
    x = layers.EinsumDense("bhi,hio->bho", (n_heads, n_outputs), bias_axes="ho", name="heads")(x)
    logits = layers.GlobalAveragePooling1D(name="logits")(x)
    return keras.Model(pixels, layers.Softmax(name="probabilities")(logits))


def _conv_and_norm(
    x: KerasTensor,
    width: int,
    kernel: int,
    stride: int = 1,
    *,
    names: tuple[str, str],
) -> KerasTensor:
    """Apply a convolution, padded alike on both sides as in PyTorch, and its BatchNorm."""
    if stride > 1 and kernel > 1:  # Keras's "same" would put all of the padding on one side
        x = layers.ZeroPadding2D(kernel // 2)(x)
    padding = "valid" if stride > 1 else "same"
    x = layers.Conv2D(width, kernel, stride, padding, use_bias=False, name=names[0])(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=names[1])(x)


def stage_output(model: keras.Model, n_stages: int) -> KerasTensor:
    """Return the output of the first stages of a ResNet50."""
    return model.get_layer(f"layer{n_stages}_{STAGES[n_stages - 1][1] - 1}_relu3").output


_FAMILIES: dict[str, Callable[..., keras.Model]] = {"cnn": three_block_cnn, "resnet50": resnet50}


def build(architecture: Mapping[str, Any], n_outputs: int) -> keras.Model:
    options = dict(architecture)
    return _FAMILIES[options.pop("family")](**options, n_outputs=n_outputs)


# ---- weights under PyTorch's names


def load_pretrained(model: keras.Model, path: Path) -> None:
    """Copy a ResNet50's weights, safetensors under torchvision's names, into the layers of `resnet50`.

    ImageNet weights expect RGB normalized by mean and standard deviation. That is folded into the first
    convolution and its BatchNorm, which is exact but for the padded border. A file whose metadata says
    "no mean/std" is taken as it is. Raises InvalidModel.
    """
    try:
        with safe_open(path, "np") as file:
            is_normalized = "no mean/std" not in (file.metadata() or {}).get("input", "")
            names = set(file.keys()) - {INT8_GRAPH}
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in names}
        if damaged := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
            raise ValueError(f"{min(damaged)} is not finite")
        kernel = tensors["conv1.weight"]  # [64, 3, 7, 7], or [64, 1, 7, 7] after `save_trunk`
        if is_normalized:
            mean, std = (np.array(v, np.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            tensors["bn1.running_mean"] += (kernel * mean / std).sum((1, 2, 3))
            kernel = kernel / std
        tensors["conv1.weight"] = kernel.sum(1, keepdims=True)
        _set_trunk(model, tensors)
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise InvalidModel(
            f"{path.name} is not a ResNet50 under torchvision's names ({error}). Give another file."
        ) from error


def load_blocks(model: keras.Model, path: Path) -> None:
    """Copy the blocks of a CNN, which `save_trunk` of either framework wrote. Raises InvalidModel."""
    try:
        tensors = load_file(path)
        if others := {name for name in tensors if "num_batches" not in name} - _get_trunk(model).keys():
            raise KeyError(min(others))
        _set_trunk(model, tensors)
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise InvalidModel(
            f"{path.name} does not hold the blocks of this network. Give a file of `fracture pretrain`."
        ) from error


def _set_trunk(model: keras.Model, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Set convolutions, BatchNorms and bounds of ReLUs. Raises KeyError, ValueError."""
    for layer in trunk_layers(model):
        name = _pytorch_name(layer)
        if isinstance(layer, layers.Conv2D):
            layer.set_weights([tensors[f"{name}.weight"].transpose(2, 3, 1, 0)])
        elif isinstance(layer, layers.BatchNormalization):
            layer.set_weights([tensors[f"{name}.{part}"] for part in _NORM_PARTS])
        elif isinstance(layer, layers.ReLU) and f"{name}.bound" in tensors:
            layer.max_value = float(tensors[f"{name}.bound"])


def _get_trunk(model: keras.Model) -> dict[str, NDArray[np.float32]]:
    """Return what `_set_trunk` sets."""
    tensors = {}
    for layer in trunk_layers(model):
        name = _pytorch_name(layer)
        if isinstance(layer, layers.Conv2D):
            tensors[f"{name}.weight"] = layer.get_weights()[0].transpose(3, 2, 0, 1)
        elif isinstance(layer, layers.BatchNormalization):
            parts = zip(_NORM_PARTS, layer.get_weights(), strict=True)
            tensors |= {f"{name}.{part}": array for part, array in parts}
        elif isinstance(layer, layers.ReLU) and layer.max_value is not None:
            tensors[f"{name}.bound"] = np.float32(layer.max_value)
    return tensors


def trunk_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the layers before the head."""
    return model.layers[: model.layers.index(model.get_layer("feature_map"))]


def _pytorch_name(layer: keras.Layer) -> str:
    """Return torchvision's name of a layer of ResNet50, or the position of one in the blocks of the CNN."""
    name = layer.name.removeprefix("blocks_").replace("downsample_", "downsample.")
    return ".".join(name.split("_", 2)) if name.startswith("layer") else name


def save_trunk(model: keras.Model, path: Path, source: str, int8_graph: bytes | None = None) -> None:
    """Write the layers before the head to a file that `load_pretrained` or `load_blocks` reads.

    `int8_graph` is an ONNX file with the same layers in 8-bit integers, which `read_int8_graph` returns.
    """
    graph = {} if int8_graph is None else {INT8_GRAPH: np.frombuffer(int8_graph, np.uint8)}
    write_tensors(path, _get_trunk(model) | graph, {"source": source, "input": GRAY_INPUT})


def read_int8_graph(path: Path) -> bytes | None:
    """Return the ONNX graph in a file of `save_trunk`, None if it has none."""
    with safe_open(path, "np") as file:
        return file.get_tensor(INT8_GRAPH).tobytes() if INT8_GRAPH in file.keys() else None  # noqa: SIM118
