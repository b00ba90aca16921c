"""The batch tab without a browser: expired uploads, a full disk, the table and the downloads."""

import re
import zipfile
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest

import fracture_lib
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.batch import BatchRow
from fracture_lib.inference.fracture import FractureResult
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.registry import ALL_MODELS, model_title
from fracture_lib.webui import batch_tab
from fracture_lib.webui.batch_tab import BatchTab, render_rows
from fracture_lib.webui.rendering import render_report
from tests.helpers.images import encode_image
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


def test_run_ends_with_a_tally_and_what_was_left_out(tab, tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(batch_tab, "_write_downloads", keep(written, batch_tab._write_downloads))
    path = tmp_path / "disc.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("骨/IM1.png", encode_image(synthetic_radiograph("Spiral")))
        archive.writestr("bad.png", b"text")
        archive.writestr("viewer.dll", b"MZ")
    *_, (message, table, _, _) = tab.run([str(path)], False)
    expected = "2 images: 1 answered, 1 unreadable. 1 file in disc.zip is not an image and was left out."
    assert expected in message and expected in written["fracture-types.html"].decode()
    assert "骨/IM1.png" in table and "unreadable" in table
    assert written["fracture-types.csv"].startswith(
        "\ufeffimage,status,fracture,fracture_probability,model".encode()
    )
    assert "骨/IM1.png" in written["fracture-types.csv"].decode()


def keep(written, write):
    """Return `write`, which afterwards keeps the bytes of its files in `written`."""

    def write_and_keep(*arguments):
        paths = write(*arguments)
        written.update({path.name: path.read_bytes() for path in paths})
        return paths

    return write_and_keep


@pytest.fixture(scope="module")
def result(image_path):
    return InferencePipeline().predict(image_path)


def rows_of(html):
    """The texts of the cells of each row."""
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in html.split("<tr>")[2:]]


def test_render_rows_with_failed_models_keeps_each_answer_in_its_column(result):
    failing = ("pytorch-cnn", "tensorflow-cnn", "ensemble")
    partly = replace(
        result,
        predictions={"resnet50": result.predictions["resnet50"]},
        failures=dict.fromkeys(failing, "The model is damaged."),
        warnings=("The first of 2 frames.",),
        fracture=FractureResult("none", 0.03, np.zeros((32, 32), np.float32), 0.06),
    )
    [cells] = rows_of(render_rows([BatchRow("x.png", partly)]))
    answer = dict(zip(batch_tab.COLUMNS, cells, strict=True))
    assert answer["Status"] == "answered" and answer["Fracture"] == "none seen 3 %"
    assert [answer[model_title(name)] for name in failing] == 3 * ["failed"]
    assert answer["ResNet50 in TensorFlow"].startswith(result.predictions["resnet50"].label)
    assert "The first of 2 frames." in answer["Summary"]
    assert answer["Summary"].count("The model is damaged.") == 1


def test_render_rows_shows_why_an_image_has_no_predictions(result):
    failures = dict.fromkeys(ALL_MODELS, "No weights.")
    failed = replace(result, predictions={}, failures=failures, fracture=None)
    rows = [BatchRow("bad.png", None, "The file is empty."), BatchRow("other.png", failed)]
    unreadable, all_failed = rows_of(render_rows(rows))
    assert unreadable[:2] == ["bad.png", "unreadable"] and unreadable[-1] == "The file is empty."
    assert (
        all_failed[1:-1] == ["failed", "", *len(ALL_MODELS) * ["failed"]] and "No weights." in all_failed[-1]
    )


def test_render_rows_shortens_a_long_name_in_its_middle(result):
    [[name, *_]] = rows_of(render_rows([BatchRow("first/" + 500 * "n" + "/last", result)]))
    assert name.startswith("first/") and name.endswith("/last") and len(name) < 110


def test_report_begins_with_the_tally_the_models_and_what_was_not_classified(result):
    partly = replace(result, name="partly.png", failures={"resnet50": "No weights."})
    rows = [BatchRow("bad.png", None, "The file is empty."), BatchRow("partly.png", partly)]
    html = render_report(rows, "2026-01-01", "2 images: 1 answered, 1 unreadable.")
    overview, *articles = html.split("<article>")
    assert "2 images: 1 answered, 1 unreadable." in overview and fracture_lib.__version__ in overview
    for name, prediction in result.predictions.items():
        assert model_title(name) in overview and prediction.info.accuracy.percent() in overview
    assert re.search(r"bad\.png.*unreadable.*The file is empty\.", overview, re.DOTALL)
    assert re.search(r"partly\.png.*No weights\.", overview, re.DOTALL)
    assert len(articles) == 1 and "No weights." in articles[0]
