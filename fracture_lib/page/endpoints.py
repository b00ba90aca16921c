"""The page for programs: one named endpoint a verb, for HTTP, gradio_client and MCP alike."""

from contextlib import contextmanager

import gradio as gr

from fracture_lib.batch import ask_each, collect
from fracture_lib.classifier import check_top_k
from fracture_lib.errors import FractureError
from fracture_lib.labels import CLASSES
from fracture_lib.page import MANY_FILMS, ONE_FILM
from fracture_lib.panel import EVERYONE
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = ["build"]


def build(panel):
    """Add the endpoints /predict, /compare, /predict_batch and /models to the Blocks at hand."""

    def predict(film: str, model: str, top_k: int, anyway: bool) -> dict:
        """Name the type of fracture in one bone X-ray. Not a medical device, not for diagnosis.

        Args:
            film: The film: DICOM, PNG, JPEG, TIFF, BMP or WebP.
            model: pytorch-cnn, tensorflow-cnn, resnet50 or ensemble.
            top_k: How many classes to return, 1 to 10, most probable first.
            anyway: Answer also where the picture does not look like a bone X-ray.

        Returns:
            The film's name, whether it was refused, notices, calibrated predictions, a sentence.
        """
        return ask(film, [model], top_k, anyway)

    def compare(film: str, top_k: int, anyway: bool) -> dict:
        """Name the type of fracture in one bone X-ray by all three models and their ensemble.

        Args:
            film: The film: DICOM, PNG, JPEG, TIFF, BMP or WebP.
            top_k: How many classes to return, 1 to 10, most probable first.
            anyway: Answer also where the picture does not look like a bone X-ray.

        Returns:
            As predict, with one prediction a model.
        """
        return ask(film, EVERYONE, top_k, anyway)

    def predict_batch(films: list, top_k: int, anyway: bool) -> list:
        """Name the types of fracture in many bone X-rays, files or ZIP archives, by all models.

        Args:
            films: The films, or ZIP archives of films, 200 films at most.
            top_k: How many classes to return, 1 to 10, most probable first.
            anyway: Answer also where a picture does not look like a bone X-ray.

        Returns:
            A list with what compare returns for each film, or its name and an error.
        """
        with _sentences():
            check_top_k(top_k)
            return [
                result.to_dict(top_k) if result else {"film": name, "error": sentence}
                for name, result, sentence in ask_each(panel, collect(films or []), anyway)
            ]

    def models() -> list:
        """List the models: what each is, its measured accuracy with interval, its source and size.

        Returns:
            A list with one object a model.
        """
        with _sentences():
            return [_about(panel.classifier(name)) for name in EVERYONE]

    def ask(film, names, top_k, anyway):
        with _sentences():
            check_top_k(top_k)
            if not film:
                raise FractureError("There is no film: give one.")
            if not all(name in EVERYONE for name in names):  # gr.Dropdown lets lists through
                raise FractureError(f"There is no such model: use {', '.join(EVERYONE)}.")
            return panel.ask(film, names, anyway=anyway).to_dict(top_k)

    # Components, not gr.api, which knows no files: what they declare is the endpoints' schema.
    with gr.Row(visible=False):
        film = gr.File(label="film")
        films = gr.File(label="films", file_count="multiple")
        model = gr.Dropdown(list(EVERYONE), value=ENSEMBLE, label="model")
        top_k = gr.Number(3, label="top_k", precision=0)
        anyway = gr.Checkbox(False, label="anyway")
        verbs = {
            predict: [film, model, top_k, anyway],
            compare: [film, top_k, anyway],
            predict_batch: [films, top_k, anyway],
            models: [],
        }
        for verb, inputs in verbs.items():
            gr.Button(verb.__name__).click(
                verb,
                inputs,
                gr.JSON(label="answer"),
                api_name=verb.__name__,
                **(MANY_FILMS if verb is predict_batch else ONE_FILM),
            )


@contextmanager
def _sentences():
    """Turn the library's errors into the ones that Gradio passes on as they are."""
    try:
        yield
    except FractureError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _about(classifier):
    spec = MODELS.get(classifier.name)
    return {
        "model": classifier.name,
        "summary": spec.summary if spec else "The weighted mean of the three models, calibrated.",
        "accuracy": classifier.evaluation["metrics"]["accuracy"],
        "n": classifier.evaluation["n"],
        "protocol": classifier.evaluation["protocol"],
        "reference_accuracy": spec.reference_accuracy if spec else None,
        "source": str(classifier.source),
        "bytes": classifier.size,
        "classes": [c.label for c in CLASSES],
    }
