"""What train_colab.ipynb shows: films, live curves, figures, an explained prediction. For IPython alone."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from IPython.display import HTML, Markdown, clear_output, display

from fracture_lib.data import near_copies
from fracture_lib.labels import CLASSES
from fracture_lib.page import figures, views
from fracture_lib.panel import Panel

__all__ = ["explain", "log_in", "look_at", "mount", "show_card", "show_evaluation", "show_live"]


def mount(data):
    """Mount Google Drive where `data` lies there. Elsewhere than in Colab, do nothing."""
    if str(data).startswith("/content/drive/"):
        from google.colab import drive

        drive.mount("/content/drive")


def look_at(films):
    """Show how many films (data.Films) each class has, how they group, and one of each class."""
    counts = Counter(films.labels.tolist())
    clusters = [size for size in Counter(near_copies(films.paths).tolist()).values() if size > 1]
    first = {label: path for path, label in zip(films.paths, films.labels.tolist(), strict=True)}
    told = (
        f"{len(films.paths)} films in {len(set(films.groups.tolist()))} groups by {films.grouped_by}; one "
        f"group is never on both sides of a split. By their looks, {sum(clusters)} films are near copies of "
        f"others, in {len(clusters)} clusters."
    )
    sheet = views.film_sheet([(c.label, counts[c.id], first[c.id]) for c in CLASSES if c.id in first])
    display(HTML(f"<style>{views.CSS}</style>{sheet}{views.message(told)}"))


def show_live(name):
    """Return a function for `training.train(watch=...)` that draws the curves of the fit at work."""

    def watch(title, history):
        clear_output(wait=True)
        print(f"{name}, {title}, epoch {history[-1]['epoch']}")
        figures.training_curve({"model": name, "training": {"history": history}}).show()

    return watch


def show_evaluation(evaluation):
    """Draw what was measured."""
    for figure in (figures.confusion_matrix, figures.reliability, figures.training_curve):
        figure(evaluation).show()


def explain(folder, film, top_k=3):
    """Show what the model in `folder` says of a film, what it saw and the evidence for its answer."""
    panel = Panel()
    asked = panel.ask(film, [str(folder)], anyway=True)
    (prediction,) = asked.predictions.values()
    result = replace(asked, predictions={prediction.model: prediction})
    names, label = [prediction.model], prediction.scores[0].label
    shown = [
        views.answers(result, names, top_k, lambda _: panel.classifier(str(folder))),
        views.pictures(result),
        views.maps(result, names, label),
    ]
    display(HTML(f"<style>{views.CSS}</style><p>{views.NOT_A_DEVICE}</p>{''.join(shown)}"))
    return prediction


def show_card(folder):
    display(Markdown((Path(folder) / "README.md").read_text(encoding="utf-8").split("---\n", 2)[-1]))


def log_in():
    """Log in to the Hub: with Colab's secret HF_TOKEN or an earlier login, or by a form."""
    from huggingface_hub import get_token, notebook_login

    if not get_token():
        notebook_login()
