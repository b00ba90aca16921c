"""Our metrics are written for a thousand resamples in seconds; scikit-learn says they are right."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from fracture_lib.metrics import (
    brier,
    calibrate_across_groups,
    conformal_sets,
    expected_calibration_error,
    fit_temperature,
    fit_weights,
    mean_with_interval,
    paired_difference,
    pool,
    pool_across_groups,
    reliability,
    report,
    selective,
    softmax,
)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)
    logits = rng.normal(size=(400, 10))
    logits[np.arange(400), labels] += 1.5
    return logits, labels, np.arange(400) // 2


def test_headlines_agree_with_scikit_learn(drawn):
    logits, labels, groups = drawn
    p, said = softmax(logits), logits.argmax(1)
    found = {k: v["value"] for k, v in report(p, labels, groups, resamples=20)["metrics"].items()}
    expected = {
        "accuracy": sk.accuracy_score(labels, said),
        "top3_accuracy": sk.top_k_accuracy_score(labels, p, k=3),
        "macro_f1": sk.f1_score(labels, said, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, said),
        "macro_auroc": sk.roc_auc_score(labels, p, multi_class="ovr"),
        "negative_log_likelihood": sk.log_loss(labels, p),
        "brier": sk.brier_score_loss(labels, p, scale_by_half=False),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


def test_per_class_table_and_confusion_agree_with_scikit_learn(drawn):
    logits, labels, groups = drawn
    found = report(softmax(logits), labels, groups, resamples=2)
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, logits.argmax(1)).tolist()
    rows = sk.precision_recall_fscore_support(labels, logits.argmax(1))
    for i, row in enumerate(found["per_class"]):
        mine = [row["precision"], row["recall"], row["f1"], row["n"]]
        assert mine == pytest.approx([r[i] for r in rows], abs=1e-4)


def test_intervals_hold_the_value_and_widen_when_films_come_in_groups(drawn):
    logits, labels, _ = drawn
    p = softmax(logits)

    def width(groups):
        accuracy = report(p, labels, groups, resamples=300)["metrics"]["accuracy"]
        assert accuracy["low"] < accuracy["value"] < accuracy["high"]
        return accuracy["high"] - accuracy["low"]

    right = np.argsort(p.argmax(1) == labels, kind="stable")  # right and wrong films kept apart
    blocks = np.empty(400, int)
    blocks[right] = np.arange(400) // 20
    assert width(blocks) > 2 * width(np.arange(400))


def test_a_folder_that_lacks_classes_is_scored_on_those_it_has():
    p = np.eye(10)[[0, 0, 1]] * 0.9 + 0.01
    found = report(p, np.array([0, 0, 1]), np.arange(3), resamples=50)
    assert found["metrics"]["balanced_accuracy"]["value"] == 1
    assert found["metrics"]["macro_f1"]["value"] == 1
    assert found["per_class"][5]["recall"] is None
    alone = report(p[:2], np.array([0, 0]), np.arange(2), resamples=5)
    assert alone["metrics"]["macro_auroc"] == {"value": None, "low": None, "high": None}


def test_calibration_error_by_hand():
    p = np.full((4, 10), 0.2 / 9)
    p[:, 0] = 0.8
    assert expected_calibration_error(p, np.array([0, 0, 0, 0])) == pytest.approx(0.2)
    assert expected_calibration_error(p, np.array([0, 0, 1, 1])) == pytest.approx(0.3)
    assert brier(np.eye(10)[[3]], np.array([3])) == 0
    assert brier(np.eye(10)[[3]], np.array([4])) == 2


def test_temperature_recovers_what_made_the_logits_overconfident():
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(6000, 10)) * 1.5
    labels = np.array([rng.choice(10, p=p) for p in softmax(honest)])
    assert fit_temperature(3 * honest, labels) == pytest.approx(3, rel=0.1)
    calibrated = calibrate_across_groups(3 * honest, labels, np.arange(6000))
    assert expected_calibration_error(calibrated, labels) < 0.03
    assert expected_calibration_error(softmax(3 * honest), labels) > 0.15
    assert (calibrated.argmax(1) == honest.argmax(1)).all()


def test_conformal_sets_hold_the_label_as_often_as_promised(drawn):
    logits, labels, groups = drawn
    p = softmax(logits)
    for level in (0.8, 0.9):
        sets = conformal_sets(p, labels, groups, level)
        assert sets["coverage"]["value"] == pytest.approx(level, abs=0.04)
        of_label = p[np.arange(400), labels]
        assert np.mean(of_label >= sets["threshold"]) == pytest.approx(level, abs=0.01)
    assert conformal_sets(p, labels, groups, 0.8)["mean_size"]["value"] < sets["mean_size"]["value"] <= 10


def test_a_model_is_more_accurate_on_the_films_that_it_is_surest_of(drawn):
    logits, labels, groups = drawn
    p = softmax(logits)
    found = selective(p, labels, groups)
    accuracy = np.mean(p.argmax(1) == labels)
    assert found["risk_coverage"][-1] == [1.0, pytest.approx(1 - accuracy, abs=1e-4)]
    at = {c: m["value"] for c, m in found["accuracy_at"].items()}
    assert at["0.5"] > at["0.8"] > at["1.0"] == pytest.approx(accuracy, abs=1e-4)
    surest = np.argsort(-p.max(axis=1))[:200]
    assert at["0.5"] == pytest.approx(np.mean(p[surest].argmax(1) == labels[surest]), abs=1e-4)


def test_the_pool_of_models_is_their_mean(drawn):
    p = softmax(drawn[0])
    other = np.roll(p, 1, axis=1)
    np.testing.assert_allclose(softmax(pool([p, other])), (p + other) / 2)
    np.testing.assert_allclose(softmax(pool([p, other], [6, 2])), 0.75 * p + 0.25 * other)


def test_fitted_weights_find_the_mixture_that_drew_the_labels_and_drop_a_useless_member():
    rng = np.random.default_rng(2)
    one, two, useless = (softmax(2 * rng.normal(size=(5000, 10))) for _ in range(3))
    labels = np.array([rng.choice(10, p=p) for p in 0.7 * one + 0.3 * two])
    weights = fit_weights([one, two, useless], labels)
    assert weights.sum() == pytest.approx(1)
    assert weights == pytest.approx([0.7, 0.3, 0], abs=0.05)


def test_no_film_of_a_part_has_a_say_in_how_its_part_is_pooled(drawn):
    """Five parts of the groups, dealt out in turn: the labels of one do not change its answers."""
    logits, labels, groups = drawn
    other = np.random.default_rng(3).normal(size=logits.shape)
    part = groups % 5 == 0
    shuffled = np.where(part, (labels + 1) % 10, labels)
    before, after = (pool_across_groups([logits, other], some, groups) for some in (labels, shuffled))
    np.testing.assert_array_equal(before[part], after[part])
    assert (before[~part] != after[~part]).any()
    np.testing.assert_allclose(before.sum(axis=1), 1)


def test_a_paired_difference_is_narrower_than_its_parts_and_nothing_against_itself(drawn):
    logits, labels, groups = drawn
    p, q = softmax(logits), softmax(logits + np.random.default_rng(4).normal(0, 0.2, logits.shape))
    nothing = {"value": 0, "low": 0, "high": 0}
    assert paired_difference(p, p, labels, groups) == dict.fromkeys(
        ("accuracy", "negative_log_likelihood"), nothing
    )
    found, alone = paired_difference(p, q, labels, groups), report(p, labels, groups)["metrics"]
    for name, metric in found.items():
        expected = [report(some, labels, groups, resamples=2)["metrics"][name]["value"] for some in (p, q)]
        assert metric["value"] == pytest.approx(expected[0] - expected[1], abs=2e-4)
        assert metric["high"] - metric["low"] < 0.7 * (alone[name]["high"] - alone[name]["low"])


def test_reliability_bins_hold_every_film_and_add_up_to_the_calibration_error(drawn):
    logits, labels, groups = drawn
    p = softmax(2 * logits)
    bins = reliability(p, labels, np.arange(400))
    assert sum(b["n"] for b in bins) == 400
    gap = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 400
    assert gap == pytest.approx(expected_calibration_error(p, labels), abs=1e-4)
    for b in bins:
        interval = binomtest(round(b["accuracy"] * b["n"]), b["n"]).proportion_ci(method="wilson")
        assert (b["low"], b["high"]) == pytest.approx(interval, abs=2e-4)
    for b, grouped in zip(bins, reliability(p, labels, groups), strict=True):
        assert grouped["low"] <= b["low"] and b["high"] <= grouped["high"]


def test_a_mean_has_an_interval_that_widens_with_groups():
    values = np.repeat(np.random.default_rng(0).random(50), 4)
    films, groups = (mean_with_interval(values, g) for g in (np.arange(200), np.arange(200) // 4))
    assert films["low"] < films["value"] < films["high"]
    assert groups["high"] - groups["low"] > 1.5 * (films["high"] - films["low"])
