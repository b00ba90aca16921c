"""The training loop and its callbacks, with a learner in NumPy."""

from dataclasses import replace

import numpy as np
import pytest

from fracture_lib.errors import InvalidData
from fracture_lib.models.report import EpochMetrics
from fracture_lib.training.callbacks import (
    Callback,
    Checkpoint,
    LearningCurve,
    ProgressBar,
    WeightAverage,
    check_same_run,
)
from fracture_lib.training.loop import fit
from fracture_lib.training.recipes import RECIPES, one_cycle
from tests.helpers.training import LinearLearner

RECIPE = replace(RECIPES["pytorch-cnn"], epochs=7, batch_size=4)


class Recorder(Callback):
    """Note the events and the weights after each epoch."""

    def __init__(self):
        self.events, self.weights = [], []

    def on_fit_start(self, state):
        self.events.append(("start", state.n_epochs_done))

    def on_epoch_end(self, state):
        self.events.append(("epoch", state.n_epochs_done))
        self.weights.append(state.learner.get_weights()[0])

    def on_fit_end(self, state):
        self.events.append(("end", state.n_epochs_done))


@pytest.fixture
def run(single_views):
    """Fit a LinearLearner on ten images with some callbacks; return it and the state."""

    def run(callbacks, recipe=RECIPE, learner=None):
        learner = learner or LinearLearner()

        def sample(indices, rng):
            return single_views[indices] * np.float32(rng.uniform(0.9, 1.1))

        targets = np.eye(10, dtype=np.float32)
        return learner, fit(learner, sample, targets, np.arange(10), recipe, 0, callbacks, "test")

    return run


def test_fit_calls_every_hook_and_leaves_the_remainder_of_a_batch(run):
    recorder = Recorder()
    learner, state = run([recorder])
    assert recorder.events == [("start", 0), *(("epoch", n) for n in range(1, 8)), ("end", 7)]
    assert learner.n_steps == 7 * 2 and len(state.losses) == 2  # ten images, batches of four


def test_fit_with_batch_larger_than_the_data_takes_all_images(run):
    learner, _ = run([], replace(RECIPE, batch_size=64))
    assert learner.n_steps == 7


def test_fit_with_same_seed_repeats(run):
    first, again = run([])[0], run([])[0]
    np.testing.assert_array_equal(first.weights[0], again.weights[0])


