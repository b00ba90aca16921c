"""Measure the fracture detector: metrics, calibration, the three outcomes, and images of another source.

Throughout: logits float [N] from networks that did not see the image; fractured bool [N]; groups int [N],
equal for images of one patient. What is fitted on some groups is measured on others.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.data.reading import map_images
from fracture_lib.evaluation.calibration import cross_fit_masks
from fracture_lib.evaluation.metrics import Ints, auroc, intervals, mean_with_interval
from fracture_lib.inference.fracture import to_outcome
from fracture_lib.io.image import content
from fracture_lib.io.views import DETECTOR_SIZE, make_detector_input
from fracture_lib.labels import ID2LABEL
from fracture_lib.models.detector import Detector, sigmoid
from fracture_lib.models.functional import EPSILON, Floats
from fracture_lib.models.report import DetectorReport, DetectorThresholds, Interval, OutcomeRates

__all__ = [
    "average_precision",
    "cross_fit_outcomes",
    "detector_metrics",
    "fit_platt",
    "fit_thresholds",
    "measure_detector",
    "measure_external",
    "probability_calibration_error",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
]

Bools = NDArray[np.bool_]

VISIBLE = 0.5  # smallest probability of the outcome "visible": a fracture is more likely than not
SENSITIVITY = 0.95  # of the outcomes "visible" and "uncertain" together
SPECIFICITY = 0.9  # at which the sensitivity is reported
N_BINS = 15
DIGITS = 4  # of every number in a report


def measure_detector(logits: Floats, fractured: Bools, groups: Ints, protocol: str) -> DetectorReport:
    """Return the report of a detector, without its localization and its external sensitivity.

    The metrics of ranking are those of the logits. The metrics of probabilities and the rates of the outcomes
    use a calibration and thresholds fitted on other groups; those in the report are fitted on all images.
    """
    probabilities, outcomes = cross_fit_outcomes(logits, fractured, groups)
    slope, intercept = fit_platt(logits, fractured)
    missed = outcomes[fractured] == "none"
    return DetectorReport(
        protocol=protocol,
        n=len(logits),
        n_groups=len(np.unique(groups)),
        n_fractured=int(fractured.sum()),
        metrics=detector_metrics(logits, probabilities, fractured, groups),
        slope=slope,
        intercept=intercept,
        thresholds=fit_thresholds(sigmoid(slope * logits + intercept), fractured),
        outcomes={
            "fractured": _outcome_rates(outcomes[fractured]),
            "not fractured": _outcome_rates(outcomes[~fractured]),
        },
        missed=mean_with_interval(missed.astype(float), groups[fractured]),
        external={},
        localization={},
    )


def measure_external(detector: Detector, data: str | Path) -> dict[str, OutcomeRates]:
    """Return the rates of the outcomes on the dataset `data`, as `load_dataset_folder` takes it.

    They are by class, in the order of the classes, and of "all" images. Every image of a class shows a
    fracture, so "none" is the share that is missed. Raises InvalidData and UnknownLabel.
    """
    images = load_dataset_folder(data)
    contents = map_images(lambda image: content(image, DETECTOR_SIZE), images.paths, "another source")
    views = (make_detector_input(pixels)[None] for pixels in contents)
    thresholds = detector.report.thresholds
    outcomes = np.array([to_outcome(detector.forward(view).probability, thresholds) for view in views])
    rates = {
        ID2LABEL[label]: _outcome_rates(outcomes[images.labels == label])
        for label in np.unique(images.labels).tolist()
    }
    return {**rates, "all": _outcome_rates(outcomes)}


def _outcome_rates(outcomes: NDArray[np.str_]) -> OutcomeRates:
    visible, none = (round(float((outcomes == name).mean()), DIGITS) for name in ("visible", "none"))
    return OutcomeRates(len(outcomes), visible, round(1 - visible - none, DIGITS), none)


def fit_platt(logits: Floats, fractured: Bools) -> tuple[float, float]:
    """Return the slope and intercept of the probability of a fracture, sigmoid(slope * logit + intercept).

    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999, with its smoothed targets.
    """
    from scipy.optimize import minimize

    n_positive, n_negative = int(fractured.sum()), int((~fractured).sum())
    targets = np.where(fractured, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))

    def loss(line: NDArray[np.float64]) -> float:
        scaled = line[0] * logits + line[1]
        return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    def gradient(line: NDArray[np.float64]) -> NDArray[np.float64]:
        residuals = sigmoid(line[0] * logits + line[1]) - targets
        return np.array([(residuals * logits).mean(), residuals.mean()])

    slope, intercept = minimize(loss, [1.0, 0.0], jac=gradient, method="BFGS").x.tolist()
    return round(slope, DIGITS), round(intercept, DIGITS)


def fit_thresholds(probabilities: Floats, fractured: Bools) -> DetectorThresholds:
    """Return thresholds of the outcomes for calibrated `probabilities` [N].

    At most a twentieth of the images with a fracture are below `none`.
    """
    none = float(np.quantile(probabilities[fractured], 1 - SENSITIVITY, method="lower"))
    none = math.floor(none * 10**DIGITS) / 10**DIGITS  # rounded up, it would miss more
    return DetectorThresholds(VISIBLE, min(none, VISIBLE))


def cross_fit_outcomes(
    logits: Floats, fractured: Bools, groups: Ints
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Return each image's probability [N] and outcome [N], by a fit on other groups' images."""
    probabilities = np.empty(len(logits))
    outcomes = np.empty(len(logits), "<U9")
    for test in cross_fit_masks(groups):
        slope, intercept = fit_platt(logits[~test], fractured[~test])
        calibrated = sigmoid(slope * logits + intercept)
        thresholds = fit_thresholds(calibrated[~test], fractured[~test])
        probabilities[test] = calibrated[test]
        outcomes[test] = [to_outcome(p, thresholds) for p in calibrated[test]]
    return probabilities, outcomes


