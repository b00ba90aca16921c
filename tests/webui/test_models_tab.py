"""The tab about the models without a browser: its tables, and what it shows if something cannot be loaded."""

from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from fracture_lib.hub import BUNDLE
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.models.model import BaseModel
from fracture_lib.models.report import (
    DetectorReport,
    EvaluationReport,
    Interval,
    SplitResult,
    ViewAccuracy,
)
from fracture_lib.registry import ALL_MODELS, DETECTOR, model_title
from fracture_lib.webui import models_tab
from fracture_lib.webui.models_tab import ModelsTab


def build_tab() -> ModelsTab:
    with gr.Blocks(), gr.Tab("Models") as tab:
        return ModelsTab(tab, InferencePipeline())


def boxes(tab: ModelsTab) -> dict[str, Any]:
    names = ("accuracy", "coverage", "confusion", "calibration", "training")
    return {name: getattr(tab, name) for name in names}


def visible(tab: ModelsTab, updates: dict[Any, Any]) -> set[str]:
    """Return the names of the plots that the updates show."""
    return {
        name
        for name, box in boxes(tab).items()
        if box.column in updates and updates[box.column]["visible"] and updates[box.plot] is not None
    }


@pytest.mark.parametrize("name", ALL_MODELS)
def test_show_all_shows_every_plot_that_the_report_has(name):
    tab = build_tab()
    updates = tab.show_all(name)
    missing = {"training"} if name == "ensemble" else set()
    assert visible(tab, updates) == set(boxes(tab)) - missing
    assert not updates[tab.errors]
    assert all(model_title(each) in updates[tab.overview] for each in ALL_MODELS)
    assert ("no model card" in updates[tab.card]) is (name == "ensemble")


def test_show_all_with_misconfigured_model_shows_the_others_and_the_error(monkeypatch):
    monkeypatch.setenv("FRACTURE_HUB_RESNET50", "no revision")
    tab = build_tab()
    updates = tab.show_all("pytorch-cnn")
    assert visible(tab, updates) == set(boxes(tab))
    assert "ResNet50 in TensorFlow is unavailable" in updates[tab.errors]
    assert "FRACTURE_HUB_RESNET50" in updates[tab.errors]
    assert model_title("pytorch-cnn") in updates[tab.overview]
    assert model_title("resnet50") not in updates[tab.overview]


def test_show_model_that_cannot_be_loaded_hides_its_plots_and_shows_the_error(monkeypatch):
    monkeypatch.setenv("FRACTURE_HUB_RESNET50", "no revision")
    tab = build_tab()
    updates = tab.show_model("resnet50")
    assert visible(tab, updates) == set() and "is unavailable" in updates[tab.classes]


def test_show_all_without_any_model_shows_only_errors(monkeypatch):
    for name in ("PYTORCH_CNN", "TENSORFLOW_CNN", "RESNET50"):
        monkeypatch.setenv(f"FRACTURE_HUB_{name}", "no revision")
    tab = build_tab()
    updates = tab.show_all("pytorch-cnn")
    assert visible(tab, updates) == set()
    assert updates[tab.errors].count("is unavailable") == len(ALL_MODELS)


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
    updates = tab.show_all("pytorch-cnn")
    assert visible(tab, updates) == set(boxes(tab))
    assert model_title("pytorch-cnn") in updates[tab.overview]
    updates = tab.show_all("resnet50")
    assert {"accuracy", "coverage"} <= visible(tab, updates)
    assert model_title("ensemble") in updates[tab.overview]


def test_report_with_accuracy_alone_is_shown_without_the_other_metrics():
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    model.report = replace(model.report, metrics={"accuracy": model.report.accuracy}, calibration=None)
    updates = tab.show_all("resnet50")
    assert not updates[tab.errors] and model_title("resnet50") in updates[tab.overview]
    assert visible(tab, updates) == set(boxes(tab)) - {"calibration"}


def test_model_whose_folder_is_deleted_while_the_page_runs_is_still_shown(tmp_path):
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    tab._pipeline.warm_up()
    model.source = replace(model.source, folder=tmp_path / "gone")
    updates = tab.show_all("resnet50")
    assert not updates[tab.errors] and model_title("resnet50") in updates[tab.overview]


def test_model_card_in_another_encoding_is_shown(tmp_path):
    tab = build_tab()
    model = tab._pipeline.get_model("resnet50")
    (tmp_path / "README.md").write_bytes("---\nlicense: mit\n---\nFür".encode("latin-1"))
    model.source = replace(model.source, folder=tmp_path)
    assert tab.show_model("resnet50")[tab.card] == "F\ufffdr"


