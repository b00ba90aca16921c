"""Prepare a frozen ResNet50 for integers of eight bits, in which it takes a third of the time.

One scale serves a whole activation tensor, so a few channels with huge values would round all others away;
and filters that cancel smooth areas out no longer do so once their weights are rounded. Three steps help:

1. Equalize: divide a channel where it is written and multiply it where it is read, so that all have similar
   ranges. The function stays the same. Source: Nagel et al., https://arxiv.org/abs/1906.04721, balanced
   between activations and weights as by Xiao et al., https://arxiv.org/abs/2211.10438.
2. Bound: clip each activation at a percentile.
3. Round the weights one after another, each making up for the errors of those before on real inputs.
   Source: Frantar et al. (GPTQ), https://arxiv.org/abs/2210.17323.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from tqdm import tqdm, trange

from fracture_lib.errors import InvalidModel
from fracture_lib.models.functional import Floats
from fracture_lib.models.keras_networks import keras, layers

__all__ = ["prepare_trunk", "round_kernel"]

# Seven bits and a sign would overflow where a processor without VNNI adds two products in 16 bits.
MAX_WEIGHT = 64
RANGE_PERCENTILE = 99.9  # of a channel's activations: its range
BOUND_PERCENTILE = 99.95  # of all activations of a layer: their bound
MIN_RANGE = 1e-3  # of a channel, as a share of the largest
MIN_BOUND = 1e-6  # of a layer whose activations are all zero
DAMPING = 0.01  # added to the inputs' correlations, as a share of their mean square
CHUNK = 16  # images at once


@dataclass
class _Channels:
    """Channels that share one scale: the names of what writes, bounds and reads them."""

    norms: list[str]
    activations: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)  # convolutions


def prepare_trunk(trunk: keras.Model, pixels: Floats) -> None:
    """Equalize, bound and round the first stages of a `keras_networks.resnet50`, in place.

    `pixels` float32 [N, 128, 128, 1] in 0..1 are what the network will see. The kernels become integers of
    -64 to 64, whose scales the BatchNorms behind them take over. Raises InvalidModel if activations are not
    finite.
    """
    names = [layer.name for layer in trunk.layers if isinstance(layer, layers.ReLU)]
    probe = keras.Model(trunk.input, [trunk.get_layer(name).output for name in names])
    chunks = [probe.predict_on_batch(pixels[i : i + CHUNK]) for i in range(0, len(pixels), CHUNK)]
    activations = {
        name: np.concatenate(parts) for name, parts in zip(names, zip(*chunks, strict=True), strict=True)
    }
    if damaged := [name for name, array in activations.items() if not np.isfinite(array).all()]:
        raise InvalidModel(f"the output of its layer {damaged[0]} is not finite")
    for channels in _list_channels(trunk):
        scale = _equalize(trunk, channels, activations)
        for name in channels.activations:
            bound = np.percentile(activations[name] / scale, BOUND_PERCENTILE)
            trunk.get_layer(name).max_value = float(bound) or MIN_BOUND
    _round_kernels(trunk, pixels)


def _list_channels(trunk: keras.Model) -> list[_Channels]:
    """Return the channels inside each block, and those that run through the blocks of each stage."""
    found = []
    stream = _Channels(["bn1"], ["relu"])
    for block in [
        layer.name.removesuffix("conv1") for layer in trunk.layers if layer.name.endswith("_conv1")
    ]:
        stream.readers.append(block + "conv1")
        if block.endswith("_0_"):  # the first of a stage
            stream.readers.append(block + "downsample_0")
            found.append(stream)
            stream = _Channels([block + "downsample_1"])
        found.append(_Channels([block + "bn1"], [block + "relu1"], [block + "conv2"]))
        found.append(_Channels([block + "bn2"], [block + "relu2"], [block + "conv3"]))
        stream.norms.append(block + "bn3")
        stream.activations.append(block + "relu3")
    return [*found, stream]


def _equalize(trunk: keras.Model, channels: _Channels, activations: dict[str, Floats]) -> Floats:
    """Scale channels where they are written and read; return what they were divided by, [C]."""
    ranges = np.max(
        [np.percentile(activations[name], RANGE_PERCENTILE, axis=(0, 1, 2)) for name in channels.activations],
        axis=0,
    )
    kernels = {name: trunk.get_layer(name).get_weights()[0] for name in channels.readers}
    weights = np.max([_largest_shares(kernel) for kernel in kernels.values()], axis=0)
    scale = np.sqrt(_at_least_a_share(ranges) / _at_least_a_share(weights)).astype(np.float32)
    for name in channels.norms:
        gamma, beta, mean, variance = trunk.get_layer(name).get_weights()
        trunk.get_layer(name).set_weights([gamma / scale, beta / scale, mean, variance])
    for name, kernel in kernels.items():
        trunk.get_layer(name).set_weights([kernel * scale[:, None]])
    return scale


def _at_least_a_share(values: Floats) -> Floats:
    """Return values [C] of which none is below MIN_RANGE of the largest; ones if all are zero."""
    return np.maximum(values, MIN_RANGE * values.max()) if values.any() else np.ones_like(values)


def _largest_shares(kernel: Floats) -> Floats:
    """Return how large each input channel's weights [h, w, in, out] get beside the largest of an output."""
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    return (np.abs(kernel) / np.where(largest > 0, largest, 1)).max(axis=(0, 1, 3))


