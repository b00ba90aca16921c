"""The tab about the models and the fracture detector: measured performance, plots and model cards."""

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import gradio as gr
from gradio.blocks import Block

from fracture_lib.errors import FractureError
from fracture_lib.hub import BUNDLE
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.models.model import BaseModel
from fracture_lib.models.report import (
    ClassMetrics,
    DetectorReport,
    EvaluationReport,
    Interval,
    Localization,
    OutcomeRates,
)
from fracture_lib.registry import ALL_MODELS, DETECTOR, ENSEMBLE_MEMBERS, MODELS, model_title
from fracture_lib.webui.rendering import Cell, percent, render_message, render_table

__all__ = ["ModelsTab"]

logger = logging.getLogger(__name__)

Updates: TypeAlias = dict[Block, Any]

UNMEASURED = Interval(None, None, None)
NOTHING = ("", -1.0)  # an empty cell, sorted below every value

INTRODUCTION = (
    "Measured on images that were held out from training, with all images of one patient or figure on the "
    "same side of every split. Hover over a plot for its numbers."
)
ACCURACY_COLUMNS = [
    "Model",
    "Held out (95 % interval)",
    "Held out, fast",
    "Train",
    "Test",
    "Test without near-duplicates",
    "Original project (different split)",
]
ACCURACY_CAPTION = (
    'Accuracy: "held out" on images that took no part in training, "fast" from one view of each, "train" on '
    "the images that the published weights were trained on."
)
COLUMNS = [
    "Model",
    "Macro-F1 (95 % interval)",
    "Top-3 accuracy",
    "Calibration error",
    "Calibration error, fast",
    "n",
    "MB",
]
CLASS_COLUMNS = ["Class", "Images", "Precision", "Recall (95 % interval)", "F1", "AUROC"]
DETECTOR_METRICS = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "sensitivity_at_90_specificity": "Sensitivity at 90 % specificity",
    "specificity_at_95_sensitivity": "Specificity at 95 % sensitivity",
    "expected_calibration_error": "Calibration error",
}
OUTCOME_COLUMNS = ["n", "Fracture visible", "Uncertain", "No fracture seen"]
EXTERNAL_CAPTION = (
    "X-rays from another source (Bone Break), which all show a fracture and were never trained on: "
    '"no fracture seen" is a miss.'
)
LOCALIZATION_COLUMNS = {
    "Hottest place in a box": "pointing",
    "Hottest place: center": "pointing_center",
    "Hottest place: random": "pointing_random",
    "Heat in the boxes": "inside",
    "Heat: center": "inside_center",
    "Heat: random": "inside_random",
}
LOCALIZATION_CAPTION = (
    "How often a map's hottest place lies in or beside a radiologist's box around a fracture, and the share "
    "of its heat in the boxes, next to what the center of the image and a random place achieve."
)
NO_CARD = (
    f"The ensemble is the weighted mean of {len(ENSEMBLE_MEMBERS)} models' calibrated probabilities. It has "
    "no model card of its own."
)


class _PlotBox:
    """A plot under a heading; both are hidden if there is nothing to plot."""

    def __init__(self, heading: str) -> None:
        with gr.Column(min_width=300) as self.column:
            gr.Markdown(f"### {heading}")  # the component's own label would cover the figure
            self.plot = gr.Plot(show_label=False)

    def update(self, figure: object | None) -> Updates:
        return {self.column: gr.update(visible=figure is not None), self.plot: figure}


