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
from fracture_lib.inference.prediction import ComparisonResult, summarize_types
from fracture_lib.registry import ALL_MODELS
from fracture_lib.webui import rendering
from fracture_lib.webui.batch_tab import render_rows

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
    "predictions": lambda result: rendering.render_predictions(result, ["resnet50", "ensemble"], 3),
    "report": lambda result: rendering.render_report([BatchRow(result.name, result)], "2026-01-01", HOSTILE),
    "batch table": lambda result: render_rows([BatchRow(HOSTILE, result), BatchRow(HOSTILE, None, HOSTILE)]),
    "message": lambda _: rendering.render_message(HOSTILE, "error"),
    "warning": lambda _: rendering.render_warnings((HOSTILE,)),
    "warnings": lambda _: rendering.render_warnings((HOSTILE, HOSTILE)),
}


@pytest.mark.parametrize("name", RENDERERS)
def test_render_with_hostile_text_escapes_it(result, name):
    html = RENDERERS[name](with_hostile_texts(result))
    assert scripts_in(html) == set() and "&lt;script&gt;" in html and "{{7*7}}" in html


@pytest.mark.parametrize(("digits", "expected"), [(0, "23 %"), (1, "23.5 %")])
def test_percent_returns_number_and_unit_apart(digits, expected):
    assert rendering.percent(0.2349, digits) == expected


def test_render_message_without_text_returns_nothing():
    assert rendering.render_message("") == ""


def test_render_predictions_shows_top_k_accuracy_and_source_of_the_chosen_models(result):
    html = rendering.render_predictions(result, ["resnet50"], 2)
    assert re.findall('data-model="(.*?)"', html) == ["resnet50"]
    assert html.count("<li>") == 2
    text = " ".join(re.sub("<.*?>", "", html).split())
    prediction = result.predictions["resnet50"]
    assert f"Measured accuracy {prediction.info.accuracy.percent()}, n = {prediction.info.n}." in text
    assert f"{prediction.milliseconds:.1f} ms, bundled weights." in text
    assert summarize_types(result, ["resnet50"]) in text


def test_render_predictions_states_the_summary_of_the_shown_models(result):
    for names in (ALL_MODELS, ["pytorch-cnn"], ["ensemble"]):
        text = rendering.render_predictions(result, names, 3).replace("\u00a0", " ")
        assert f'<p class="summary">{summarize_types(result, names)}</p>' in text


def test_render_predictions_with_failure_shows_why(result):
    failed = replace(result, failures={"ensemble": "The model is damaged."})
    html = rendering.render_predictions(failed, ["ensemble"], 3)
    assert "No prediction: The model is damaged." in html


def test_render_predictions_of_failed_model_alone_shows_no_summary(result):
    failed = replace(result, predictions={}, failures={"ensemble": "The model is damaged."})
    assert "summary" not in rendering.render_predictions(failed, ["ensemble"], 3)
    assert rendering.render_cams(failed, ["ensemble"], "Spiral") == ""


@pytest.mark.parametrize(
    ("warnings", "n_paragraphs", "n_items"), [((), 0, 0), (("One.",), 1, 0), (("One.", "Two."), 0, 2)]
)
def test_render_warnings_lists_several(warnings, n_paragraphs, n_items):
    html = rendering.render_warnings(warnings)
    assert (html.count("<p"), html.count("<li>")) == (n_paragraphs, n_items)
    assert html.count('class="message warning"') == bool(warnings)
    assert all(warning in html for warning in warnings)


@pytest.mark.parametrize("outcome", ["visible", "uncertain", "none"])
def test_render_predictions_shows_the_detectors_sentence_above_the_cards(result, outcome):
    fracture = FractureResult(outcome, 0.3, np.zeros((32, 32), np.float32), 0.06)
    html = rendering.render_predictions(replace(result, fracture=fracture), ALL_MODELS, 3)
    line, _, rest = html.partition("</p>")
    assert f'<p class="fracture" data-outcome="{outcome}">{fracture.message}' == line.strip().replace(
        "\u00a0", " "
    )
    assert rest.count("<section") == len(ALL_MODELS) and fracture.message not in rest


def test_render_predictions_without_detector_shows_the_types_alone(result):
    html = rendering.render_predictions(replace(result, fracture=None), ALL_MODELS, 3)
    assert "detector" not in html and html.count("<section") == len(ALL_MODELS)


def test_no_outcome_is_shown_in_green():
    rules = re.findall(r"^\.fracture.*$", rendering.CSS, re.MULTILINE)
    assert sorted(re.findall("#[0-9a-f]+", " ".join(rules))) == ["#888", "#e69f00"]


def test_render_heatmap_covers_the_preview(result):
    html = rendering.render_heatmap(result)
    overlay = decode(re.findall('class="overlay" src="(.*?)"', html)[0])
    assert overlay.size == result.preview.size
    assert "Where the detector looks" in html and rendering.percent(result.fracture.probability) in html
    assert rendering.NO_HEATMAP in rendering.render_heatmap(replace(result, fracture=None))


@pytest.mark.parametrize(("heat", "opacity"), [(0.9, 255), (0.5, 255), (0.05, 25)])
def test_render_heatmap_is_orange_and_faint_if_no_place_looks_like_a_fracture(result, heat, opacity):
    heatmap = np.zeros((32, 32), np.float32)
    heatmap[8:16, 8:16] = heat
    fracture = FractureResult("visible", 0.8, heatmap, None)
    html = rendering.render_heatmap(replace(result, fracture=fracture))
    overlay = np.asarray(decode(re.findall('class="overlay" src="(.*?)"', html)[0]))
    y, x = (round(12 / 32 * side) for side in overlay.shape[:2])
    assert tuple(overlay[y, x, :3]) == rendering.SUPPORT
    assert overlay[y, x, 3] == overlay[..., 3].max() == pytest.approx(opacity, abs=1)


def test_render_images_shows_every_view_in_one_strip(result):
    n, size = result.pixels.shape[:2]
    html = rendering.render_images(result)
    strip = np.asarray(decode(re.findall('class="model-input" src="(.*?)"', html)[0]), np.float32) / 255
    assert np.abs(strip - np.hstack(list(result.pixels))).max() < 0.01
    assert f'width="{n * size}" height="{size}"' in html and f'alt="{n} views of your image' in html
    one = rendering.render_images(replace(result, pixels=result.pixels[:1]))
    assert f'alt="Your image scaled to {size} by {size} pixels"' in one and "views" not in one


def decode(data_uri: str) -> Image.Image:
    """Return the image of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2])))


def test_render_cams_covers_the_preview(result):
    overlay = rendering._overlay(result.predictions["resnet50"].cam[0], result.preview.size)
    assert overlay.size == result.preview.size
    html = rendering.render_cams(result, ALL_MODELS, "Spiral")
    assert html.count('class="overlay"') == len(ALL_MODELS)
    assert "areas support Spiral" in html


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
    assert html.count('class="cams"') == html.count('class="cams heatmap"') == 1
    assert (
        html.replace("\u00a0", " ").count(result.fracture.message) == 1
        and "This does not look like a bone X-ray" in html
    )
    assert not re.search(r"https?://", html)


def test_render_class_examples_shows_label_and_count(tmp_path):
    synthetic_radiograph("Spiral").save(tmp_path / "spiral.png")
    html = rendering.render_class_examples([("Spiral", 12, tmp_path / "spiral.png")])
    assert "Spiral: 12" in html and html.count("<img") == 1
