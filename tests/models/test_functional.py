"""Softmax, the linear opinion pool and embeddings."""

import numpy as np

from fracture_lib.models.functional import global_average_pool, linear_pool_logits, softmax

LOGITS = np.array([[1.0, 2, 3], [1000, 0, -1000]])


def test_softmax_of_large_logits_is_finite_and_sums_to_one():
    probabilities = softmax(LOGITS)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_softmax_with_higher_temperature_is_softer():
    assert softmax(LOGITS, 2).max() <= softmax(LOGITS).max()
    assert softmax(LOGITS, 2)[0].max() < softmax(LOGITS)[0].max()


def test_linear_pool_logits_is_the_log_of_the_weighted_mean():
    first, second = np.array([[0.2, 0.8]]), np.array([[0.6, 0.4]])
    np.testing.assert_allclose(np.exp(linear_pool_logits([first, second])), [[0.4, 0.6]])
    np.testing.assert_allclose(np.exp(linear_pool_logits([first, second], [3, 1])), [[0.3, 0.7]])


def test_linear_pool_logits_of_zero_probability_is_finite():
    assert np.isfinite(linear_pool_logits([np.array([[0.0, 1.0]])])).all()


def test_global_average_pool_averages_positions():
    assert global_average_pool(np.arange(8.0).reshape(1, 2, 2, 2)).tolist() == [[1.5, 5.5]]
