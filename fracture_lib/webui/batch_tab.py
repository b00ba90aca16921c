"""The tab for a batch: a table that fills as images are classified, a CSV file and a printable report."""

import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import gradio as gr

from fracture_lib.errors import FractureError
from fracture_lib.inference.archives import read_member
from fracture_lib.inference.batch import MAX_IMAGES, BatchInput, BatchRow, list_inputs, predict_batch, tally
from fracture_lib.inference.batch_csv import FILE_ENCODING, to_csv
from fracture_lib.inference.fracture import Outcome
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.registry import ENSEMBLE, model_title, short_model_title
from fracture_lib.webui.rendering import (
    SHOWN_MODELS,
    percent,
    render_chip,
    render_image_cell,
    render_message,
    render_report,
)
from fracture_lib.webui.server import BATCH_QUEUE, check_not_expired

__all__ = ["BatchTab"]

REDRAW_INTERVAL = 1.0  # seconds; each time the whole table is sent
RESULT_LIFETIME = 900  # seconds that a session's list of images is kept, as the images themselves
TABLE_HEIGHT = 520  # pixels
# Column, type and width. On a phone, the first two fill the screen, so they say what became of an image.
COLUMNS: list[tuple[str, Literal["str", "html", "number"], int]] = [
    ("X-ray", "html", 185),
    ("Answer", "str", 165),
    ("Status", "html", 120),
    ("Fracture", "str", 150),
    *((short_model_title(name), "str", 150) for name in SHOWN_MODELS if name != ENSEMBLE),
    ("Notes", "str", 300),
    ("No.", "number", 80),
]
OUTCOMES: dict[Outcome, str] = {"visible": "visible", "uncertain": "uncertain", "none": "none seen"}
HELP = "Click on a row to open its X-ray. The menu \u22ee beside a title sorts."
NO_DOWNLOADS = "The disk is full, so there are no files to download. Try again in 20 minutes."


