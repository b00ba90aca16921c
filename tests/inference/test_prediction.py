"""Prediction records, top_k and the summary sentences."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from fracture_lib import ALL_MODELS, ENSEMBLE, MODELS, FractureError, Score, compare
from fracture_lib.evaluation import metrics
from fracture_lib.inference.fracture import FractureResult
from fracture_lib.inference.prediction import N_BINS, check_top_k, summarize, summarize_types
from fracture_lib.models.report import CalibrationBin, Interval
from fracture_lib.registry import model_title

OTHER_KEYS = ("warnings", "predictions", "failures", "summary")


@pytest.fixture(scope="module")
def result(image_path):
    """A result without the fracture detector's sentence."""
    return replace(compare(image_path), fracture=None)


def with_answers(result, labels, probability=0.4, ensemble=""):
    """The result with these labels, one per model, and the ensemble's if there is one."""
    predictions = {
        name: replace(result.predictions[name], scores=(Score(label, probability),))
        for name, label in (*zip(MODELS, labels, strict=False), (ENSEMBLE, ensemble))
        if label
    }
    return replace(result, predictions=predictions)


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (0.5, "Most likely Spiral (50 %)."),
        (0.4, "Uncertain: Spiral is most likely (40 %)."),
        (0.2, "Low confidence: Spiral is the top guess (20 %)."),
    ],
)
def test_summarize_states_confidence(result, probability, expected):
    summary = with_answers(result, [], probability, "Spiral").summary
    assert re.sub(r": about \d in 10 such answers were right in testing", "", summary) == expected


@pytest.mark.parametrize(
    ("labels", "ensemble", "expected"),
    [
        (("Spiral", "Spiral", "Spiral"), "Spiral", "All 3 models agree."),
        (("Spiral", "Oblique", "Spiral"), "Spiral", "2 of 3 models agree."),
        (("Oblique", "Oblique", "Spiral"), "Spiral", "The models disagree: 2 of 3 name Oblique."),
        (("Oblique", "Hairline", "Spiral"), "Spiral", "The models disagree."),
        (("Oblique", "Hairline", "Avulsion"), "Spiral", "The models disagree."),
        (("Oblique", "Oblique", "Hairline"), "Spiral", "The models disagree: 2 of 3 name Oblique."),
        (("Oblique", "Oblique", "Oblique"), "Spiral", "However, all 3 models name Oblique."),
        (("Spiral", "Spiral"), "Spiral", "Both models agree."),
        (("Spiral", "Oblique"), "Spiral", "The models disagree."),
        (("Oblique", "Oblique"), "Spiral", "However, both models name Oblique."),
        (("Spiral",), "Spiral", ""),
        (("Oblique",), "Spiral", ""),
    ],
)
def test_summarize_states_agreement_with_the_ensemble(result, labels, ensemble, expected):
    headline = "Uncertain: Spiral is most likely (40 %)."
    assert summarize(with_answers(result, labels, 0.4, ensemble)) == f"{headline} {expected}".strip()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("Oblique", "Spiral"), "The models disagree."),
        (("Spiral", "Spiral"), "Both models agree."),
        (("Spiral", "Spiral", "Oblique"), "2 of 3 models agree."),
        (("Oblique", "Spiral", "Oblique"), "The models disagree: 2 of 3 name Oblique."),
    ],
)
def test_summarize_without_ensemble_names_the_most_accurate_model(result, labels, expected):
    answers = dict(with_answers(result, labels).predictions)
    for name, accuracy in zip(answers, (0.3, 0.4, 0.35), strict=False):
        info = replace(answers[name].info, accuracy=Interval(accuracy, None, None))
        answers[name] = replace(answers[name], info=info)
    shown = replace(result, predictions=answers)
    assert shown.top_prediction is answers["tensorflow-cnn"]
    title = model_title("tensorflow-cnn")
    assert shown.summary == f"Uncertain: Spiral is most likely (40 % according to {title}). {expected}"


