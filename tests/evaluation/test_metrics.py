"""Metrics, against scikit-learn and SciPy, which are too slow for a thousand resamples."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from fracture_lib.evaluation.metrics import (
    accuracy_by_views,
    bootstrap,
    brier,
    calibration_bins,
    classification_report,
    expected_calibration_error,
    mean_with_interval,
    negative_log_likelihood,
    paired_difference,
    probability_of_label,
    rounded,
    selective_risk,
    wilson,
)
from fracture_lib.models.functional import softmax
from fracture_lib.models.report import Interval

N = 400


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(0, 10, N)


@pytest.fixture(scope="module")
def logits(labels):
    """Overlapping classes: float64 [400, 10]."""
    return np.random.default_rng(1).normal(size=(N, 10)) + 1.5 * np.eye(10)[labels]


@pytest.fixture(scope="module")
def probabilities(logits):
    return softmax(logits)


@pytest.fixture(scope="module")
def groups():
    """Pairs of images: int64 [400]."""
    return np.arange(N) // 2


def width(interval):
    return interval.high - interval.low


# Classification report


def test_classification_report_metrics_equal_scikit_learns(probabilities, labels, groups):
    y_pred = probabilities.argmax(axis=1)
    report = classification_report(probabilities, labels, groups, n_resamples=20)
    expected = {
        "accuracy": sk.accuracy_score(labels, y_pred),
        "top3_accuracy": sk.top_k_accuracy_score(labels, probabilities, k=3),
        "macro_f1": sk.f1_score(labels, y_pred, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, y_pred),
        "macro_auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "negative_log_likelihood": sk.log_loss(labels, probabilities),
        "brier": sk.brier_score_loss(labels, probabilities, scale_by_half=False),
    }
    assert report.n == N and report.n_groups == N // 2
    for name, value in expected.items():
        assert report.metrics[name].value == pytest.approx(value, abs=1e-4), name


def test_classification_report_tables_equal_scikit_learns(probabilities, labels, groups):
    y_pred = probabilities.argmax(axis=1)
    report = classification_report(probabilities, labels, groups, n_resamples=2)
    assert report.confusion_matrix == sk.confusion_matrix(labels, y_pred).tolist()
    columns = sk.precision_recall_fscore_support(labels, y_pred)
    for i, row in enumerate(report.per_class):
        values = [row.precision, row.recall, row.f1, row.n]
        assert values == pytest.approx([column[i] for column in columns], abs=1e-4)


def test_classification_report_intervals_contain_the_value_and_widen_with_groups(probabilities, labels):
    def accuracy(groups):
        return classification_report(probabilities, labels, groups, n_resamples=300).metrics["accuracy"]

    by_correctness = np.argsort(probabilities.argmax(axis=1) == labels, kind="stable")
    groups_of_20 = np.empty(N, int)  # correct and wrong images are never in one group
    groups_of_20[by_correctness] = np.arange(N) // 20
    single, grouped = accuracy(np.arange(N)), accuracy(groups_of_20)
    assert single.low < single.value < single.high
    assert width(grouped) > 2 * width(single)


def test_classification_report_with_absent_classes_scores_the_present_ones():
    probabilities = np.eye(10)[[0, 0, 1]] * 0.9 + 0.01
    report = classification_report(probabilities, np.array([0, 0, 1]), np.arange(3), n_resamples=50)
    assert report.metrics["balanced_accuracy"].value == 1
    assert report.metrics["macro_f1"].value == 1
    absent = report.per_class[5]
    assert (absent.n, absent.precision, absent.recall, absent.f1, absent.auroc) == (0, None, None, None, None)
    assert absent.recall_interval == Interval(None, None, None)


def test_classification_report_with_one_class_has_no_auroc():
    probabilities = np.eye(10)[[0, 0]] * 0.9 + 0.01
    report = classification_report(probabilities, np.array([0, 0]), np.arange(2), n_resamples=5)
    assert report.metrics["macro_auroc"] == Interval(None, None, None)


def test_classification_report_counts_an_auroc_of_zero():
    """Class 0 is ranked last for its only image, class 1 and class 2 are ranked first."""
    probabilities = np.full((3, 10), 0.01)
    probabilities[0, :3] = 0.0, 0.2, 0.2
    probabilities[1, :3] = 0.1, 0.9, 0.0
    probabilities[2, :3] = 0.1, 0.0, 0.9
    report = classification_report(probabilities, np.arange(3), np.arange(3), n_resamples=2)
    assert report.per_class[0].auroc == 0
    assert report.metrics["macro_auroc"].value == pytest.approx(2 / 3, abs=1e-4)


def test_classification_report_recall_intervals_contain_the_value_and_widen_with_groups(
    probabilities, labels, groups
):
    def intervals(groups):
        report = classification_report(probabilities, labels, groups, n_resamples=200)
        return [row.recall_interval for row in report.per_class], [row.recall for row in report.per_class]

    single, recalls = intervals(np.arange(N))
    by_class, _ = intervals(np.argsort(np.argsort(labels, kind="stable")) // 10)  # groups of one class
    for interval, recall in zip(single, recalls, strict=True):
        assert interval.value == recall and interval.low <= recall <= interval.high
    assert sum(map(width, single)) > 0.5
    assert by_class != single


def test_classification_report_recall_of_zero_or_one_has_an_interval_of_its_groups():
    labels, groups = np.repeat([0, 1], 20), np.arange(40) // 2
    report = classification_report(np.eye(10)[np.zeros(40, int)], labels, groups, n_resamples=10)
    found, missed = (row.recall_interval for row in report.per_class[:2])
    low, high = wilson(0.0, 10)
    assert (missed.value, missed.low, missed.high) == pytest.approx((0, low, high), abs=1e-4)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1 - high, 1 - low), abs=1e-4)


# Single metrics


def test_expected_calibration_error_of_one_bin_is_its_gap():
    probabilities = np.full((4, 10), 0.2 / 9)
    probabilities[:, 0] = 0.8
    assert expected_calibration_error(probabilities, np.array([0, 0, 0, 0])) == pytest.approx(0.2)
    assert expected_calibration_error(probabilities, np.array([0, 0, 1, 1])) == pytest.approx(0.3)


def test_brier_of_certain_predictions_is_zero_or_two():
    assert brier(np.eye(10)[[3]], np.array([3])) == 0
    assert brier(np.eye(10)[[3]], np.array([4])) == 2


def test_negative_log_likelihood_of_zero_probability_is_finite():
    assert 0 < negative_log_likelihood(np.eye(10)[[3]], np.array([4])) < 100
    assert probability_of_label(np.eye(10)[[3, 3]], np.array([3, 4])).tolist() == [1, 0]


def test_rounded_undefined_value_is_none():
    assert rounded(np.nan) is None and rounded(None) is None
    assert rounded(np.float64(0.123456)) == 0.1235 and type(rounded(np.float64(0.5))) is float


# Curves


def test_selective_risk_at_full_coverage_is_the_error_rate(probabilities, labels, groups):
    curve = selective_risk(probabilities, labels, groups)
    accuracy = np.mean(probabilities.argmax(axis=1) == labels)
    assert curve.risk_coverage[-1] == (1.0, pytest.approx(1 - accuracy, abs=1e-4))
    assert curve.accuracy_at["1.0"].value == pytest.approx(accuracy, abs=1e-4)


def test_selective_risk_accuracy_rises_with_confidence(probabilities, labels, groups):
    accuracy_at = selective_risk(probabilities, labels, groups).accuracy_at
    assert accuracy_at["0.5"].value > accuracy_at["0.8"].value > accuracy_at["1.0"].value
    confident = np.argsort(-probabilities.max(axis=1))[:200]
    expected = np.mean(probabilities[confident].argmax(axis=1) == labels[confident])
    assert accuracy_at["0.5"].value == pytest.approx(expected, abs=1e-4)


def test_calibration_bins_add_up_to_the_calibration_error(logits, labels):
    probabilities = softmax(2 * logits)
    bins = calibration_bins(probabilities, labels, np.arange(N))
    assert sum(b.n for b in bins) == N
    gap = sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / N
    assert gap == pytest.approx(expected_calibration_error(probabilities, labels), abs=1e-4)


def test_calibration_bins_have_wilson_intervals_that_widen_with_groups(logits, labels, groups):
    probabilities = softmax(2 * logits)
    single = calibration_bins(probabilities, labels, np.arange(N))
    grouped = calibration_bins(probabilities, labels, groups)
    for b, wide in zip(single, grouped, strict=True):
        expected = binomtest(round(b.accuracy * b.n), b.n).proportion_ci(method="wilson")
        assert (b.low, b.high) == pytest.approx(expected, abs=2e-4)
        assert wide.low <= b.low and b.high <= wide.high


# Intervals


def test_wilson_equals_scipys():
    assert wilson(0.3, 10) == pytest.approx(binomtest(3, 10).proportion_ci(method="wilson"), abs=1e-4)
    assert wilson(0.0, 1)[0] == 0


def test_bootstrap_draws_whole_groups_and_is_repeatable(groups):
    resamples = list(bootstrap(groups, n_resamples=3))
    for indices in resamples:
        assert len(indices) == N
        assert (np.bincount(indices, minlength=N).reshape(-1, 2).std(axis=1) == 0).all()
    again = bootstrap(groups, n_resamples=3)
    assert all((a == b).all() for a, b in zip(resamples, again, strict=True))
    assert (resamples[0] != resamples[1]).any()


def test_mean_with_interval_widens_with_groups():
    values = np.repeat(np.random.default_rng(0).random(50), 4)
    single, grouped = (mean_with_interval(values, g) for g in (np.arange(200), np.arange(200) // 4))
    assert single.low < single.value < single.high
    assert width(grouped) > 1.5 * width(single)


def test_paired_difference_with_itself_is_zero(probabilities, labels, groups):
    difference = paired_difference(probabilities, probabilities, labels, groups)
    assert difference == dict.fromkeys(("accuracy", "negative_log_likelihood"), Interval(0, 0, 0))


def test_paired_difference_is_narrower_than_the_metrics_intervals(logits, probabilities, labels, groups):
    others = softmax(logits + np.random.default_rng(4).normal(0, 0.2, logits.shape))
    metrics, other_metrics = (
        classification_report(p, labels, groups).metrics for p in (probabilities, others)
    )
    for name, difference in paired_difference(probabilities, others, labels, groups).items():
        expected = metrics[name].value - other_metrics[name].value
        assert difference.value == pytest.approx(expected, abs=2e-4)
        assert width(difference) < 0.7 * width(metrics[name])


# Fewer views


@pytest.mark.parametrize(("n_views", "expected"), [(1, ["1"]), (3, ["1", "3"]), (6, ["1", "3", "6"])])
def test_accuracy_by_views_scores_one_three_and_all(probabilities, labels, groups, n_views, expected):
    by_views = accuracy_by_views(lambda n: np.roll(probabilities, n - n_views, 0), n_views, labels, groups)
    assert list(by_views) == expected
    last = by_views[str(n_views)]
    assert last.value == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels), abs=1e-4)
    assert last.low < last.value < last.high
    error = expected_calibration_error(probabilities, labels)
    assert last.expected_calibration_error == pytest.approx(error, abs=1e-4)
