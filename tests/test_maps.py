"""Class activation maps: exact by arithmetic, and they move when the evidence moves."""

import numpy as np
import pytest

import fracture_lib
from fracture_lib import CLASSES, InvalidModel
from fracture_lib.drawing import draw_film
from fracture_lib.hub import BUNDLE
from fracture_lib.maps import logit_maps, read_head

NAMES = list(fracture_lib.MODELS)
CELL = 32  # pixels of the input behind one place of the 4x4 feature map


@pytest.fixture(scope="module")
def classifiers():
    return {name: fracture_lib.load(name) for name in [*NAMES, "ensemble"]}


@pytest.fixture(scope="module")
def many():
    """Model input of 30 drawn films: float32 [30, 1, 128, 128]."""
    films = [draw_film(c.label, seed) for c in CLASSES for seed in range(3)]
    return np.stack([fracture_lib.preprocess(film) for film in films])[:, None]


@pytest.mark.parametrize("name", NAMES)
def test_a_map_and_its_constant_sum_to_the_logit(classifiers, pixels, name):
    logits, features = classifiers[name]._forward(pixels)
    maps, constants = logit_maps(features, read_head(BUNDLE / name))
    assert maps.shape == (10, 10, *features.shape[2:])
    np.testing.assert_allclose(maps.sum((2, 3)) + constants, logits, atol=2e-3)


@pytest.mark.parametrize("name", [*NAMES, "ensemble"])
def test_evidence_compares_the_classes(classifiers, pixels, name):
    """Weighted by the probabilities it cancels at every place: what favours all favours none."""
    answer = classifiers[name].answer(pixels)
    weighted = np.einsum("nk,nkhw->nhw", answer.probabilities, answer.evidence)
    np.testing.assert_allclose(weighted, 0, atol=1e-4)


def occluded(classifier, films, cells, labels):
    """Probability of `labels` when each film's cell is filled with the film's median tone."""
    changed = films.copy()
    for film, (row, column) in zip(changed, cells, strict=True):
        tone = np.median(film[film > 0])
        film[0, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = tone
    return classifier.probabilities(changed)[np.arange(len(labels)), labels]


@pytest.mark.parametrize("name", [*NAMES, "ensemble"])
def test_hiding_the_hottest_place_costs_more_than_hiding_another(classifiers, many, name):
    classifier, rng = classifiers[name], np.random.default_rng(0)
    answer = classifier.answer(many)
    labels = answer.probabilities.argmax(axis=1)
    heat = answer.evidence[np.arange(len(labels)), labels].reshape(len(labels), -1)
    hottest = heat.argmax(axis=1)
    # another place at random, of those that hold something of the film
    filled = many.reshape(-1, 4, CELL, 4, CELL).max(axis=(2, 4)).reshape(len(many), -1) > 0
    filled[np.arange(len(labels)), hottest] = False
    others = [rng.choice(np.flatnonzero(row)) for row in filled]
    before = answer.probabilities.max(axis=1)
    cost = {
        which: (before - occluded(classifier, many, np.stack(np.divmod(cells, 4), 1), labels)).mean()
        for which, cells in {"hottest": hottest, "random": np.array(others)}.items()
    }
    assert cost["hottest"] > cost["random"] and cost["hottest"] > 0


def test_a_missing_or_broken_head_is_named(tmp_path):
    with pytest.raises(InvalidModel, match=r"head\.safetensors"):
        read_head(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidModel, match=r"head\.safetensors"):
        read_head(tmp_path)