def test_weight_average_ends_with_the_moving_average(run):
    recorder = Recorder()
    learner, state = run([recorder, WeightAverage(decay=0.5)])
    expected = np.zeros((8, 10))
    for epoch, weights in enumerate(recorder.weights):
        decay = min(0.5, (1 + epoch) / (10 + epoch))
        expected = decay * expected + (1 - decay) * weights
    np.testing.assert_allclose(learner.weights[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(learner.weights[0], state.averaged_weights[0])


def test_learning_curve_scores_every_five_epochs_and_the_last(run, single_views):
    calls = []
    curve = LearningCurve(single_views, np.arange(10), lambda title, history: calls.append((title, history)))
    _, state = run([WeightAverage(0.9), curve])
    assert [point.epoch for point in state.history] == [5, 7]
    assert state.history[0].loss == pytest.approx(np.mean([1 / n for n in range(1, 11)]))
    assert state.history[1].loss == pytest.approx(np.mean([1 / n for n in range(11, 15)]))
    assert all(0 <= point.held_out_accuracy <= 1 for point in state.history)
    assert calls == [("test", state.history[:1]), ("test", state.history)]


def test_learning_curve_leaves_the_weights_in_training(run, single_views):
    with_curve, without = Recorder(), Recorder()
    run([WeightAverage(0.9), LearningCurve(single_views, np.arange(10)), with_curve])
    run([WeightAverage(0.9), without])
    np.testing.assert_array_equal(with_curve.weights, without.weights)


class Kill(Callback):
    def on_epoch_end(self, state):
        if state.n_epochs_done == 6:
            raise KeyboardInterrupt


def test_checkpoint_of_killed_fit_resumes_to_the_same_end(run, single_views, tmp_path):
    def callbacks(path):
        return [WeightAverage(0.9), LearningCurve(single_views, np.arange(10)), Checkpoint(path)]

    whole, expected = run(callbacks(tmp_path / "whole.safetensors"))
    killed = tmp_path / "killed.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run([*callbacks(killed), Kill()])
    resumed = LinearLearner()
    resumed.n_steps = 10  # so that its losses continue
    recorder = Recorder()
    _, state = run([*callbacks(killed), recorder], learner=resumed)
    assert recorder.events[0] == ("start", 5), "the checkpoint of the fifth epoch"
    np.testing.assert_array_equal(resumed.weights[0], whole.weights[0])
    np.testing.assert_array_equal(resumed.optimizer_state[0], whole.optimizer_state[0])
    assert state.history == expected.history


def test_checkpoint_of_finished_fit_restores_its_end(run, tmp_path):
    callbacks = [WeightAverage(0.9), Checkpoint(tmp_path / "fit.safetensors")]
    whole, _ = run(callbacks)
    restored, state = run(callbacks)
    assert restored.n_steps == 0 and state.n_epochs_done == 7 and state.history == []
    np.testing.assert_array_equal(restored.weights[0], whole.weights[0])


def test_checkpoint_leaves_no_partial_file(run, tmp_path):
    run([WeightAverage(0.9), Checkpoint(tmp_path / "fit.safetensors")])
    assert [path.name for path in tmp_path.iterdir()] == ["fit.safetensors"]


def test_progress_bar_shows_title_epochs_and_loss(run, capsys):
    run([ProgressBar()])
    error = capsys.readouterr().err
    assert "test: 100%" in error and "7/7" in error and "loss=0.074" in error


def test_one_cycle_rises_to_the_peak_and_falls_to_nearly_zero():
    rates = [one_cycle(progress, RECIPE) for progress in np.linspace(0, 1, 101)]
    peak = int(np.argmax(rates))
    assert peak == 15 and rates[peak] == pytest.approx(RECIPE.learning_rate)
    assert rates[0] == pytest.approx(RECIPE.learning_rate / 25)
    assert rates[-1] == pytest.approx(RECIPE.learning_rate / 1e4)
    assert (np.diff(rates[:16]) > 0).all() and (np.diff(rates[15:]) < 0).all()


def test_epoch_metrics_survive_a_checkpoint_unchanged(run, single_views, tmp_path):
    callbacks = [
        WeightAverage(0.9),
        LearningCurve(single_views, np.arange(10)),
        Checkpoint(tmp_path / "fit.safetensors"),
    ]
    history = run(callbacks)[1].history
    restored = run(callbacks)[1].history
    assert restored == history and all(isinstance(point, EpochMetrics) for point in restored)


def test_check_same_run_says_whether_a_run_is_resumed_and_what_differs(tmp_path):
    path = tmp_path / "run.json"
    settings = {"seed": 1, "strides": (2, 1), "data": {"n": 3}}
    assert check_same_run(path, settings) is False
    assert check_same_run(path, settings) is True
    with pytest.raises(InvalidData, match="holds checkpoints of a run with another seed, data"):
        check_same_run(path, {**settings, "seed": 2, "data": {"n": 4}})
    assert check_same_run(path, settings) is True, "the settings of the run are kept"


def test_fit_smooths_targets_and_repeats_images(run, single_views):
    seen = []

    class Spy(LinearLearner):
        def step(self, features, targets, learning_rate, dropout_seed):
            seen.append(targets)
            return super().step(features, targets, learning_rate, dropout_seed)

    recipe = replace(RECIPE, epochs=1, batch_size=4, label_smoothing=0.1)
    targets = np.eye(10, dtype=np.float32)
    fit(Spy(), lambda i, rng: single_views[i], targets, np.array([2, 2, 2, 7]), recipe, 0, [], "test")
    [batch] = seen
    assert sorted(batch.argmax(axis=1)) == [2, 2, 2, 7] and batch.dtype == np.float32
    np.testing.assert_allclose(np.sort(batch, axis=1), [[0.01] * 9 + [0.91]] * 4, atol=1e-6)