class BatchTab:
    """The tab's components and handlers, in the current Blocks."""

    def __init__(self, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline
        self.inputs = gr.State((), time_to_live=RESULT_LIFETIME)
        self.upload = gr.File(
            label=f"X-rays or ZIP files, up to {MAX_IMAGES}",
            file_count="multiple",
            elem_classes="upload-box",
        )
        with gr.Row():
            start = gr.Button("Classify all", variant="primary")
            skip_ood_check = gr.Checkbox(
                label="Also classify images that do not look like bone X-rays", min_width=320
            )
        message = gr.HTML(elem_id="batch-message")
        with gr.Row():
            csv = gr.DownloadButton("Download CSV", visible=False, elem_id="csv")
            report = gr.DownloadButton("Download report", visible=False, elem_id="report")
        self.table = gr.Dataframe(
            headers=[name for name, _, _ in COLUMNS],
            datatype=[kind for _, kind, _ in COLUMNS],
            column_widths=[width for _, _, width in COLUMNS],
            type="array",
            interactive=False,
            wrap=True,
            max_height=TABLE_HEIGHT,
            show_search="search",
            buttons=[],
            label=HELP,
            visible=False,
            elem_id="batch-table",
        )
        outputs = [self.inputs, message, self.table, csv, report]
        start.click(
            self.run,
            [self.upload, skip_ood_check],
            outputs,
            api_visibility="private",
            show_progress_on=[message],
            concurrency_id=BATCH_QUEUE,
            concurrency_limit=1,
        )
        changes = [self.upload.clear, self.upload.delete, self.upload.upload]
        gr.on(changes, self.clear, None, outputs, api_visibility="private", show_progress="hidden")

    def clear(self) -> tuple[Any, ...]:
        """Return values without results."""
        hidden = gr.update(visible=False)
        return (), "", hidden, hidden, hidden

    def run(
        self,
        paths: Sequence[str] | None,
        skip_ood_check: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (this is how Gradio passes one)
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the images, and values of the message, the table and the two download buttons."""
        hidden = gr.update(visible=False)
        try:
            check_not_expired(paths or [])
            inputs = list_inputs(paths or [])
        except FractureError as error:
            yield (), render_message(str(error), "error"), hidden, hidden, hidden
            return
        rows: list[BatchRow] = []
        last_drawn = 0.0
        for row in predict_batch(self._pipeline, inputs, skip_ood_check):
            rows.append(row)
            progress((len(rows), len(inputs)), unit="images")
            if monotonic() - last_drawn > REDRAW_INTERVAL:
                done = render_message(f"{len(rows)} of {len(inputs)} images")
                yield inputs.inputs, done, _show(rows), hidden, hidden
                last_drawn = monotonic()
        message = " ".join(filter(None, (tally(row.status for row in rows), inputs.left_out)))
        # Gradio copies the files to the upload folder before this folder is deleted.
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = _write_downloads(Path(folder), rows, message)
                downloads = [gr.update(value=str(path), visible=True) for path in files]
            except OSError:
                message, downloads = f"{message} {NO_DOWNLOADS}", [hidden, hidden]
            yield inputs.inputs, render_message(message), _show(rows), *downloads

    def open_row(self, inputs: Sequence[BatchInput], event: gr.SelectData) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the image of the clicked row, as an upload of the first tab, then that tab and a way back."""
        number = event.row_value[-1]  # not the row's position, which sorting and searching change
        if not inputs:
            yield gr.skip(), gr.skip(), gr.skip()
            return
        chosen = inputs[int(number) - 1]
        with tempfile.TemporaryDirectory() as folder:  # copied by Gradio before it is deleted
            path = chosen.path
            if chosen.member:
                path = Path(folder) / Path(chosen.name).name
                path.write_bytes(read_member(chosen.path, chosen.member))
            yield [str(path)], gr.update(selected="single"), gr.update(visible=True)


def _show(rows: Sequence[BatchRow]) -> dict[str, Any]:
    return gr.update(value=table_rows(rows), visible=True)


def _write_downloads(folder: Path, rows: Sequence[BatchRow], summary: str) -> tuple[Path, Path]:
    """Write the CSV file and the report; return their paths."""
    csv, report = folder / "fracture-types.csv", folder / "fracture-types.html"
    csv.write_text(to_csv(rows), FILE_ENCODING, errors="backslashreplace", newline="")
    html = render_report(rows, date.today().isoformat(), summary)
    report.write_text(html, "utf-8", errors="backslashreplace")
    return csv, report


def table_rows(rows: Sequence[BatchRow]) -> list[list[str | int]]:
    """Return the cells of COLUMNS for each image."""
    return [
        [
            render_image_cell(row.result, row.name),
            row.reason or _describe_ensemble(row),
            render_chip(row.status),
            _describe_fracture(row),
            *(_describe_answer(row, name) for name in SHOWN_MODELS if name != ENSEMBLE),
            _describe_problems(row),
            number,
        ]
        for number, row in enumerate(rows, 1)
    ]


def _describe_fracture(row: BatchRow) -> str:
    fracture = row.result.fracture if row.result else None
    # A number of three characters, so that sorting the texts sorts the numbers
    return f"{percent(fracture.probability):>5}, {OUTCOMES[fracture.outcome]}" if fracture else ""


def _describe_answer(row: BatchRow, model: str) -> str:
    if model in row.failures:
        return "failed"
    prediction = row.result.predictions.get(model) if row.result else None
    return f"{prediction.label} {percent(prediction.probability)}" if prediction else ""


def _describe_ensemble(row: BatchRow) -> str:
    """Return the ensemble's answer, after what the detector does not see."""
    answer = _describe_answer(row, ENSEMBLE)
    fracture = row.result.fracture if row.result and ENSEMBLE in row.result.predictions else None
    return f"No fracture seen; {answer}" if fracture and fracture.outcome == "none" else answer


def _describe_problems(row: BatchRow) -> str:
    """Return the warnings and why models failed, equal reasons once."""
    models: dict[str, list[str]] = {}
    for name, reason in row.failures.items():
        models.setdefault(reason, []).append(model_title(name))
    failures = [f"{', '.join(titles)}: {reason}" for reason, titles in models.items()]
    return " ".join((*row.warnings, *failures))
