"""evaluation.json: what was measured about a model or the out-of-distribution detector.

The only module that knows the file's keys: the fields of these records. `fracture_lib.evaluation` fills
them; the page, the cards and the command line read them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from fracture_lib.errors import InvalidModel
from fracture_lib.models.json_files import decode, read_json, write_json

__all__ = [
    "CalibrationBin",
    "ClassMetrics",
    "ClassificationReport",
    "ConformalSets",
    "DataSummary",
    "DetectionRate",
    "DetectorReport",
    "DetectorThresholds",
    "EpochMetrics",
    "EvaluationReport",
    "Interval",
    "Localization",
    "OODReport",
    "OODThresholds",
    "OutcomeRates",
    "SelectiveRisk",
    "SplitResult",
    "TrainingSummary",
    "ViewAccuracy",
    "read_headline",
    "store_test_result",
]

EVALUATION_FILE = "evaluation.json"
WEIGHTS_FILE = "model.onnx"  # whose checksum a test result carries
HEADLINES = {"accuracy": "accuracy", "auroc": "AUROC"}  # the metric that compares two models, and its title
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
    recall_interval: Interval | None = None  # None in files of older versions


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
    minutes: float | None = None  # of all folds and the run on all images
    train_accuracy: float | None = None  # of the published weights on the images that they are trained on


@dataclass(frozen=True)
class ViewAccuracy(Interval):
    """Accuracy if each image is answered from a number of its views."""

    expected_calibration_error: float | None


@dataclass(frozen=True)
class SplitResult:
    """How given weights score on a split that took no part in training."""

    n: int
    metrics: dict[str, Interval]
    protocol: str | None = None  # how the images were scored, in words
    checksum: str | None = None  # sha256 of the weights, by `store_test_result`
    deduplicated: "SplitResult | None" = None  # without near-duplicates of training images

    @property
    def accuracy(self) -> Interval:
        return self.metrics["accuracy"]


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
    by_views: dict[str, ViewAccuracy] | None = None  # by number of views: "1" (the fast setting), ...
    data: DataSummary | None = None
    training: TrainingSummary | None = None
    # An ensemble's, to serve and to compare
    members: list[str] | None = None
    weights: dict[str, float] | None = None
    temperature: float | None = None
    minus_equal_weights: dict[str, Interval] | None = None  # what fitting the weights adds, by metric
    minus_members: dict[str, dict[str, Interval]] | None = None  # what the ensemble adds to each member
    # A single evaluation's
    source: str | None = None
    runtime: str | None = None
    deduplicated: "EvaluationReport | None" = None  # without near-duplicates of training images
    test: SplitResult | None = None  # of these weights on the test split; None until it is scored

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
        """Read evaluation.json of a model folder, without a test result of other weights.

        Raises InvalidModel.
        """
        report = cls.from_dict(read_json(folder / EVALUATION_FILE), f"{folder.name}/{EVALUATION_FILE}")
        if report.test and report.test.checksum != _weights_checksum(folder, report):
            return replace(report, test=None)
        return report

    def write(self, folder: Path) -> None:
        """Write evaluation.json into a model folder."""
        write_json(folder / EVALUATION_FILE, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the fields that do not apply."""
        content = {k: v for k, v in asdict(self).items() if v is not None}
        if self.deduplicated:
            content["deduplicated"] = self.deduplicated.to_dict()
        return {"model": self.model, "protocol": self.protocol, **content}  # these two first


def store_test_result(folder: Path, test: SplitResult) -> None:
    """Store in evaluation.json how the weights in `folder` score on the test split.

    The result carries their checksum, and `EvaluationReport.read` leaves it out once the folder holds other
    weights. An ensemble's members are the folders beside its own. Raises InvalidModel, also if there are no
    weights.
    """
    report = EvaluationReport.read(folder)
    if (checksum := _weights_checksum(folder, report)) is None:
        raise InvalidModel(f"{folder.name} has no {WEIGHTS_FILE}, so it has no test result.")
    replace(report, test=replace(test, checksum=checksum)).write(folder)