def without_new_fields(report: EvaluationReport) -> EvaluationReport:
    """Return a report as an older version wrote it."""
    training = report.training and replace(report.training, train_accuracy=None)
    classes = [replace(row, recall_interval=None) for row in report.per_class]
    return replace(report, by_views=None, test=None, training=training, per_class=classes)


def use_old_reports(tab: ModelsTab) -> BaseModel:
    """Give all models a report of an older version and return one of them."""
    for name in ALL_MODELS:
        model = tab._pipeline.get_model(name)
        model.report = without_new_fields(model.report)
    return tab._pipeline.get_model("resnet50")


def test_reports_of_older_versions_are_shown_without_the_new_columns():
    tab = build_tab()
    model = use_old_reports(tab)
    updates = tab.show_all("resnet50")
    assert not updates[tab.errors]
    assert model.report.accuracy.percent() in updates[tab.overview] and "41.57 %" in updates[tab.overview]
    for column in ("Held out, fast", "Calibration error, fast", "Train", "Test", "Test without"):
        assert f">{column}" not in updates[tab.overview]
    assert f">{model.report.per_class[0].recall:.3f}<" in updates[tab.classes]


def test_overview_shows_fast_train_and_test_of_the_models_that_have_them():
    tab = build_tab()
    model = use_old_reports(tab)
    alone = SplitResult(n=20, metrics={"accuracy": Interval(0.456, 0.4, 0.5)})
    model.report = replace(
        model.report,
        by_views={"1": ViewAccuracy(0.301, 0.2, 0.4, expected_calibration_error=0.0678)},
        training=replace(model.report.training, train_accuracy=0.789),
        test=SplitResult(n=30, metrics={"accuracy": Interval(0.512, 0.4, 0.6)}, deduplicated=alone),
    )
    overview = tab.show_all("resnet50")[tab.overview]
    for cell in (
        "30.1 % (20.0 to 40.0)",
        "0.068",
        "78.9 %",
        "51.2 % (40.0 to 60.0)",
        "45.6 % (40.0 to 50.0)",
        "41.57 %",
    ):
        assert overview.count(f">{cell}<") == 1


def test_class_table_shows_the_interval_of_the_recall():
    tab = build_tab()
    model = use_old_reports(tab)
    first, *others = model.report.per_class
    first = replace(first, recall=0.42, recall_interval=Interval(0.42, 0.3, 0.5))
    model.report = replace(model.report, per_class=[first, *others])
    assert ">0.420 (0.300 to 0.500)<" in tab.show_model("resnet50")[tab.classes]


def test_detector_shows_its_metrics_outcomes_other_source_and_maps():
    tab = build_tab()
    html = tab.show_detector()[tab.detector]
    report = DetectorReport.read(BUNDLE / DETECTOR)
    assert html.count("<table") == html.count("<caption") == 4
    for title in ("AUROC", "Average precision", "Sensitivity at 90 % specificity", "Calibration error"):
        assert f">{title}<" in html
    assert report.metrics["auroc"].plain() in html and report.missed.percent() in html
    for name, rates in (*report.outcomes.items(), *report.external.items()):
        assert f">{name}<" in html and f">{100 * rates.none:.1f} %<" in html
    for name, values in report.localization.items():
        assert model_title(name) in html
        assert all(
            v.percent() in html for v in (values.pointing, values.pointing_center, values.inside_random)
        )


def test_detector_measured_in_part_shows_the_tables_that_it_has(monkeypatch, tmp_path):
    monkeypatch.setattr(models_tab, "BUNDLE", tmp_path)
    (tmp_path / DETECTOR).mkdir()
    report = DetectorReport.read(BUNDLE / DETECTOR)
    replace(report, metrics={}, external={}, localization={}).write(tmp_path / DETECTOR)
    tab = build_tab()
    html = tab.show_detector()[tab.detector]
    assert html.count("<table") == 2 and ">undefined<" in html


@pytest.mark.parametrize("content", ["{", "[]", '{"n": 1}', '{"metrics": [1]}'])
def test_detector_with_damaged_report_is_one_message(content, monkeypatch, tmp_path):
    monkeypatch.setattr(models_tab, "BUNDLE", tmp_path)
    (tmp_path / DETECTOR).mkdir()
    (tmp_path / DETECTOR / "evaluation.json").write_text(content)
    tab = build_tab()
    html = tab.show_detector()[tab.detector]
    assert "Fracture detector is unavailable" in html and "<table" not in html


def test_missing_detector_leaves_the_models_on_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(models_tab, "BUNDLE", tmp_path)
    tab = build_tab()
    updates = tab.show_all("pytorch-cnn")
    assert "Fracture detector is unavailable" in updates[tab.detector]
    assert not updates[tab.errors] and visible(tab, updates) == set(boxes(tab))
