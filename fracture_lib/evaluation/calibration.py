"""Fit temperatures, ensemble weights and conformal thresholds, and measure them without looking ahead.

What is fitted on some images is measured on others: `cross_fit_masks` splits the groups into five parts,
and each part gets what was fitted on the other four. Shapes as in `evaluation.metrics`; logits are float
[N, 10].
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fracture_lib.evaluation.metrics import (
    Ints,
    mean_with_interval,
    negative_log_likelihood,
    probability_of_label,
)
from fracture_lib.models.functional import EPSILON, Floats, linear_pool_logits, softmax
from fracture_lib.models.report import ConformalSets

__all__ = [
    "FitWeights",
    "conformal_sets",
    "cross_fit_ensemble",
    "cross_fit_masks",
    "cross_fit_temperature",
    "fit_ensemble_weights",
    "fit_temperature",
]

N_PARTS = 5

FitWeights = Callable[[Sequence[Floats], Ints], Floats]


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Return the temperature that minimizes the negative log-likelihood (Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(softmax(logits, np.exp(log_temperature)), labels)

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_ensemble_weights(probabilities: Sequence[Floats], labels: Ints) -> NDArray[np.float64]:
    """Return weights [M], 0..1 with sum 1, that maximize the likelihood of M models' weighted mean.

    `probabilities` [M][N, 10] must be of images that the models were not trained on: stacking (Wolpert,
    1992), by likelihood as in Smyth and Wolpert, Linearly Combining Density Estimators via Stacking, 1999.
    The problem is convex, so the start does not matter.
    """
    from scipy.optimize import minimize

    p_true = np.array([probability_of_label(p, labels) for p in probabilities], float).clip(EPSILON)

    def loss(weights: NDArray[np.float64]) -> float:
        return float(-np.log(weights @ p_true).mean())

    def gradient(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return -(p_true / (weights @ p_true)).mean(axis=1)

    def excess(weights: NDArray[np.float64]) -> float:
        return float(weights.sum() - 1)

    return minimize(
        loss,
        np.full(len(p_true), 1 / len(p_true)),
        jac=gradient,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(p_true),
        constraints={"type": "eq", "fun": excess},
        options={"ftol": 1e-12},
    ).x


def cross_fit_masks(groups: Ints) -> Iterator[NDArray[np.bool_]]:
    """Yield test masks [N], up to five: they keep groups whole and cover each image once."""
    part = np.unique(groups, return_inverse=True)[1] % N_PARTS
    for number in np.unique(part):
        yield part == number


def cross_fit_temperature(
    logits: Floats, labels: Ints, groups: Ints, scored: Floats | None = None
) -> NDArray[np.float64]:
    """Return probabilities [N, 10], each calibrated by a temperature fitted on other groups' images.

    A calibration error of the result is not flattered by images that chose the temperature. `scored`
    [N, 10], such as logits from fewer views, are calibrated instead, by the temperatures of `logits`.
    """
    scored = logits if scored is None else scored
    probabilities = np.empty(logits.shape)
    for test in cross_fit_masks(groups):
        probabilities[test] = softmax(scored[test], fit_temperature(logits[~test], labels[~test]))
    return probabilities


def cross_fit_ensemble(
    logits: Sequence[Floats],
    labels: Ints,
    groups: Ints,
    fit_weights: FitWeights | None = None,
    scored: Sequence[Floats] | None = None,
) -> NDArray[np.float64]:
    """Return probabilities [N, 10] of the ensemble of M models with `logits` [M][N, 10].

    Each image's members' temperatures, their weights from `fit_weights(probabilities, labels)` (equal
    weights without it) and the ensemble's temperature are fitted on other groups' images. The ensemble
    needs a temperature of its own because a linear pool of calibrated models is underconfident (Ranjan and
    Gneiting, Combining Probability Forecasts, 2010). `scored` is that of `cross_fit_temperature`, per model.
    """
    scored = logits if scored is None else scored
    probabilities = np.empty(logits[0].shape)
    for test in cross_fit_masks(groups):
        temperatures = [fit_temperature(member[~test], labels[~test]) for member in logits]
        fitted = [softmax(member[~test], t) for member, t in zip(logits, temperatures, strict=True)]
        weights = fit_weights(fitted, labels[~test]) if fit_weights else None
        temperature = fit_temperature(linear_pool_logits(fitted, weights), labels[~test])
        members = [softmax(member[test], t) for member, t in zip(scored, temperatures, strict=True)]
        probabilities[test] = softmax(linear_pool_logits(members, weights), temperature)
    return probabilities


def conformal_sets(probabilities: Floats, labels: Ints, groups: Ints, level: float = 0.9) -> ConformalSets:
    """Measure the sets of classes that contain the true one at the rate `level`, 0..1.

    A class is in an image's set if its probability reaches a threshold, fitted by split conformal
    prediction with the score 1 - probability of the true class (Sadinle et al., Least Ambiguous
    Set-Valued Classifiers, 2019). Coverage and size are measured with thresholds fitted on other groups'
    images; the threshold returned is fitted on all.
    """
    p_true = probability_of_label(probabilities, labels)
    covered, size = np.empty(len(labels)), np.empty(len(labels))
    for test in cross_fit_masks(groups):
        threshold = _conformal_threshold(p_true[~test], level)
        covered[test] = p_true[test] >= threshold
        size[test] = (probabilities[test] >= threshold).sum(axis=1)
    return ConformalSets(
        level=level,
        coverage=mean_with_interval(covered, groups),
        mean_size=mean_with_interval(size, groups),
        threshold=round(_conformal_threshold(p_true, level), 4),
    )


def _conformal_threshold(p_true: Floats, level: float) -> float:
    """Return the largest threshold that the k highest of `p_true` [N] reach, k = ceil((N + 1) * level).

    With k > N, too few images to promise the level, it is 0. `numpy.quantile` of any method would round
    k / N again, and may miss the k-th value by one.
    """
    n = len(p_true)
    # 0.1 and its like are not exact: (989 + 1) * (1 - 0.9) is below 99.
    k = math.ceil(round((n + 1) * level, 9))
    return float(np.sort(p_true)[n - k]) if k <= n else 0.0
