"""What the panel says, as HTML. Pure functions; Jinja escapes every file name and message."""

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from fracture_lib.cards import percent
from fracture_lib.labels import CLASSES, LABEL2ID
from fracture_lib.panel import in_words
from fracture_lib.preprocess import INPUT_SIZE, preprocess
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = [
    "CSS",
    "JS",
    "NOT_A_DEVICE",
    "answers",
    "film_sheet",
    "maps",
    "message",
    "pictures",
    "report",
    "table",
    "title",
]

FOLDER = Path(__file__).parent
CSS = (FOLDER / "style.css").read_text(encoding="utf-8")
JS = (FOLDER / "page.js").read_text(encoding="utf-8")
NOT_A_DEVICE = (
    "Not a medical device. Not for diagnosis. These models are often wrong: see the measured accuracy. "
    'There is no "no fracture" class: a healthy bone gets a fracture name too.'
)
FOR, AGAINST = (255, 140, 0), (60, 140, 255)  # orange and blue: told apart by colour-blind eyes too
DESCRIPTIONS = {c.label: c.description for c in CLASSES}


def title(name):
    """A model's title for people, the ensemble's too."""
    return MODELS[name].title if name in MODELS else "Ensemble of all three"


_templates = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_templates.globals |= {"title": title, "descriptions": DESCRIPTIONS, "not_a_device": NOT_A_DEVICE}


def _render(part, **values):
    return getattr(_templates.get_template("views.html").module, part)(**values)


def message(text, kind="hint"):
    """A sentence for the visitor; `kind` is "hint", "error" or "refused"."""
    return _render("message", text=text, kind=kind) if text else ""


def answers(result, names, top_k, about):
    """Headline and a card a model with its top k classes. `about` maps names to classifiers."""
    shown = [result.predictions[name] for name in names if name in result.predictions]
    failures = {name: why for name, why in result.failures.items() if name in names}
    return _render(
        "answers",
        shown=[(p, _facts(about(p.model)), p.scores[:top_k]) for p in shown],
        failures=failures,
        words=in_words(result),
    )


def _facts(classifier):
    evaluation = classifier.evaluation
    return f"Measured accuracy {percent(evaluation['metrics']['accuracy'])}, n = {evaluation['n']}"


def table(columns, rows, caption):
    """A table that sorts by a click on a heading.

    `columns` are headings; `rows` lists of cells, each a text, a number, or a pair (what to show,
    what to sort by).
    """
    cells = [[cell if isinstance(cell, tuple) else (cell, cell) for cell in row] for row in rows]
    return _render("table", columns=columns, rows=cells, caption=caption)


def pictures(result):
    """The film as read beside exactly what the models saw of it."""
    seen = Image.fromarray(np.uint8(255 * result.pixels + 0.5))
    return _render("pictures", film=_jpeg(result.picture, 640), seen=_png(seen))


def film_sheet(rows):
    """One film a class, small: `rows` are (label, number of films, path of one)."""
    films = []
    for label, count, path in rows:
        picture = Image.fromarray(np.uint8(255 * preprocess(path)))
        films.append((label, count, _png(picture)))
    return _render("film_sheet", films=films)


def maps(result, names, label):
    """For each model the evidence for and against the class `label`, laid over the film."""
    overlays = [
        (name, _png(_overlay(result.predictions[name].evidence[LABEL2ID[label]], result.place)))
        for name in names
        if name in result.predictions
    ]
    probabilities = {
        name: {s.label: s.probability for s in result.predictions[name].scores}[label] for name, _ in overlays
    }
    return _render(
        "maps",
        film=_jpeg(result.picture, 384),
        overlays=overlays,
        probabilities=probabilities,
        label=label,
    )


def report(results, when):
    """One self-contained HTML file that prints one page a film."""
    pages = []
    for result in results:
        lead = result.predictions.get(ENSEMBLE) or next(iter(result.predictions.values()), None)
        label = lead.scores[0].label if lead else None
        pages.append(
            {
                "result": result,
                "pictures": pictures(result),
                "words": in_words(result),
                "label": label,
                "maps": maps(result, list(result.predictions), label) if lead else "",
            }
        )
    return _templates.get_template("report.html").render(pages=pages, when=when, css=CSS)


def _overlay(evidence, place):
    """One class's evidence [h, w] -> RGBA over the film's own area: orange for, blue against."""
    smooth = Image.fromarray(evidence).resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)
    strength = np.asarray(smooth)[place]
    strength = strength / max(np.abs(strength).max(), 1e-12)
    rgba = np.empty((*strength.shape, 4), np.uint8)
    rgba[..., :3] = np.where(strength[..., None] > 0, FOR, AGAINST)
    rgba[..., 3] = 255 * np.abs(strength)
    return Image.fromarray(rgba)


def _png(image):
    return _data_uri(image, "PNG")


def _jpeg(image, side):
    small = image.copy()
    small.thumbnail((side, side))
    return _data_uri(small, "JPEG", quality=90)


def _data_uri(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
