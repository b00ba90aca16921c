"""The tab about the models without a browser: what it shows if models cannot be loaded."""

from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.registry import ALL_MODELS, model_title
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
