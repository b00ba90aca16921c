"""The panel: every model asked once about one film, with words for what they say."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import fracture_lib
from fracture_lib import CLASSES, ModelUnavailable, preprocess
from fracture_lib.classifier import Score
from fracture_lib.panel import EVERYONE, Panel, in_words


@pytest.fixture(scope="module")
def panel():
    return Panel()


@pytest.fixture(scope="module")
def photograph():
    """A picture in all colours."""
    y, x = np.mgrid[0:1:96j, 0:1:96j]
    return Image.fromarray(np.uint8(255 * np.dstack([x, y, 1 - x])))


def test_everyone_answers_as_alone(panel, film):
    result = panel.ask(film)
    assert list(result.predictions) == list(EVERYONE) and not result.failures
    for name, prediction in result.predictions.items():
        alone = fracture_lib.load(name).predict(film, top_k=len(CLASSES))
        assert [s.label for s in prediction.scores] == [s.label for s in alone.scores]
        assert prediction.scores[0].probability == pytest.approx(alone.scores[0].probability)


def test_the_result_shows_the_film_and_what_was_seen(panel, film):
    result = panel.ask(film)
    assert result.name == film.name
    np.testing.assert_array_equal(result.pixels, preprocess(film))
    rows, columns = result.place
    outside = result.pixels.copy()
    outside[rows, columns] = 0
    assert (outside == 0).all() and result.pixels[rows, columns].max() == result.pixels.max()


def test_the_ensemble_costs_no_further_pass(panel, film, monkeypatch):
    calls = []
    for name in fracture_lib.MODELS:
        classifier = panel.classifier(name)
        forward = classifier._forward
        monkeypatch.setattr(
            classifier, "_forward", lambda x, forward=forward, name=name: calls.append(name) or forward(x)
        )
    panel.ask(film)
    assert sorted(calls) == sorted(fracture_lib.MODELS)


def test_what_is_no_film_is_refused_until_asked_anyway(panel, photograph):
    refused = panel.ask(photograph, name="photo")
    assert refused.verdict.refused and refused.verdict.reason and not refused.predictions
    assert refused.to_dict(3)["refused"] and refused.verdict.sentence in refused.to_dict(3)["notices"]
    anyway = panel.ask(photograph, name="photo", anyway=True)
    assert anyway.verdict.refused and list(anyway.predictions) == list(EVERYONE)
    assert not anyway.to_dict(3)["refused"]


def test_a_model_that_cannot_be_loaded_leaves_the_others_answering(film, monkeypatch):
    def broken(name, runtime):
        if name == "resnet50":
            raise ModelUnavailable("it is gone.")
        return fracture_lib.load(name, runtime)

    monkeypatch.setattr("fracture_lib.panel.load", broken)
    panel = Panel()
    panel.load_all()
    result = panel.ask(film)
    assert list(result.predictions) == ["pytorch-cnn", "tensorflow-cnn"]
    assert result.failures["resnet50"] == "it is gone." and "resnet50" in result.failures["ensemble"]
    with pytest.raises(ModelUnavailable, match="pytorch-cnn"):
        panel.classifier("vgg16")


@pytest.mark.parametrize(
    ("firsts", "probability", "words"),
    [
        (("Spiral", "Spiral", "Spiral"), 0.7, ("All 3 models say Spiral", "Fairly confident", "70%")),
        (("Spiral", "Spiral", "Oblique"), 0.4, ("2 of 3 models say Spiral", "Unsure")),
        (("Spiral", "Hairline", "Oblique"), 0.2, ("disagree", "Guessing", "20%")),
    ],
)
def test_words_say_how_sure_and_how_united(panel, film, firsts, probability, words):
    result = panel.ask(film)
    predictions = {
        name: replace(result.predictions[name], scores=(Score(first, probability),))
        for name, first in zip(EVERYONE, (*firsts, firsts[0]), strict=True)
    }
    for word in words:
        assert word in in_words(replace(result, predictions=predictions))
