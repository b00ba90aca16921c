"""The tab about the models: what each was measured to be worth, drawn from evaluation.json."""

from importlib import import_module

import gradio as gr

from fracture_lib.cards import percent
from fracture_lib.page import views
from fracture_lib.panel import EVERYONE
from fracture_lib.registry import MODELS

__all__ = ["build"]

COLUMNS = [
    "Model",
    "Accuracy (95 % interval)",
    "Macro-F1",
    "Top-3",
    "Calibration error",
    "n",
    "MB",
    "Reference work, its own split",
]
PER_CLASS = ["Class", "Films", "Precision", "Recall", "F1", "AUROC"]


def build(tab, panel):
    """Lay the tab out; its figures are drawn when it is first opened."""
    gr.Markdown(
        "Measured on films that the fits did not see, split so that pictures of one patient or figure stay "
        "together. Hover over a figure for its numbers."
    )
    overview = gr.HTML()
    with gr.Row():
        accuracy = _plot("Accuracy beside the reference work")
        coverage = _plot("Accuracy when only the surest films are answered")
    choice = gr.Radio(
        [(views.title(n), n) for n in EVERYONE], value=EVERYONE[0], label="Model", elem_id="about"
    )
    with gr.Row():
        confusion = _plot("Confusion matrix")
        reliability = _plot("Reliability: said and true confidence")
        curve = _plot("Training curves")
    classes = gr.HTML()
    with gr.Accordion("Model card", open=False):
        card = gr.Markdown()

    def one(name):
        figures = import_module("fracture_lib.page.figures")  # Plotly, only once somebody looks
        classifier = panel.classifier(name)
        evaluation, path = classifier.evaluation, classifier.source.folder / "README.md"
        text = path.read_text(encoding="utf-8").split("---\n", 2)[-1] if path.exists() else ""
        history = figures.training_curve(evaluation)
        return (
            figures.confusion_matrix(evaluation),
            figures.reliability(evaluation),
            gr.update(value=history, visible=history is not None),
            _per_class(evaluation, name),
            text
            or "The mean of the three models' calibrated probabilities, weighted; it has no card of its own.",
        )

    def everything(name):
        figures = import_module("fracture_lib.page.figures")
        evaluations = [panel.classifier(n).evaluation for n in EVERYONE]
        return (
            _overview(panel),
            figures.accuracy_bars(evaluations),
            figures.risk_coverage(evaluations),
            *one(name),
        )

    parts = [confusion, reliability, curve, classes, card]
    tab.select(everything, choice, [overview, accuracy, coverage, *parts], api_visibility="private")
    choice.input(one, choice, parts, api_visibility="private")


def _plot(heading):
    with gr.Column(min_width=300):  # the component's own label would lie over the figure
        gr.Markdown(f"### {heading}")
        return gr.Plot(show_label=False)


def _overview(panel):
    rows = []
    for name in EVERYONE:
        classifier = panel.classifier(name)
        evaluation, metrics = classifier.evaluation, classifier.evaluation["metrics"]
        reference = MODELS[name].reference_accuracy if name in MODELS else None
        rows.append(
            [
                views.title(name),
                *(
                    (percent(metrics[k]), metrics[k]["value"])
                    for k in ("accuracy", "macro_f1", "top3_accuracy")
                ),
                metrics["expected_calibration_error"]["value"],
                evaluation["n"],
                (f"{classifier.size / 1e6:.1f}", classifier.size),
                (f"{100 * reference:.2f} %", reference) if reference else ("", -1),
            ]
        )
    return views.table(COLUMNS, rows, "All models, out of fold")


def _per_class(evaluation, name):
    keys = ("label", "n", "precision", "recall", "f1", "auroc")
    rows = [[("", -1) if row[k] is None else row[k] for k in keys] for row in evaluation["per_class"]]
    return views.table(PER_CLASS, rows, f"{views.title(name)}, class by class")
