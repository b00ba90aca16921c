"""HTML of results: escaping, number formats, and what is left out."""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.hub import ModelSource
from fracture_lib.inference.batch import BatchRow
from fracture_lib.inference.fracture import FractureResult
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import CONFIDENCE_NOTE, ComparisonResult, Score, summarize_types
from fracture_lib.registry import ALL_MODELS, DETECTOR, model_title
from fracture_lib.webui import rendering

HOSTILE = "<script>hacked=1</script>\"'><img src=x onerror=hacked=1>\x07\u202egnp.{{7*7}}" + 250 * "n"


@pytest.fixture(scope="module")
def pipeline() -> InferencePipeline:
    return InferencePipeline()


@pytest.fixture(scope="module")
def result(pipeline, image_path) -> ComparisonResult:
    return pipeline.predict(image_path)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.scripts |= {
            name for name in (tag, *(a for a, _ in attrs)) if name == "script" or name[:2] == "on"
        }


def scripts_in(html: str) -> set[str]:
    """Return the elements and attributes that would run code."""
    parser = _Parser()
    parser.feed(html)
    return parser.scripts


def with_hostile_texts(result: ComparisonResult) -> ComparisonResult:
    prediction = result.predictions["resnet50"]
    source = ModelSource(Path(HOSTILE.replace("/", "")), "bundle", note=HOSTILE)
    info = replace(prediction.info, source=source)
    return replace(
        result,
        name=HOSTILE,
        predictions={"resnet50": replace(prediction, info=info)},
        failures={"ensemble": HOSTILE},
        warnings=(HOSTILE,),
    )


RENDERERS: Mapping = {
    "matrix": lambda result: rendering.render_matrix(result, result.predictions["resnet50"], 3),
    "report": lambda result: rendering.render_report([BatchRow(result.name, result)], "2026-01-01", HOSTILE),
    "image cell": lambda result: rendering.render_image_cell(result, HOSTILE),
    "message": lambda _: rendering.render_message(HOSTILE, "error"),
    "warning": lambda _: rendering.render_warnings((HOSTILE,)),
    "warnings": lambda _: rendering.render_warnings((HOSTILE, HOSTILE)),
}


@pytest.mark.parametrize("name", RENDERERS)
def test_render_with_hostile_text_escapes_it(result, name):
    html = RENDERERS[name](with_hostile_texts(result))
    assert scripts_in(html) == set() and "&lt;script&gt;" in html and "{{7*7}}" in html


def test_percent_returns_number_and_unit_that_stay_together():
    assert rendering.percent(0.2349) == "23\u00a0%"


def test_shorten_cuts_the_middle():
    assert rendering.shorten("short.png", 20) == "short.png"
    name = rendering.shorten("first" + 500 * "n" + "last.png", 30)
    assert name.startswith("first") and name.endswith("last.png") and len(name) <= 31


def test_render_message_without_text_returns_nothing():
    assert rendering.render_message("") == ""


def text_of(html: str) -> str:
    return " ".join(re.sub("<.*?>", " ", html).split()).replace("\u00a0", " ")


def test_render_matrix_shows_every_models_probabilities_of_the_top_k_classes(result):
    ranking = result.predictions["resnet50"]
    html = rendering.render_matrix(result, ranking, 4)
    assert re.findall('<th scope="row" title=".*?">(.*?)</th>', html) == [s.label for s in ranking.scores[:4]]
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in html.split("<tr>")[2:]]
    for row, score in zip(rows[:4], ranking.scores[:4], strict=True):
        expected = [
            next(s.probability for s in result.predictions[name].scores if s.label == score.label)
            for name in rendering.SHOWN_MODELS
        ]
        assert row == [rendering.percent(share) for share in expected]
    assert rows[-1] == [
        rendering.percent(result.predictions[name].info.accuracy.value) for name in rendering.SHOWN_MODELS
    ]
    assert "<p" not in html  # no source, as all weights are bundled


def test_render_matrix_marks_the_first_answer_of_each_model(result):
    html = rendering.render_matrix(result, result.top_prediction, 10)
    assert html.count('class="top"') == len(rendering.SHOWN_MODELS)
    top = result.top_prediction
    assert f'--share: {100 * top.probability:.1f}%">{rendering.percent(top.probability)}' in html


