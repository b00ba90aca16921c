"""The tab about the models and the fracture detector: conclusions, one chart, and details to open."""

import logging
import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import gradio as gr
from gradio.blocks import Block

import fracture_lib
from fracture_lib.errors import FractureError
from fracture_lib.hub import BUNDLE
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.models.model import BaseModel
from fracture_lib.models.report import DetectorReport, EvaluationReport, Interval
from fracture_lib.registry import DETECTOR, ENSEMBLE, ENSEMBLE_MEMBERS, model_title
from fracture_lib.webui.rendering import SHOWN_MODELS, percent, read_card, render_message

__all__ = ["ModelsTab"]

logger = logging.getLogger(__name__)

Updates: TypeAlias = dict[Block, Any]
_T = TypeVar("_T")

INTRODUCTION = (
    "How often each model names the right type, measured out of fold: on X-rays that it did not see in "
    "training, with all X-rays of one patient or figure on the same side of every split."
)
EXPLANATION = (
    "In brackets: the 95 % interval, which is wide where few X-rays were tested. Confidence off by 5 points: "
    "answers given with 40 % confidence may be right 35 or 45 % of the time. Point at a chart for numbers."
)
ORIGINAL = (
    "Grey bars: the project that these models were rebuilt from, measured on a split of its own, so the two "
    "do not compare one to one."
)
TERMS = """
- **Right**: the model's first answer is the true type. **In top 3**: one of its first three is.
- **Macro-F1**: precision and recall combined, a mean over the types, so rare types count like common ones.
- **Confidence off by**: mean difference between the confidence of answers and how often they are right.
- **Fast**: right from one view of each X-ray instead of three.
- **In training**: right on the X-rays that the published weights were trained on. A model for which it is far
  above the rest has learnt them by heart.
"""
ABOUT = f"Version {fracture_lib.__version__}. Code: Apache-2.0; weights: CC BY 4.0."
TABLE = [
    "Model",
    "Right",
    "95 % interval",
    "In top 3",
    "Macro-F1",
    "Confidence off by",
    "Fast",
    "In training",
    "MB",
]
RARELY = 0.1  # a type with less recall is named as hardly ever recognized
NO_CARD = (
    f"The ensemble is the weighted mean of {len(ENSEMBLE_MEMBERS)} models' calibrated probabilities. It has "
    "no model card of its own."
)
# For each chart of one model: its function in `plots`, the title and what it shows in words.
CHARTS = {
    "confusion_matrix": (
        "Which types it confuses",
        "Each row is a true type; the brighter a cell, the more of its X-rays get that answer.",
    ),
    "class_bars": (
        "How well it recognizes each type",
        "The share of the X-rays of each type that it names.",
    ),
    "calibration": (
        "Whether its confidence is right",
        "On the dashed line, answers given with 40 % confidence are right 40 % of the time. A larger dot "
        "stands for more X-rays.",
    ),
    "robustness_bars": (
        "How it copes with altered X-rays",
        "How often it is right on altered copies of the same X-rays, from one view each. The dashed line: "
        "unaltered.",
    ),
    "training_curves": (
        "How it was trained",
        "Means over the folds, each measured on the X-rays that it holds out.",
    ),
}


