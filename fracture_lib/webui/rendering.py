"""HTML for results and measurements. Pure functions; Jinja escapes every file name and message."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray
from PIL import Image

import fracture_lib
from fracture_lib.inference.batch import BatchRow
from fracture_lib.inference.fracture import DETECTOR_NOTE
from fracture_lib.inference.prediction import ComparisonResult, Prediction, summarize_types
from fracture_lib.io.image import preprocess
from fracture_lib.io.views import LETTERBOX
from fracture_lib.labels import CLASSES, LABEL2ID
from fracture_lib.models.functional import EPSILON
from fracture_lib.models.model import ModelInfo
from fracture_lib.registry import model_title

__all__ = [
    "CSS",
    "DISCLAIMER",
    "JS",
    "Cell",
    "percent",
    "render_cams",
    "render_class_examples",
    "render_heatmap",
    "render_images",
    "render_message",
    "render_predictions",
    "render_report",
    "render_table",
    "render_warnings",
    "shorten",
]

# What a table cell holds: a text, a number, or (text to show, value to sort by).
Cell: TypeAlias = str | float | tuple[str, str | float]

FOLDER = Path(__file__).parent
CSS = (FOLDER / "style.css").read_text(encoding="utf-8")
JS = (FOLDER / "page.js").read_text(encoding="utf-8")
DISCLAIMER = (
    "Not a medical device. Do not use it for diagnosis. The models are often wrong: see their measured "
    f"accuracy. {DETECTOR_NOTE}"
)
SUPPORT, AGAINST = (255, 140, 0), (60, 140, 255)  # orange and blue: distinct in every colour vision
MAX_NAME = 100  # characters of a file's name that are shown
PREVIEW_SIDE, CAM_SIDE = 640, 384  # pixels of the images as sent to the browser
MIN_HEAT = 0.5  # probability of a fracture at a place that is opaque, so that a map without one stays faint
NO_HEATMAP = "The fracture detector gave no answer for this image."


def percent(share: float, digits: int = 0) -> str:
    """Return a share in 0..1 as "23 %"."""
    return f"{100 * share:.{digits}f} %"


def shorten(name: str) -> str:
    """Return a name to display: one longer than MAX_NAME loses its middle."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 3]}\u2026{name[-2 * MAX_NAME // 3 :]}"


_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.globals |= {
    "model_title": model_title,
    "percent": percent,
    "descriptions": {c.label: c.description for c in CLASSES},
    "disclaimer": DISCLAIMER,
}
_environment.filters["shorten"] = shorten


def _render(macro: str, **values: Any) -> str:
    """Return the HTML of a macro of components.html."""
    return str(getattr(_environment.get_template("components.html").module, macro)(**values))


def render_message(text: str, kind: Literal["hint", "warning", "error"] = "hint") -> str:
    """Return a paragraph that stands out, or nothing for an empty text."""
    return _render("message", text=text, kind=kind) if text else ""


def render_warnings(warnings: Sequence[str]) -> str:
    """Return one warning as a paragraph, several as a list, or nothing."""
    return _render("warnings", warnings=warnings) if warnings else ""


def render_predictions(result: ComparisonResult, names: Sequence[str], top_k: int) -> str:
    """Return what the fracture detector sees, the summary of the models `names`, and one card for each.

    A card shows the model's top k classes, or why it failed.
    """
    return _render(
        "predictions",
        fracture=result.fracture,
        summary=summarize_types(result, names),
        cards=[(p, p.scores[:top_k]) for p in _select(result.predictions, names).values()],
        failures=_select(result.failures, names),
    )


def _select(by_name: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: by_name[name] for name in names if name in by_name}


def render_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str) -> str:
    """Return a table that sorts by a click on a heading."""
    cells = [[cell if isinstance(cell, tuple) else (cell, cell) for cell in row] for row in rows]
    return _render("table", columns=columns, rows=cells, caption=caption)


def render_images(result: ComparisonResult) -> str:
    """Return the image as read beside the exact model inputs, its views in a row."""
    views = Image.fromarray((255 * np.hstack(list(result.pixels)) + 0.5).astype(np.uint8))
    return _render(
        "images",
        preview=_jpeg(result.preview, PREVIEW_SIDE),
        views=_png(views),
        n_views=len(result.pixels),
        size=views.height,
    )


def render_class_examples(rows: Iterable[tuple[str, int, str | Path]]) -> str:
    """Return one small image per class; `rows` are (label, number of images, path of one)."""
    examples = [
        (label, n, _png(Image.fromarray((255 * preprocess(path, (LETTERBOX,))[0]).astype(np.uint8))))
        for label, n, path in rows
    ]
    return _render("class_examples", examples=examples)


def render_cams(result: ComparisonResult, names: Iterable[str], label: str) -> str:
    """Return each model's class activation map for `label`, laid over the image; nothing without one."""
    predictions: dict[str, Prediction] = _select(result.predictions, names)
    if not predictions:
        return ""
    overlays = [
        (name, _probability(p, label), _png(_overlay(p.cam[LABEL2ID[label]], result.preview.size)))
        for name, p in predictions.items()
    ]
    return _render("cams", preview=_jpeg(result.preview, CAM_SIDE), overlays=overlays, label=label)


def render_heatmap(result: ComparisonResult) -> str:
    """Return where the fracture detector looks, laid over the image, or that there is no such map."""
    if result.fracture is None:
        return render_message(NO_HEATMAP)
    return _render(
        "heatmap",
        preview=_jpeg(result.preview, CAM_SIDE),
        overlay=_png(_overlay(result.fracture.heatmap, result.preview.size, MIN_HEAT)),
        probability=result.fracture.probability,
    )


def _probability(prediction: Prediction, label: str) -> float:
    return next(score.probability for score in prediction.scores if score.label == label)


def _overlay(values: NDArray[np.float32], size: tuple[int, int], min_scale: float = EPSILON) -> Image.Image:
    """Turn a map [h, w] of an image into RGBA of `size`: orange above zero, blue below.

    The largest absolute value is opaque, if it is at least `min_scale`.
    """
    # Not bicubic, which would overshoot: blue around a place that supports.
    strength = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    strength = strength / max(np.abs(strength).max(), min_scale)
    rgba = np.empty((*strength.shape, 4), np.uint8)
    rgba[..., :3] = np.where(strength[..., None] > 0, SUPPORT, AGAINST)
    rgba[..., 3] = 255 * np.abs(strength)
    return Image.fromarray(rgba)


def render_report(rows: Sequence[BatchRow], date: str, summary: str) -> str:
    """Return a self-contained HTML file: `summary`, the models, what was not classified, a page per image."""
    pages: list[dict[str, Any]] = []
    models: dict[str, ModelInfo] = {}
    for row in rows:
        if not (result := row.result):
            continue
        top = result.top_prediction
        pages.append(
            {
                "row": row,
                "result": result,
                "summary": summarize_types(result),
                "images": render_images(result),
                "heatmap": render_heatmap(result) if result.fracture else "",
                "cams": render_cams(result, result.predictions, top.label) if top else "",
            }
        )
        models |= {name: prediction.info for name, prediction in result.predictions.items()}
    return _environment.get_template("report.html").render(
        pages=pages,
        models=models,
        not_classified=[row for row in rows if row.reason or row.failures],
        summary=summary,
        date=date,
        version=fracture_lib.__version__,
        css=CSS,
    )


def _png(image: Image.Image) -> str:
    return _data_uri(image, "PNG")


def _jpeg(image: Image.Image, side: int) -> str:
    small = image.copy()
    small.thumbnail((side, side))
    return _data_uri(small, "JPEG", quality=90)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
