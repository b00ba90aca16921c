"""Prediction records, top_k and the summary sentences."""

from dataclasses import replace

import numpy as np
import pytest

from fracture_lib import ALL_MODELS, FractureError, Score, compare
from fracture_lib.inference.prediction import check_top_k, summarize


@pytest.fixture(scope="module")
def result(image_path):
    return compare(image_path)


def with_answers(result, labels, probability):
    """The result with these labels, one per model and the first one also for the ensemble."""
    predictions = {
        name: replace(result.predictions[name], scores=(Score(label, probability),))
        for name, label in zip(ALL_MODELS, (*labels, labels[0]), strict=True)
    }
    return replace(result, predictions=predictions)


@pytest.mark.parametrize(
    ("labels", "probability", "expected"),
    [
        (
            ("Spiral", "Spiral", "Spiral"),
            0.7,
            "All 3 models agree on Spiral. Most likely Spiral (70 %): "
            "about 7 in 10 such answers were right in testing.",
        ),
        (
            ("Spiral", "Spiral", "Oblique"),
            0.4,
            "2 of 3 models agree on Spiral. Uncertain: Spiral is most likely (40 %).",
        ),
        (
            ("Spiral", "Hairline", "Oblique"),
            0.2,
            "The models disagree. Low confidence: Spiral is the top guess (20 %).",
        ),
    ],
)
def test_summarize_states_confidence_and_agreement(result, labels, probability, expected):
    assert summarize(with_answers(result, labels, probability)) == expected


def test_summarize_of_one_model_leaves_agreement_out(result):
    alone = replace(result, predictions={"resnet50": result.predictions["resnet50"]})
    assert "models" not in alone.summary and alone.predictions["resnet50"].label in alone.summary


def test_prediction_label_and_probability_are_those_of_the_top_score(result):
    prediction = result.predictions["resnet50"]
    assert (prediction.label, prediction.probability) == (
        prediction.scores[0].label,
        prediction.scores[0].probability,
    )
    assert prediction.label in repr(prediction) and "resnet50" in repr(prediction)


def test_to_dict_holds_the_documented_keys(result):
    content = result.to_dict(top_k=2)
    assert list(content) == ["image", "is_ood", "warnings", "predictions", "failures", "summary"]
    assert [p["model"] for p in content["predictions"]] == list(ALL_MODELS)
    for prediction in content["predictions"]:
        assert list(prediction) == ["model", "scores", "source", "runtime", "milliseconds"]
        assert len(prediction["scores"]) == 2


@pytest.mark.parametrize("top_k", [1, 10, np.int64(3), np.uint8(3)])
def test_check_top_k_with_whole_number_returns_int(top_k):
    assert check_top_k(top_k) == top_k and type(check_top_k(top_k)) is int


@pytest.mark.parametrize("top_k", [0, 11, -1, 2.5, "3", None, True, np.float32(3)])
def test_check_top_k_with_anything_else_states_the_range(top_k):
    with pytest.raises(FractureError, match="from 1 to 10"):
        check_top_k(top_k)
    with pytest.raises(ValueError):
        check_top_k(top_k)