class ModelsTab:
    """The components and handlers of `tab`, in the current Blocks; a chart is drawn when it is opened."""

    def __init__(self, tab: gr.Tab, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline
        gr.Markdown(INTRODUCTION)
        self.errors = gr.HTML(elem_id="model-errors")
        self.conclusions = gr.Markdown(elem_id="conclusions")
        gr.Markdown(EXPLANATION, elem_classes="facts")
        self.accuracy = gr.Plot(show_label=False, elem_id="accuracy")
        gr.Markdown(ORIGINAL, elem_classes="facts")
        with gr.Accordion("All figures", open=False):
            self.table = gr.Dataframe(
                headers=TABLE,
                interactive=False,
                wrap=True,
                buttons=[],
                show_label=False,
                label="All figures",
                elem_id="figures",
            )
            gr.Markdown(TERMS, elem_classes="facts")
        with gr.Accordion("If a model answers only where it is confident", open=False) as coverage:
            self.coverage = gr.Plot(show_label=False)

        gr.Markdown("## One model in detail")
        choices = [(model_title(name), name) for name in SHOWN_MODELS]
        self.choice = gr.Radio(
            choices, value=ENSEMBLE, show_label=False, label="Model", elem_id="model-details"
        )
        self.charts: dict[str, tuple[gr.Accordion, gr.Markdown, gr.Plot]] = {}
        for function, (title, _) in CHARTS.items():
            with gr.Accordion(title, open=False) as accordion:
                self.charts[function] = accordion, gr.Markdown(), gr.Plot(show_label=False)
        with gr.Accordion("Model card", open=False) as card_accordion:
            self.card = gr.Markdown()

        gr.Markdown(f"## {model_title(DETECTOR)}")
        self.detector = gr.Markdown(elem_id="detector")
        with gr.Accordion("Card of the fracture detector", open=False) as detector_accordion:
            self.detector_card = gr.Markdown()
        gr.Markdown(ABOUT, elem_classes="facts")

        options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        overall: list[Block] = [self.errors, self.conclusions, self.accuracy, self.table, self.detector]
        tab.select(self.show_all, None, overall, **options)
        coverage.expand(self.show_coverage, None, self.coverage, **options)
        for function, (accordion, text, plot) in self.charts.items():
            accordion.expand(partial(self.show_chart, function), self.choice, [text, plot], **options)
        card_accordion.expand(self.show_card, self.choice, self.card, **options)
        accordions = [*(accordion for accordion, _, _ in self.charts.values()), card_accordion]
        # A chart that is drawn while it is hidden has no width.
        self.choice.input(lambda: [gr.update(open=False)] * len(accordions), None, accordions, **options)
        detector_accordion.expand(lambda: _show_card(BUNDLE / DETECTOR), None, self.detector_card, **options)

    def show_all(self) -> Updates:
        """Show the conclusions, the table and the chart of all models.

        A model that cannot be shown gets a message.
        """
        plots = import_module("fracture_lib.webui.plots")  # Plotly, only once somebody opens the tab

        def describe(model: BaseModel) -> tuple[EvaluationReport, str, list[Any]]:
            plots.accuracy_bars([model.report])  # one that cannot be drawn must not spoil the chart of all
            return model.report, _conclude(model.report), _table_row(model)

        described, errors = self._describe_all(describe)
        try:
            detector = _conclude_detector(DetectorReport.read(BUNDLE / DETECTOR))
        except Exception as error:  # a report from elsewhere may hold anything
            errors += _render_unavailable(DETECTOR, error)
            detector = ""
        return {
            self.errors: errors,
            self.conclusions: "\n".join(line for _, line, _ in described),
            self.accuracy: plots.accuracy_bars([report for report, _, _ in described]),
            self.table: [row for _, _, row in described],
            self.detector: detector,
        }

    def show_coverage(self) -> object | None:
        """Return the chart of the accuracy on the most confident answers, of all models that have one."""
        plots = import_module("fracture_lib.webui.plots")

        def check(model: BaseModel) -> EvaluationReport:
            plots.accuracy_coverage([model.report])
            return model.report

        reports, _ = self._describe_all(check)  # `show_all` shows the errors
        return plots.accuracy_coverage(reports)

    def _describe_all(self, describe: Callable[[BaseModel], _T]) -> tuple[list[_T], str]:
        """Return `describe` of every model for which it works, and messages about the others."""
        described, errors = [], ""
        for name in SHOWN_MODELS:
            try:
                described.append(describe(self._pipeline.get_model(name)))
            except Exception as error:  # a report from elsewhere may hold anything
                errors += _render_unavailable(name, error)
        return described, errors

    def show_chart(self, function: str, name: str) -> tuple[str, Any]:
        """Return what a chart of one model shows in words, and the chart, or why there is none."""
        plots = import_module("fracture_lib.webui.plots")
        try:
            report = self._pipeline.get_model(name).report
            figure = getattr(plots, function)(report)
            if figure is None:
                return f"{model_title(name)} has no such figures. Choose another model above.", gr.update(
                    value=None, visible=False
                )
            _, text = CHARTS[function]
            if function == "class_bars":
                text += _name_rare_classes(report)
            return text, gr.update(value=figure, visible=True)
        except Exception as error:  # as above
            return _explain(name, error), gr.update(value=None, visible=False)

    def show_card(self, name: str) -> str:
        """Return a model's card, or why there is none."""
        try:
            return _show_card(self._pipeline.get_model(name).source.folder) or NO_CARD
        except FractureError as error:
            return _explain(name, error)


def _explain(name: str, error: Exception) -> str:
    reason = str(error)
    if not isinstance(error, FractureError):
        logger.error("The report of %s cannot be shown: %r", name, error)
        reason = "Its evaluation.json is incomplete; measure it again."
    return f"{model_title(name)} is unavailable. {reason}"


def _render_unavailable(name: str, error: Exception) -> str:
    return render_message(_explain(name, error), "error")


def _conclude(report: EvaluationReport) -> str:
    """Return a line of Markdown: how often a model is right, and how far its confidence can be trusted."""
    error = report.metrics.get("expected_calibration_error")
    trust = f" Its confidence is off by {_points(error)} on average." if error else ""
    return f"- **{model_title(report.model)}** is right {_describe(report.accuracy)} of the time.{trust}"


def _conclude_detector(report: DetectorReport) -> str:
    """Return Markdown: a table of what the detector sees with and without a fracture, and what follows."""
    rows = [
        ["Does it see a fracture?", "yes", "not sure", "no"],
        ["---"] * 4,
        *(
            [f"{rates.n} X-rays, {name}", *map(percent, (rates.visible, rates.uncertain, rates.none))]
            for name, rates in report.outcomes.items()
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    missed, auroc = _describe(report.missed), _describe(report.metrics["auroc"])
    return (
        f"{table}\n\nMeasured on X-rays held out from training. It misses {missed} of the fractured ones. Of "
        f"two X-rays, one fractured and one not, it gives the fractured one the higher probability {auroc} "
        "of the time (AUROC)."
    )


def _describe(interval: Interval) -> str:
    """Return "43 % (38 to 47 %)"."""
    if interval.value is None:
        return "an unknown share"
    if interval.low is None or interval.high is None:
        return percent(interval.value)
    return f"{percent(interval.value)} ({100 * interval.low:.0f} to {percent(interval.high)})"


def _points(interval: Interval) -> str:
    return "unknown" if interval.value is None else f"{100 * interval.value:.0f} points"


def _table_row(model: BaseModel) -> list[Any]:
    report = model.report
    accuracy = report.accuracy
    fast = (report.by_views or {}).get("1")
    shares = [accuracy.value, *(_value(report, key) for key in ("top3_accuracy", "macro_f1"))]
    right, top3, f1 = ("" if share is None else percent(share) for share in shares)
    interval = (
        f"{100 * accuracy.low:.0f} to {percent(accuracy.high)}" if accuracy.low and accuracy.high else ""
    )
    error = report.metrics.get("expected_calibration_error")
    train = report.training.train_accuracy if report.training else None
    return [
        model.info.title,
        right,
        interval,
        top3,
        f1,
        _points(error) if error else "",
        "" if fast is None or fast.value is None else percent(fast.value),
        "" if train is None else percent(train),
        f"{model.info.size_bytes / 1e6:.0f}",
    ]


def _value(report: EvaluationReport, key: str) -> float | None:
    metric = report.metrics.get(key)
    return metric.value if metric else None


def _name_rare_classes(report: EvaluationReport) -> str:
    """Return a sentence about the classes that are hardly ever recognized, or nothing."""
    rare = [
        f"{c.label} ({percent(c.recall)})"
        for c in report.per_class
        if c.recall is not None and c.recall < RARELY
    ]
    return f" It hardly ever recognizes {' and '.join(rare)}." if rare else ""


def _show_card(folder: Path) -> str:
    """Return a card whose headings are those of a part of the page."""
    return re.sub("^#", "###", read_card(folder), flags=re.MULTILINE)
