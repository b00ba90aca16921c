"""The batch tab without a browser: expired uploads and a full disk."""

from dataclasses import replace

import gradio as gr
import pytest

from fracture_lib.inference.batch import BatchRow
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.registry import ALL_MODELS
from fracture_lib.webui.batch_tab import BatchTab, render_rows
from tests.helpers.resource_limits import full_disk


@pytest.fixture
def tab() -> BatchTab:
    with gr.Blocks():
        return BatchTab(InferencePipeline())


def test_run_without_images_shows_what_to_do(tab):
    [(message, table, *_)] = tab.run(None, False)
    assert "Add images or a ZIP first." in message and not table


def test_run_with_expired_upload_says_so(tab, image_path, tmp_path):
    [(message, table, *_)] = tab.run([str(image_path), str(tmp_path / "gone.png")], False)
    assert "Your upload has expired. Please upload it again." in message and not table


def test_run_on_full_disk_shows_the_table_without_downloads(tab, image_path):
    with full_disk(500):
        *_, (message, table, *downloads) = tab.run([str(image_path)], False)
    assert "The disk is full" in message and image_path.name in table
    assert [button["visible"] for button in downloads] == [False, False]


def test_render_rows_shows_why_an_image_has_no_predictions(image_path):
    result = InferencePipeline().predict(image_path, models=[])
    failed = replace(result, failures={"resnet50": "The model is damaged."})
    html = render_rows([BatchRow("bad.png", None, "The file is empty."), BatchRow("other.png", failed)])
    assert "The file is empty." in html and "The model is damaged." in html
    assert html.count("<tr>") == 3  # with the heading
    assert html.count("<td") == 2 * (len(ALL_MODELS) + 2)
