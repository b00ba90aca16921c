"""evaluation.json: what was measured about a model or the out-of-distribution detector.

The only module that knows the file's keys: the fields of these records. `fracture_lib.evaluation` fills
them; the page, the cards and the command line read them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fracture_lib.errors import InvalidModel
from fracture_lib.models.json_files import decode, read_json, write_json

__all__ = [
    "CalibrationBin",
    "ClassMetrics",
    "ClassificationReport",
    "ConformalSets",
    "DataSummary",
    "DetectionRate",
    "EpochMetrics",
    "EvaluationReport",
    "Interval",
    "OODReport",
    "OODThresholds",
    "SelectiveRisk",
    "TrainingSummary",
    "read_accuracy",
]

EVALUATION_FILE = "evaluation.json"
METRICS_IN_PERCENT = {"accuracy", "top3_accuracy", "macro_f1", "balanced_accuracy"}


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    def percent(self) -> str:
        """Return "31.2 % (28.0 to 34.5)" for values in 0..1."""
        return self._format(100, 1, " %")

    def plain(self) -> str:
        """Return "0.035 (0.032 to 0.079)"."""
        return self._format(1, 3, "")

    def _format(self, factor: int, digits: int, unit: str) -> str:
        if self.value is None:
            return "undefined"
        text = f"{factor * self.value:.{digits}f}{unit}"
        if self.low is None or self.high is None:
            return text
        return f"{text} ({factor * self.low:.{digits}f} to {factor * self.high:.{digits}f})"


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest; None where a value is undefined."""

    label: str
    n: int  # images of this class
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence lies in one of 15 equal bins."""

    confidence: float  # mean in the bin
    accuracy: float
    n: int
    low: float  # 95 % interval of the accuracy
    high: float


@dataclass(frozen=True)
class SelectiveRisk:
    """Accuracy if only the most confident images are answered."""

    risk_coverage: list[tuple[float, float]]  # (share answered, share of wrong answers among them)
    accuracy_at: dict[str, Interval]  # by coverage: "0.5", "0.8", "1.0"


@dataclass(frozen=True)
class ConformalSets:
    """Sets of classes that contain the true one at the rate `level`."""

    level: float
    coverage: Interval
    mean_size: Interval
    threshold: float  # smallest probability of a class in the set


@dataclass(frozen=True)
class DataSummary:
    """The images behind a report."""

    n_images: int
    grouped_by: str  # "source_group", "perceptual hash" or both
    fingerprint: str  # sha256 over contents and labels
    split: str | None = None
    hub: str | None = None  # the Hub dataset that they came from


@dataclass(frozen=True)
class EpochMetrics:
    """One point of a training curve: means over the measured folds."""

    epoch: int
    loss: float
    held_out_accuracy: float


@dataclass(frozen=True)
class TrainingSummary:
    """How the weights were trained."""

    n_folds: int
    n_measured_folds: int
    pretrained: str | None  # where training started from
    stored_probability_change: float  # largest change in probability by saving the weights
    history: list[EpochMetrics]


@dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """How well probabilities fit labels."""

    n: int
    n_groups: int
    interval: str  # the kind of the intervals, in words
    metrics: dict[str, Interval]
    per_class: list[ClassMetrics]
    confusion_matrix: list[list[int]]  # rows: true class, columns: predicted class


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(ClassificationReport):
    """The content of a model's evaluation.json."""

    model: str
    protocol: str  # how the images were scored, in words
    calibration: list[CalibrationBin] | None = None
    selective_risk: SelectiveRisk | None = None
    conformal: ConformalSets | None = None
    robustness: dict[str, Interval] | None = None  # accuracy by perturbation
    data: DataSummary | None = None
    training: TrainingSummary | None = None
    # An ensemble's, to serve and to compare
    members: list[str] | None = None
    weights: dict[str, float] | None = None
    temperature: float | None = None
    minus_equal_weights: dict[str, Interval] | None = None
    # A single evaluation's
    source: str | None = None
    runtime: str | None = None
    deduplicated: "EvaluationReport | None" = None  # without near-duplicates of training images
    test: "EvaluationReport | None" = None  # on the test split; None until it is scored

    @property
    def accuracy(self) -> Interval:
        return self.metrics["accuracy"]

    def format_metric(self, name: str) -> str:
        """Return a metric with its interval, in per cent if it is a share."""
        interval = self.metrics[name]
        return interval.percent() if name in METRICS_IN_PERCENT else interval.plain()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str = EVALUATION_FILE) -> "EvaluationReport":
        """Build a report from parsed JSON. Raises InvalidModel, which cites `name` and the key."""
        report = decode(cls, content, name)
        if "accuracy" not in report.metrics:
            raise InvalidModel(f"{name}: metrics lacks accuracy; train the model again.")
        return report

    @classmethod
    def read(cls, folder: Path) -> "EvaluationReport":
        """Read evaluation.json of a model folder. Raises InvalidModel."""
        return cls.from_dict(read_json(folder / EVALUATION_FILE), f"{folder.name}/{EVALUATION_FILE}")

    def write(self, folder: Path) -> None:
        """Write evaluation.json into a model folder."""
        write_json(folder / EVALUATION_FILE, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the fields that do not apply."""
        nested = {"deduplicated": self.deduplicated, "test": self.test}
        content = {k: v for k, v in asdict(self).items() if v is not None and k not in nested}
        content |= {key: report.to_dict() for key, report in nested.items() if report}
        return {"model": self.model, "protocol": self.protocol, **content}  # these two first


def read_accuracy(data: bytes) -> Interval | None:
    """Return the accuracy in the bytes of an evaluation.json, of any version; None if there is none."""
    try:
        return decode(Interval, json.loads(data)["metrics"]["accuracy"], EVALUATION_FILE)
    except (ValueError, KeyError, TypeError, InvalidModel):
        return None


@dataclass(frozen=True)
class OODThresholds:
    """The largest values of an image in distribution."""

    score: float
    colorfulness: float


@dataclass(frozen=True)
class DetectionRate(Interval):
    """The share of n images that were detected as out of distribution."""

    n: int


@dataclass(frozen=True)
class OODReport:
    """The content of the out-of-distribution detector's evaluation.json."""

    protocol: str  # how the images were scored, in words
    thresholds: OODThresholds
    n: int
    n_groups: int
    false_rejection: Interval  # share of X-rays that are rejected
    detection: dict[str, DetectionRate]  # by kind of other images

    @classmethod
    def read(cls, folder: Path) -> "OODReport":
        """Read evaluation.json of the detector's folder. Raises InvalidModel."""
        return decode(cls, read_json(folder / EVALUATION_FILE), f"{folder.name}/{EVALUATION_FILE}")

    def write(self, folder: Path) -> None:
        """Write evaluation.json into the detector's folder."""
        write_json(folder / EVALUATION_FILE, asdict(self))
