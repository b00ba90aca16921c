"""The layout of the page: title, disclaimer, three tabs and the endpoints for programs."""

from typing import Any

import gradio as gr

from fracture_lib.hub import BUNDLE
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.labels import CLASSES, LABEL2ID
from fracture_lib.models.report import EvaluationReport
from fracture_lib.registry import ALL_MODELS, ENSEMBLE
from fracture_lib.webui.api import Api
from fracture_lib.webui.batch_tab import BatchTab
from fracture_lib.webui.gradio_private import PrivateBlocks
from fracture_lib.webui.models_tab import ModelsTab
from fracture_lib.webui.predict_tab import DEFAULT_TOP_K, PredictTab
from fracture_lib.webui.rendering import percent

__all__ = ["THEME", "build_page"]

TITLE = "Fracture classification"
INTRODUCTION = f"""# {TITLE}
Drop a bone X-ray: a detector looks for a fracture, and three models name its type."""
TABS = ("single", "batch", "models")

# Gradio's own greys and orange are too faint on white for WCAG's contrast of 4.5 to 1, and its web font lacks
# most letters in semi-bold.
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    color_accent="*primary_600",
)


def build_page(pipeline: InferencePipeline) -> gr.Blocks:
    """Return the page, which predicts with `pipeline`."""
    with PrivateBlocks(title=TITLE) as page:
        gr.Markdown(INTRODUCTION)
        gr.Markdown(_disclaimer(), elem_id="disclaimer")
        with gr.Tabs() as tabs:
            with gr.Tab("Single X-ray", id="single", elem_id="single-xray") as single_tab:
                single = PredictTab(pipeline)
            with gr.Tab("Batch", id="batch", elem_id="batch") as batch_tab:
                batch = BatchTab(pipeline)
            with gr.Tab("Models", id="models", elem_id="models") as models_tab:
                ModelsTab(models_tab, pipeline)
        Api(pipeline)

        silent: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for name, tab in zip(TABS, (single_tab, batch_tab, models_tab), strict=True):
            tab.select(None, js=f"() => showTab('{name}')", **silent)
        single.batch_button.click(
            lambda files: (files, gr.update(selected="batch")), single.upload, [batch.upload, tabs], **silent
        )
        batch.table.select(batch.open_row, batch.inputs, [single.upload, tabs, single.back_button], **silent)
        single.back_button.click(lambda: gr.update(selected="batch"), None, tabs, **silent)
        page.load(_on_load, None, [tabs, single.model, single.top_k], **silent)
    return page


def _disclaimer() -> str:
    accuracy = EvaluationReport.read(BUNDLE / ENSEMBLE).accuracy.value
    return (
        f"**Not a medical device.** The type is right about {percent(accuracy or 0)} of the time in testing "
        f"(guessing: {percent(1 / len(CLASSES))}). [How it was measured](?tab=models)"
    )


def _on_load(request: gr.Request) -> tuple[Any, Any, Any]:
    """Restore the tab, the model and the number of types from the address, as far as it has them."""
    query = request.query_params
    tab, model, top_k = (query.get(name) for name in ("tab", "model", "top_k"))
    return (
        gr.update(selected=tab) if tab in TABS else gr.skip(),
        model if model in ALL_MODELS else ENSEMBLE,
        int(top_k) if top_k in map(str, range(1, len(LABEL2ID) + 1)) else DEFAULT_TOP_K,
    )