def _round_kernels(trunk: keras.Model, pixels: Floats) -> None:
    """Round the kernels of all convolutions to what fits their inputs."""
    convolutions = [layer for layer in trunk.layers if isinstance(layer, layers.Conv2D)]
    probe = keras.Model(trunk.input, [layer.input for layer in convolutions])
    correlations: list[Any] = [0.0] * len(convolutions)
    for start in trange(0, len(pixels), CHUNK, desc="8-bit activations"):
        for i, inputs in enumerate(probe.predict_on_batch(pixels[start : start + CHUNK])):
            patches = _patches(inputs, convolutions[i])
            correlations[i] = correlations[i] + patches.T @ patches
    for layer, correlation in zip(tqdm(convolutions, "8-bit weights"), correlations, strict=True):
        kernel = layer.get_weights()[0]
        integers, step = round_kernel(kernel.reshape(-1, kernel.shape[-1]), correlation)
        layer.set_weights([integers.reshape(kernel.shape)])
        # Layers have torchvision's names: conv1 and bn1, downsample_0 and downsample_1.
        norm = trunk.get_layer(layer.name.replace("conv", "bn").replace("sample_0", "sample_1"))
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights([gamma * step, beta, mean / step, variance])


def _patches(inputs: Floats, layer: keras.Layer) -> Floats:
    """Return what a convolution multiplies by its kernel: [M, h * w * in] of inputs [N, H, W, in]."""
    height, width = layer.kernel_size
    margin = height // 2 if layer.padding == "same" else 0
    padded = np.pad(inputs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = sliding_window_view(padded, (height, width), axis=(1, 2))
    windows = windows[:, :: layer.strides[0], :: layer.strides[1]]  # [N, H', W', in, h, w]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, height * width * inputs.shape[-1])


def round_kernel(kernel: Floats, correlation: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a kernel [K, out] as integers of -64 to 64, float32 [K, out], and their scales, float32 [out].

    `correlation` [K, K] is X.T @ X of the inputs X [M, K], on which the rounded kernel should do what the
    kernel does. The largest weight of each output becomes 64 or -64, so that the scale can be read off.
    """
    largest = np.abs(kernel).argmax(axis=0)
    peaks = np.take_along_axis(kernel, largest[None], axis=0)[0]
    step = np.where(peaks == 0, 1, np.abs(peaks) / MAX_WEIGHT)
    rest = kernel / step.astype(np.float64)
    damped = correlation + np.eye(len(rest)) * (DAMPING * np.trace(correlation) / len(rest) + 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped.astype(np.float64))).T
    for i, row in enumerate(factor):
        integers = np.clip(np.round(rest[i]), -MAX_WEIGHT, MAX_WEIGHT)
        integers = np.where(largest == i, np.sign(peaks) * MAX_WEIGHT, integers)
        rest[i + 1 :] -= np.outer(row[i + 1 :], (rest[i] - integers) / row[i])
        rest[i] = integers
    return rest.astype(np.float32), step.astype(np.float32)
