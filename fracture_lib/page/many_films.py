"""The tab for many films: a table that fills as they are named, a CSV and a printable report."""

import tempfile
from datetime import date
from pathlib import Path
from time import monotonic

import gradio as gr

from fracture_lib.batch import MAX_FILMS, ask_each, collect, to_csv
from fracture_lib.errors import FractureError
from fracture_lib.page import MANY_FILMS, check_kept, views
from fracture_lib.panel import EVERYONE, in_words

__all__ = ["build"]

REDRAW = 0.5  # seconds between two drawings of the table, which is sent whole
COLUMNS = ["Film", *(views.title(name) for name in EVERYONE), "In words"]


def build(panel):
    """Lay the tab out inside the Blocks at hand."""
    upload = gr.File(
        label=f"Films or a ZIP of films, at most {MAX_FILMS}",
        file_count="multiple",
        height=200,
        elem_classes="films-in",
    )
    with gr.Row():
        start = gr.Button("Name them all", variant="primary")
        anyway = gr.Checkbox(label="Ask also about what does not look like a bone X-ray")
    message = gr.HTML(elem_id="batch-message")
    table = gr.HTML(elem_id="batch-table")
    with gr.Row():
        csv = gr.DownloadButton("Download CSV", visible=False, elem_id="csv")
        report = gr.DownloadButton("Download the report to print", visible=False, elem_id="report")

    def run(paths, anyway, progress=gr.Progress()):  # noqa: B008, how Gradio asks for one
        hidden = gr.update(visible=False)
        try:
            check_kept(paths or [])
            films = collect(paths or [])
        except FractureError as error:
            yield views.message(str(error), "error"), "", hidden, hidden
            return
        rows, drawn = [], 0
        for row in ask_each(panel, films, anyway):
            rows.append(row)
            progress((len(rows), len(films)), unit="films")
            if monotonic() - drawn > REDRAW:
                yield views.message(f"{len(rows)} of {len(films)} films."), _table(rows), hidden, hidden
                drawn = monotonic()
        failed = sum(result is None for _, result, _ in rows)
        told = (
            f"{len(rows)} films, {failed} of them not readable."
            if failed
            else f"{len(rows)} films, all read."
        )
        # Gradio copies the two files to its own cache, which it clears, before the folder goes.
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / "fracture-types.csv", Path(folder) / "fracture-types.html"]
            results = [result for _, result, _ in rows if result]
            try:
                paths[0].write_text(to_csv(rows), encoding="utf-8")
                paths[1].write_text(views.report(results, date.today().isoformat()), encoding="utf-8")
                ready = [gr.update(value=str(path), visible=True) for path in paths]
            except OSError:
                told += " There is no room for the files to download: try again in twenty minutes."
                ready = [hidden, hidden]
            yield views.message(told), _table(rows), *ready

    start.click(
        run,
        [upload, anyway],
        [message, table, csv, report],
        api_visibility="private",
        show_progress_on=[message],
        **MANY_FILMS,
    )


def _table(rows):
    lines = []
    for name, result, sentence in rows:
        if result and result.predictions:
            firsts = [p.scores[0] for p in result.predictions.values()]
            lines.append(
                [name, *((f"{s.label} {s.probability:.0%}", s.label) for s in firsts), in_words(result)]
            )
        else:
            told = sentence or result.verdict.sentence
            lines.append([name, *[""] * len(EVERYONE), told])
    return views.table(COLUMNS, lines, "What the models say")