def detector_metrics(
    logits: Floats, probabilities: Floats, fractured: Bools, groups: Ints
) -> dict[str, Interval]:
    """Return the metrics of a report, with 95 % bootstrap intervals over groups."""

    def measure(images: NDArray[np.int64]) -> dict[str, float]:
        scores, p, y = logits[images], probabilities[images], fractured[images]
        p_true = np.where(y, p, 1 - p)
        return {
            "auroc": auroc(scores, y),
            "average_precision": average_precision(scores, y),
            "sensitivity_at_90_specificity": sensitivity_at_specificity(scores, y, SPECIFICITY),
            "specificity_at_95_sensitivity": specificity_at_sensitivity(scores, y, SENSITIVITY),
            "expected_calibration_error": probability_calibration_error(p, y),
            "brier": float(((p - y) ** 2).mean()),
            "negative_log_likelihood": float(-np.log(np.maximum(p_true, EPSILON)).mean()),
        }

    return intervals(measure, groups)


def average_precision(scores: Floats, fractured: Bools) -> float:
    """Return the mean precision at each fractured image, by falling score, 0..1; NaN if there is none.

    Images with equal scores count together, as in scikit-learn.
    """
    order = np.argsort(-scores, kind="stable")
    n_found = np.cumsum(fractured[order])
    if not n_found[-1]:
        return np.nan
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of equal scores
    return float((np.diff(n_found[last], prepend=0) * n_found[last] / (last + 1)).sum() / n_found[-1])


def sensitivity_at_specificity(scores: Floats, fractured: Bools, level: float) -> float:
    """Return the largest sensitivity at a specificity of at least `level`, 0..1; NaN if a class is absent."""
    if fractured.all() or not fractured.any():
        return np.nan
    others = np.sort(scores[~fractured])
    n_below = math.ceil(round(level * len(others), 9))  # 0.95 * 20 and its like are not exact
    highest = others[n_below - 1]  # of the images that must stay below the threshold
    return float((scores[fractured] > highest).mean())


def specificity_at_sensitivity(scores: Floats, fractured: Bools, level: float) -> float:
    """Return the largest specificity at a sensitivity of at least `level`, 0..1; NaN if a class is absent."""
    return sensitivity_at_specificity(-scores, ~fractured, level)


def probability_calibration_error(probabilities: Floats, fractured: Bools) -> float:
    """Return the mean gap between probability and share of fractures over 15 equal bins, 0..1.

    The bins are of the probability of a fracture, not of the confidence in the likelier answer as in Guo et
    al., 2017: for a rare fracture, the latter says little about the probabilities that are shown.
    """
    bins = np.minimum((probabilities * N_BINS).astype(np.int64), N_BINS - 1)
    gaps = np.bincount(bins, weights=fractured - probabilities, minlength=N_BINS)
    return float(np.abs(gaps).sum() / len(probabilities))