def test_render_matrix_names_the_source_of_other_weights(result):
    prediction = result.predictions["resnet50"]
    source = ModelSource(Path("folder"), "hub", "owner/name", "0123456789abcdef")
    changed = replace(prediction, info=replace(prediction.info, source=source))
    result = replace(result, predictions={**result.predictions, "resnet50": changed})
    assert f"ResNet50 in TensorFlow: {source}." in text_of(rendering.render_matrix(result, None, 3))


def test_render_matrix_with_failure_shows_why_and_the_other_models(result):
    members = {name: p for name, p in result.predictions.items() if name != "ensemble"}
    failed = replace(result, predictions=members, failures={"ensemble": "The model is damaged."})
    html = rendering.render_matrix(failed, failed.top_prediction, 3)
    assert "Ensemble of all three gave no answer: The model is damaged." in html
    assert html.count('scope="col"') == 1 + len(members)
    none = replace(result, predictions={}, failures={"ensemble": "The model is damaged."})
    assert "<table" not in rendering.render_matrix(none, None, 3)


def test_render_verdict_states_the_summary_of_the_given_models(result):
    for names in (ALL_MODELS, ["pytorch-cnn"], ["ensemble"]):
        text = text_of(rendering.render_verdict(result, names, result.top_prediction))
        assert summarize_types(result, names) in text
        assert (f"{model_title(names[0])}: " in text) == (len(names) == 1)


@pytest.mark.parametrize(
    ("warnings", "n_paragraphs", "n_items"), [((), 0, 0), (("One.",), 1, 0), (("One.", "Two."), 0, 2)]
)
def test_render_warnings_lists_several(warnings, n_paragraphs, n_items):
    html = rendering.render_warnings(warnings)
    assert (html.count("<p"), html.count("<li>")) == (n_paragraphs, n_items)
    assert html.count('class="message warning"') == bool(warnings)
    assert all(warning in html for warning in warnings)


@pytest.mark.parametrize("outcome", ["visible", "uncertain", "none"])
def test_render_verdict_begins_with_the_detectors_sentence(result, outcome):
    fracture = FractureResult(outcome, 0.3, np.zeros((32, 32), np.float32), 0.06)
    top = result.top_prediction
    html = rendering.render_verdict(replace(result, fracture=fracture), ALL_MODELS, top)
    assert (f"{top.label}: " in html) == (outcome != "none")  # then the type may mean nothing
    assert html.startswith(f'<p class="fracture" data-outcome="{outcome}">')
    assert text_of(html).startswith(fracture.message)


@pytest.mark.parametrize(("probability", "is_explained"), [(0.2, True), (0.49, True), (0.5, False)])
def test_render_verdict_explains_the_grades_of_a_low_confidence(result, probability, is_explained):
    top = replace(result.predictions["ensemble"], scores=(Score("Spiral", probability),))
    result = replace(result, predictions={"ensemble": top})
    text = text_of(rendering.render_verdict(result, ["ensemble"], top))
    assert (CONFIDENCE_NOTE in text) == is_explained
    assert ("ncertain: Spiral" in text or "Low confidence: Spiral" in text) == is_explained


def test_render_verdict_without_detector_or_models_leaves_their_part_out(result):
    assert "detector" not in rendering.render_verdict(replace(result, fracture=None), ALL_MODELS, None)
    nothing = replace(result, fracture=None, predictions={})
    assert not rendering.render_verdict(nothing, ALL_MODELS, None).strip()


def test_no_outcome_is_shown_in_green():
    rules = re.findall(r"^\.fracture.*$", rendering.CSS, re.MULTILINE)
    assert sorted(re.findall("#[0-9a-f]+", " ".join(rules))) == ["#888", "#e69f00"]


def overlay_of(result: ComparisonResult, source: str, label: str = "Spiral") -> Image.Image:
    return decode(rendering.view_overlay(result, source, label)["overlay"])


