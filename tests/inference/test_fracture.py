"""The fracture detector's three outcomes, its heatmap, and its place in the pipeline."""

from dataclasses import replace

import numpy as np
import pytest

from fracture_lib import ALL_MODELS, InferencePipeline, InvalidModel, detect_fracture
from fracture_lib.inference import pipeline as pipeline_module
from fracture_lib.inference.fracture import FractureResult, to_fracture_result, to_outcome
from fracture_lib.io.image import load_image, trim
from fracture_lib.models.detector import Detector, DetectorOutput, read_detector, sigmoid
from fracture_lib.models.report import DetectorThresholds, Interval, OutcomeRates

THRESHOLDS = DetectorThresholds(visible=0.6, none=0.1)
NO_HEAT = np.zeros((32, 32), np.float32)


@pytest.fixture
def no_detector(monkeypatch):
    """No detector is loaded yet, and it may be replaced."""
    pipeline_module._read_detector.cache_clear()
    yield
    pipeline_module._read_detector.cache_clear()


# Outcomes


@pytest.mark.parametrize(
    ("probability", "outcome"),
    [
        (0.0, "none"),
        (0.0999, "none"),
        (0.1, "uncertain"),
        (0.5999, "uncertain"),
        (0.6, "visible"),
        (1, "visible"),
    ],
)
def test_to_outcome_at_the_thresholds(probability, outcome):
    assert to_outcome(probability, THRESHOLDS) == outcome


def test_to_outcome_is_monotone_in_the_probability():
    order = {"none": 0, "uncertain": 1, "visible": 2}
    ranks = [order[to_outcome(p, THRESHOLDS)] for p in np.linspace(0, 1, 101)]
    assert ranks == sorted(ranks) and set(ranks) == {0, 1, 2}


@pytest.mark.parametrize(
    ("outcome", "probability", "missed", "message"),
    [
        ("visible", 0.82, 0.06, "The detector sees a fracture (probability 82 %)."),
        ("visible", 0.999, 0.06, "The detector sees a fracture (probability over 99 %)."),
        ("uncertain", 0.31, 0.06, "The detector is not sure whether there is a fracture (probability 31 %)."),
        ("none", 0.02, 0.06, "sees no fracture, but it misses about 6 % of fractures; the type may mean"),
        ("none", 0.02, 0.001, "misses about 1 % of fractures;"),
        ("none", 0.02, None, "misses some fractures;"),
    ],
)
def test_message_is_cautious(outcome, probability, missed, message):
    assert message in FractureResult(outcome, probability, NO_HEAT, missed).message


def test_to_dict_holds_outcome_probability_and_message():
    result = FractureResult("visible", 0.82, NO_HEAT, 0.06)
    assert result.to_dict() == {"outcome": "visible", "probability": 0.82, "message": result.message}


@pytest.mark.parametrize(
    ("elsewhere", "stated"),
    [
        ({}, 0.07),
        ({"all": OutcomeRates(100, 0.8, 0.18, 0.02)}, 0.07),
        ({"all": OutcomeRates(100, 0.8, 0.11, 0.09), "Spiral": OutcomeRates(10, 0.8, 0.0, 0.2)}, 0.09),
    ],
)
def test_result_states_the_larger_share_of_fractures_that_are_missed(elsewhere, stated):
    missed = Interval(0.07, None, None)
    report = replace(read_detector().report, thresholds=THRESHOLDS, missed=missed, external=elsewhere)
    output = DetectorOutput(-3.0, 0.05, np.zeros((1, 16, 16), np.float32), np.zeros(512, np.float32), 1.0)
    result = to_fracture_result(output, report, (300, 200))
    assert (result.outcome, result.missed) == ("none", stated)


# Heatmap


@pytest.mark.parametrize("shape", [(300, 300), (400, 100), (90, 270)])
def test_heatmap_lies_where_the_place_is_in_the_image(shape):
    """One place of the letterboxed map, at the image's centre in its shorter direction, is hot."""
    logits = np.full((1, 16, 16), -8, np.float32)
    row, column = (2, 8) if shape[0] >= shape[1] else (8, 2)
    logits[0, row, column] = 3
    output = DetectorOutput(0.0, 0.5, logits, np.zeros(512, np.float32), 1.0)
    heatmap = to_fracture_result(output, read_detector().report, shape).heatmap
    assert heatmap.shape == (32, 32)
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    longer = max(shape)
    at = [(i + 0.5) / 16 * longer - (longer - side) / 2 for i, side in zip((row, column), shape, strict=True)]
    assert [(y + 0.5) / 32 * shape[0], (x + 0.5) / 32 * shape[1]] == pytest.approx(at, abs=longer / 32 + 1)
    assert heatmap.max() == pytest.approx(float(sigmoid(3.0)), rel=0.45) and heatmap.min() >= 0


