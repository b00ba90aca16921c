"""What the notebook shows: images, an estimate, curves, plots, an explained prediction. Needs IPython."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from IPython.display import HTML, Markdown, display

from fracture_lib.data.dataset import LabelledImages
from fracture_lib.data.duplicates import near_duplicate_groups
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import Prediction
from fracture_lib.labels import CLASSES, ID2LABEL
from fracture_lib.models.report import EpochMetrics, EvaluationReport
from fracture_lib.notebook.plan import HeldOut, Plan, time_models
from fracture_lib.training.callbacks import LiveCurve
from fracture_lib.webui import plots
from fracture_lib.webui.rendering import (
    CSS,
    DISCLAIMER,
    read_card,
    render_evidence,
    render_image_table,
    render_inputs,
    render_legend,
    render_matrix,
    render_message,
    render_verdict,
)

__all__ = ["card", "dataset", "estimate", "evaluation", "live_curves", "prediction"]

N_EXAMPLES = 6  # images in a row of a table
N_CLUSTERS = 5  # of near-duplicates


def dataset(images: LabelledImages) -> None:
    """Show how many images each class has, examples, near-duplicates, and how the images are grouped."""
    of_class = {c.label: np.flatnonzero(images.labels == c.id).tolist() for c in CLASSES}
    clusters = _near_duplicates(images)
    summary = (
        f"{len(images.paths)} images in {len(np.unique(images.groups))} groups by {images.grouped_by}. "
        "A group is never on both sides of a split. "
        f"{sum(map(len, clusters))} images are near-duplicates of others, in {len(clusters)} clusters."
    )
    _display_html(
        _image_table("Class", images, [(label, indices) for label, indices in of_class.items() if indices]),
        render_message(summary),
        _image_table(
            "Near-duplicates, the largest clusters",
            images,
            [(_labels(images, cluster), cluster) for cluster in clusters[:N_CLUSTERS]],
        ),
    )


def _near_duplicates(images: LabelledImages) -> list[list[int]]:
    """Return the indices of the images in each cluster of near-duplicates, the largest cluster first."""
    clusters = defaultdict(list)
    for i, cluster in enumerate(near_duplicate_groups(images.paths).tolist()):
        clusters[cluster].append(i)
    return sorted((cluster for cluster in clusters.values() if len(cluster) > 1), key=len, reverse=True)


def _labels(images: LabelledImages, indices: Sequence[int]) -> str:
    return ", ".join(ID2LABEL[label] for label in sorted(set(images.labels[indices].tolist())))


def _image_table(title: str, images: LabelledImages, rows: Sequence[tuple[str, list[int]]]) -> str:
    """Return a table of `rows` (name, indices of images) with some of their images; nothing without rows."""
    shown = [(name, len(found), [images.paths[i] for i in found[:N_EXAMPLES]]) for name, found in rows]
    return render_image_table(title, shown) if shown else ""


def estimate(images: LabelledImages, plans: Mapping[str, Plan]) -> None:
    """Time each model on this machine for a few seconds; print how long the plans train on `images`."""
    timings = time_models((name for plan in plans.values() for name in plan.models), images)
    for title, plan in plans.items():
        minutes = max(1, round(plan.minutes(images, timings)))
        print(f"{title}: {', '.join(plan.models)} on {plan.n_images(images)} images, about {minutes} min")
    print("This is the training alone, on this machine. Reading, scoring and saving take a few more.")


def live_curves(name: str) -> LiveCurve:
    """Show where the curves of the model `name` will stand; return a `callback` for `train` that draws them.

    The progress bars stay, below the plot.
    """
    plot = display(HTML(f"{name}: the curves appear after a few epochs."), display_id=True)

    def callback(title: str, history: Sequence[EpochMetrics]) -> None:
        figure = plots.epoch_curves(name, history)
        figure.update_layout(title_text=f"{name}, {title}, epoch {history[-1].epoch}", margin_t=40)
        # Not `plot.update(figure)`: Plotly's figures display themselves, in a place of their own.
        plot.update(figure._repr_mimebundle_(), raw=True)  # type: ignore[attr-defined]  # not in the stubs

    return callback


def evaluation(report: EvaluationReport) -> None:
    """Print the accuracy and plot the confusion matrix, the calibration and the training curves."""
    print(f"{report.model}: accuracy {report.accuracy.percent()}, n = {report.n}")
    for plot in (plots.confusion_matrix, plots.calibration, plots.training_curves):
        if figure := plot(report):
            figure.show()


def prediction(folder: str | Path, image: HeldOut, top_k: int = 3) -> Prediction:
    """Show the true class, the prediction of the model in `folder`, what the model sees and the evidence.

    The evidence is the class activation map of the most probable class. Raises FractureError.
    """
    pipeline = InferencePipeline()
    pipeline.get_model(Path(folder))  # raises if the model cannot be loaded; `predict` would not
    result = pipeline.predict(image.path, [Path(folder)], skip_ood_check=True)
    (answer,) = result.predictions.values()
    result = replace(result, predictions={answer.model: answer})  # named by its model, not its path
    _display_html(
        render_message(DISCLAIMER),
        render_message(f"True class: {image.label}. {image.note}"),
        render_verdict(result, [answer.model], answer),
        render_matrix(result, answer, top_k),
        render_inputs(result),
        render_evidence(result, [answer.model], answer.label),
        render_legend(answer.model, answer.label),
    )
    return answer


def card(folder: str | Path) -> None:
    """Show the model card, without its metadata."""
    display(Markdown(read_card(Path(folder))))


def _display_html(*parts: str) -> None:
    display(HTML(f"<style>{CSS}</style>{''.join(parts)}"))