def test_view_shows_the_image_and_evidence_of_the_same_shape(result):
    width, height = result.preview.size
    xray = rendering.view_xray(result)
    assert decode(xray["xray"]).size == (xray["width"], xray["height"]) == (width, height)
    for source in (DETECTOR, *ALL_MODELS):
        overlay = overlay_of(result, source)
        assert max(overlay.size) <= rendering.OVERLAY_SIDE
        assert overlay.width / overlay.height == pytest.approx(width / height, rel=0.02)
    shown = rendering.view_overlay(result, "resnet50", "Spiral")
    assert shown["overlay_alt"] == "ResNet50 in TensorFlow, Spiral"
    without = replace(result, fracture=None)
    assert rendering.view_overlay(without, DETECTOR, "Spiral") == rendering.NO_OVERLAY


@pytest.mark.parametrize(("heat", "opacity"), [(0.9, 255), (0.5, 255), (0.05, 25)])
def test_evidence_of_the_detector_is_orange_and_faint_if_no_place_looks_like_a_fracture(
    result, heat, opacity
):
    heatmap = np.zeros((32, 32), np.float32)
    heatmap[8:16, 8:16] = heat
    fracture = FractureResult("visible", 0.8, heatmap, None)
    overlay = np.asarray(overlay_of(replace(result, fracture=fracture), DETECTOR))
    y, x = (round(12 / 32 * side) for side in overlay.shape[:2])
    assert tuple(overlay[y, x, :3]) == rendering.SUPPORT
    assert overlay[y, x, 3] == overlay[..., 3].max() == pytest.approx(opacity, abs=1)


def test_render_inputs_shows_every_view_in_one_strip(result):
    n, size = result.pixels.shape[:2]
    html = rendering.render_inputs(result)
    strip = np.asarray(decode(re.findall('class="model-input" src="(.*?)"', html)[0]), np.float32) / 255
    assert np.abs(strip - np.hstack(list(result.pixels))).max() < 0.01
    assert f'width="{n * size}" height="{size}"' in html and f'alt="{n} views of your X-ray' in html
    one = rendering.render_inputs(replace(result, pixels=result.pixels[:1]))
    assert f'alt="Your X-ray scaled to {size} by {size} pixels"' in one and "views" not in one


def decode(data_uri: str) -> Image.Image:
    """Return the image of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2])))


def test_render_evidence_has_a_figure_for_each_source_that_answered(result):
    html = rendering.render_evidence(result, [DETECTOR, "resnet50"], "Spiral")
    assert html.count("<figure>") == html.count('class="overlay"') == 2
    share = next(s.probability for s in result.predictions["resnet50"].scores if s.label == "Spiral")
    assert f"ResNet50 in TensorFlow, Spiral: {rendering.percent(share)}" in html
    assert f"Where the detector looks: {rendering.percent(result.fracture.probability)}" in html
    assert not rendering.render_evidence(
        replace(result, fracture=None, predictions={}), [DETECTOR, "resnet50"], ""
    )


def test_overlay_is_orange_for_support_and_blue_against():
    cam = np.repeat(np.float32([[-1, 1]]), 2, axis=0)
    overlay = np.asarray(rendering._overlay(cam, (128, 128)))
    assert tuple(overlay[64, 0, :3]) == rendering.AGAINST and tuple(overlay[64, -1, :3]) == rendering.SUPPORT


def test_render_report_has_one_article_and_disclaimer_per_image(result):
    photograph = InferencePipeline().predict(np.uint8(255 * np.random.default_rng(0).random((64, 64, 3))))
    assert photograph.is_rejected
    rows = [BatchRow("a.png", result), BatchRow("b.png", photograph)]
    html = rendering.render_report(rows, "2026-01-01", "2 images: 1 answered, 1 rejected.")
    assert html.count("<article>") == 2
    assert html.count(rendering.DISCLAIMER) == 3  # also above the overview
    assert html.count('class="overlay"') == 2  # the detector's and the ensemble's, of the X-ray alone
    assert (
        html.replace("\u00a0", " ").count(result.fracture.message) == 1
        and "This does not look like a bone X-ray" in html
    )
    assert not re.search(r"https?://", html)


def test_render_image_table_shows_names_counts_and_images(tmp_path):
    synthetic_radiograph("Spiral").save(tmp_path / "spiral.png")
    html = rendering.render_image_table(
        "Class", [("Spiral", 12, [tmp_path / "spiral.png"] * 2), ("Oblique", 3, [])]
    )
    assert "Spiral" in html and "--share: 25.0%" in html and html.count("<img") == 2
