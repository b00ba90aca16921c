"""The tab about the models without a browser: what it shows if models cannot be loaded."""

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