@pytest.mark.parametrize("shape", [(300, 300), (400, 100)])
def test_heatmap_of_equal_places_is_even(shape):
    output = DetectorOutput(0.0, 0.5, np.zeros((1, 16, 16), np.float32), np.zeros(512, np.float32), 1.0)
    heatmap = to_fracture_result(output, read_detector().report, shape).heatmap
    np.testing.assert_allclose(heatmap, 0.5, atol=1e-5)


# In the pipeline


def test_detector_runs_with_every_answer_and_equals_detect_fracture(pipeline, image_path):
    expected = detect_fracture(image_path)
    assert 0 <= expected.probability <= 1 and expected.heatmap.shape == (32, 32)
    for models in (ALL_MODELS, ["pytorch-cnn"]):
        result = pipeline.predict(image_path, models)
        assert result.fracture == expected and list(result.predictions) == list(models)
        assert all(p.fracture is result.fracture for p in result.predictions.values())
        assert result.to_dict()["fracture"] == expected.to_dict() and result.summary.startswith(
            expected.message
        )


def test_detector_takes_the_image_without_flat_borders(pipeline, image_path):
    image = np.asarray(trim(load_image(image_path)).pixels)
    bordered = np.pad(image, 60)
    assert detect_fracture(bordered).probability == pytest.approx(
        detect_fracture(image).probability, abs=0.01
    )


def test_fast_pipeline_gives_the_detector_the_same_view(image_path, pipeline):
    fast = InferencePipeline(fast=True).predict(image_path, ["pytorch-cnn"])
    assert fast.fracture == pipeline.predict(image_path, ["pytorch-cnn"]).fracture and len(fast.pixels) == 1


def test_rejected_image_gets_no_detector_result(pipeline, photograph, monkeypatch):
    def unexpected(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "forward", unexpected)
        result = pipeline.predict(photograph)
    assert result.is_rejected and result.fracture is None and result.to_dict()["fracture"] is None
    anyway = pipeline.predict(photograph, ["pytorch-cnn"], skip_ood_check=True)
    assert anyway.fracture is not None and anyway.predictions


@pytest.mark.parametrize("error", [InvalidModel("It is damaged."), KeyError("secret"), MemoryError()])
def test_detector_that_fails_to_load_or_run_is_a_warning_beside_the_types(
    pipeline, image_path, monkeypatch, no_detector, error
):
    def broken(*_):
        raise error

    for owner, name in ((pipeline_module, "read_detector"), (Detector, "forward")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            result = pipeline.predict(image_path)
        assert result.fracture is None and list(result.predictions) == list(ALL_MODELS)
        [warning] = result.warnings
        assert (
            warning.startswith("Could not check whether a fracture is visible: ") and "secret" not in warning
        )
        assert all(p.warnings == result.warnings and p.fracture is None for p in result.predictions.values())
        assert result.summary and "detector" not in result.summary


def test_detector_is_loaded_once_for_all_pipelines(image_path, monkeypatch, no_detector):
    loaded = []

    def counted():
        loaded.append(1)
        return read_detector()

    monkeypatch.setattr(pipeline_module, "read_detector", counted)
    assert not loaded
    for pipeline in (InferencePipeline(), InferencePipeline("native"), InferencePipeline(fast=True)):
        pipeline.detect_fracture(image_path)
    assert len(loaded) == 1


def test_warm_up_runs_the_detector(monkeypatch):
    passes = []
    forward = Detector.forward
    monkeypatch.setattr(Detector, "forward", lambda *a: passes.append(1) or forward(*a))
    InferencePipeline().warm_up()
    assert len(passes) == 1


def test_detector_answers_although_every_type_model_failed(image_path, monkeypatch):
    def broken(*_):
        raise InvalidModel("It is damaged.")

    monkeypatch.setattr(pipeline_module, "read_model", broken)
    result = InferencePipeline().predict(image_path)
    assert result.status == "failed" and result.fracture == detect_fracture(image_path)