def test_summarize_is_consistent_for_every_pattern_of_answers(result):
    classes = ("Spiral", "Oblique", "Hairline", "Avulsion")
    patterns = itertools.product(("", *classes[:3]), ("", *classes[:3]), ("", *classes[:3]), ("", *classes))
    probabilities = dict(zip((*MODELS, ENSEMBLE), (0.31, 0.32, 0.33, 0.34), strict=True))
    for *labels, ensemble in patterns:
        answers = with_answers(result, labels, ensemble=ensemble).predictions
        answers = {
            name: replace(p, scores=(Score(p.label, probabilities[name]),)) for name, p in answers.items()
        }
        for models in (None, [name for name in answers if name != ENSEMBLE], ["resnet50"], [ENSEMBLE]):
            shown = replace(result, predictions=answers)
            _check_consistent(summarize(shown, models), shown, models)


def _check_consistent(text, result, models):
    shown = {n: p for n, p in result.predictions.items() if models is None or n in models}
    if not shown:
        assert text == ""
        return
    headline, _, agreement = text.partition("). ")
    (label,) = re.findall("Uncertain: ([A-Z][a-z]+) is most likely", headline)
    [number] = re.findall(r"(\d+) %", text)
    assert any(p.label == label and f"{100 * p.probability:.0f}" == number for p in shown.values())
    if ENSEMBLE in shown:
        assert label == shown[ENSEMBLE].label
    assert text.count(label) == 1
    labels = [p.label for name, p in shown.items() if name != ENSEMBLE]
    if len(labels) < 2:
        assert agreement == ""
        return
    if "agree." in agreement.replace("disagree", ""):
        votes = {"Both": 2, "All": 3}.get(agreement.split()[0]) or int(agreement[0])
        assert labels.count(label) == votes and 2 * votes > len(labels)
    else:
        assert agreement.startswith(("The models disagree", "However, "))
        assert 2 * labels.count(label) <= len(labels)
        assert len(set(labels)) > 1 or agreement.startswith("However")
        for count, total, other in re.findall(r"(\d) of (\d) name ([A-Z]\w+)", agreement):
            assert labels.count(other) == int(count) > 1 and len(labels) == int(total) and other != label


@pytest.mark.parametrize(
    ("models", "label"), [(None, "Spiral"), (["ensemble"], "Spiral"), (["resnet50"], "Hairline")]
)
def test_summarize_is_about_the_chosen_models(result, models, label):
    answers = with_answers(result, ("Oblique", "Avulsion", "Hairline"), 0.4, "Spiral")
    assert summarize(answers, models).startswith(f"Uncertain: {label} is most likely (40 %).")
    assert ("disagree" in summarize(answers, models)) is (models is None)


def test_summarize_of_models_without_an_answer_is_empty(result):
    assert summarize(with_answers(result, ("Spiral",)), ["resnet50"]) == ""


def test_summarize_of_out_of_distribution_image_claims_no_confidence(result):
    ood = replace(result.ood, is_ood=True, reason="It is a colour image; X-rays are greyscale.")
    for probability in (0.2, 0.4, 0.7):
        answers = replace(with_answers(result, ("Spiral",) * 3, probability, "Spiral"), ood=ood)
        assert answers.summary == (
            f"Spiral is the top guess ({100 * probability:.0f} %), but the models were not tested on such "
            "images. All 3 models agree."
        )


def test_summarize_of_unchecked_image_states_no_hit_rate(result):
    assert replace(with_answers(result, [], 0.7, "Spiral"), ood=None).summary == "Most likely Spiral (70 %)."


@pytest.mark.parametrize("outcome", ["visible", "uncertain", "none"])
def test_summarize_begins_with_the_detectors_sentence_and_keeps_the_types(result, outcome):
    fracture = FractureResult(outcome, 0.3, np.zeros((32, 32), np.float32), 0.05)
    answers = replace(with_answers(result, ("Spiral",) * 3, 0.4, "Spiral"), fracture=fracture)
    types = "Uncertain: Spiral is most likely (40 %). All 3 models agree."
    assert answers.summary == f"{fracture.message} {types}" and summarize_types(answers) == types
    assert summarize(replace(answers, predictions={})) == ""


