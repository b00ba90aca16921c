"""train_colab.ipynb as a file, and the functions that it shows things with. test_journey.py runs it."""

import json
import shutil
import sys
import types
from pathlib import Path

import nbformat
import pytest

from fracture_lib import notebook
from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EpochMetrics, EvaluationReport

NOTEBOOK = Path(__file__).parent.parent / "train_colab.ipynb"


@pytest.fixture
def displayed(monkeypatch):
    """The texts that are displayed, and the figures that are shown."""
    outputs = []
    monkeypatch.setattr(notebook, "display", lambda output: outputs.append(output.data))
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: outputs.append(figure))
    return outputs


def test_notebook_is_valid_and_holds_no_outputs():
    content = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(content)
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])] == cells[:1]


def test_notebook_has_one_section_per_step():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    lines = [line.strip() for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]]
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == [
        *("Settings", "Install", "Data", "Train", "Evaluate"),
        *("Try a prediction", "Model card", "Publish"),
    ]


@pytest.mark.parametrize("data", ["kaggle:owner/name", "hf-hub:owner/name", "data", Path("data"), None])
def test_mount_outside_google_drive_does_nothing(data):
    notebook.mount(data)


def test_show_dataset_displays_an_example_per_class_and_the_groups(dataset_folder, displayed):
    notebook.show_dataset(load_dataset_folder(dataset_folder, "Train"))
    (html,) = displayed
    assert html.count("<img") == 10 and "Spiral: 4" in html
    assert "40 images in 40 groups by source_group." in html


def test_mount_with_a_folder_in_google_drive_mounts_it_once(monkeypatch):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    notebook.mount("hf-hub:owner/name", None, "/content/drive/MyDrive/fracatlas", "/content/drive/b")
    assert mounted == ["/content/drive"]


def test_live_plot_callback_prints_the_epoch_and_draws_the_curves(displayed, capsys):
    callback = notebook.live_plot_callback("resnet50")
    callback("fold 1 of 5", [EpochMetrics(5, 2.0, 0.1), EpochMetrics(10, 1.5, 0.2)])
    assert "resnet50, fold 1 of 5, epoch 10\n" in capsys.readouterr().out
    (figure,) = displayed
    assert [list(curve.y) for curve in figure.data] == [[2.0, 1.5], [0.1, 0.2]]


@pytest.mark.parametrize(("name", "n_figures"), [("resnet50", 3), ("ensemble", 2)])
def test_show_evaluation_prints_the_accuracy_and_draws_what_the_report_holds(
    displayed, capsys, name, n_figures
):
    report = EvaluationReport.read(BUNDLE / name)
    notebook.show_evaluation(report)
    expected = f"{name}: accuracy {report.accuracy.percent()}, n = {report.n}\n"
    assert capsys.readouterr().out == expected and len(displayed) == n_figures


def test_explain_displays_the_prediction_and_its_evidence(image_path, displayed, tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "trained")
    prediction = notebook.explain(folder, image_path, top_k=2)
    (html,) = displayed
    assert prediction.model == "pytorch-cnn" and str(prediction.source) == "local folder trained"
    assert html.count('scope="row"') == 2 + 1 and f"support {prediction.label}" in html
    assert "Not a medical device" in html and str(folder) not in html


def test_explain_with_an_incomplete_model_raises_invalid_model(image_path, displayed, tmp_path):
    with pytest.raises(InvalidModel, match=r"no config\.json"):
        notebook.explain(tmp_path, image_path)
    assert displayed == []


def test_show_card_displays_the_card_without_its_metadata(displayed):
    notebook.show_card(BUNDLE / "resnet50")
    (markdown,) = displayed
    assert markdown.strip().startswith("# ") and "pipeline_tag" not in markdown


@pytest.mark.parametrize(("token", "n_forms"), [("hf_test", 0), (None, 1)])
def test_log_in_shows_a_form_only_without_a_token(monkeypatch, token, n_forms):
    forms = []
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.notebook_login", lambda: forms.append("form"))
    notebook.log_in()
    assert len(forms) == n_forms
