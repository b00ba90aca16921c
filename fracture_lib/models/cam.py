"""Class activation maps: where in an image the evidence for each class lies.

A head of pooling and two dense layers is piecewise linear, so a class's logit is a sum over the
positions of the last feature map, plus a constant. A map shows the terms of that sum: one forward pass,
no gradient. Source: HiResCAM (Draelos and Carin, https://arxiv.org/abs/2011.08891), which equals
CAM (Zhou et al., 2016) for a single dense layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fracture_lib.errors import InvalidModel
from fracture_lib.io.views import INPUT_SIZE
from fracture_lib.labels import CLASSES
from fracture_lib.models.forward import Forward
from fracture_lib.models.functional import EPSILON, Floats
from fracture_lib.models.tensors import write_tensors

__all__ = [
    "ClassifierHead",
    "check_head",
    "class_activation_maps",
    "combine_cams",
    "logit_cams",
    "read_head",
    "write_head",
]

HEAD = "head.safetensors"
CAM_SIZE = 8  # cells per side of a map over one view, whatever the model's feature map has


@dataclass(frozen=True)
class ClassifierHead:
    """The layers from pooled features to logits: dense, (leaky) ReLU, dense.

    The input is the global average of C channels, or that followed by their global maximum;
    `hidden_kernel` has C or 2 C rows accordingly.
    """

    hidden_kernel: Floats  # [C or 2 C, H]
    hidden_bias: Floats  # [H]
    logits_kernel: Floats  # [H, 10]
    logits_bias: Floats  # [10]
    slope: Floats  # [1], of the activation below zero; 0 for ReLU


def write_head(folder: Path, head: ClassifierHead) -> None:
    """Write head.safetensors, each array in its own precision."""
    write_tensors(folder / HEAD, vars(head))


def read_head(folder: Path) -> ClassifierHead:
    """Return the head of a model folder as float32. Raises InvalidModel."""
    try:
        arrays = load_file(folder / HEAD)
        return ClassifierHead(**{name: array.astype(np.float32) for name, array in arrays.items()})
    except (OSError, SafetensorError, TypeError) as error:
        raise InvalidModel(f"{folder.name} has no readable {HEAD}; export the model again.") from error


def check_head(forward: Forward, head: ClassifierHead, folder: Path) -> None:
    """Raise InvalidModel unless the network runs and its head reproduces its logits.

    Finds incomplete and mixed-up model folders when they are loaded, not at the first prediction.
    """
    ramp = np.linspace(0, 1, INPUT_SIZE**2, dtype=np.float32).reshape(1, 1, INPUT_SIZE, INPUT_SIZE)
    try:
        logits, features = forward(ramp)
        cams, constants = logit_cams(features, head)
        matches = np.allclose(cams.sum((2, 3)) + constants, logits, atol=1e-2)  # False with any NaN
    except Exception as error:  # each runtime raises its own types, NumPy where shapes differ
        raise InvalidModel(
            f"{folder.name} failed its self-check; its files are incomplete. Download it again."
        ) from error
    if not matches or logits.shape != (1, len(CLASSES)):
        raise InvalidModel(
            f"The graph and {HEAD} of {folder.name} belong to different models. Download both again."
        )


def logit_cams(features: Floats, head: ClassifierHead) -> tuple[Floats, Floats]:
    """Decompose logits: feature maps [N, C, h, w] -> (maps [N, 10, h, w], constants [N, 10]).

    A class's map summed over its positions, plus its constant, is its logit.
    """
    n, channels, height, width = features.shape
    positions = features.reshape(n, channels, height * width)
    pooled = positions.mean(axis=2)
    has_max_pooling = len(head.hidden_kernel) > channels
    if has_max_pooling:
        argmax = positions.argmax(axis=2)[..., None]  # [N, C, 1]
        pooled = np.concatenate([pooled, np.take_along_axis(positions, argmax, 2)[..., 0]], axis=1)
    hidden = pooled @ head.hidden_kernel + head.hidden_bias
    gate = np.where(hidden > 0, 1, head.slope)[..., None]  # [N, H, 1]
    gated_kernel = gate * head.logits_kernel  # [N, H, 10]
    weights = head.hidden_kernel @ gated_kernel  # [N, C or 2 C, 10]
    weights = weights.swapaxes(1, 2)  # matmul below: einsum takes ten times as long here
    cams = weights[:, :, :channels] @ positions / positions.shape[2]
    if has_max_pooling:  # a maximum contributes at its own position only
        peaks = np.zeros_like(positions)
        np.put_along_axis(peaks, argmax, np.take_along_axis(positions, argmax, 2), 2)
        cams += weights[:, :, channels:] @ peaks
    constants = head.hidden_bias @ gated_kernel + head.logits_bias
    return cams.reshape(n, -1, height, width), constants


def class_activation_maps(
    features: Floats, head: ClassifierHead, probabilities: Floats, temperature: float
) -> NDArray[np.float32]:
    """Return float32 [N, V, 10, 8, 8]: what each position of each view adds to a class's log-probability.

    `features` [N, V, C, h, w] are those of V views of each image, whose logits are averaged.
    `probabilities` [N, 10] are the softmax of this mean at `temperature`.
    """
    n, n_views, *shape = features.shape
    cams = logit_cams(features.reshape(n * n_views, *shape), head)[0]
    rows, columns = (_area_shares(side) for side in cams.shape[2:])
    cams = (rows @ cams @ columns.T / n_views).reshape(n, n_views, -1, CAM_SIZE, CAM_SIZE)
    return _log_softmax_cams(cams, probabilities, temperature)


def _area_shares(n_cells: int) -> NDArray[np.float32]:
    """Return which share [8, n] of each of n cells lies in each of 8 cells of the same total length."""
    edges, cells = np.arange(CAM_SIZE + 1) / CAM_SIZE, np.arange(n_cells) / n_cells
    covered = np.clip(edges[:, None] - cells, 0, 1 / n_cells) * n_cells  # [9, n], up to each edge
    return np.diff(covered, axis=0).astype(np.float32)


def combine_cams(
    cams: Sequence[Floats],
    members: Sequence[Floats],
    weights: Sequence[float],
    probabilities: Floats,
    temperature: float,
) -> NDArray[np.float32]:
    """Return the maps [N, ..., 10, h, w] of an ensemble from those of its members.

    `cams` and `members` hold each member's maps [N, ..., 10, h, w] and probabilities [N, 10];
    `probabilities` [N, 10] are the ensemble's. A member counts for a class by its share of the mean
    probability, which is the gradient of the logarithm of the mean.
    """
    shares = np.stack([weight * member for weight, member in zip(weights, members, strict=True)])
    shares = (shares / np.maximum(shares.sum(axis=0), EPSILON)).astype(np.float32)
    mean = np.einsum("mnk,mn...khw->n...khw", shares, np.stack(cams))
    return _log_softmax_cams(mean, probabilities, temperature)


def _log_softmax_cams(cams: Floats, probabilities: Floats, temperature: float) -> NDArray[np.float32]:
    """Turn maps of logits into maps of log softmax(logits / temperature).

    A position that raises all logits alike supports no class; the gradient of the log-softmax removes
    it by subtracting the probability-weighted mean over the classes.
    """
    cams = cams / np.float32(temperature)
    weighted = np.einsum("nk,n...khw->n...hw", probabilities.astype(np.float32), cams)
    return cams - weighted[..., None, :, :]