def with_bins(result, *bins):
    prediction = result.predictions[ENSEMBLE]
    info = replace(prediction.info, calibration=bins)
    return replace(prediction, info=info, scores=(Score("Spiral", 0.7),))


@pytest.mark.parametrize(
    ("bins", "claimed"),
    [
        ([CalibrationBin(confidence=0.7, accuracy=0.7, n=50, low=0.6, high=0.8)], True),
        ([CalibrationBin(confidence=0.7, accuracy=0.7, n=5, low=0.3, high=0.95)], False),  # too few images
        ([CalibrationBin(confidence=0.7, accuracy=0.5, n=25, low=0.3, high=0.75)], False),
        ([CalibrationBin(confidence=0.7, accuracy=0.62, n=900, low=0.59, high=0.65)], False),
        ([CalibrationBin(confidence=0.8, accuracy=0.7, n=50, low=0.6, high=0.8)], False),  # another bin
        ([], False),  # not measured
    ],
)
def test_summarize_states_a_hit_rate_only_if_it_was_measured(result, bins, claimed):
    answers = replace(result, predictions={ENSEMBLE: with_bins(result, *bins)})
    assert ("about 7 in 10 such answers were right" in answers.summary) is claimed


@pytest.mark.parametrize("name", ALL_MODELS)
def test_hit_rate_lies_in_the_interval_of_the_models_calibration(result, name):
    prediction = result.predictions[name]
    assert N_BINS == metrics.N_BINS
    for probability in np.linspace(0.5, 1, 101):
        answers = {name: replace(prediction, scores=(Score("Spiral", float(probability)),))}
        for tenths in re.findall(r"about (\d+) in 10", replace(result, predictions=answers).summary):
            number = min(int(probability * N_BINS), N_BINS - 1)
            [measured] = [b for b in prediction.info.calibration if int(b.confidence * N_BINS) == number]
            assert measured.low <= int(tenths) / 10 <= measured.high and measured.n >= 20
            assert int(tenths) / 10 == pytest.approx(measured.accuracy, abs=0.1)


@pytest.mark.parametrize(
    ("is_ood", "skip_ood_check", "answers", "expected"),
    [
        (False, False, True, "answered"),
        (True, True, True, "answered"),
        (True, False, False, "rejected"),
        (True, True, False, "failed"),
        (False, False, False, "failed"),
        (None, False, False, "failed"),
    ],
)
def test_status_tells_answered_rejected_and_failed_apart(result, is_ood, skip_ood_check, answers, expected):
    ood = None if is_ood is None else replace(result.ood, is_ood=is_ood)
    predictions = result.predictions if answers else {}
    outcome = replace(result, ood=ood, skip_ood_check=skip_ood_check, predictions=predictions)
    assert outcome.status == outcome.to_dict()["status"] == expected
    assert outcome.is_rejected is (expected == "rejected")


def test_prediction_label_and_probability_are_those_of_the_top_score(result):
    prediction = result.predictions["resnet50"]
    assert (prediction.label, prediction.probability) == (
        prediction.scores[0].label,
        prediction.scores[0].probability,
    )
    assert prediction.label in repr(prediction) and "resnet50" in repr(prediction)


def test_to_dict_holds_the_documented_keys(result):
    content = result.to_dict(top_k=2)
    assert list(content) == ["image", "status", "is_ood", "fracture", *OTHER_KEYS]
    assert [p["model"] for p in content["predictions"]] == list(ALL_MODELS)
    for prediction in content["predictions"]:
        assert list(prediction) == [
            *("model", "scores", "is_ood", "warnings", "source", "runtime", "milliseconds")
        ]
        assert (prediction["is_ood"], prediction["warnings"]) == (False, content["warnings"])
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
