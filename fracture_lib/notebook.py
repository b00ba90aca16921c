"""What train_colab.ipynb shows: images, live curves, plots, an explained prediction. Needs IPython."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from IPython.display import HTML, Markdown, clear_output, display

from fracture_lib.data.dataset import LabelledImages
from fracture_lib.data.duplicates import near_duplicate_groups
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import Prediction
from fracture_lib.labels import CLASSES
from fracture_lib.models.report import EpochMetrics, EvaluationReport
from fracture_lib.webui import plots
from fracture_lib.webui.rendering import (
    CSS,
    DISCLAIMER,
    render_class_examples,
    render_evidence,
    render_inputs,
    render_legend,
    render_matrix,
    render_message,
    render_verdict,
)

__all__ = [
    "explain",
    "live_plot_callback",
    "log_in",
    "mount",
    "show_card",
    "show_dataset",
    "show_evaluation",
]

DRIVE = "/content/drive"


def mount(*folders: str | Path | None) -> None:
    """Mount Google Drive if any of `folders` is in it; do nothing outside Colab."""
    if any(str(folder).startswith(f"{DRIVE}/") for folder in folders):
        from google.colab import drive

        drive.mount(DRIVE)


def show_dataset(images: LabelledImages) -> None:
    """Show the number of images per class with one example each, and how the images are grouped."""
    counts = Counter(images.labels.tolist())
    examples = {label: path for path, label in zip(images.paths, images.labels.tolist(), strict=True)}
    cluster_sizes = Counter(near_duplicate_groups(images.paths).tolist()).values()
    clusters = [size for size in cluster_sizes if size > 1]
    grouping = (
        f"{len(images.paths)} images in {len(set(images.groups.tolist()))} groups by {images.grouped_by}. "
        "A group is never on both sides of a split. "
        f"{sum(clusters)} images are near-duplicates of others, in {len(clusters)} clusters."
    )
    rows = [(c.label, counts[c.id], examples[c.id]) for c in CLASSES if c.id in examples]
    _display_html(render_class_examples(rows), render_message(grouping))


def live_plot_callback(name: str) -> Callable[[str, Sequence[EpochMetrics]], None]:
    """Return a `callback` for `training.trainer.train` that redraws the curves of the current fit."""

    def callback(title: str, history: Sequence[EpochMetrics]) -> None:
        clear_output(wait=True)
        print(f"{name}, {title}, epoch {history[-1].epoch}")
        plots.epoch_curves(name, history).show()

    return callback


def show_evaluation(report: EvaluationReport) -> None:
    """Print the accuracy and plot the confusion matrix, the calibration and the training curves."""
    print(f"{report.model}: accuracy {report.accuracy.percent()}, n = {report.n}")
    for plot in (plots.confusion_matrix, plots.calibration, plots.training_curves):
        if figure := plot(report):
            figure.show()


def explain(folder: str | Path, image: str | Path, top_k: int = 3) -> Prediction:
    """Show the prediction of the model in `folder`, the image as the model sees it and the evidence.

    The evidence is the class activation map of the most probable class. Raises FractureError.
    """
    pipeline = InferencePipeline()
    pipeline.get_model(Path(folder))  # raises if the model cannot be loaded; `predict` would not
    result = pipeline.predict(image, [Path(folder)], skip_ood_check=True)
    (prediction,) = result.predictions.values()
    result = replace(result, predictions={prediction.model: prediction})  # named by its model, not its path
    _display_html(
        render_message(DISCLAIMER),
        render_verdict(result, [prediction.model], prediction.label),
        render_matrix(result, prediction, top_k),
        render_inputs(result),
        render_evidence(result, [prediction.model], prediction.label),
        render_legend(prediction.model, prediction.label),
    )
    return prediction


def show_card(folder: str | Path) -> None:
    """Show the model card, without its metadata."""
    card = (Path(folder) / "README.md").read_text(encoding="utf-8")
    display(Markdown(card.split("---\n", 2)[-1]))


def log_in() -> None:
    """Log in to the Hub with a form, unless Colab's secret HF_TOKEN or an earlier login has a token."""
    from huggingface_hub import get_token, notebook_login

    if not get_token():
        notebook_login()


def _display_html(*parts: str) -> None:
    display(HTML(f"<style>{CSS}</style>{''.join(parts)}"))