class ModelsTab:
    """The components and handlers of `tab`, in the current Blocks; plots are drawn when it is opened."""

    def __init__(self, tab: gr.Tab, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline
        gr.Markdown(INTRODUCTION)
        self.errors = gr.HTML(elem_id="model-errors")
        self.overview = gr.HTML()
        with gr.Row():
            self.accuracy = _PlotBox("Accuracy compared with the original project")
            self.coverage = _PlotBox("Accuracy vs. coverage")
        choices = [(model_title(name), name) for name in ALL_MODELS]
        self.choice = gr.Radio(choices, value=ALL_MODELS[0], label="Model", elem_id="model-details")
        with gr.Row():
            self.confusion = _PlotBox("Confusion matrix")
            self.calibration = _PlotBox("Calibration")
            self.training = _PlotBox("Training curves")
        self.classes = gr.HTML(elem_id="class-metrics")
        with gr.Accordion("Model card", open=False):
            self.card = gr.Markdown()
        gr.Markdown(f"### {model_title(DETECTOR)}")
        self.detector = gr.HTML(elem_id="detector-metrics")

        details = [*_blocks(self.confusion, self.calibration, self.training), self.classes, self.card]
        overall = [self.errors, self.overview, *_blocks(self.accuracy, self.coverage), self.detector]
        tab.select(self.show_all, self.choice, [*overall, *details], api_visibility="private")
        self.choice.input(self.show_model, self.choice, details, api_visibility="private")

    def show_all(self, name: str) -> Updates:
        """Show all models, the details of the model `name`, and the fracture detector.

        A model that cannot be shown gets a message.
        """
        plots = import_module("fracture_lib.webui.plots")  # Plotly, only once somebody opens the tab
        accuracies: list[list[Cell]] = []
        rows: list[list[Cell]] = []
        reports: list[EvaluationReport] = []
        errors = ""
        for each in ALL_MODELS:
            try:
                model = self._pipeline.get_model(each)
                accuracy, row = _accuracy_row(each, model), _overview_row(model)
                # One that cannot be drawn must not spoil the plots of all.
                plots.accuracy_bars([model.report])
                plots.accuracy_coverage([model.report])
            except Exception as error:  # a report from elsewhere may hold anything
                errors += _render_unavailable(each, error)
            else:
                accuracies.append(accuracy)
                rows.append(row)
                reports.append(model.report)
        return {
            self.errors: errors,
            self.overview: (
                _render_known(ACCURACY_COLUMNS, accuracies, ACCURACY_CAPTION)
                + _render_known(COLUMNS, rows, "All models, held out")
            ),
            **self.accuracy.update(plots.accuracy_bars(reports)),
            **self.coverage.update(plots.accuracy_coverage(reports)),
            **self.show_detector(),
            **self.show_model(name),
        }

    def show_model(self, name: str) -> Updates:
        """Show the details of one model, or why it cannot be shown."""
        plots = import_module("fracture_lib.webui.plots")
        try:
            model = self._pipeline.get_model(name)
            return {
                **self.confusion.update(plots.confusion_matrix(model.report)),
                **self.calibration.update(plots.calibration(model.report)),
                **self.training.update(plots.training_curves(model.report)),
                self.classes: _class_table(model.report.per_class, model_title(name)),
                self.card: _read_card(model) or NO_CARD,
            }
        except Exception as error:  # as above
            boxes = (self.confusion, self.calibration, self.training)
            hidden = {block: update for box in boxes for block, update in box.update(None).items()}
            return {**hidden, self.classes: _render_unavailable(name, error), self.card: ""}

    def show_detector(self) -> Updates:
        """Show what was measured about the fracture detector, or why it cannot be shown."""
        try:
            return {self.detector: _detector_tables(DetectorReport.read(BUNDLE / DETECTOR))}
        except Exception as error:  # as above
            return {self.detector: _render_unavailable(DETECTOR, error)}


def _render_unavailable(name: str, error: Exception) -> str:
    reason = str(error)
    if not isinstance(error, FractureError):
        logger.error("The report of %s cannot be shown: %r", name, error)
        reason = "Its evaluation.json is incomplete; measure it again."
    return render_message(f"{model_title(name)} is unavailable. {reason}", "error")


def _blocks(*boxes: _PlotBox) -> list[Block]:
    return [block for box in boxes for block in (box.column, box.plot)]


def _accuracy_row(name: str, model: BaseModel) -> list[Cell]:
    report = model.report
    fast = (report.by_views or {}).get("1")
    train = report.training.train_accuracy if report.training else None
    test = report.test
    deduplicated = test.deduplicated if test else None
    reference = MODELS[name].reference_accuracy if name in MODELS else None
    return [
        model.info.title,
        _interval(report.accuracy),
        _interval(fast),
        _percent(train, 1),
        _interval(test.accuracy if test else None),
        _interval(deduplicated.accuracy if deduplicated else None),
        _percent(reference, 2),
    ]


def _overview_row(model: BaseModel) -> list[Cell]:
    metrics = model.report.metrics
    fast = (model.report.by_views or {}).get("1")
    return [
        model.info.title,
        *(_interval(metrics.get(key, UNMEASURED)) for key in ("macro_f1", "top3_accuracy")),
        _number(metrics.get("expected_calibration_error", UNMEASURED).value),
        _number(fast.expected_calibration_error if fast else None),
        model.report.n,
        (f"{model.info.size_bytes / 1e6:.1f}", model.info.size_bytes),
    ]


def _class_table(per_class: list[ClassMetrics], title: str) -> str:
    rows: list[list[Cell]] = [
        [c.label, c.n, _number(c.precision), _recall(c), _number(c.f1), _number(c.auroc)] for c in per_class
    ]
    return render_table(CLASS_COLUMNS, rows, f"{title}, by class")


def _recall(metrics: ClassMetrics) -> Cell:
    text, value = _number(metrics.recall)
    return (metrics.recall_interval.plain() if metrics.recall_interval else text), value


def _detector_tables(report: DetectorReport) -> str:
    images = (
        f"{report.n} X-rays of FracAtlas, {report.n_fractured} of them fractured, held out from training."
    )
    missed = (
        "The three outcomes on these X-rays: the detector sees no fracture in "
        f"{report.missed.percent()} of those with one."
    )
    return "".join(
        (
            render_table(["Metric", "Value (95 % interval)"], _detector_rows(report.metrics), images),
            _outcome_table("FracAtlas", report.outcomes, missed),
            _outcome_table("Class", report.external, EXTERNAL_CAPTION),
            _localization_table(report.localization),
        )
    )


def _detector_rows(metrics: Mapping[str, Interval]) -> list[list[Cell]]:
    values = [(title, metrics.get(key, UNMEASURED)) for key, title in DETECTOR_METRICS.items()]
    return [[title, (value.plain(), _sort_value(value.value))] for title, value in values]


def _outcome_table(title: str, rates: Mapping[str, OutcomeRates], caption: str) -> str:
    rows: list[list[Cell]] = [
        [name, r.n, *(_percent(share, 1) for share in (r.visible, r.uncertain, r.none))]
        for name, r in rates.items()
    ]
    return render_table([title, *OUTCOME_COLUMNS], rows, caption) if rows else ""


def _localization_table(localization: Mapping[str, Localization]) -> str:
    rows: list[list[Cell]] = [
        [
            model_title(name),
            values.n,
            *(_interval(getattr(values, key)) for key in LOCALIZATION_COLUMNS.values()),
        ]
        for name, values in localization.items()
    ]
    return render_table(["Map", "n", *LOCALIZATION_COLUMNS], rows, LOCALIZATION_CAPTION) if rows else ""


def _render_known(columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> str:
    """Return a table without the columns that are empty for every model; nothing without rows."""
    kept = [i for i in range(len(columns)) if any(row[i] != NOTHING for row in rows)]
    if not kept:
        return ""
    return render_table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], caption)


def _interval(interval: Interval | None) -> Cell:
    return (interval.percent(), _sort_value(interval.value)) if interval else NOTHING


def _number(value: float | None) -> tuple[str, float]:
    return NOTHING if value is None else (f"{value:.3f}", value)


def _percent(share: float | None, digits: int) -> Cell:
    return NOTHING if share is None else (percent(share, digits), share)


def _sort_value(value: float | None) -> float:
    return -1 if value is None else value


def _read_card(model: BaseModel) -> str:
    """Return the text of a model's card without its metadata, or nothing if it has none."""
    path = model.source.folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.split("---\n", 2)[-1]
