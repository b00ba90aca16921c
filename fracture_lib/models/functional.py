"""Array functions that serving, training and evaluation share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPSILON", "Floats", "global_average_pool", "linear_pool_logits", "softmax"]

Floats = NDArray[np.floating]
EPSILON = 1e-12  # smallest probability or divisor, so that no result is infinite


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return probabilities [N, 10] whose rows sum to 1; a `temperature` above 1 softens them."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) / temperature
    exponentials = np.exp(scaled)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def linear_pool_logits(
    probabilities: Sequence[Floats], weights: Sequence[float] | Floats | None = None
) -> Floats:
    """Return the logarithm [N, 10] of the weighted mean of M models' probabilities, each [N, 10].

    `weights` [M] must not be negative; only their ratios count, and None weights all alike. The mean is
    the linear opinion pool (Stone, The Opinion Pool, 1961).
    """
    mean = np.average(np.asarray(probabilities), axis=0, weights=weights)
    return np.log(np.maximum(mean, EPSILON))


def global_average_pool(features: Floats) -> Floats:
    """Average feature maps [N, C, h, w] over their positions: [N, C]."""
    return features.mean((2, 3))
