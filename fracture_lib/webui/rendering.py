"""HTML for results and measurements. Pure functions; Jinja escapes every file name and message."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray
from PIL import Image

import fracture_lib
from fracture_lib.inference.batch import BatchRow, RowStatus
from fracture_lib.inference.fracture import DETECTOR_NOTE
from fracture_lib.inference.prediction import (
    CONFIDENCE_NOTE,
    CONFIDENT,
    ComparisonResult,
    Prediction,
    summarize_types,
)
from fracture_lib.io.image import preprocess
from fracture_lib.io.views import LETTERBOX
from fracture_lib.labels import CLASSES, LABEL2ID
from fracture_lib.models.functional import EPSILON
from fracture_lib.models.model import ModelInfo
from fracture_lib.registry import ALL_MODELS, DETECTOR, ENSEMBLE, model_title, short_model_title

__all__ = [
    "CSS",
    "DISCLAIMER",
    "JS",
    "NO_OVERLAY",
    "SHOWN_MODELS",
    "VIEWER_HTML",
    "VIEWER_JS",
    "percent",
    "read_card",
    "render_chip",
    "render_evidence",
    "render_image_cell",
    "render_image_table",
    "render_inputs",
    "render_legend",
    "render_live",
    "render_matrix",
    "render_message",
    "render_report",
    "render_verdict",
    "render_warnings",
    "shorten",
    "summarize_answer",
    "view_overlay",
    "view_xray",
]

FOLDER = Path(__file__).parent
CSS, JS, VIEWER_HTML, VIEWER_JS = (
    (FOLDER / name).read_text(encoding="utf-8")
    for name in ("style.css", "page.js", "viewer.html", "viewer.js")
)
DISCLAIMER = (
    "Not a medical device. Do not use it for diagnosis. The models are often wrong: see their measured "
    f"accuracy. {DETECTOR_NOTE}"
)
SUPPORT, AGAINST = (255, 140, 0), (60, 140, 255)  # orange and blue: distinct in every colour vision
SHOWN_MODELS = (ENSEMBLE, *(name for name in ALL_MODELS if name != ENSEMBLE))  # in the order of the page
REPORT_CLASSES = 3  # per image in the printed report
FIGURE_SIDE, OVERLAY_SIDE, THUMBNAIL_SIDE = 384, 128, 48  # pixels, as sent to the browser
SHORT_NAME = 44  # characters of a name in a table
MIN_HEAT = 0.5  # probability of a fracture at a place that is opaque, so that a map without one stays faint
TRANSPARENT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
NO_OVERLAY: dict[str, Any] = {"overlay": TRANSPARENT, "overlay_alt": ""}


def percent(share: float) -> str:
    """Return a share in 0..1 as "23 %", which no line break divides."""
    return f"{100 * share:.0f}\u00a0%"


def shorten(name: str, length: int = 100) -> str:
    """Return a name to display: one longer than `length` characters loses its middle."""
    return name if len(name) <= length else f"{name[: length // 3]}\u2026{name[-2 * length // 3 :]}"


_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.globals |= {
    "model_title": model_title,
    "percent": percent,
    "descriptions": {c.label: c.description for c in CLASSES},
    "disclaimer": DISCLAIMER,
}
_environment.filters |= {"shorten": shorten, "nobreak": lambda text: text.replace(" %", "\u00a0%")}
# Compiled here, so that the first answer is as fast as later ones.
_components = _environment.get_template("components.html").module


def _render(macro: str, **values: Any) -> str:
    """Return the HTML of a macro of components.html."""
    return str(getattr(_components, macro)(**values)).strip()


def render_message(text: str, kind: Literal["hint", "warning", "error"] = "hint") -> str:
    """Return a paragraph that stands out, or nothing for an empty text."""
    return _render("message", text=text, kind=kind) if text else ""


def render_live(text: str) -> str:
    """Return a text that only screen readers announce; it must replace another one."""
    return _render("live", text=text)


def render_warnings(warnings: Sequence[str]) -> str:
    """Return one warning as a paragraph, several as a list, or nothing."""
    return _render("warnings", warnings=warnings) if warnings else ""


def render_verdict(result: ComparisonResult, names: Sequence[str], shown: Prediction | None) -> str:
    """Return what the detector sees, the summary of the models `names`, and what the answer `shown` means."""
    return _render(
        "verdict",
        fracture=result.fracture,
        summary=summarize_answer(result, names),
        label=shown.label if shown else None,
        note=CONFIDENCE_NOTE if shown and shown.probability < CONFIDENT else "",
    )


def summarize_answer(result: ComparisonResult, names: Sequence[str]) -> str:
    """Return the summary of the models `names`; that of a single model names it."""
    summary = summarize_types(result, names)
    return f"{model_title(names[0])}: {summary}" if summary and len(names) == 1 else summary


def render_matrix(result: ComparisonResult, ranking: Prediction | None, top_k: int) -> str:
    """Return each model's probabilities of the `top_k` classes of `ranking`, and why models failed.

    It names the source of weights that did not come with the app.
    """
    predictions = [result.predictions[name] for name in SHOWN_MODELS if name in result.predictions]
    by_label = [{score.label: score.probability for score in p.scores} for p in predictions]
    columns = [
        {"title": short_model_title(p.model), "accuracy": p.info.accuracy.value, "is_chosen": p is ranking}
        for p in predictions
    ]
    rows = [
        (
            score.label,
            [
                {"probability": shares[score.label], "is_top": p.label == score.label}
                for p, shares in zip(predictions, by_label, strict=True)
            ],
        )
        for score in (ranking.scores[:top_k] if ranking else ())
    ]
    return _render(
        "matrix",
        columns=columns,
        rows=rows,
        failures=result.failures,
        sources=[(p.info.title, p.source) for p in predictions if p.source.kind != "bundle"],
    )


def view_xray(result: ComparisonResult) -> dict[str, Any]:
    """Return the value of viewer.html: the X-ray and its size."""
    width, height = result.preview.size
    return {"xray": _jpeg(result.preview), "width": width, "height": height}


def view_overlay(result: ComparisonResult, source: str, label: str) -> dict[str, Any]:
    """Return what viewer.html lays over the X-ray: the evidence of a source for the class `label`.

    A source is the fracture detector, which has evidence for a fracture of any class, or a model.
    """
    overlay = _overlay_uri(result, source, label)
    return {"overlay": overlay, "overlay_alt": _describe_evidence(source, label)} if overlay else NO_OVERLAY


def render_legend(source: str, label: str) -> str:
    """Return what the colours of evidence mean."""
    is_detector = source == DETECTOR
    return _render("legend", label="" if is_detector else label, source=model_title(source))


def render_inputs(result: ComparisonResult) -> str:
    """Return the exact model inputs, the views of the image in a row."""
    views = Image.fromarray((255 * np.hstack(list(result.pixels)) + 0.5).astype(np.uint8))
    return _render("inputs", views=_png(views), n_views=len(result.pixels), size=views.height)


def render_image_cell(result: ComparisonResult | None, name: str) -> str:
    """Return a small image, if it could be read, and its name for a table."""
    thumbnail = _jpeg(result.preview, THUMBNAIL_SIDE) if result else ""
    return _render("image_cell", thumbnail=thumbnail, name=name, short=shorten(name, SHORT_NAME))


def render_chip(status: RowStatus) -> str:
    """Return the status of an image for a table."""
    return _render("chip", status=status)


def render_image_table(title: str, rows: Sequence[tuple[str, int, Sequence[Path]]]) -> str:
    """Return a table of small images; `rows` are (name, number of images, paths of some)."""
    shown = [(name, n, [_thumbnail(path) for path in paths]) for name, n, paths in rows]
    return _render("image_table", title=title, rows=shown, largest=max(n for _, n, _ in rows))


def _thumbnail(path: Path) -> str:
    return _png(Image.fromarray((255 * preprocess(path, (LETTERBOX,))[0]).astype(np.uint8)))


def render_evidence(result: ComparisonResult, sources: Iterable[str], label: str) -> str:
    """Return the image with the evidence of each source laid over it, as far as there is any."""
    xray = _jpeg(result.preview, FIGURE_SIDE)
    figures = []
    for source in sources:
        if overlay := _overlay_uri(result, source, label):
            text = _describe_evidence(source, label)
            caption = f"{text}: {percent(_probability(result, source, label))}"
            figures.append(_render("overlaid", xray=xray, overlay=overlay, alt=text, caption=caption))
    return "".join(figures)


def _describe_evidence(source: str, label: str) -> str:
    return "Where the detector looks" if source == DETECTOR else f"{model_title(source)}, {label}"


def _probability(result: ComparisonResult, source: str, label: str) -> float:
    if source == DETECTOR:
        return result.fracture.probability if result.fracture else 0.0
    return next(s.probability for s in result.predictions[source].scores if s.label == label)


def _overlay_uri(result: ComparisonResult, source: str, label: str) -> str:
    """Return the evidence of a source as a data URI, or nothing if it gave no answer."""
    if source == DETECTOR:
        return (
            _png(_overlay(result.fracture.heatmap, result.preview.size, MIN_HEAT)) if result.fracture else ""
        )
    prediction = result.predictions.get(source)
    return _png(_overlay(prediction.cam[LABEL2ID[label]], result.preview.size)) if prediction else ""


def _overlay(values: NDArray[np.float32], size: tuple[int, int], min_scale: float = EPSILON) -> Image.Image:
    """Turn a map [h, w] of an image of `size` into RGBA: orange above zero, blue below.

    The largest absolute value is opaque, if it is at least `min_scale`.
    """
    scale = min(1, OVERLAY_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    # Not bicubic, which would overshoot: blue around a place that supports.
    strength = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    strength = strength / max(np.abs(strength).max(), min_scale)
    rgba = np.empty((*strength.shape, 4), np.uint8)
    rgba[..., :3] = np.where(strength[..., None] > 0, SUPPORT, AGAINST)
    rgba[..., 3] = 255 * np.abs(strength)
    return Image.fromarray(rgba)


def read_card(folder: Path) -> str:
    """Return the Markdown of a model's card without its metadata, or nothing if there is none."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.split("---\n", 2)[-1]


def render_report(rows: Sequence[BatchRow], date: str, summary: str) -> str:
    """Return a self-contained HTML file: `summary`, the models, what was not classified, a page per image."""
    pages: list[dict[str, Any]] = []
    models: dict[str, ModelInfo] = {}
    for row in rows:
        if not (result := row.result):
            continue
        top = result.top_prediction
        label = top.label if top else ""
        sources = [DETECTOR, *([top.model] if top else [])]
        pages.append(
            {
                "row": row,
                "warnings": result.warnings,
                "xray": _jpeg(result.preview, FIGURE_SIDE),
                "evidence": render_evidence(result, sources, label),
                "verdict": render_verdict(result, list(result.predictions), top),
                "matrix": render_matrix(result, top, REPORT_CLASSES),
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


def _jpeg(image: Image.Image, side: int | None = None) -> str:
    if side:
        image = image.copy()
        image.thumbnail((side, side))
    return _data_uri(image, "JPEG", quality=90)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
