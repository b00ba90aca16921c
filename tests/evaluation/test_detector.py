"""Metrics of the fracture detector, against scikit-learn; what is fitted on other groups."""

import numpy as np
import pytest
from sklearn import metrics as sk

from fracture_lib.evaluation.detector import (
    average_precision,
    cross_fit_outcomes,
    detector_metrics,
    fit_platt,
    fit_thresholds,
    measure_detector,
    measure_external,
    probability_calibration_error,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from fracture_lib.evaluation.metrics import auroc
from fracture_lib.models.detector import Detector, sigmoid
from fracture_lib.models.report import DetectorThresholds

N = 600
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def scored():
    """Logits [600] of a fair detector, fractured [600], a fifth of them, and groups [600] of three images."""
    rng = RNG(0)
    fractured = rng.random(N) < 0.2
    return rng.normal(size=N) + 1.6 * fractured - 1, fractured, np.arange(N) // 3


@pytest.mark.parametrize("digits", [8, 1, 0], ids=["distinct", "some equal", "many equal"])
def test_ranking_metrics_equal_scikit_learn(scored, digits):
    scores, fractured, _ = scored
    scores = scores.round(digits)
    assert auroc(scores, fractured) == pytest.approx(sk.roc_auc_score(fractured, scores))
    assert average_precision(scores, fractured) == pytest.approx(
        sk.average_precision_score(fractured, scores)
    )
    false_alarms, found, _ = sk.roc_curve(fractured, scores, drop_intermediate=False)
    for level in (0.5, 0.9, 0.95):
        assert sensitivity_at_specificity(scores, fractured, level) == pytest.approx(
            found[1 - false_alarms >= level - 1e-9].max()
        )
        assert specificity_at_sensitivity(scores, fractured, level) == pytest.approx(
            (1 - false_alarms[found >= level - 1e-9]).max()
        )


@pytest.mark.parametrize("fractured", [np.zeros(4, bool), np.ones(4, bool)], ids=["none", "all"])
def test_ranking_metrics_of_one_class_are_undefined(fractured):
    scores = np.arange(4.0)
    assert np.isnan(auroc(scores, fractured))
    assert np.isnan(sensitivity_at_specificity(scores, fractured, 0.9))
    assert np.isnan(specificity_at_sensitivity(scores, fractured, 0.95))
    assert np.isnan(average_precision(scores, fractured)) == (not fractured.any())


def test_probability_metrics_equal_scikit_learn(scored):
    scores, fractured, groups = scored
    probabilities = sigmoid(scores)
    values = detector_metrics(scores, probabilities, fractured, groups)
    assert values["brier"].value == pytest.approx(sk.brier_score_loss(fractured, probabilities), abs=1e-4)
    assert values["negative_log_likelihood"].value == pytest.approx(
        sk.log_loss(fractured, probabilities), abs=1e-4
    )
    assert all(i.low <= i.value <= i.high for i in values.values())


def test_probability_calibration_error_is_the_gap_in_each_bin():
    probabilities = np.array([0.1, 0.1, 0.9, 0.9])
    assert probability_calibration_error(probabilities, np.array([0, 0, 1, 1], bool)) == pytest.approx(0.1)
    assert probability_calibration_error(probabilities, np.array([1, 0, 1, 1], bool)) == pytest.approx(0.25)
    assert probability_calibration_error(np.ones(2), np.ones(2, bool)) == 0


def test_fit_platt_recovers_the_line_that_made_the_labels():
    rng = RNG(1)
    logits = rng.normal(size=40_000)
    fractured = rng.random(40_000) < sigmoid(2.5 * logits - 1.5)
    assert fit_platt(logits, fractured) == pytest.approx((2.5, -1.5), abs=0.1)


def test_fit_platt_of_separated_images_is_finite():
    slope, intercept = fit_platt(np.array([-2.0, -1, 1, 2]), np.array([False, False, True, True]))
    assert 0 < slope < 10 and abs(intercept) < 1


def test_fit_thresholds_miss_at_most_a_twentieth(scored):
    scores, fractured, _ = scored
    thresholds = fit_thresholds(sigmoid(scores), fractured)
    missed = (sigmoid(scores[fractured]) < thresholds.none).mean()
    assert 0.03 < missed <= 0.05
    assert thresholds.none < thresholds.visible == 0.5


def test_fit_thresholds_of_a_perfect_detector_leave_no_image_uncertain():
    fractured = np.arange(20) < 5
    thresholds = fit_thresholds(np.where(fractured, 0.9, 0.1), fractured)
    assert thresholds == DetectorThresholds(visible=0.5, none=0.5)


def test_cross_fit_outcomes_of_a_part_ignore_its_own_labels(scored):
    scores, fractured, groups = scored
    part = groups % 5 == 0
    before, after = (
        cross_fit_outcomes(scores, np.where(part, labels, fractured), groups)
        for labels in (fractured, ~fractured)
    )
    for one, other in zip(before, after, strict=True):
        assert (one[part] == other[part]).all() and (one[~part] != other[~part]).any()


def test_measure_detector_reports_rates_that_fit_its_thresholds(scored):
    report = measure_detector(*scored, protocol="drawn")
    assert (report.n, report.n_groups, report.n_fractured) == (N, N // 3, scored[1].sum())
    rates = report.outcomes["fractured"]
    assert report.missed.value == pytest.approx(rates.none) and report.missed.value < 0.12
    assert report.outcomes["not fractured"].visible < rates.visible
    for kind in report.outcomes.values():
        assert kind.visible + kind.uncertain + kind.none == pytest.approx(1)
    assert report.metrics["expected_calibration_error"].value < 0.1
    assert report.metrics["auroc"].value == pytest.approx(sk.roc_auc_score(scored[1], scored[0]), abs=1e-4)


def test_measure_external_counts_the_outcomes_of_each_class(scored, dataset_folder, tmp_path):
    report = measure_detector(*scored, protocol="drawn")
    logits = iter(np.repeat([9.0, -9.0], 20))  # of 40 images in the order of their paths

    def network(pixels):
        assert pixels.shape == (1, 1, 256, 256) and 0 <= pixels.min() <= pixels.max() <= 1
        return [np.full((1, 1), next(logits)), np.zeros((1, 16, 16)), np.zeros((1, 512))]

    rates = measure_external(Detector(tmp_path, report, network), dataset_folder)
    assert rates["all"].n == 40 and rates["all"].visible == rates["all"].none == 0.5
    assert rates["Avulsion"].visible == 1 and rates["Spiral"].none == 1  # the first and the last path
    assert list(rates)[-1] == "all" and len(rates) == 11
