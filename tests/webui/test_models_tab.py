"""The tab about the models without a browser: its conclusions, and what it shows if something is missing."""

import re
from dataclasses import replace

import gradio as gr
import pytest

from fracture_lib.hub import BUNDLE
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.models.report import DetectorReport, EvaluationReport, Interval, ViewAccuracy
from fracture_lib.registry import ALL_MODELS, DETECTOR, ENSEMBLE, model_title
from fracture_lib.webui import models_tab
from fracture_lib.webui.models_tab import CHARTS, ModelsTab
from fracture_lib.webui.rendering import percent


def build_tab() -> ModelsTab:
    with gr.Blocks(), gr.Tab("Models") as tab:
        return ModelsTab(tab, InferencePipeline())


def measured_models(tab: ModelsTab) -> set[str]:
    """Return the titles of the models that the table and the chart show."""
    updates = tab.show_all()
    titles = {row[0] for row in updates[tab.table]}
    figure = updates[tab.accuracy]
    assert len(figure.data[0].y if figure else ()) == len(titles)
    return titles


def test_show_all_concludes_for_every_model_and_the_detector():
    tab = build_tab()
    updates = tab.show_all()
    assert not updates[tab.errors]
    for name in ALL_MODELS:
        accuracy = EvaluationReport.read(BUNDLE / name).accuracy
        assert f"**{model_title(name)}** is right {percent(accuracy.value)} (" in updates[tab.conclusions]
    assert measured_models(tab) == set(map(model_title, ALL_MODELS))
    report = DetectorReport.read(BUNDLE / DETECTOR)
    assert f"misses {percent(report.missed.value)} (" in updates[tab.detector]
    for rates in report.outcomes.values():
        shares = " | ".join(map(percent, (rates.visible, rates.uncertain, rates.none)))
        assert re.search(rf"^\| {rates.n} .* \| {shares} \|$", updates[tab.detector], re.MULTILINE)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_chart_of_a_model_comes_with_an_explanation_or_says_that_there_is_none(name):
    tab = build_tab()
    missing = {"robustness_bars", "training_curves"} if name == ENSEMBLE else set()
    for function in CHARTS:
        text, plot = tab.show_chart(function, name)
        assert plot["visible"] == (plot["value"] is not None) == (function not in missing)
        assert ("has no such figures" in text) == (function in missing) and text.endswith(".")
    assert tab.show_coverage() is not None
    assert ("no model card" in tab.show_card(name)) is (name == ENSEMBLE)


def test_types_that_are_hardly_ever_recognized_are_named():
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    rows = [replace(row, recall=0.5) for row in model.report.per_class]
    rare = [replace(row, recall=0.03) if row.label in ("Spiral", "Oblique") else row for row in rows]
    model.report = replace(model.report, per_class=rare)
    text, _ = tab.show_chart("class_bars", "resnet50")
    assert f"hardly ever recognizes Oblique ({percent(0.03)}) and Spiral ({percent(0.03)})." in text
    model.report = replace(model.report, per_class=rows)
    assert "hardly" not in tab.show_chart("class_bars", "resnet50")[0]


def test_misconfigured_model_leaves_the_others_and_shows_the_error(monkeypatch):
    monkeypatch.setenv("FRACTURE_HUB_RESNET50", "no revision")
    tab = build_tab()
    updates = tab.show_all()
    assert "ResNet50 in TensorFlow is unavailable" in updates[tab.errors]
    assert "FRACTURE_HUB_RESNET50" in updates[tab.errors]
    assert measured_models(tab) == {model_title("pytorch-cnn"), model_title("tensorflow-cnn")}
    for function in CHARTS:
        text, plot = tab.show_chart(function, "resnet50")
        assert "is unavailable" in text and not plot["visible"]
    assert "is unavailable" in tab.show_card("resnet50")


def test_without_any_model_the_tab_shows_only_errors(monkeypatch):
    for name in ("PYTORCH_CNN", "TENSORFLOW_CNN", "RESNET50"):
        monkeypatch.setenv(f"FRACTURE_HUB_{name}", "no revision")
    tab = build_tab()
    updates = tab.show_all()
    assert updates[tab.errors].count("is unavailable") == len(ALL_MODELS)
    assert updates[tab.accuracy] is None and updates[tab.table] == [] and tab.show_coverage() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"confusion_matrix": []},
        {"per_class": []},
        {"n": 0},
        {"calibration": [None]},
        {"metrics": {"accuracy": None}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_report_that_cannot_be_drawn_leaves_the_other_models_on_the_page(changes):
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    model.report = replace(model.report, **changes)
    assert measured_models(tab) >= {model_title(name) for name in ALL_MODELS if name != "resnet50"}
    assert tab.show_coverage() is not None
    for function in CHARTS:
        text, _ = tab.show_chart(function, "resnet50")
        assert text.endswith(".") and "Traceback" not in text


def test_report_of_an_older_version_leaves_cells_empty():
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    training = replace(model.report.training, train_accuracy=None)
    accuracy = Interval(0.412, 0.38, 0.45)
    model.report = replace(model.report, metrics={"accuracy": accuracy}, by_views=None, training=training)
    row = next(row for row in tab.show_all()[tab.table] if row[0] == model_title("resnet50"))
    assert row[1:-1] == [percent(0.412), f"38 to {percent(0.45)}", "", "", "", "", ""]


def test_table_shows_what_was_measured():
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    metrics = {
        "accuracy": Interval(0.412, 0.38, 0.45),
        "top3_accuracy": Interval(0.7, 0.6, 0.8),
        "macro_f1": Interval(0.37, 0.3, 0.4),
        "expected_calibration_error": Interval(0.046, 0.03, 0.08),
    }
    model.report = replace(
        model.report,
        metrics=metrics,
        by_views={"1": ViewAccuracy(0.301, 0.2, 0.4, expected_calibration_error=0.0678)},
        training=replace(model.report.training, train_accuracy=0.789),
    )
    row = next(row for row in tab.show_all()[tab.table] if row[0] == model_title("resnet50"))
    shares = [percent(share) for share in (0.412, 0.7, 0.37, 0.301, 0.789)]
    assert [row[i] for i in (1, 3, 4, 6, 7)] == shares and row[5] == "5 points"


def test_model_whose_folder_is_deleted_while_the_page_runs_is_still_shown(tmp_path):
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    tab._pipeline.warm_up()
    model.source = replace(model.source, folder=tmp_path / "gone")
    assert model_title("resnet50") in measured_models(tab)
    assert tab.show_card("resnet50")  # says that there is none


def test_model_card_in_another_encoding_is_shown(tmp_path):
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    (tmp_path / "README.md").write_bytes("---\nlicense: mit\n---\nFür".encode("latin-1"))
    model.source = replace(model.source, folder=tmp_path)
    assert tab.show_card("resnet50") == "F\ufffdr"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"n": 1}', '{"metrics": [1]}'])
def test_detector_with_damaged_report_leaves_the_models_on_the_page(content, monkeypatch, tmp_path):
    monkeypatch.setattr(models_tab, "BUNDLE", tmp_path)
    if content:
        (tmp_path / DETECTOR).mkdir()
        (tmp_path / DETECTOR / "evaluation.json").write_text(content)
    tab = build_tab()
    updates = tab.show_all()
    assert "Fracture detector is unavailable" in updates[tab.errors] and not updates[tab.detector]
    assert measured_models(tab) == set(map(model_title, ALL_MODELS))
