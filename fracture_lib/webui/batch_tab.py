"""The tab for a batch: a table that fills as images are classified, a CSV file and a printable report."""

import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from time import monotonic
from typing import Any

import gradio as gr

from fracture_lib.errors import FractureError
from fracture_lib.inference.batch import MAX_IMAGES, BatchRow, list_inputs, predict_batch, tally
from fracture_lib.inference.batch_csv import FILE_ENCODING, to_csv
from fracture_lib.inference.fracture import Outcome
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import summarize_types
from fracture_lib.registry import ALL_MODELS, model_title
from fracture_lib.webui.rendering import Cell, percent, render_message, render_report, render_table, shorten
from fracture_lib.webui.server import BATCH_QUEUE, check_not_expired

__all__ = ["BatchTab"]

REDRAW_INTERVAL = 0.5  # seconds; each time the whole table is sent
COLUMNS = ["Image", "Status", "Fracture", *(model_title(name) for name in ALL_MODELS), "Summary"]
OUTCOMES: dict[Outcome, str] = {"visible": "visible", "uncertain": "uncertain", "none": "none seen"}
NO_DOWNLOADS = "The disk is full, so there are no files to download. Try again in 20 minutes."


class BatchTab:
    """The tab's components and handler, in the current Blocks."""

    def __init__(self, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline
        upload = gr.File(
            label=f"X-ray images or ZIP files, up to {MAX_IMAGES} images",
            file_count="multiple",
            height=200,
            elem_classes="upload-box",
        )
        with gr.Row():
            start = gr.Button("Classify all", variant="primary")
            skip_ood_check = gr.Checkbox(label="Also classify images that do not look like bone X-rays")
        message = gr.HTML(elem_id="batch-message")
        table = gr.HTML(elem_id="batch-table")
        with gr.Row():
            csv = gr.DownloadButton("Download CSV", visible=False, elem_id="csv")
            report = gr.DownloadButton("Download printable report", visible=False, elem_id="report")
        start.click(
            self.run,
            [upload, skip_ood_check],
            [message, table, csv, report],
            api_visibility="private",
            show_progress_on=[message],
            concurrency_id=BATCH_QUEUE,
            concurrency_limit=1,
        )

    def run(
        self,
        paths: Sequence[str] | None,
        skip_ood_check: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (this is how Gradio passes one)
    ) -> Iterator[tuple[Any, ...]]:
        """Yield values of the message, the table and the two download buttons."""
        hidden = gr.update(visible=False)
        try:
            check_not_expired(paths or [])
            inputs = list_inputs(paths or [])
        except FractureError as error:
            yield render_message(str(error), "error"), "", hidden, hidden
            return
        rows: list[BatchRow] = []
        last_drawn = 0.0
        for row in predict_batch(self._pipeline, inputs, skip_ood_check):
            rows.append(row)
            progress((len(rows), len(inputs)), unit="images")
            if monotonic() - last_drawn > REDRAW_INTERVAL:
                progress_text = render_message(f"{len(rows)} of {len(inputs)} images")
                yield progress_text, render_rows(rows), hidden, hidden
                last_drawn = monotonic()
        message = " ".join(filter(None, (tally(row.status for row in rows), inputs.left_out)))
        # Gradio copies the files to the upload folder before this folder is deleted.
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = _write_downloads(Path(folder), rows, message)
                downloads = [gr.update(value=str(path), visible=True) for path in files]
            except OSError:
                message, downloads = f"{message} {NO_DOWNLOADS}", [hidden, hidden]
            yield render_message(message), render_rows(rows), *downloads


def _write_downloads(folder: Path, rows: Sequence[BatchRow], summary: str) -> tuple[Path, Path]:
    """Write the CSV file and the report; return their paths."""
    csv, report = folder / "fracture-types.csv", folder / "fracture-types.html"
    csv.write_text(to_csv(rows), FILE_ENCODING, errors="backslashreplace", newline="")
    html = render_report(rows, date.today().isoformat(), summary)
    report.write_text(html, "utf-8", errors="backslashreplace")
    return csv, report


def render_rows(rows: Sequence[BatchRow]) -> str:
    """Return the table of a batch; a model that failed says so in its column and why in the last one."""
    lines: list[list[Cell]] = []
    for row in rows:
        cells = [_describe_answer(row, name) for name in ALL_MODELS]
        lines.append(
            [(shorten(row.name), row.name), row.status, _describe_fracture(row), *cells, _summarize(row)]
        )
    return render_table(COLUMNS, lines, "Predictions per image")


def _describe_fracture(row: BatchRow) -> Cell:
    """Return the fracture detector's cell, sorted by the probability."""
    fracture = row.result.fracture if row.result else None
    if fracture is None:
        return ""
    return f"{OUTCOMES[fracture.outcome]} {percent(fracture.probability)}", fracture.probability


def _describe_answer(row: BatchRow, model: str) -> Cell:
    """Return a model's cell, sorted by the class."""
    if model in row.failures:
        return "failed"
    prediction = row.result.predictions.get(model) if row.result else None
    return (f"{prediction.label} {percent(prediction.probability)}", prediction.label) if prediction else ""


def _summarize(row: BatchRow) -> str:
    """Return the summary of the types or why there is none, then warnings, then failures, equal ones once."""
    models: dict[str, list[str]] = {}
    for name, reason in row.failures.items():
        models.setdefault(reason, []).append(model_title(name))
    failures = [f"{', '.join(titles)}: {reason}" for reason, titles in models.items()]
    summary = row.reason or (summarize_types(row.result) if row.result else "")
    return " ".join(filter(None, (summary, *row.warnings, *failures)))
