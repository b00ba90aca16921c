"""The tab for a single X-ray: upload and examples, then the X-ray, the answer and its evidence."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gradio as gr
from gradio.blocks import Block

from fracture_lib.errors import FractureError
from fracture_lib.hub import BUNDLE
from fracture_lib.inference.archives import is_archive
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import ComparisonResult, Prediction
from fracture_lib.labels import CLASSES, LABEL2ID
from fracture_lib.models.report import DetectorReport
from fracture_lib.registry import ALL_MODELS, DETECTOR, ENSEMBLE, model_title
from fracture_lib.webui.examples import ATTRIBUTION, EXAMPLES, read_thumbnail
from fracture_lib.webui.gradio_private import is_copy
from fracture_lib.webui.rendering import (
    NO_OVERLAY,
    SHOWN_MODELS,
    VIEWER_HTML,
    VIEWER_JS,
    percent,
    render_inputs,
    render_legend,
    render_live,
    render_matrix,
    render_message,
    render_verdict,
    render_warnings,
    summarize_answer,
    view_overlay,
    view_xray,
)
from fracture_lib.webui.server import IMAGE_QUEUE, INTERNAL_ERROR, check_not_expired

__all__ = ["DEFAULT_TOP_K", "PredictTab"]

Updates: TypeAlias = dict[Block, Any]  # new values or properties by component; the others stay as they are

MODEL_CHOICES = [(model_title(name), name) for name in SHOWN_MODELS]
SOURCE_CHOICES = [(model_title(name), name) for name in (DETECTOR, *SHOWN_MODELS)]
DEFAULT_TOP_K = 5
RESULT_LIFETIME = 900  # seconds that a session's result is kept

FORMATS = (
    "DICOM, PNG or TIFF with 8 or 16 bits, JPEG, BMP, WebP or GIF; also several files or a ZIP. You can "
    "paste an image, too. Uploads are deleted within 20 minutes."
)
LOADING = "Loading the models. The first answer takes a little longer."
RESULT_EXPIRED = "This answer has expired. Upload the X-ray again."
MANY = "Classify several X-rays, or a ZIP of them, in the Batch tab."
SET_OPACITY = "value => document.documentElement.style.setProperty('--opacity', value / 100)"
# On a phone, the answer is below the upload. If the focus was on something that is gone, such as an example,
# move it to what took its place.
SHOW = """async () => {
    const find = (selector) => document.querySelector(selector);
    for (let tries = 0; tries < 10 && !find("#viewer .stage, #to-batch"); tries++)
        await new Promise((resolve) => setTimeout(resolve, 50));
    const stage = find("#viewer .stage");
    if (document.activeElement === document.body)
        (stage ?? find("#to-batch") ?? find("#upload [aria-dropeffect]"))?.focus({ preventScroll: true });
    if (matchMedia("(max-width: 799px)").matches)
        (stage ?? find("#message .message"))?.scrollIntoView({ behavior: "smooth" });
}"""


class PredictTab:
    """The tab's components and handlers, in the current Blocks."""

    def __init__(self, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline
        self._lay_out()
        self._connect()

    def _lay_out(self) -> None:
        self.result = gr.State(None, time_to_live=RESULT_LIFETIME)
        self.is_overlaid = gr.State(False)
        with gr.Row(elem_id="single-row"):
            with gr.Column(scale=5, min_width=320):
                # gr.Image would clip 16-bit images to white before the library reads them.
                self.upload = gr.File(
                    label="Your X-ray", file_count="multiple", elem_id="upload", elem_classes="upload-box"
                )
                gr.Markdown(FORMATS, elem_classes="facts", elem_id="formats")
                self.viewer = gr.HTML(
                    None,
                    html_template=VIEWER_HTML,
                    js_on_load=VIEWER_JS,
                    elem_id="viewer",
                    visible=False,
                    **NO_OVERLAY,
                )
            with gr.Column(scale=4, min_width=320):
                self.back_button = gr.Button("Back to the batch", size="sm", visible=False)
                self.live = gr.HTML(render_live(""), elem_id="live")
                self.message = gr.HTML(elem_id="message")
                self.batch_button = gr.Button(
                    "Open in Batch", variant="primary", visible=False, elem_id="to-batch"
                )
                self.anyway_button = gr.Button("Classify anyway", visible=False)
                with gr.Column() as self.start:
                    gr.Markdown("## Or try one of these", elem_id="try")
                    self.examples = gr.Gallery(
                        [(read_thumbnail(path), caption) for path, caption in EXAMPLES],
                        columns=3,
                        object_fit="cover",
                        allow_preview=False,
                        show_label=False,
                        interactive=False,
                        buttons=[],
                        elem_id="examples",
                    )
                    gr.Markdown(ATTRIBUTION, elem_classes="facts")
                with gr.Column(visible=False) as self.answer:
                    self.verdict = gr.HTML(elem_id="verdict")
                    self.matrix = gr.HTML(elem_id="matrix")
                    with gr.Accordion(
                        "Show evidence on the X-ray", open=False, elem_id="evidence"
                    ) as self.evidence:
                        with gr.Row():
                            self.source = gr.Dropdown(SOURCE_CHOICES, value=DETECTOR, label="Evidence of")
                            self.label = gr.Dropdown(list(LABEL2ID), label="Type", interactive=True)
                        self.legend = gr.HTML()
                        self.opacity = gr.Slider(
                            0, 100, value=60, step=1, label="Opacity (%)", elem_id="opacity"
                        )
                        self.inputs = gr.HTML()
                    with gr.Accordion("What the words mean", open=False):
                        gr.Markdown(_explain_words())
                    with gr.Accordion("Options", open=False, elem_id="options"):
                        self.model = gr.Radio(
                            MODEL_CHOICES, value=ENSEMBLE, label="Answer of", elem_id="model"
                        )
                        self.top_k = gr.Slider(
                            1,
                            len(LABEL2ID),
                            value=DEFAULT_TOP_K,
                            step=1,
                            label="Number of types",
                            elem_id="top-k",
                        )

    def _connect(self) -> None:
        inputs = [self.upload, self.model, self.top_k]
        outputs: list[Block] = [
            *(self.result, self.viewer, self.live, self.message, self.batch_button),
            *(self.anyway_button, self.start, self.answer, self.verdict, self.matrix, self.evidence),
            *(self.label, self.legend, self.inputs, self.is_overlaid),
        ]
        options: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress_on": [self.upload],
            "concurrency_id": IMAGE_QUEUE,
        }
        changed = self.upload.change(self.classify, inputs, outputs, trigger_mode="always_last", **options)
        forced = self.anyway_button.click(self.classify_anyway, inputs, outputs, **options)
        for answered in (changed, forced):
            answered.then(None, js=SHOW, api_visibility="private")
        self.examples.select(self.pick_example, None, self.upload, **options)
        silent: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        answer: list[Block] = [self.live, self.message, self.verdict, self.matrix]
        evidence: list[Block] = [self.message, self.viewer, self.label, self.legend, self.is_overlaid]
        self.top_k.input(  # not .release, which the arrow keys never trigger
            self.update_answer,
            [self.result, self.model, self.top_k],
            answer,
            trigger_mode="always_last",
            **silent,
        )
        self.model.input(
            self.choose_model,
            [self.result, self.model, self.top_k, self.source, self.is_overlaid],
            [*answer, *evidence[1:]],
            trigger_mode="always_last",
            **silent,
        )
        gr.on(
            [self.evidence.expand, self.source.input, self.label.input],
            self.show_evidence,
            [self.result, self.source, self.label],
            evidence,
            trigger_mode="always_last",
            **silent,
        )
        self.evidence.collapse(self.hide_evidence, None, [self.viewer, self.is_overlaid], **silent)
        gr.on(
            [self.upload.upload, self.upload.clear, self.upload.delete, self.examples.select],
            lambda: gr.update(visible=False),
            None,
            self.back_button,
            **silent,
        )
        self.opacity.input(None, self.opacity, js=SET_OPACITY, **silent)
        self.model.input(None, self.model, js="value => setQuery('model', value)", **silent)
        self.top_k.input(None, self.top_k, js="value => setQuery('top_k', value)", **silent)

    def pick_example(self, event: gr.SelectData) -> list[str]:
        """Return the example that was picked as the upload."""
        return [str(EXAMPLES[event.index][0])]

    def classify(
        self, files: Sequence[str] | None, model: str, top_k: int, skip_ood_check: bool = False
    ) -> Iterator[Updates]:
        """Yield what to show instead of the answer, if necessary, or the answer."""
        if not files:
            yield self._show_nothing()
            return
        path = _find(files[0])
        if len(files) > 1 or is_archive(Path(path)):
            yield self._show_nothing(MANY) | {self.batch_button: gr.update(visible=True)}
            return
        if not self._pipeline.ready:
            gr.Info(LOADING)
        try:
            check_not_expired([path])
            result = self._pipeline.predict(path, name=Path(path).name, skip_ood_check=skip_ood_check)
            yield self._show_result(result, model, top_k)
        except FractureError as error:
            yield self._show_nothing(str(error), "error")
        except Exception:  # Gradio would leave the hint of before on the page
            yield self._show_nothing(INTERNAL_ERROR, "error")
            raise

    def classify_anyway(self, files: Sequence[str] | None, model: str, top_k: int) -> Iterator[Updates]:
        """Classify an image that does not look like a bone X-ray."""
        yield from self.classify(files, model, top_k, skip_ood_check=True)

    def update_answer(self, result: ComparisonResult | None, model: str, top_k: int) -> Updates:
        """Show an answer for another model or number of types, without another prediction."""
        if result is None:
            return {self.message: render_message(RESULT_EXPIRED)}
        return self._answer(result, model, top_k)

    def choose_model(
        self, result: ComparisonResult | None, model: str, top_k: int, source: str, is_overlaid: bool
    ) -> Updates:
        """Show the answer of another model; the evidence becomes that for its type."""
        updates = self.update_answer(result, model, top_k)
        if result is None or (shown := _choose(result, model)) is None:
            return updates
        evidence = self.show_evidence(result, source, shown.label) if is_overlaid else {}
        return updates | {self.label: shown.label} | evidence

    def show_evidence(self, result: ComparisonResult | None, source: str, label: str) -> Updates:
        """Lay the evidence of a model or of the detector over the X-ray."""
        if result is None:
            return {self.message: render_message(RESULT_EXPIRED)}
        if (result.fracture if source == DETECTOR else result.predictions.get(source)) is None:
            legend = render_message(f"{model_title(source)} gave no answer for this X-ray.")
        else:
            legend = render_legend(source, label)
        return {
            self.viewer: gr.update(**view_overlay(result, source, label)),  # without sending the X-ray again
            # The detector looks for a fracture of any type.
            self.label: gr.update(value=label, visible=source != DETECTOR),
            self.legend: legend,
            self.is_overlaid: True,
        }

    def hide_evidence(self) -> Updates:
        """Show the X-ray alone."""
        return {self.viewer: gr.update(**NO_OVERLAY), self.is_overlaid: False}

    def _show_nothing(self, text: str = "", kind: Literal["hint", "error"] = "hint") -> Updates:
        """Show the start of a visit, with a message."""
        hidden = gr.update(visible=False)
        return {
            self.result: None,
            self.viewer: gr.update(value=None, visible=False),
            self.live: render_live(text),
            self.message: render_message(text, kind),
            self.batch_button: hidden,
            self.anyway_button: hidden,
            self.start: gr.update(visible=True),
            self.answer: hidden,
        }

    def _show_result(self, result: ComparisonResult, model: str, top_k: int) -> Updates:
        shown = _choose(result, model)
        return {
            self.result: result,
            self.viewer: gr.update(value=view_xray(result), visible=True, **NO_OVERLAY),
            self.message: render_warnings(result.warnings),
            self.batch_button: gr.update(visible=False),
            self.anyway_button: gr.update(visible=result.is_rejected),
            self.start: gr.update(visible=False),
            self.answer: gr.update(visible=not result.is_rejected),
            self.evidence: gr.update(open=False),
            self.label: shown.label if shown else None,
            self.legend: "",
            self.inputs: render_inputs(result),
            self.is_overlaid: False,
            **self._answer(result, model, top_k),
        }

    def _answer(self, result: ComparisonResult, model: str, top_k: int) -> Updates:
        """Return the components that depend on the chosen model and number of types."""
        shown = _choose(result, model)
        names = ALL_MODELS if model == ENSEMBLE else (model,)
        spoken = [*result.warnings, result.fracture.message if result.fracture else ""]
        return {
            self.live: render_live(" ".join((*spoken, summarize_answer(result, names)))),
            self.verdict: render_verdict(result, names, shown),
            self.matrix: render_matrix(result, shown or result.top_prediction, top_k),
        }


