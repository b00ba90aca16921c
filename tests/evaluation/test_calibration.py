"""What is fitted on held-out predictions, and that no image chooses what it is measured with."""

import numpy as np
import pytest

from fracture_lib.evaluation.calibration import (
    conformal_sets,
    cross_fit_ensemble,
    cross_fit_masks,
    cross_fit_temperature,
    fit_ensemble_weights,
    fit_temperature,
)
from fracture_lib.evaluation.metrics import expected_calibration_error, probability_of_label
from fracture_lib.models.functional import linear_pool_logits, softmax

N = 400


@pytest.fixture(scope="module")
def held_out():
    """Logits [400, 10], labels [400] and groups of two images [400]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, N)
    logits = rng.normal(size=(N, 10))
    logits[np.arange(N), labels] += 1.5
    return logits, labels, np.arange(N) // 2


@pytest.fixture(scope="module")
def overconfident():
    """Logits [6000, 10], three times too large, and labels [6000]."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6000, 10)) * 1.5
    labels = np.array([rng.choice(10, p=p) for p in softmax(logits)])
    return 3 * logits, labels


def test_fit_temperature_recovers_the_factor_that_made_logits_overconfident(overconfident):
    assert fit_temperature(*overconfident) == pytest.approx(3, rel=0.1)


def test_cross_fit_temperature_calibrates_and_keeps_the_prediction(overconfident):
    logits, labels = overconfident
    calibrated = cross_fit_temperature(logits, labels, np.arange(6000))
    assert expected_calibration_error(softmax(logits), labels) > 0.15
    assert expected_calibration_error(calibrated, labels) < 0.03
    assert (calibrated.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_cross_fit_masks_cover_each_image_once_and_keep_groups_whole():
    groups = np.array([7, 7, 3, 3, 9, 1, 1, 1, 4, 2, 8, 8])
    masks = list(cross_fit_masks(groups))
    assert len(masks) == 5 and (np.sum(masks, axis=0) == 1).all()
    for mask in masks:
        assert not set(groups[mask]) & set(groups[~mask])


def test_cross_fit_masks_of_two_groups_are_two():
    assert [mask.tolist() for mask in cross_fit_masks(np.array([5, 6]))] == [[True, False], [False, True]]


def test_fit_ensemble_weights_recovers_the_mixture_and_drops_a_useless_member():
    rng = np.random.default_rng(2)
    first, second, useless = (softmax(2 * rng.normal(size=(5000, 10))) for _ in range(3))
    labels = np.array([rng.choice(10, p=p) for p in 0.7 * first + 0.3 * second])
    weights = fit_ensemble_weights([first, second, useless], labels)
    assert weights.sum() == pytest.approx(1)
    assert weights == pytest.approx([0.7, 0.3, 0], abs=0.05)


def test_cross_fit_ensemble_of_a_part_ignores_its_own_labels(held_out):
    logits, labels, groups = held_out
    other = np.random.default_rng(3).normal(size=logits.shape)
    part = groups % 5 == 0
    changed = np.where(part, (labels + 1) % 10, labels)
    before, after = (
        cross_fit_ensemble([logits, other], y, groups, fit_ensemble_weights) for y in (labels, changed)
    )
    np.testing.assert_array_equal(before[part], after[part])
    assert (before[~part] != after[~part]).any()
    np.testing.assert_allclose(before.sum(axis=1), 1)


def test_cross_fit_ensemble_without_fitted_weights_is_the_calibrated_mean(held_out):
    logits, labels, groups = held_out
    other = np.roll(logits, 1, axis=0)
    probabilities = cross_fit_ensemble([logits, other], labels, groups)
    test = groups % 5 == 0
    members = [softmax(m, fit_temperature(m[~test], labels[~test])) for m in (logits, other)]
    pooled = linear_pool_logits(members)
    expected = softmax(pooled, fit_temperature(pooled[~test], labels[~test]))
    np.testing.assert_allclose(probabilities[test], expected[test])


def test_cross_fit_of_other_logits_uses_the_temperatures_of_the_first(held_out):
    logits, labels, groups = held_out
    scored = np.roll(logits, 1, axis=1)
    probabilities = cross_fit_temperature(logits, labels, groups, scored)
    np.testing.assert_allclose(
        probabilities, np.roll(cross_fit_temperature(logits, labels, groups), 1, axis=1)
    )
    pooled = cross_fit_ensemble([logits, scored], labels, groups, scored=[scored, scored])
    assert (pooled.argmax(axis=1) == scored.argmax(axis=1)).mean() > 0.95
    np.testing.assert_allclose(
        cross_fit_ensemble([logits, scored], labels, groups, scored=[logits, scored]),
        cross_fit_ensemble([logits, scored], labels, groups),
    )


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_conformal_sets_contain_the_label_at_the_level(held_out, level):
    logits, labels, groups = held_out
    probabilities = softmax(logits)
    sets = conformal_sets(probabilities, labels, groups, level)
    assert sets.level == level
    assert sets.coverage.value == pytest.approx(level, abs=0.04)
    p_true = probability_of_label(probabilities, labels)
    assert np.mean(p_true >= sets.threshold) == pytest.approx(level, abs=0.01)


def test_conformal_sets_grow_with_the_level(held_out):
    logits, labels, groups = held_out
    small, large = (conformal_sets(softmax(logits), labels, groups, level) for level in (0.8, 0.9))
    assert small.mean_size.value < large.mean_size.value <= 10


@pytest.mark.parametrize(
    ("n", "level", "n_reaching"),
    [
        (9, 0.9, 9),  # ceil(10 * 0.9)
        (10, 0.9, 10),  # ceil(9.9)
        (19, 0.9, 18),
        (99, 0.9, 90),
        (989, 0.9, 891),  # 990 * (1 - 0.9) is below 99 in floating point
        (989, 0.7, 693),
        (19, 0.95, 19),
        (9, 0.8, 8),
        (9, 0.3, 3),
    ],
)
def test_conformal_sets_threshold_is_reached_by_the_exact_number_of_images(n, level, n_reaching):
    p_true = np.random.default_rng(0).permutation(np.arange(1, n + 1) / (2 * n))
    probabilities = np.repeat((1 - p_true[:, None]) / 9, 10, axis=1)
    labels = np.arange(n) % 10
    probabilities[np.arange(n), labels] = p_true
    threshold = conformal_sets(probabilities, labels, np.arange(n), level).threshold
    assert threshold == round(np.sort(p_true)[n - n_reaching], 4)


def test_conformal_sets_of_too_few_images_contain_every_class():
    sets = conformal_sets(np.full((3, 10), 0.1), np.arange(3), np.arange(3))
    assert sets.threshold == 0 and sets.mean_size.value == 10
