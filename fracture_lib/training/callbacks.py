"""What happens around the training loop: averaging, scoring, checkpoints and the progress bar.

The order matters: an average is restored after it was initialized, and saved after it was updated.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from fracture_lib.errors import InvalidData
from fracture_lib.models.json_files import read_json, write_json
from fracture_lib.models.report import EpochMetrics
from fracture_lib.training.learner import Learner, compute_logits

__all__ = [
    "Callback",
    "Checkpoint",
    "FitState",
    "LearningCurve",
    "LiveCurve",
    "ProgressBar",
    "WeightAverage",
    "check_same_run",
]

MILESTONE_EPOCHS = 5  # between scores on held-out images, and between checkpoints

LiveCurve: TypeAlias = Callable[[str, list[EpochMetrics]], None]  # called with a fit's title and curve

_logger = logging.getLogger(__name__)


@dataclass
class FitState:
    """One fit in progress, shared by the loop and its callbacks."""

    title: str
    learner: Learner
    n_epochs: int
    n_epochs_done: int = 0
    losses: list[float] = field(default_factory=list)  # of the last epoch's steps
    averaged_weights: list[NDArray[Any]] = field(default_factory=list)
    history: list[EpochMetrics] = field(default_factory=list)

    @property
    def is_milestone(self) -> bool:
        return self.n_epochs_done % MILESTONE_EPOCHS == 0 or self.n_epochs_done == self.n_epochs


class Callback:
    """Hooks of `trainer.fit`, called in the order of the callbacks; each does nothing by default."""

    def on_fit_start(self, state: FitState) -> None:
        """Before the first epoch."""

    def on_epoch_end(self, state: FitState) -> None:
        """After each epoch; `state.n_epochs_done` counts it."""

    def on_fit_end(self, state: FitState) -> None:
        """After the last epoch."""


class WeightAverage(Callback):
    """Keep an exponential moving average of the weights, per epoch, and end the fit with it.

    In the first epochs, whose weights would otherwise count too much, the decay is lower: that of
    tf.train.ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def on_fit_start(self, state: FitState) -> None:
        state.averaged_weights = state.learner.get_weights()

    def on_epoch_end(self, state: FitState) -> None:
        decay = min(self.decay, state.n_epochs_done / (9 + state.n_epochs_done))
        state.averaged_weights = [
            (decay * average + (1 - decay) * weight).astype(weight.dtype)
            if weight.dtype.kind == "f"
            else weight  # a counter
            for average, weight in zip(state.averaged_weights, state.learner.get_weights(), strict=True)
        ]

    def on_fit_end(self, state: FitState) -> None:
        state.learner.set_weights(state.averaged_weights)


class LearningCurve(Callback):
    """Score the averaged weights on held-out images at every milestone, for the curve alone.

    `features` and `labels` [M] are those of the M held-out images; `live_curve` gets the curve so far.
    """

    def __init__(
        self,
        features: Iterable[NDArray[np.float32]],  # iterated once for each milestone
        labels: NDArray[np.int64],
        live_curve: LiveCurve | None = None,
    ) -> None:
        self.features = features
        self.labels = labels
        self.live_curve = live_curve
        self.losses: list[float] = []  # since the last milestone

    def on_epoch_end(self, state: FitState) -> None:
        self.losses += state.losses
        if not state.is_milestone:
            return
        weights = state.learner.get_weights()
        state.learner.set_weights(state.averaged_weights)
        y_pred = compute_logits(state.learner.logits, self.features).argmax(axis=1)
        state.learner.set_weights(weights)
        accuracy = float((y_pred == self.labels).mean())
        state.history.append(EpochMetrics(state.n_epochs_done, float(np.mean(self.losses)), accuracy))
        self.losses = []
        if self.live_curve:
            self.live_curve(state.title, list(state.history))


class Checkpoint(Callback):
    """Save the fit to a file at every milestone and resume it from there.

    A checkpoint can be read by the version of this library that wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, state: FitState) -> None:
        if not self.path.exists():
            return
        with safe_open(self.path, "np") as file:
            progress = json.loads(file.metadata()["progress"])

            def read(part: str) -> list[NDArray[Any]]:
                return [file.get_tensor(f"{part}.{i}") for i in range(progress["n_arrays"][part])]

            state.learner.set_weights(read("weights"))
            state.learner.set_optimizer_state(read("optimizer"))
            state.averaged_weights = read("average")
        state.n_epochs_done = progress["n_epochs_done"]
        state.history = [EpochMetrics(**metrics) for metrics in progress["history"]]
        _logger.info("Resuming %s after epoch %d.", state.title, state.n_epochs_done)

    def on_epoch_end(self, state: FitState) -> None:
        if not state.is_milestone:
            return
        parts = {
            "weights": state.learner.get_weights(),
            "optimizer": state.learner.get_optimizer_state(),
            "average": state.averaged_weights,
        }
        progress = {
            "n_epochs_done": state.n_epochs_done,
            "n_arrays": {part: len(arrays) for part, arrays in parts.items()},
            "history": [asdict(metrics) for metrics in state.history],
        }
        tensors = {f"{part}.{i}": array for part, arrays in parts.items() for i, array in enumerate(arrays)}
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"progress": json.dumps(progress)})
        partial.replace(self.path)  # a kill while writing leaves the old checkpoint intact


def check_same_run(path: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a run that wrote its settings to the file `path` is resumed; write them otherwise.

    Raises InvalidData if that run, whose checkpoints lie beside the file, had other settings.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if path.exists():
        previous = read_json(path)
        if changed := [key for key in settings if previous.get(key) != settings[key]]:
            raise InvalidData(
                f"{path.parent} holds checkpoints of a run with another {', '.join(changed)}. "
                "Choose another output folder or delete them."
            )
        return True
    write_json(path, settings)
    return False


class ProgressBar(Callback):
    """Show the epochs that are done and the mean loss of the last one."""

    def on_fit_start(self, state: FitState) -> None:
        self._bar = tqdm(desc=state.title, unit="epoch", total=state.n_epochs, initial=state.n_epochs_done)

    def on_epoch_end(self, state: FitState) -> None:
        self._bar.set_postfix(loss=f"{np.mean(state.losses):.3f}", refresh=False)
        self._bar.update()

    def on_fit_end(self, state: FitState) -> None:
        self._bar.close()
