"""Class activation maps: where in a film the evidence for each class lies.

A head of pooling and two dense layers is piecewise linear, so a class's logit is a sum over the
places of the last feature map, plus a constant; a map shows the terms of that sum. It comes from
what the one forward pass has computed, with no gradient and no second pass. Source: HiResCAM
(Draelos and Carin, https://arxiv.org/abs/2011.08891), of which CAM (Zhou et al., 2016) is the case
of one dense layer.
"""

from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fracture_lib.errors import InvalidModel
from fracture_lib.labels import CLASSES
from fracture_lib.preprocess import INPUT_SIZE

__all__ = ["Head", "check_head", "evidence", "logit_maps", "mix_evidence", "read_head", "write_head"]

HEAD = "head.safetensors"


@dataclass(frozen=True)
class Head:
    """What turns pooled features into logits: dense, (leaky) ReLU, dense.

    Its input is the global average of the feature map's C channels, or that followed by their
    global maximum; `hidden_kernel` has C or 2 C rows accordingly.
    """

    hidden_kernel: np.ndarray  # float [C or 2 C, H]
    hidden_bias: np.ndarray  # float [H]
    logits_kernel: np.ndarray  # float [H, 10]
    logits_bias: np.ndarray  # float [10]
    slope: np.ndarray  # float [1], of the activation below zero; 0 for ReLU


def write_head(folder, head):
    """Keep a Head beside the model's other files, its kernels in the precision they come in."""
    save_file({name: np.ascontiguousarray(array) for name, array in vars(head).items()}, folder / HEAD)


def read_head(folder):
    """Return the Head of a model folder, float32. Raises InvalidModel."""
    try:
        return Head(**{name: array.astype(np.float32) for name, array in load_file(folder / HEAD).items()})
    except (OSError, SafetensorError, TypeError) as error:
        raise InvalidModel(f"{folder.name} has no readable {HEAD}: export the model again.") from error


def check_head(forward, head, folder):
    """Raise InvalidModel unless a model answers one plain picture, and with logits that its Head explains.

    So what is no whole model, or a mixture of two, is found when it is loaded and not when it is asked.
    """
    ramp = np.linspace(0, 1, INPUT_SIZE**2, dtype=np.float32).reshape(1, 1, INPUT_SIZE, INPUT_SIZE)
    try:
        logits, features = forward(ramp)
        maps, constants = logit_maps(features, head)
        fits = np.allclose(maps.sum((2, 3)) + constants, logits, atol=1e-2)  # never, where one is NaN
    except Exception as error:  # each runtime raises its own, NumPy where shapes differ
        raise InvalidModel(f"{folder.name} cannot answer, so it is no whole model: get it again.") from error
    if not fits or logits.shape != (1, len(CLASSES)):
        raise InvalidModel(f"The graph of {folder.name} and its {HEAD} are not of one model: get both again.")


def logit_maps(features, head):
    """Feature map float32 [N, C, h, w] -> (maps float32 [N, 10, h, w], constants [N, 10]).

    A class's map summed over its places, plus its constant, is its logit.
    """
    count, channels, height, width = features.shape
    places = features.reshape(count, channels, height * width)
    pooled = places.mean(axis=2)
    with_maximum = len(head.hidden_kernel) > channels
    if with_maximum:
        highest = places.argmax(axis=2)[..., None]  # [N, C, 1]
        pooled = np.concatenate([pooled, np.take_along_axis(places, highest, 2)[..., 0]], axis=1)
    hidden = pooled @ head.hidden_kernel + head.hidden_bias
    gate = np.where(hidden > 0, 1, head.slope)[..., None]  # [N, H, 1]
    open_kernel = gate * head.logits_kernel  # [N, H, 10]: the second layer where the first is open
    weights = head.hidden_kernel @ open_kernel  # [N, C or 2 C, 10]
    weights = weights.swapaxes(1, 2)  # [N, 10, C or 2 C]; matmul, as einsum takes ten times as long here
    maps = weights[:, :, :channels] @ places / places.shape[2]
    if with_maximum:  # a maximum's evidence lies where the maximum is
        peaks = np.zeros_like(places)
        np.put_along_axis(peaks, highest, np.take_along_axis(places, highest, 2), 2)
        maps += weights[:, :, channels:] @ peaks
    constants = head.hidden_bias @ open_kernel + head.logits_bias
    return maps.reshape(count, -1, height, width), constants


def evidence(features, head, probabilities, temperature):
    """Return float32 [N, 10, h, w]: what each place adds to the logarithm of a class's probability.

    `probabilities` [N, 10] are those of the logits at `temperature`.
    """
    return _compared(logit_maps(features, head)[0], probabilities, temperature)


def mix_evidence(evidences, members, weights, probabilities, temperature):
    """Members' evidence, a list of [N, 10, h, w] -> that of their weighted mean, calibrated.

    `members` are the members' probabilities, a list of [N, 10], and `probabilities` [N, 10] the
    ensemble's. Each member counts for a class as much as it gives to that class's mean: the
    gradient of the logarithm of the mean.
    """
    shares = np.stack([w * p for w, p in zip(weights, members, strict=True)])
    shares = (shares / np.maximum(shares.sum(axis=0), 1e-12)).astype(np.float32)
    maps = np.einsum("mnk,mnkhw->nkhw", shares, np.stack(evidences))
    return _compared(maps, probabilities, temperature)


def _compared(maps, probabilities, temperature):
    """Maps of logits -> maps of log softmax(logits / temperature).

    A logit says little alone: a place that raises all classes alike is no evidence for one. The
    gradient of the log-softmax takes the probability-weighted mean over the classes away.
    """
    maps = maps / np.float32(temperature)
    return maps - np.einsum("nk,nkhw->nhw", probabilities.astype(np.float32), maps)[:, None]
