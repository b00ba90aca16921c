"""The page: upload a film, pick a model or compare all, read what they say. `python app.py`."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no request leaves the page

import gradio as gr
import numpy as np
from PIL import Image

import fracture_lib
from fracture_lib.cards import percent
from fracture_lib.drawing import draw_film

CHOICES = [
    ("Compare all three", "all"),
    *((spec.title, name) for name, spec in fracture_lib.MODELS.items()),
]
EXAMPLES = ("Spiral", "Comminuted", "Hairline", "Greenstick")
CLASS_COUNT = len(fracture_lib.CLASSES)

INTRODUCTION = f"""# Fracture type from an X-ray
Three models, each naming one of {CLASS_COUNT} types of fracture. Upload a film and compare what they say."""

DISCLAIMER = """**Not a medical device. Not for diagnosis.** These models are often wrong: see the accuracy
beside each answer. There is **no "no fracture" class**: a healthy bone gets a fracture name too."""

HINT = "Upload a film, or pick one of the drawn examples."

CSS = """
#disclaimer, #message { border-left: 4px solid var(--color-accent); padding: .5rem 1rem; }
.facts { font-size: .85rem; }
"""


def facts(classifier, milliseconds=None):
    """Markdown below an answer: what the model is worth, how fast it was, where it came from."""
    evaluation = classifier.evaluation
    spec = fracture_lib.MODELS[classifier.name]
    lines = [
        spec.summary,
        f"Measured accuracy: **{percent(evaluation['metrics']['accuracy'])}**, "
        f"n = {evaluation['n']}, 95 % interval, on films held out by patient or figure. Chance is "
        f"{1 / CLASS_COUNT:.0%}.",
        f"Weights: {classifier.source}.",
    ]
    if milliseconds is not None:
        lines.append(f"Answered in {milliseconds:.0f} ms ({classifier.runtime}).")
    return "\n\n".join(lines)


def seen_by_models(film):
    """A film [H, W] -> what the models get of it, each pixel drawn as 2x2 of 8 bits."""
    return np.uint8(255 * fracture_lib.preprocess(film)).repeat(2, axis=0).repeat(2, axis=1)


def display(film):
    """A film [H, W] -> the film as read, 8-bit and at most 1024 pixels a side."""
    picture = Image.fromarray(np.uint8(255 * film))
    picture.thumbnail((1024, 1024))
    return picture


def draw_examples(folder):
    """Draw the example films into `folder` and return their paths."""
    paths = []
    for label in EXAMPLES:
        paths.append(folder / f"drawn-{label.lower()}.png")
        draw_film(label).save(paths[-1])
    return paths


def build_page(classifiers, examples):
    """Return the Blocks page that serves `classifiers`, a dict of name -> Classifier."""

    def answer(path, choice, top_k):
        """All that changes: message, both pictures, then group, label and facts of each model."""
        message, large, small, predictions = "", None, None, {}
        if path:
            try:
                film = fracture_lib.read_film(path)  # once for all that follows
                large, small = display(film), seen_by_models(film)
                for name, classifier in classifiers.items():
                    if choice in ("all", name):
                        predictions[name] = classifier.predict(film, int(top_k))
            except fracture_lib.FractureError as error:
                message = str(error)
        else:
            message = HINT
        updates = [
            gr.update(value=message, visible=bool(message)),
            gr.update(value=large, visible=large is not None),
            gr.update(value=small, visible=small is not None),
        ]
        for name, classifier in classifiers.items():
            prediction = predictions.get(name)
            scores = {s.label: s.probability for s in prediction.scores} if prediction else None
            updates += [
                gr.update(visible=choice in ("all", name)),
                gr.update(value=scores, num_top_classes=int(top_k)),
                facts(classifier, prediction.milliseconds if prediction else None),
            ]
        return updates

    picture = {"visible": False, "height": 260, "interactive": False, "buttons": ["fullscreen", "download"]}
    with gr.Blocks(title="Fracture type from an X-ray") as page:
        gr.Markdown(INTRODUCTION)
        gr.Markdown(DISCLAIMER, elem_id="disclaimer")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                # Not gr.Image: it clips 16-bit films to white before the library sees them.
                upload = gr.File(label="X-ray film (PNG, JPEG, TIFF, BMP, WebP)", type="filepath")
                choice = gr.Radio(CHOICES, value="all", label="Model")
                top_k = gr.Slider(1, CLASS_COUNT, value=3, step=1, label="How many classes to show")
                button = gr.Button("Name the fracture", variant="primary")
                gr.Examples(
                    [[str(path)] for path in examples],
                    upload,
                    example_labels=[f"{label} (drawn)" for label in EXAMPLES],
                    label="Drawn examples: schematic, nobody's bone",
                    cache_examples=False,
                )
            with gr.Column(scale=3, min_width=280):
                message = gr.Markdown(HINT, elem_id="message")
                with gr.Row():
                    large = gr.Image(label="The film", alt_text="The film as it was read", **picture)
                    small = gr.Image(
                        label="What the models see (128x128)",
                        alt_text="The film scaled and padded to 128x128 pixels",
                        **picture,
                    )
                results = []
                with gr.Row():
                    for name, classifier in classifiers.items():
                        with gr.Column(min_width=220) as group:
                            title = fracture_lib.MODELS[name].title
                            label = gr.Label(label=title, num_top_classes=3)
                            results += [
                                group,
                                label,
                                gr.Markdown(facts(classifier), elem_classes="facts"),
                            ]
        with gr.Accordion(f"The {CLASS_COUNT} classes", open=False):
            gr.Markdown("\n".join(f"- **{c.label}**: {c.description}" for c in fracture_lib.CLASSES))

        gr.on(
            [button.click, upload.change, choice.change, top_k.release],
            answer,
            [upload, choice, top_k],
            [message, large, small, *results],
            trigger_mode="always_last",
            concurrency_id="inference",
            api_visibility="private",
        )
    return page


def main():
    classifiers = {name: fracture_lib.load(name) for name in fracture_lib.MODELS}
    with tempfile.TemporaryDirectory(prefix="drawn-films-") as folder:
        page = build_page(classifiers, draw_examples(Path(folder)))
        page.queue(max_size=32).launch(
            css=CSS, ssr_mode=False, max_file_size="64mb", footer_links=["gradio", "settings"]
        )


if __name__ == "__main__":
    main()
