"""The tab where one film is named: upload, the models' answers, what they saw and why."""

from pathlib import Path

import gradio as gr

from fracture_lib.cards import percent
from fracture_lib.errors import FractureError
from fracture_lib.labels import LABEL2ID
from fracture_lib.page import ONE_FILM, check_kept, views
from fracture_lib.panel import EVERYONE
from fracture_lib.registry import ENSEMBLE

__all__ = ["build"]

ALL = "all"
CHOICES = [("Compare all", ALL), *((views.title(name), name) for name in EVERYONE)]
FORMATS = "DICOM, PNG (8 or 16 bits), JPEG, TIFF, BMP, WebP"
SET_OPACITY = "value => document.documentElement.style.setProperty('--opacity', value / 100)"
FORGOTTEN = "This answer is not kept here any more: name the fracture again to change what is shown."
HINT = "Drop a film here, paste one, or pick one of the drawn examples."


def build(page, panel, examples):
    """Lay the tab out on the Blocks `page`; `examples` is a list of (label, path of a film)."""
    result = gr.State(None, time_to_live=900)  # the film on show: seconds until it is forgotten
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            # Not gr.Image: it clips 16-bit films to white before the library sees them.
            upload = gr.File(label="X-ray films", file_count="multiple", height=160, elem_classes="films-in")
            gr.Markdown(FORMATS, elem_classes="facts")
            # Custom values, or Gradio refuses the choices that it has forgotten with the visitor's session.
            pick = gr.Dropdown(
                [], label="Which of the films", visible=False, elem_id="pick", allow_custom_value=True
            )
            choice = gr.Radio(CHOICES, value=ALL, label="Model", elem_id="model")
            top_k = gr.Slider(1, len(LABEL2ID), value=3, step=1, label="How many classes to show")
            button = gr.Button("Name the fracture", variant="primary")
            gr.Examples(
                [[[str(path)]] for _, path in examples],
                upload,
                example_labels=[label for label, _ in examples],
                label="Drawn examples: schematic, nobody's bone",
                cache_examples=False,
            )
        with gr.Column(scale=3, min_width=280):
            message = gr.HTML(views.message(HINT), elem_id="message")
            anyway = gr.Button("Ask the models all the same", visible=False, elem_id="anyway")
            answers = gr.HTML(elem_id="answers")
            table = gr.HTML(elem_id="compare")
            pictures = gr.HTML(elem_id="pictures")
            with gr.Column(visible=False) as why:
                label = gr.Dropdown(list(LABEL2ID), label="Why: the evidence for which class", elem_id="why")
                opacity = gr.Slider(0, 100, value=60, step=1, label="Opacity of the maps", elem_id="opacity")
                maps = gr.HTML(elem_id="maps")

    shown = [result, pick, message, anyway, answers, table, pictures, why, label, maps]

    # Each function below returns what it changes: values by component.

    def names(choice):
        return EVERYONE if choice == ALL else (choice,)

    def nothing(text, kind="hint"):
        """No film on show, only a sentence."""
        hidden = dict.fromkeys([anyway, why], gr.update(visible=False))
        empty = dict.fromkeys([answers, table, pictures, maps], "")
        return {result: None, label: None, message: views.message(text, kind), **hidden, **empty}

    def show(found, choice, top_k):
        """All of a Result."""
        told = [views.message(notice) for notice in found.notices]
        if found.verdict.refused:
            told.insert(0, views.message(found.verdict.sentence, "refused"))
        lead = found.predictions.get(ENSEMBLE if choice == ALL else choice) or next(
            iter(found.predictions.values()), None
        )
        first = lead.scores[0].label if lead else None
        return {
            result: found,
            message: "".join(told),
            anyway: gr.update(visible=found.verdict.refused and not lead),
            pictures: views.pictures(found),
            why: gr.update(visible=bool(lead)),
            label: first,
            **said(found, choice, top_k, first),
        }

    def said(found, choice, top_k, label):
        """The part of a Result that the chosen model, k and class decide."""
        if not found:  # the label is the browser's, so it shows whether there was one
            return {message: views.message(FORGOTTEN)} if label else gr.skip()
        if not found.predictions and not found.failures:
            return dict.fromkeys([answers, table, maps], "")
        return {
            answers: views.answers(found, names(choice), top_k, panel.classifier),
            table: compare(found.predictions) if choice == ALL else "",
            maps: views.maps(found, names(choice), label) if label else "",
        }

    def compare(predictions):
        rows = []
        for name, prediction in predictions.items():
            classifier = panel.classifier(name)
            accuracy = classifier.evaluation["metrics"]["accuracy"]
            rows.append(
                [
                    views.title(name),
                    *((f"{s.label} {s.probability:.0%}", s.probability) for s in prediction.scores[:3]),
                    (percent(accuracy), accuracy["value"]),
                    (f"{prediction.milliseconds:.1f}", prediction.milliseconds),
                    (f"{classifier.size / 1e6:.1f}", classifier.size),
                ]
            )
        columns = ["Model", "First", "Second", "Third", "Measured accuracy (95 % interval)", "ms", "MB"]
        return views.table(columns, rows, "The models side by side")

    def ask(files, picked, choice, top_k, anyway=False):
        """Yield a state to show at once where models must be loaded first, then the answer."""
        if not files:
            yield {pick: gr.update(visible=False), **nothing(HINT)}
            return
        if not panel.ready:
            yield nothing("Loading the models: the first answer takes a moment longer.")
        listed = {
            f"{i}. {Path(path).name}" if len(files) > 1 else Path(path).name: path
            for i, path in enumerate(files, 1)
        }
        picked = picked if picked in listed else next(iter(listed))
        several = gr.update(choices=list(listed), value=picked, visible=len(listed) > 1)
        try:
            check_kept([listed[picked]])
            found = panel.ask(listed[picked], name=Path(listed[picked]).name, anyway=anyway)
            yield {pick: several, **show(found, choice, top_k)}
        except FractureError as error:
            yield {pick: several, **nothing(str(error), "error")}

    def ask_anyway(*inputs):
        yield from ask(*inputs, anyway=True)

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [upload, pick, choice, top_k]
    asking = {"api_visibility": "private", "show_progress_on": [answers], **ONE_FILM}
    gr.on([button.click, upload.change, pick.input], ask, inputs, shown, trigger_mode="always_last", **asking)
    anyway.click(ask_anyway, inputs, shown, **asking)
    settings = [result, choice, top_k, label]
    gr.on(
        [choice.change, top_k.input, label.input],  # not top_k.release: arrow keys never let go
        said,
        settings,
        [message, answers, table, maps],
        trigger_mode="always_last",
        **quiet,
    )
    opacity.input(None, opacity, js=SET_OPACITY, **quiet)

    def arrive(request: gr.Request):
        """A deep link such as ?model=resnet50 picks the model; the first example is answered unasked."""
        wanted = request.query_params.get("model")
        return wanted if wanted in dict(map(reversed, CHOICES)) else ALL, [str(examples[0][1])]

    page.load(arrive, None, [choice, upload], **quiet)
