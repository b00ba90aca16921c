"""The fracture detector: pixels in, the probability of a visible fracture and a map of its place out.

ONNX Runtime serves its graph: input `pixel_values` [N, 1, 256, 256]; outputs `logits` [N, 1], `heatmap`
[N, 16, 16] and `embedding` [N, 512]. `fracture_lib.training.detector` trains it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from fracture_lib.errors import ModelUnavailable
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import DetectorReport
from fracture_lib.registry import DETECTOR

__all__ = ["OUTPUTS", "Detector", "DetectorOutput", "read_detector", "sigmoid"]

OUTPUTS = ("logits", "heatmap", "embedding")


@dataclass(frozen=True)
class DetectorOutput:
    """One forward pass on one image."""

    logit: float
    probability: float  # of a visible fracture, calibrated
    heatmap: NDArray[np.float32]  # [1, 16, 16], the logit of a fracture at each place
    embedding: NDArray[np.float32]  # [512], pooled features
    milliseconds: float


class Detector:
    """The loaded detector. Build it with `read_detector`."""

    def __init__(
        self,
        folder: Path,
        report: DetectorReport,
        network: Callable[[NDArray[np.float32]], list[NDArray[np.float32]]],
    ) -> None:
        self.folder = folder
        self.report = report
        self._network = network

    def forward(self, pixels: NDArray[np.float32]) -> DetectorOutput:
        """Run on the letterbox view of one image, float32 [1, 1, 256, 256] in 0..1.

        Raises ModelUnavailable.
        """
        start = perf_counter()
        logits, heatmap, embedding = self._network(pixels)
        milliseconds = 1000 * (perf_counter() - start)
        logit = float(logits[0, 0])
        probability = float(sigmoid(self.report.slope * logit + self.report.intercept))
        return DetectorOutput(logit, probability, heatmap, embedding[0], milliseconds)

    @cached_property
    def size_bytes(self) -> int:
        return (self.folder / "model.onnx").stat().st_size


def read_detector(folder: Path = BUNDLE / DETECTOR) -> Detector:
    """Load the detector of a folder. Raises InvalidModel."""
    # Imported here, as importing the library must import nothing heavy.
    from fracture_lib.models.onnx import INPUT, open_session

    report = DetectorReport.read(folder)
    session = open_session(folder / "model.onnx")

    def network(pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        try:
            outputs: list[NDArray[np.float32]] = session.run(OUTPUTS, {INPUT: pixels})
        except Exception as error:  # out of memory, or a graph with another signature
            raise ModelUnavailable(f"{folder.name} failed to run: {error}") from error
        return outputs

    return Detector(folder, report, network)


def sigmoid(x: NDArray[np.floating] | float) -> NDArray[np.floating]:
    """Return 1 / (1 + exp(-x)), without an overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x)))
