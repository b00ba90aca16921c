"""The tab where one film is named: upload, the models' answers, what they saw and why."""

from pathlib import Path

import gradio as gr

from fracture_lib.cards import percent
from fracture_lib.errors import FractureError
from fracture_lib.labels import LABEL2ID
from fracture_lib.page import views
from fracture_lib.panel import EVERYONE
from fracture_lib.registry import ENSEMBLE

__all__ = ["build"]

ALL = "all"
CHOICES = [("Compare all", ALL), *((views.title(name), name) for name in EVERYONE)]
FORMATS = "DICOM, PNG (8 or 16 bits), JPEG, TIFF, BMP, WebP"
HINT = "Drop a film here, paste one, or pick one of the drawn examples."


def build(page, panel, examples):
    """Lay the tab out on the Blocks `page`; `examples` is a list of (label, path of a film)."""
    result = gr.State(None, time_to_live=900)  # the film on show: seconds until it is forgotten
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            # Not gr.Image: it clips 16-bit films to white before the library sees them.
            upload = gr.File(label="X-ray films", file_count="multiple", height=160, elem_classes="films-in")
            gr.Markdown(FORMATS, elem_classes="facts")
            pick = gr.Dropdown(label="Which of the films", choices=[], visible=False, elem_id="pick")
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
                maps = gr.HTML(elem_id="maps")

    shown = [message, anyway, answers, pictures, why, label, maps, table]

    def names(choice):
        return EVERYONE if choice == ALL else (choice,)

    def show(result, choice, top_k):
        """All that depends on a Result, as values of `shown`."""
        told = [views.message(notice) for notice in result.notices]
        refused = result.verdict.refused
        if refused:
            told.insert(0, views.message(result.verdict.sentence, "refused"))
        predictions = result.predictions
        lead = predictions.get(ENSEMBLE if choice == ALL else choice) or next(
            iter(predictions.values()), None
        )
        first = lead.scores[0].label if lead else None
        return (
            "".join(told),
            gr.update(visible=refused and not predictions),
            views.answers(result, names(choice), top_k, panel.classifier) if not refused or lead else "",
            views.pictures(result),
            gr.update(visible=bool(lead)),
            first,
            views.maps(result, names(choice), first) if lead else "",
            compare(predictions) if choice == ALL and lead else "",
        )

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

    def nothing(text, kind="hint"):
        return (
            views.message(text, kind),
            gr.update(visible=False),
            "",
            "",
            gr.update(visible=False),
            None,
            "",
            "",
        )

    def ask(files, picked, choice, top_k, anyway=False):
        """Yield a state to show at once where models must be loaded first, then the answer."""
        if not files:
            yield (None, gr.update(visible=False), *nothing(HINT))
            return
        if not panel.ready:
            yield (None, gr.skip(), *nothing("Loading the models: the first answer takes a moment longer."))
        listed = {
            f"{i}. {Path(path).name}" if len(files) > 1 else Path(path).name: path
            for i, path in enumerate(files, 1)
        }
        picked = picked if picked in listed else next(iter(listed))
        several = gr.update(choices=list(listed), value=picked, visible=len(listed) > 1)
        try:
            result = panel.ask(listed[picked], name=Path(listed[picked]).name, anyway=anyway)
            yield (result, several, *show(result, choice, top_k))
        except FractureError as error:
            yield (None, several, *nothing(str(error), "error"))

    def ask_anyway(*inputs):
        yield from ask(*inputs, anyway=True)

    def again(result, choice, top_k):
        return show(result, choice, top_k) if result else [gr.skip()] * len(shown)

    def explain(result, choice, label):
        return views.maps(result, names(choice), label) if result and result.predictions and label else ""

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [upload, pick, choice, top_k]
    asking = {"api_visibility": "private", "concurrency_id": "inference", "show_progress_on": [answers]}
    gr.on(
        [button.click, upload.change, pick.input],
        ask,
        inputs,
        [result, pick, *shown],
        trigger_mode="always_last",
        **asking,
    )
    anyway.click(ask_anyway, inputs, [result, pick, *shown], **asking)
    gr.on([choice.change, top_k.release], again, [result, choice, top_k], shown, **quiet)
    label.input(explain, [result, choice, label], maps, **quiet)

    def arrive(request: gr.Request):
        """A deep link such as ?model=resnet50 picks the model; the first example is answered unasked."""
        wanted = request.query_params.get("model")
        return wanted if wanted in dict(map(reversed, CHOICES)) else ALL, [str(examples[0][1])]

    page.load(arrive, None, [choice, upload], **quiet)
