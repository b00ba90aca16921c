"""The layout of the page: title, disclaimer, three tabs and the endpoints for programs."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.labels import CLASSES
from fracture_lib.registry import MODELS
from fracture_lib.webui.api import Api
from fracture_lib.webui.batch_tab import BatchTab
from fracture_lib.webui.gradio_private import PrivateBlocks
from fracture_lib.webui.models_tab import ModelsTab
from fracture_lib.webui.predict_tab import PredictTab
from fracture_lib.webui.rendering import DISCLAIMER

__all__ = ["THEME", "build_page", "write_examples"]

TITLE = "Fracture classification"
INTRODUCTION = f"""# {TITLE}
Upload a bone X-ray: a detector estimates whether a fracture is visible, and {len(MODELS)} models classify
its type ({len(CLASSES)} types)."""
EXAMPLE_LABELS = ("Spiral", "Oblique", "Hairline", "Greenstick")

# Gradio's own greys and orange are too faint on white for WCAG's contrast of 4.5 to 1.
THEME = gr.themes.Default(primary_hue="blue").set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    color_accent="*primary_600",
)


def write_examples(folder: Path) -> list[tuple[str, Path]]:
    """Draw schematic radiographs into `folder`; return (label, path) of each."""
    examples = []
    for label in EXAMPLE_LABELS:
        path = folder / f"drawn-{label.lower()}.png"
        synthetic_radiograph(label).save(path)
        examples.append((f"{label} (drawing)", path))
    return examples


def build_page(pipeline: InferencePipeline, examples: Sequence[tuple[str, Path]]) -> gr.Blocks:
    """Return the page, which predicts with `pipeline`; `examples` are (label, path of an image)."""
    with PrivateBlocks(title=TITLE) as page:
        gr.Markdown(INTRODUCTION)
        gr.Markdown(DISCLAIMER, elem_id="disclaimer")
        with gr.Tab("Single X-ray", elem_id="single-xray"):
            PredictTab(page, pipeline, examples)
        with gr.Tab("Batch", elem_id="batch"):
            BatchTab(pipeline)
        with gr.Tab("Models", elem_id="models") as tab:
            ModelsTab(tab, pipeline)
        with gr.Accordion(f"The {len(CLASSES)} classes", open=False):
            gr.Markdown("\n".join(f"- **{c.label}**: {c.description}" for c in CLASSES))
        Api(pipeline)
    return page
