"""The batch tab without a browser: expired uploads, a full disk, the table and the downloads."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

import fracture_lib
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.batch import BatchRow, list_inputs
from fracture_lib.inference.fracture import FractureResult
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.registry import ALL_MODELS, model_title, short_model_title
from fracture_lib.webui import batch_tab
from fracture_lib.webui.batch_tab import BatchTab, table_rows
from fracture_lib.webui.rendering import percent, render_report
from tests.helpers.images import encode_image
from tests.helpers.resource_limits import full_disk


@pytest.fixture
def tab() -> BatchTab:
    with gr.Blocks():
        return BatchTab(InferencePipeline())


def test_run_without_images_shows_what_to_do(tab):
    [(inputs, message, table, *_)] = tab.run(None, False)
    assert "Add images or a ZIP first." in message and not table["visible"] and not inputs


def test_run_with_expired_upload_says_so(tab, image_path, tmp_path):
    [(_, message, table, *_)] = tab.run([str(image_path), str(tmp_path / "gone.png")], False)
    assert "Your upload has expired. Please upload it again." in message and not table["visible"]


def test_run_on_full_disk_shows_the_table_without_downloads(tab, image_path):
    with full_disk(500):
        *_, (_, message, table, *downloads) = tab.run([str(image_path)], False)
    assert "The disk is full" in message and image_path.name in table["value"][0][0]
    assert [button["visible"] for button in downloads] == [False, False]


def test_clear_removes_the_results(tab):
    inputs, message, *others = tab.clear()
    assert not inputs and not message and [update["visible"] for update in others] == [False] * 3


def test_run_ends_with_a_tally_and_what_was_left_out(tab, tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(batch_tab, "_write_downloads", keep(written, batch_tab._write_downloads))
    path = tmp_path / "disc.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("骨/IM1.png", encode_image(synthetic_radiograph("Spiral")))
        archive.writestr("bad.png", b"text")
        archive.writestr("viewer.dll", b"MZ")
    *_, (inputs, message, table, _, _) = tab.run([str(path)], False)
    expected = "2 images: 1 answered, 1 unreadable. 1 file in disc.zip is not an image and was left out."
    assert expected in message and expected in written["fracture-types.html"].decode()
    assert "骨/IM1.png" in table["value"][0][0] and "unreadable" in table["value"][1][2]
    assert [item.name for item in inputs] == ["骨/IM1.png", "bad.png"]
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


def test_open_row_gives_the_file_of_the_row_that_was_clicked(tab, image_path, tmp_path):
    path = tmp_path / "disc.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/IM1.png", encode_image(synthetic_radiograph("Spiral")))
    inputs = list_inputs([image_path, path]).inputs
    for number, name in ((1, image_path.name), (2, "IM1.png")):
        event = SimpleNamespace(index=[0, 0], row_value=["", number])  # sorted, so the position is another
        for [opened], tabs, back in tab.open_row(inputs, event):
            assert Path(opened).name == name and fracture_lib.preprocess(opened).shape[1:] == (128, 128)
            assert tabs["selected"] == "single" and back["visible"]


def test_open_row_of_an_expired_batch_changes_nothing(tab):
    [(opened, tabs, back)] = tab.open_row((), SimpleNamespace(index=[0, 0], row_value=["", 1]))
    assert "value" not in opened and "selected" not in tabs and "visible" not in back


def answers(row: BatchRow) -> dict[str, str | int]:
    [cells] = table_rows([row])
    return dict(zip((name for name, _, _ in batch_tab.COLUMNS), cells, strict=True))


def test_table_with_failed_models_keeps_each_answer_in_its_column(result):
    failing = ("pytorch-cnn", "tensorflow-cnn", "ensemble")
    partly = replace(
        result,
        predictions={"resnet50": result.predictions["resnet50"]},
        failures=dict.fromkeys(failing, "The model is damaged."),
        warnings=("The first of 2 frames.",),
        fracture=FractureResult("none", 0.03, np.zeros((32, 32), np.float32), 0.06),
    )
    answer = answers(BatchRow("x.png", partly))
    assert ">answered<" in answer["Status"] and answer["Fracture"] == f"  {percent(0.03)}, none seen"
    assert [answer[name] for name in ("Answer", *map(short_model_title, failing[:2]))] == 3 * ["failed"]
    assert answer[short_model_title("resnet50")].startswith(result.predictions["resnet50"].label)
    assert "The first of 2 frames." in answer["Notes"]
    assert answer["Notes"].count("The model is damaged.") == 1


def test_table_shows_in_its_second_column_why_an_image_has_no_answer(result):
    failures = dict.fromkeys(ALL_MODELS, "No weights.")
    failed = replace(result, predictions={}, failures=failures, fracture=None)
    unreadable = answers(BatchRow("bad.png", None, "The file is empty."))
    assert "bad.png" in unreadable["X-ray"] and ">unreadable<" in unreadable["Status"]
    assert unreadable["Answer"] == "The file is empty." and unreadable["Fracture"] == ""
    failed_row = answers(BatchRow("other.png", failed))
    assert failed_row["Answer"] == "failed" and "No weights." in failed_row["Notes"]


def test_table_shortens_a_long_name_in_its_middle_and_keeps_it_as_title(result):
    name = "first/" + 500 * "n" + "/last.png"
    cell = answers(BatchRow(name, result))["X-ray"]
    shown = re.sub("<.*?>", "", cell)
    assert shown.startswith("first/") and shown.endswith("/last.png") and len(shown) < 50
    assert f'title="{name}"' in cell and cell.count("<img") == 1


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