def _explain_words() -> str:
    """Return Markdown about the words of an answer, with the detector's measured shares."""
    outcomes = DetectorReport.read(BUNDLE / DETECTOR).outcomes
    fractured, others = outcomes["fractured"], outcomes["not fractured"]
    words = {
        "The detector sees a fracture": f"in testing, in {percent(fractured.visible)} of the X-rays with a "
        f"fracture and {percent(others.visible)} of those without.",
        "It is not sure": f"in {percent(fractured.uncertain)} and {percent(others.uncertain)}, so this tells "
        "little.",
        "It sees no fracture": f"in {percent(fractured.none)} and {percent(others.none)}.",
        "Probability": "calibrated, so of the answers given with 30 %, about 30 % are right.",
        "Ensemble": "the weighted mean of the three models.",
        "Right in testing": "how often a model named the type, on X-rays that it did not see in training.",
        **{c.label: c.description for c in CLASSES},
    }
    return "\n".join(f"- **{word}**: {meaning}" for word, meaning in words.items())


def _choose(result: ComparisonResult, model: str) -> Prediction | None:
    """Return the prediction that answers: the best that there is in place of an ensemble that failed."""
    return result.top_prediction if model == ENSEMBLE else result.predictions.get(model)


def _find(path: str) -> str:
    """Return the path of an upload, or the original of an example whose copy has been deleted."""
    if Path(path).exists():
        return path
    return next((str(source) for source, _ in EXAMPLES if is_copy(path, source)), path)
