"""The tab for a single X-ray: upload, predictions, model input, class activation maps and heatmap."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gradio as gr
from gradio.blocks import Block

from fracture_lib.errors import FractureError
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import ComparisonResult, Prediction
from fracture_lib.labels import LABEL2ID
from fracture_lib.registry import ALL_MODELS, DETECTOR, ENSEMBLE, model_title
from fracture_lib.webui.gradio_private import is_copy
from fracture_lib.webui.rendering import (
    Cell,
    percent,
    render_cams,
    render_heatmap,
    render_images,
    render_message,
    render_predictions,
    render_table,
    render_warnings,
)
from fracture_lib.webui.server import IMAGE_QUEUE, INTERNAL_ERROR, check_not_expired

__all__ = ["PredictTab"]

Updates: TypeAlias = dict[Block, Any]  # new values or properties by component; the others stay as they are

ALL = "all"
MODEL_CHOICES = [("Compare all", ALL), *((model_title(name), name) for name in ALL_MODELS)]
EVIDENCE_CHOICES = [("Where the detector looks", DETECTOR), *((label, label) for label in LABEL2ID)]
COLUMNS = ["Model", "First", "Second", "Third", "Accuracy (95 % interval)", "ms", "MB"]
RESULT_LIFETIME = 900  # seconds that a session's result is kept

FORMATS = "DICOM, 8/16-bit PNG, JPEG, TIFF, BMP, WebP, GIF"
HINT = "Upload or paste an X-ray, or pick an example."
LOADING = "Loading the models. The first result takes a little longer."
RESULT_EXPIRED = "This result has expired. Classify the image again to change what is shown."
SET_OPACITY = "value => document.documentElement.style.setProperty('--opacity', value / 100)"


class PredictTab:
    """The tab's components and handlers, on the Blocks `page`; `examples` are (label, path of an image)."""

    def __init__(
        self, page: gr.Blocks, pipeline: InferencePipeline, examples: Sequence[tuple[str, Path]]
    ) -> None:
        self._pipeline = pipeline
        self._examples = examples
        self._lay_out()
        self._connect(page)

    def _lay_out(self) -> None:
        self.result = gr.State(None, time_to_live=RESULT_LIFETIME)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                # gr.Image would clip 16-bit images to white before the library reads them.
                self.upload = gr.File(
                    label="X-ray images", file_count="multiple", height=160, elem_classes="upload-box"
                )
                gr.Markdown(FORMATS, elem_classes="facts")
                # Allow custom values: Gradio rejects choices that it has forgotten with the session.
                self.selected = gr.Dropdown(
                    [],
                    label="Image to analyze",
                    visible=False,
                    elem_id="image-select",
                    allow_custom_value=True,
                )
                self.model = gr.Radio(MODEL_CHOICES, value=ALL, label="Model", elem_id="model")
                self.top_k = gr.Slider(1, len(LABEL2ID), value=3, step=1, label="Number of predictions")
                self.classify_button = gr.Button("Classify", variant="primary")
                gr.Examples(
                    [[[str(path)]] for _, path in self._examples],
                    self.upload,
                    example_labels=[label for label, _ in self._examples],
                    label="Examples",
                    cache_examples=False,
                )
            with gr.Column(scale=3, min_width=280):
                self.message = gr.HTML(render_message(HINT), elem_id="message")
                self.anyway_button = gr.Button("Classify anyway", visible=False, elem_id="classify-anyway")
                self.predictions = gr.HTML(elem_id="predictions")
                self.comparison = gr.HTML(elem_id="comparison")
                self.images = gr.HTML(elem_id="images")
                with gr.Column(visible=False) as self.explanation:
                    self.label = gr.Dropdown(EVIDENCE_CHOICES, label="Show evidence for", elem_id="cam-label")
                    self.opacity = gr.Slider(
                        0, 100, value=60, step=1, label="Overlay opacity (%)", elem_id="cam-opacity"
                    )
                    self.cams = gr.HTML(elem_id="cams")

    def _connect(self, page: gr.Blocks) -> None:
        inputs = [self.upload, self.selected, self.model, self.top_k]
        outputs: list[Block] = [
            *(self.result, self.selected, self.message, self.anyway_button, self.predictions),
            *(self.comparison, self.images, self.explanation, self.label, self.cams),
        ]
        gr.on(
            [self.classify_button.click, self.upload.change, self.selected.input],
            self.classify,
            inputs,
            outputs,
            trigger_mode="always_last",
            api_visibility="private",
            show_progress_on=[self.predictions],
            concurrency_id=IMAGE_QUEUE,
        )
        self.anyway_button.click(
            self.classify_anyway,
            inputs,
            outputs,
            api_visibility="private",
            show_progress_on=[self.predictions],
            concurrency_id=IMAGE_QUEUE,
        )
        gr.on(
            # top_k.input, not .release, which the arrow keys never trigger
            [self.model.change, self.top_k.input, self.label.input],
            self.update_view,
            [self.result, self.model, self.top_k, self.label],
            [self.message, self.predictions, self.comparison, self.cams],
            trigger_mode="always_last",
            api_visibility="private",
            show_progress="hidden",
        )
        self.opacity.input(
            None, self.opacity, js=SET_OPACITY, api_visibility="private", show_progress="hidden"
        )
        page.load(
            self.on_load, None, [self.model, self.upload], api_visibility="private", show_progress="hidden"
        )

    def on_load(self, request: gr.Request) -> tuple[str, list[str]]:
        """Select the model of a deep link such as ?model=resnet50, and classify the first example."""
        model = request.query_params.get("model")
        paths = [str(path) for _, path in self._examples[:1] if path.exists()]  # it may have been deleted
        return model if model in ALL_MODELS else ALL, paths

    def classify(
        self,
        files: Sequence[str] | None,
        selected: str | None,
        model: str,
        top_k: int,
        skip_ood_check: bool = False,
    ) -> Iterator[Updates]:
        """Yield a hint to show while models load, if necessary, and then the result."""
        if not files:
            yield {self.selected: gr.update(visible=False), **self._show_nothing(HINT)}
            return
        if not self._pipeline.ready:
            yield self._show_nothing(LOADING)
        path_by_name = _name_files(files)
        name = selected if selected in path_by_name else next(iter(path_by_name))
        path = self._find(path_by_name[name])
        selection = {
            self.selected: gr.update(choices=list(path_by_name), value=name, visible=len(path_by_name) > 1)
        }
        try:
            check_not_expired([path])
            result = self._pipeline.predict(path, name=Path(path).name, skip_ood_check=skip_ood_check)
            yield selection | self._show_result(result, model, top_k)
        except FractureError as error:
            yield selection | self._show_nothing(str(error), "error")
        except Exception:  # Gradio would leave the hint of before on the page
            yield selection | self._show_nothing(INTERNAL_ERROR, "error")
            raise

    def _find(self, path: str) -> str:
        """Return the path of an upload, or the original of an example whose copy has been deleted."""
        if Path(path).exists():
            return path
        return next((str(source) for _, source in self._examples if is_copy(path, source)), path)

    def classify_anyway(
        self, files: Sequence[str] | None, selected: str | None, model: str, top_k: int
    ) -> Iterator[Updates]:
        """Classify an image that does not look like a bone X-ray."""
        yield from self.classify(files, selected, model, top_k, skip_ood_check=True)

    def update_view(
        self, result: ComparisonResult | None, model: str, top_k: int, label: str | None
    ) -> Updates:
        """Show a result for another model, number of predictions or class, without another prediction."""
        if result is None:
            if not label:
                return gr.skip()
            # The browser still has the label of a result that the server has forgotten.
            return {self.message: render_message(RESULT_EXPIRED)}
        return self._show_selection(result, model, top_k, label)

    def _show_nothing(self, text: str, kind: Literal["hint", "error"] = "hint") -> Updates:
        hidden = gr.update(visible=False)
        return {
            self.result: None,
            self.label: None,
            self.message: render_message(text, kind),
            self.anyway_button: hidden,
            self.explanation: hidden,
            self.predictions: "",
            self.comparison: "",
            self.images: "",
            self.cams: "",
        }

    def _show_result(self, result: ComparisonResult, model: str, top_k: int) -> Updates:
        shown = result.predictions.get(ENSEMBLE if model == ALL else model) or result.top_prediction
        label = shown.label if shown else DETECTOR if result.fracture else None
        return {
            self.result: result,
            self.message: render_warnings(result.warnings),
            self.anyway_button: gr.update(visible=result.is_rejected),
            self.images: render_images(result),
            self.explanation: gr.update(visible=bool(label)),
            self.label: label,
            **self._show_selection(result, model, top_k, label),
        }

    def _show_selection(self, result: ComparisonResult, model: str, top_k: int, label: str | None) -> Updates:
        """Return the components that depend on the selected model, number of predictions and class."""
        if not (result.predictions or result.failures):
            return {self.predictions: "", self.comparison: "", self.cams: ""}
        names = ALL_MODELS if model == ALL else (model,)
        view: Updates = {
            self.predictions: render_predictions(result, names, top_k),
            self.comparison: _comparison_table(result.predictions.values()) if model == ALL else "",
            self.cams: _evidence(result, names, label) if label else "",
        }
        return view


def _name_files(paths: Sequence[str]) -> dict[str, str]:
    """Return {name to show: path}; names are numbered if there are several."""
    if len(paths) == 1:
        return {Path(paths[0]).name: paths[0]}
    return {f"{i}. {Path(path).name}": path for i, path in enumerate(paths, 1)}


def _evidence(result: ComparisonResult, names: Iterable[str], label: str) -> str:
    """Return the maps for one of EVIDENCE_CHOICES."""
    return render_heatmap(result) if label == DETECTOR else render_cams(result, names, label)


def _comparison_table(predictions: Iterable[Prediction]) -> str:
    rows: list[list[Cell]] = []
    for p in predictions:
        top_three = [(f"{s.label} {percent(s.probability)}", s.probability) for s in p.scores[:3]]
        info = p.info
        rows.append(
            [
                info.title,
                *top_three,
                (info.accuracy.percent(), info.accuracy.value or 0),
                (f"{p.milliseconds:.1f}", p.milliseconds),
                (f"{info.size_bytes / 1e6:.1f}", info.size_bytes),
            ]
        )
    return render_table(COLUMNS, rows, "Model comparison")
