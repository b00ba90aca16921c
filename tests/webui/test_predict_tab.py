"""The tab for a single X-ray without a browser: what it shows if something fails."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.processing_utils import save_file_to_cache

from fracture_lib.errors import ModelUnavailable
from fracture_lib.inference import pipeline as pipeline_module
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import summarize_types
from fracture_lib.registry import ALL_MODELS, DETECTOR
from fracture_lib.webui.predict_tab import ALL, LOADING, PredictTab
from fracture_lib.webui.server import INTERNAL_ERROR


def build_tab(pipeline: InferencePipeline, examples: Sequence[tuple[str, Path]] = ()) -> PredictTab:
    with gr.Blocks() as page:
        return PredictTab(page, pipeline, examples)


@pytest.fixture(scope="module")
def tab() -> PredictTab:
    return build_tab(InferencePipeline())


def last(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    return list(updates)[-1]


def test_classify_shows_the_headline_of_the_chosen_model(tab, image_path):
    shown = last(tab.classify([str(image_path)], None, ALL, 3))
    result = shown[tab.result]
    html = shown[tab.predictions].replace("\u00a0", " ")
    assert result.fracture.message in html and summarize_types(result) in html
    for name, prediction in result.predictions.items():
        html = tab.update_view(result, name, 3, prediction.label)[tab.predictions]
        assert f"{prediction.label} is" in html and html.count("<section") == 1
        assert "agree" not in html


def test_evidence_of_the_detector_replaces_the_maps_and_returns(tab, image_path):
    result = last(tab.classify([str(image_path)], None, ALL, 3))[tab.result]
    assert DETECTOR in [value for _, value in tab.label.choices]
    heatmap = tab.update_view(result, ALL, 3, DETECTOR)[tab.cams]
    assert "Where the detector looks" in heatmap and heatmap.count('class="overlay"') == 1
    assert tab.update_view(result, ALL, 3, "Spiral")[tab.cams].count('class="overlay"') == len(ALL_MODELS)


def test_evidence_of_a_detector_that_failed_is_a_message(tab, image_path, monkeypatch):
    def broken(*_):
        raise ModelUnavailable("It is gone.")

    monkeypatch.setattr(pipeline_module, "_load_detector", broken)
    shown = last(tab.classify([str(image_path)], None, ALL, 3))
    assert "Could not check whether a fracture is visible: It is gone." in shown[tab.message]
    assert 'class="fracture"' not in shown[tab.predictions] and shown[tab.predictions].count("<section") == 4
    assert "gave no answer" in tab.update_view(shown[tab.result], ALL, 3, DETECTOR)[tab.cams]


def test_classify_while_models_load_replaces_the_hint_by_the_result(image_path):
    tab = build_tab(InferencePipeline())
    first, *_, end = tab.classify([str(image_path)], None, ALL, 3)
    assert LOADING in first[tab.message] and LOADING not in end[tab.message] and end[tab.predictions]


def test_classify_without_any_model_shows_why_and_no_hint(image_path, monkeypatch):
    def broken(*_):
        raise KeyError("weights")

    monkeypatch.setattr(pipeline_module, "read_model", broken)
    tab = build_tab(InferencePipeline())
    shown = last(tab.classify([str(image_path)], None, ALL, 3))
    assert shown[tab.result].status == "failed" and LOADING not in shown[tab.message]
    assert shown[tab.predictions].count("No prediction: ") == 4
    assert shown[tab.label] == DETECTOR and "Where the detector looks" in shown[tab.cams]


def test_classify_that_fails_unexpectedly_shows_an_error_in_place_of_the_hint(image_path, monkeypatch):
    pipeline = InferencePipeline()

    def broken(*_, **__):
        raise KeyError("secret")

    monkeypatch.setattr(pipeline, "predict", broken)
    tab = build_tab(pipeline)
    updates = tab.classify([str(image_path)], None, ALL, 3)
    assert LOADING in next(updates)[tab.message]
    message = next(updates)[tab.message]
    assert INTERNAL_ERROR in message and "secret" not in message
    with pytest.raises(KeyError):  # for the log
        next(updates)


def test_classify_with_deleted_upload_folder_asks_for_the_upload(tab, tmp_path):
    shown = last(tab.classify([str(tmp_path / "gone" / "xray.png")], None, ALL, 3))
    assert "Your upload has expired. Please upload it again." in shown[tab.message]


def test_classify_example_whose_copy_was_deleted_reads_the_original(image_path, tmp_path):
    tab = build_tab(InferencePipeline(), [("Drawing", image_path)])
    copy = Path(save_file_to_cache(image_path, str(tmp_path)))
    copy.unlink()
    shown = last(tab.classify([str(copy)], None, ALL, 3))
    assert shown[tab.result].name == image_path.name and shown[tab.predictions]
    shown = last(tab.classify([str(tmp_path / "other" / image_path.name)], None, ALL, 3))
    assert "Your upload has expired" in shown[tab.message]


def test_chosen_model_that_failed_shows_why_and_no_other_headline(tab, image_path, monkeypatch):
    def broken(*_):
        raise ModelUnavailable("It is gone.")

    monkeypatch.setattr(tab._pipeline.get_model("resnet50"), "forward", broken)
    monkeypatch.setattr(pipeline_module, "_read_backbone", broken)
    monkeypatch.setattr(InferencePipeline, "ood_backbone", broken)
    shown = last(tab.classify([str(image_path)], None, "resnet50", 3))
    assert "No prediction: It is gone." in shown[tab.predictions]
    assert "summary" not in shown[tab.predictions] and not shown[tab.cams]