def _weights_checksum(folder: Path, report: EvaluationReport) -> str | None:
    """Return the sha256 of a model's graph or, for an ensemble, of its weights and its members' graphs."""
    try:
        if not report.members:
            return _sha256(folder / WEIGHTS_FILE)
        graphs = [_sha256(folder.parent / name / WEIGHTS_FILE) for name in report.members]
        return hashlib.sha256(json.dumps([report.weights, graphs]).encode()).hexdigest()
    except FileNotFoundError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_headline(data: bytes) -> tuple[str, Interval] | None:
    """Return the title and value of the metric that compares models, from the bytes of an evaluation.json.

    The file may be of any version. None if it has no such metric.
    """
    try:
        metrics = json.loads(data)["metrics"]
        name = next(name for name in HEADLINES if name in metrics)
        return HEADLINES[name], decode(Interval, metrics[name], EVALUATION_FILE)
    except (ValueError, KeyError, TypeError, StopIteration, InvalidModel):
        return None


@dataclass(frozen=True)
class _Stored:
    """A report whose fields are all of its evaluation.json."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read evaluation.json of a detector's folder. Raises InvalidModel."""
        return decode(cls, read_json(folder / EVALUATION_FILE), f"{folder.name}/{EVALUATION_FILE}")

    def write(self, folder: Path) -> None:
        """Write evaluation.json into a detector's folder."""
        write_json(folder / EVALUATION_FILE, asdict(self))


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
class OODReport(_Stored):
    """The content of the out-of-distribution detector's evaluation.json."""

    protocol: str  # how the images were scored, in words
    thresholds: OODThresholds
    n: int
    n_groups: int
    false_rejection: Interval  # share of X-rays that are rejected
    detection: dict[str, DetectionRate]  # by kind of other images
    radiographs: DetectionRate | None = None  # share of another source's X-rays that are rejected


@dataclass(frozen=True)
class DetectorThresholds:
    """Limits of the calibrated probability of a fracture; in between it is uncertain."""

    visible: float  # at or above: "fracture visible"
    none: float  # below: "no fracture seen"


@dataclass(frozen=True)
class OutcomeRates:
    """The share of n images with each outcome; the three add up to 1."""

    n: int
    visible: float
    uncertain: float
    none: float


@dataclass(frozen=True)
class Localization:
    """A heatmap against the boxes of n fractured images, beside a centre prior and a random place."""

    n: int
    pointing: Interval  # share of images whose maximum lies in a box or beside one
    pointing_center: Interval
    pointing_random: Interval
    inside: Interval  # mean share of the heat that lies in the boxes
    inside_center: Interval
    inside_random: Interval


@dataclass(frozen=True)
class DetectorReport(_Stored):
    """The content of the fracture detector's evaluation.json."""

    protocol: str  # how the images were scored, in words
    n: int
    n_groups: int
    n_fractured: int
    # auroc, average_precision, sensitivity_at_90_specificity, specificity_at_95_sensitivity,
    # expected_calibration_error, brier, negative_log_likelihood
    metrics: dict[str, Interval]
    slope: float  # probability = sigmoid(slope * logit + intercept)
    intercept: float
    thresholds: DetectorThresholds
    outcomes: dict[str, OutcomeRates]  # of "fractured" and "not fractured" images, out of fold
    missed: Interval  # share of the fractured images with the outcome "none"
    external: dict[str, OutcomeRates]  # on another source, by class and "all"
    localization: dict[str, Localization]  # of the detector and of the type models
    data: DataSummary | None = None
    training_minutes: float | None = None

    @property
    def highest_missed(self) -> float | None:
        """Share of the fractured images with the outcome "none", out of fold or in the other source."""
        missed, elsewhere = self.missed.value, self.external.get("all")
        return missed if missed is None or elsewhere is None else max(missed, elsewhere.none)
