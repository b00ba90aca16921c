"""The endpoints for programs, over HTTP and with gradio_client; MCP tools call them, too. See docs/api.md."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.components import Component

from fracture_lib.errors import FractureError, InvalidArgument, InvalidImage, UnknownModel
from fracture_lib.inference.batch import list_inputs, predict_batch
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import check_top_k
from fracture_lib.labels import CLASSES
from fracture_lib.registry import ALL_MODELS, ENSEMBLE, MODELS, model_title
from fracture_lib.webui.rendering import shorten
from fracture_lib.webui.server import BATCH_QUEUE, IMAGE_QUEUE, check_not_expired

__all__ = ["Api"]

ENSEMBLE_SUMMARY = "The weighted mean of the three models, calibrated."


class Api:
    """The endpoints /predict, /compare, /predict_batch and /models, added to the current Blocks.

    The docstrings of these methods become the descriptions of endpoints; Gradio reads one line per argument.
    """

    def __init__(self, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline
        # Components, not gr.api, which has no file type: they define the schema of the endpoints.
        with gr.Row(visible=False):
            image = gr.File(label="image")
            images = gr.File(label="images", file_count="multiple")
            # Let unknown models through: Gradio's message would repeat whatever was given.
            model = gr.Dropdown(list(ALL_MODELS), value=ENSEMBLE, label="model", allow_custom_value=True)
            top_k = gr.Number(3, label="top_k", precision=0)
            skip_ood_check = gr.Checkbox(False, label="skip_ood_check")
            self._add(self.predict, [image, model, top_k, skip_ood_check])
            self._add(self.compare, [image, top_k, skip_ood_check])
            self._add(self.predict_batch, [images, top_k, skip_ood_check], queue=BATCH_QUEUE, limit=1)
            self._add(self.models, [])

    def _add(
        self,
        endpoint: Callable[..., Any],
        inputs: list[Component],
        queue: str = IMAGE_QUEUE,
        limit: int | None = None,
    ) -> None:
        name = endpoint.__name__
        gr.Button(name).click(
            endpoint,
            inputs,
            gr.JSON(label="result"),
            api_name=name,
            concurrency_id=queue,
            concurrency_limit=limit or "default",
        )

    def predict(self, image: str, model: str, top_k: int, skip_ood_check: bool) -> dict[str, Any]:
        """Classify the type of fracture in one bone X-ray with one model. Not a medical device.

        The types assume a fracture; a separate detector estimates whether one is visible, and it misses some.
        The image is an uploaded file. URLs of other servers are not accepted.

        Args:
            image: The X-ray as DICOM, PNG, JPEG, TIFF, BMP, WebP or GIF.
            model: pytorch-cnn, tensorflow-cnn, resnet50 or ensemble.
            top_k: The number of classes to return, 1 to 10, most probable first.
            skip_ood_check: Classify the image even if it does not look like a bone X-ray.

        Returns:
            The image's name, whether it is out of distribution, whether a fracture is visible, warnings,
            calibrated predictions, a summary.
        """
        return self._predict(image, [model], top_k, skip_ood_check)

    def compare(self, image: str, top_k: int, skip_ood_check: bool) -> dict[str, Any]:
        """Classify the type of fracture in one bone X-ray with all models. Not a medical device.

        The types assume a fracture; a separate detector estimates whether one is visible, and it misses some.
        The image is an uploaded file. URLs of other servers are not accepted.

        Args:
            image: The X-ray as DICOM, PNG, JPEG, TIFF, BMP, WebP or GIF.
            top_k: The number of classes to return, 1 to 10, most probable first.
            skip_ood_check: Classify the image even if it does not look like a bone X-ray.

        Returns:
            The same as predict, with one prediction per model.
        """
        return self._predict(image, ALL_MODELS, top_k, skip_ood_check)

    def predict_batch(self, images: Sequence[str], top_k: int, skip_ood_check: bool) -> list[dict[str, Any]]:
        """Classify the types of fracture in many bone X-rays with all models. Not a medical device.

        The types assume a fracture; a separate detector estimates whether one is visible, and it misses some.
        An image is an uploaded file. URLs of other servers are not accepted.

        Args:
            images: X-rays, or ZIP archives of X-rays; up to 200 images.
            top_k: The number of classes to return per image, 1 to 10, most probable first.
            skip_ood_check: Classify images even if they do not look like bone X-rays.

        Returns:
            A list with the result of compare for each image, or its name and an error.
        """
        with _pass_errors_on():
            k = check_top_k(top_k)
            _check_flag(skip_ood_check)
            check_not_expired(images or [])
            rows = predict_batch(self._pipeline, list_inputs(images or []), skip_ood_check)
            return [row.to_dict(k) for row in rows]

    def models(self) -> list[dict[str, Any]]:
        """List the models with their measured accuracy, source and size.

        Returns:
            A list with one object per model. A model that cannot be loaded has an error in it.
        """
        return [self._describe(name) for name in ALL_MODELS]

    def _predict(self, image: str, models: Sequence[str], top_k: int, skip_ood_check: bool) -> dict[str, Any]:
        with _pass_errors_on():
            k = check_top_k(top_k)
            _check_flag(skip_ood_check)
            if not image:
                raise InvalidImage("There is no image. Upload one first.")
            for name in models:
                if name not in ALL_MODELS:
                    known = ", ".join(ALL_MODELS)
                    raise UnknownModel(f'Unknown model "{shorten(str(name))}". Choose from {known}.')
            check_not_expired([image])
            result = self._pipeline.predict(image, models, skip_ood_check=skip_ood_check, visuals=False)
            return result.to_dict(k)

    def _describe(self, name: str) -> dict[str, Any]:
        spec = MODELS.get(name)
        about = {
            "model": name,
            "title": model_title(name),
            "summary": spec.summary if spec else ENSEMBLE_SUMMARY,
            "reference_accuracy": spec.reference_accuracy if spec else None,
            "classes": [c.label for c in CLASSES],
        }
        try:
            model = self._pipeline.get_model(name)
        except FractureError as error:
            return about | {"error": str(error)}
        return about | {
            "accuracy": asdict(model.info.accuracy),
            "n": model.info.n,
            "protocol": model.report.protocol,
            "source": str(model.source),
            "size_bytes": model.size_bytes,
        }


def _check_flag(skip_ood_check: object) -> None:
    """Raise InvalidArgument unless the flag is a boolean: gr.Checkbox lets texts through, such as "false"."""
    if not isinstance(skip_ood_check, bool):
        raise InvalidArgument("skip_ood_check is not a boolean; use true or false.")


@contextmanager
def _pass_errors_on() -> Iterator[None]:
    """Turn the library's errors into Gradio's, whose messages reach the caller."""
    try:
        yield
    except FractureError as error:
        raise gr.Error(str(error), print_exception=False) from error
