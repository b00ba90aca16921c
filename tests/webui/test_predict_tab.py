"""The tab for a single X-ray without a browser: what it shows, also if something fails."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.processing_utils import save_file_to_cache
from PIL import Image

from fracture_lib.errors import ModelUnavailable
from fracture_lib.hub import BUNDLE
from fracture_lib.inference import pipeline as pipeline_module
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import summarize_types
from fracture_lib.labels import CLASSES
from fracture_lib.models.report import DetectorReport
from fracture_lib.registry import DETECTOR, ENSEMBLE
from fracture_lib.webui import predict_tab
from fracture_lib.webui.examples import EXAMPLES
from fracture_lib.webui.predict_tab import LOADING, MANY, PredictTab
from fracture_lib.webui.rendering import SHOWN_MODELS, TRANSPARENT, percent
from fracture_lib.webui.server import INTERNAL_ERROR


def build_tab(pipeline: InferencePipeline) -> PredictTab:
    with gr.Blocks():
        return PredictTab(pipeline)


@pytest.fixture(scope="module")
def tab() -> PredictTab:
    return build_tab(InferencePipeline())


@pytest.fixture
def photograph_path(tmp_path) -> Path:
    y, x = np.mgrid[0:1:200j, 0:1:300j]
    Image.fromarray(np.uint8(255 * np.dstack([x, y, 1 - x]))).save(tmp_path / "sunset.png")
    return tmp_path / "sunset.png"


def last(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    return list(updates)[-1]


def classify(tab: PredictTab, *paths: Path | str, model: str = ENSEMBLE) -> dict[Any, Any]:
    return last(tab.classify([str(path) for path in paths], model, 3))


def is_shown(update: Any) -> bool:
    return update["visible"]


def test_classify_shows_the_xray_and_the_answer_of_the_chosen_model(tab, image_path):
    shown = classify(tab, image_path)
    result = shown[tab.result]
    assert is_shown(shown[tab.viewer]) and is_shown(shown[tab.answer]) and not is_shown(shown[tab.start])
    assert shown[tab.viewer]["overlay"] == TRANSPARENT and shown[tab.evidence]["open"] is False
    verdict = shown[tab.verdict].replace("\u00a0", " ")
    assert result.fracture.message in verdict and summarize_types(result) in verdict
    for name, prediction in result.predictions.items():
        updates = tab.update_answer(result, name, 4)
        assert f"{prediction.label} is" in updates[tab.verdict]
        assert ("agree" in updates[tab.verdict]) == (name == ENSEMBLE)
        assert updates[tab.matrix].count('scope="row"') == 4 + 1  # the types and the accuracy
        assert updates[tab.matrix].index(f">{prediction.scores[0].label}<") < updates[tab.matrix].index(
            f">{prediction.scores[1].label}<"
        )


def test_without_a_file_the_tab_shows_the_examples(tab):
    shown = last(tab.classify(None, ENSEMBLE, 3))
    assert is_shown(shown[tab.start]) and not is_shown(shown[tab.answer]) and not is_shown(shown[tab.viewer])
    assert not shown[tab.message]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_is_answered_and_the_detector_agrees_with_its_caption(tab, number):
    path, caption = EXAMPLES[number]
    assert tab.pick_example(SimpleNamespace(index=number)) == [str(path)]
    result = classify(tab, path)[tab.result]
    assert result.status == "answered" and not result.warnings
    assert (result.fracture.outcome == "none") == (caption == "Knee")  # as its attribution says


def test_several_files_or_a_zip_lead_to_the_batch_tab(tab, image_path, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(image_path, "one.png")
    for files in ((image_path, image_path), (tmp_path / "images.zip",)):
        shown = classify(tab, *files)
        assert MANY in shown[tab.message] and is_shown(shown[tab.batch_button])
        assert not is_shown(shown[tab.answer])
    assert not is_shown(classify(tab, image_path)[tab.batch_button])


def test_evidence_is_laid_over_the_xray_and_removed(tab, image_path):
    result = classify(tab, image_path)[tab.result]
    overlays = set()
    for source in (DETECTOR, *SHOWN_MODELS):
        shown = tab.show_evidence(result, source, "Spiral")
        overlays.add(shown[tab.viewer]["overlay"])
        assert ("support Spiral" in shown[tab.legend]) == (source != DETECTOR)
        assert shown[tab.label]["visible"] == (source != DETECTOR)
        assert "value" not in shown[tab.viewer]  # the X-ray, which is on the page already
    assert len(overlays) == 1 + len(SHOWN_MODELS) and TRANSPARENT not in overlays
    assert tab.hide_evidence()[tab.viewer]["overlay"] == TRANSPARENT


def test_evidence_follows_the_chosen_model(tab, image_path):
    result = classify(tab, image_path)[tab.result]
    label = result.predictions["resnet50"].label
    hidden = tab.choose_model(result, "resnet50", 3, "resnet50", False)
    assert hidden[tab.label] == label and tab.viewer not in hidden
    shown = tab.choose_model(result, "resnet50", 3, "resnet50", True)
    assert shown[tab.label]["value"] == label and f"support {label}" in shown[tab.legend]
    assert shown[tab.viewer]["overlay_alt"].endswith(label) and "ResNet50" in shown[tab.verdict]


def test_words_of_the_answer_are_explained_with_measured_shares(tab):
    rates = DetectorReport.read(BUNDLE / DETECTOR).outcomes["not fractured"]
    text = predict_tab._explain_words()
    assert percent(rates.uncertain) in text and percent(rates.visible) in text
    assert all(f"**{c.label}**: {c.description}" in text for c in CLASSES)


def test_evidence_of_what_failed_is_a_message(tab, image_path, monkeypatch):
    def broken(*_):
        raise ModelUnavailable("It is gone.")

    monkeypatch.setattr(pipeline_module, "_load_detector", broken)
    shown = classify(tab, image_path)
    assert "Could not check whether a fracture is visible: It is gone." in shown[tab.message]
    assert 'class="fracture"' not in shown[tab.verdict] and "summary" in shown[tab.verdict]
    evidence = tab.show_evidence(shown[tab.result], DETECTOR, "Spiral")
    assert "Fracture detector gave no answer" in evidence[tab.legend]
    assert evidence[tab.viewer]["overlay"] == TRANSPARENT


def test_classify_while_models_load_says_so(image_path, monkeypatch):
    shown_infos = []
    monkeypatch.setattr(gr, "Info", shown_infos.append)
    tab = build_tab(InferencePipeline())
    assert classify(tab, image_path)[tab.result] and shown_infos == [LOADING]
    tab._pipeline.warm_up()
    assert classify(tab, image_path)[tab.result] and shown_infos == [LOADING]


def test_classify_without_any_model_shows_why(image_path, monkeypatch):
    def broken(*_):
        raise KeyError("weights")

    monkeypatch.setattr(pipeline_module, "read_model", broken)
    tab = build_tab(InferencePipeline())
    shown = classify(tab, image_path)
    assert shown[tab.result].status == "failed"
    assert shown[tab.matrix].count("gave no answer: ") == 4 and "<table" not in shown[tab.matrix]
    assert is_shown(shown[tab.answer]) and shown[tab.result].fracture.message[:20] in shown[tab.verdict]


def test_classify_that_fails_unexpectedly_shows_an_error(image_path, monkeypatch):
    pipeline = InferencePipeline()

    def broken(*_, **__):
        raise KeyError("secret")

    monkeypatch.setattr(pipeline, "predict", broken)
    tab = build_tab(pipeline)
    updates = tab.classify([str(image_path)], ENSEMBLE, 3)
    message = next(updates)[tab.message]
    assert INTERNAL_ERROR in message and "secret" not in message
    with pytest.raises(KeyError):  # for the log
        next(updates)


def test_classify_with_deleted_upload_folder_asks_for_the_upload(tab, tmp_path):
    shown = classify(tab, tmp_path / "gone" / "xray.png")
    assert "Your upload has expired. Please upload it again." in shown[tab.message]
    assert is_shown(shown[tab.start])


def test_classify_example_whose_copy_was_deleted_reads_the_original(tab, tmp_path):
    path, _ = EXAMPLES[0]
    copy = Path(save_file_to_cache(path, str(tmp_path)))
    copy.unlink()
    assert classify(tab, copy)[tab.result].name == path.name
    shown = classify(tab, tmp_path / "other" / path.name)
    assert "Your upload has expired" in shown[tab.message]


def test_rejected_image_is_shown_with_the_reason_and_classified_anyway(tab, photograph_path):
    shown = classify(tab, photograph_path)
    assert "This does not look like a bone X-ray" in shown[tab.message]
    assert (
        is_shown(shown[tab.viewer]) and is_shown(shown[tab.anyway_button]) and not is_shown(shown[tab.answer])
    )
    shown = last(tab.classify_anyway([str(photograph_path)], ENSEMBLE, 3))
    assert is_shown(shown[tab.answer]) and not is_shown(shown[tab.anyway_button])
    assert "<table" in shown[tab.matrix] and "This does not look like a bone X-ray" in shown[tab.message]


def test_chosen_model_that_failed_shows_why_and_no_other_headline(tab, image_path, monkeypatch):
    def broken(*_):
        raise ModelUnavailable("It is gone.")

    monkeypatch.setattr(tab._pipeline.get_model("resnet50"), "forward", broken)
    monkeypatch.setattr(pipeline_module, "_read_backbone", broken)
    monkeypatch.setattr(InferencePipeline, "ood_backbone", broken)
    shown = classify(tab, image_path, model="resnet50")
    assert "gave no answer: It is gone." in shown[tab.matrix]
    assert "summary" not in shown[tab.verdict]


def test_expired_result_says_what_to_do(tab):
    for updates in (
        tab.update_answer(None, ENSEMBLE, 3),
        tab.choose_model(None, ENSEMBLE, 3, DETECTOR, True),
        tab.show_evidence(None, DETECTOR, "Spiral"),
    ):
        assert "This answer has expired" in updates[tab.message]
