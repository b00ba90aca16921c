"""The tab about the models: measured performance, plots and model cards."""

import logging
from importlib import import_module
from typing import Any, TypeAlias

import gradio as gr
from gradio.blocks import Block

from fracture_lib.errors import FractureError
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.models.model import BaseModel
from fracture_lib.models.report import ClassMetrics, EvaluationReport, Interval
from fracture_lib.registry import ALL_MODELS, ENSEMBLE_MEMBERS, MODELS, model_title
from fracture_lib.webui.rendering import Cell, percent, render_message, render_table

__all__ = ["ModelsTab"]

logger = logging.getLogger(__name__)

Updates: TypeAlias = dict[Block, Any]

UNMEASURED = Interval(None, None, None)

INTRODUCTION = (
    "Measured on images that were held out from training, with all images of one patient or figure on the "
    "same side of every split. Hover over a plot for its numbers."
)
COLUMNS = [
    "Model",
    "Accuracy (95 % interval)",
    "Macro-F1",
    "Top-3 accuracy",
    "Calibration error",
    "n",
    "MB",
    "Original project (different split)",
]
CLASS_COLUMNS = ["Class", "Images", "Precision", "Recall", "F1", "AUROC"]
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
        self.classes = gr.HTML()
        with gr.Accordion("Model card", open=False):
            self.card = gr.Markdown()

        details = [*_blocks(self.confusion, self.calibration, self.training), self.classes, self.card]
        everything = [self.errors, self.overview, *_blocks(self.accuracy, self.coverage), *details]
        tab.select(self.show_all, self.choice, everything, api_visibility="private")
        self.choice.input(self.show_model, self.choice, details, api_visibility="private")

    def show_all(self, name: str) -> Updates:
        """Show all models, and the details of the model `name`; one that cannot be shown gets a message."""
        plots = import_module("fracture_lib.webui.plots")  # Plotly, only once somebody opens the tab
        rows: list[list[Cell]] = []
        reports: list[EvaluationReport] = []
        errors = ""
        for each in ALL_MODELS:
            try:
                model = self._pipeline.get_model(each)
                row = _overview_row(each, model)
                # One that cannot be drawn must not spoil the plots of all.
                plots.accuracy_bars([model.report])
                plots.accuracy_coverage([model.report])
            except Exception as error:  # a report from elsewhere may hold anything
                errors += _render_unavailable(each, error)
            else:
                rows.append(row)
                reports.append(model.report)
        return {
            self.errors: errors,
            self.overview: render_table(COLUMNS, rows, "All models, out of fold") if rows else "",
            **self.accuracy.update(plots.accuracy_bars(reports)),
            **self.coverage.update(plots.accuracy_coverage(reports)),
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


def _render_unavailable(name: str, error: Exception) -> str:
    reason = str(error)
    if not isinstance(error, FractureError):
        logger.error("The report of %s cannot be shown: %r", name, error)
        reason = "Its evaluation.json is incomplete; measure it again."
    return render_message(f"{model_title(name)} is unavailable. {reason}", "error")


def _blocks(*boxes: _PlotBox) -> list[Block]:
    return [block for box in boxes for block in (box.column, box.plot)]


def _overview_row(name: str, model: BaseModel) -> list[Cell]:
    metrics = model.report.metrics
    reference = MODELS[name].reference_accuracy if name in MODELS else None
    return [
        model.info.title,
        *(_interval(metrics.get(key, UNMEASURED)) for key in ("accuracy", "macro_f1", "top3_accuracy")),
        _number(metrics.get("expected_calibration_error", UNMEASURED).value),
        model.report.n,
        (f"{model.info.size_bytes / 1e6:.1f}", model.info.size_bytes),
        (percent(reference, 2), reference) if reference else ("", -1),
    ]


def _class_table(per_class: list[ClassMetrics], title: str) -> str:
    rows: list[list[Cell]] = [
        [c.label, c.n, *(_number(v) for v in (c.precision, c.recall, c.f1, c.auroc))] for c in per_class
    ]
    return render_table(CLASS_COLUMNS, rows, f"{title}, by class")


def _interval(interval: Interval) -> Cell:
    return interval.percent(), _sort_value(interval.value)


def _number(value: float | None) -> Cell:
    return ("" if value is None else f"{value:.3f}"), _sort_value(value)


def _sort_value(value: float | None) -> float:
    return -1 if value is None else value


def _read_card(model: BaseModel) -> str:
    """Return the text of a model's card without its metadata, or nothing if it has none."""
    path = model.source.folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.split("---\n", 2)[-1]
