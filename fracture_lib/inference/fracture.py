"""Whether a fracture is visible: what the fracture detector's output means for people."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracture_lib.io.views import LETTERBOX, project_maps
from fracture_lib.models.detector import DetectorOutput, sigmoid
from fracture_lib.models.report import DetectorReport, DetectorThresholds

__all__ = [
    "DETECTOR_NOTE",
    "FractureResult",
    "Outcome",
    "project_heatmap",
    "to_fracture_result",
    "to_outcome",
]

# A fracture is visible; it is uncertain; the detector sees none.
Outcome: TypeAlias = Literal["visible", "uncertain", "none"]

DETECTOR_NOTE = (
    "The types assume a fracture; a separate detector estimates whether one is visible, and it misses some."
)


@dataclass(frozen=True)
class FractureResult:
    """What the fracture detector sees in one image."""

    outcome: Outcome
    probability: float  # of a visible fracture, calibrated
    # float32 [32, 32] over the whole image: the probability of a fracture at each place, not calibrated
    heatmap: NDArray[np.float32] = field(compare=False, repr=False)
    # Share of fractured images with the outcome "none", in the source where it is highest; None: not measured
    missed: float | None

    @property
    def message(self) -> str:
        """One sentence to show people."""
        percent = f"{100 * self.probability:.0f} %"
        probability = f"probability {percent if percent != '100 %' else 'over 99 %'}"
        if self.outcome == "visible":
            return f"The detector sees a fracture ({probability})."
        if self.outcome == "uncertain":
            return f"The detector is not sure whether there is a fracture ({probability})."
        missed = "some" if self.missed is None else f"about {max(1, round(100 * self.missed))} % of"
        return f"The detector sees no fracture, but it misses {missed} fractures; the type may mean nothing."

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the map."""
        return {"outcome": self.outcome, "probability": self.probability, "message": self.message}


def to_fracture_result(
    output: DetectorOutput, report: DetectorReport, shape: tuple[int, int]
) -> FractureResult:
    """Return the result for an image [H, W] without flat borders."""
    return FractureResult(
        to_outcome(output.probability, report.thresholds),
        output.probability,
        project_heatmap(output.heatmap, shape),
        report.highest_missed,
    )


def to_outcome(probability: float, thresholds: DetectorThresholds) -> Outcome:
    """Return the outcome for a calibrated probability in 0..1."""
    if probability >= thresholds.visible:
        return "visible"
    return "none" if probability < thresholds.none else "uncertain"


def project_heatmap(heatmap: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return probabilities [32, 32] over an image [H, W] for logits [1, 16, 16] over its letterbox view."""
    places = np.stack([sigmoid(heatmap[0]), np.ones_like(heatmap[0])])
    # `project_maps` keeps sums, so dense cells count for more; the second map undoes this.
    projected, density = project_maps(places[None].astype(np.float32), shape, (LETTERBOX,))
    return np.clip(projected / density, 0, 1)
