"""The training loop, which no framework enters; see `fracture_lib.training.learner`.

On one kind of CPU, a fit repeats bit for bit, and a killed one resumes from its last checkpoint with the same
result: every epoch draws its random numbers from (seed, epoch) alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fracture_lib.training.callbacks import Callback, FitState
from fracture_lib.training.learner import Learner
from fracture_lib.training.recipes import Recipe, one_cycle
from fracture_lib.training.sampling import Sampler

__all__ = ["fit"]


def fit(
    learner: Learner,
    sample: Sampler,
    targets: NDArray[np.float32],
    indices: NDArray[np.int64],
    recipe: Recipe,
    seed: int,
    callbacks: Sequence[Callback],
    title: str,
) -> FitState:
    """Train on the images `indices` [M] of those that `targets` [N, K] and `sample` know; some may repeat."""
    state = FitState(title, learner, recipe.epochs)
    targets = targets + recipe.label_smoothing * (1 / targets.shape[1] - targets)
    batch_size = min(recipe.batch_size, len(indices))
    n_steps = len(indices) // batch_size  # the remainder waits for the next epoch's order

    for callback in callbacks:
        callback.on_fit_start(state)  # a checkpoint moves `n_epochs_done`
    for epoch in range(state.n_epochs_done, recipe.epochs):
        rng = np.random.default_rng((seed, epoch))  # so a resumed fit repeats an uninterrupted one
        order = rng.permutation(indices)
        state.losses = []
        for step in range(n_steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            learning_rate = one_cycle((epoch + step / n_steps) / recipe.epochs, recipe)
            dropout_seed = int(rng.integers(2**31))
            features = sample(batch, rng)  # [B, ...], one random view per image
            state.losses.append(learner.step(features, targets[batch], learning_rate, dropout_seed))
        state.n_epochs_done = epoch + 1
        for callback in callbacks:
            callback.on_epoch_end(state)
    for callback in callbacks:
        callback.on_fit_end(state)
    return state
