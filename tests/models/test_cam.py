"""Class activation maps: exact by arithmetic, and they follow the evidence."""

import numpy as np
import pytest

from fracture_lib import CLASSES, MODELS, InvalidModel, preprocess
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.hub import BUNDLE
from fracture_lib.io.views import FAST_VIEWS
from fracture_lib.models import onnx
from fracture_lib.models.cam import ClassifierHead, class_activation_maps, logit_cams, read_head
from fracture_lib.models.model import read_model
from fracture_lib.registry import ALL_MODELS

CELL = 32  # pixels of the model input that are occluded, a sixteenth of it


@pytest.fixture(scope="module")
def models():
    return {name: read_model(name) for name in ALL_MODELS}


@pytest.fixture(scope="module")
def many_pixels():
    """One view of 30 synthetic radiographs: float32 [30, 1, 128, 128]."""
    images = [synthetic_radiograph(c.label, seed) for c in CLASSES for seed in range(3)]
    return np.stack([preprocess(image, FAST_VIEWS) for image in images])


@pytest.mark.parametrize("name", MODELS)
def test_logit_cams_of_bundled_model_sum_to_its_logits(single_views, name):
    logits, features = onnx.load(BUNDLE / name)(single_views)
    cams, constants = logit_cams(features, read_head(BUNDLE / name))
    assert cams.shape == (10, 10, *features.shape[2:])
    np.testing.assert_allclose(cams.sum((2, 3)) + constants, logits, atol=2e-3)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_class_activation_maps_weighted_by_probability_cancel(models, pixels, name):
    """What raises all classes alike supports none."""
    output = models[name].forward(pixels)
    weighted = np.einsum("nk,nvkhw->nvhw", output.probabilities, output.cam)
    np.testing.assert_allclose(weighted, 0, atol=1e-4)


@pytest.mark.parametrize("side", [4, 7, 8, 16])
def test_class_activation_maps_of_any_feature_map_have_one_size_and_keep_their_sum(side):
    """With all weight on the other classes, a map is that of a class's logit, spread over eight cells."""
    rng = np.random.default_rng(0)
    head = ClassifierHead(
        hidden_kernel=rng.normal(size=(2 * 3, 5)).astype(np.float32),
        hidden_bias=np.zeros(5, np.float32),
        logits_kernel=rng.normal(size=(5, 10)).astype(np.float32),
        logits_bias=np.zeros(10, np.float32),
        slope=np.array([0.1], np.float32),
    )
    features = rng.random((2, 3, 3, side, side), np.float32)
    probabilities = np.eye(10)[[0, 0]]
    cams = class_activation_maps(features, head, probabilities, temperature=2.0)
    assert cams.shape == (2, 3, 10, 8, 8) and cams.dtype == np.float32
    logits = (
        logit_cams(features.reshape(6, 3, side, side), head)[0].sum((2, 3)).reshape(2, 3, 10).mean(axis=1)
    )
    expected = (logits - logits[:, :1]) / 2
    np.testing.assert_allclose(cams.sum((1, 3, 4)), expected, rtol=1e-3, atol=1e-4)


def occluded_probability(model, pixels, cells, labels):
    """Probability of `labels` after one cell per image is filled with the image's median grey."""
    occluded = pixels.copy()
    for image, (row, column) in zip(occluded, cells, strict=True):
        grey = np.median(image[image > 0])
        image[0, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = grey
    return model.predict_proba(occluded)[np.arange(len(labels)), labels]


@pytest.mark.parametrize("name", ALL_MODELS)
def test_occluding_the_hottest_cell_costs_more_than_another(models, many_pixels, name):
    model, rng = models[name], np.random.default_rng(0)
    output = model.forward(many_pixels)
    labels = output.probabilities.argmax(axis=1)
    heat = output.cam[np.arange(len(labels)), 0, labels].reshape(-1, 4, 2, 4, 2).sum((2, 4)).reshape(-1, 16)
    hottest = heat.argmax(axis=1)
    # Compare with random cells that hold a part of the image.
    filled = many_pixels.reshape(-1, 4, CELL, 4, CELL).max(axis=(2, 4)).reshape(len(many_pixels), -1) > 0
    filled[np.arange(len(labels)), hottest] = False
    others = [rng.choice(np.flatnonzero(row)) for row in filled]
    before = output.probabilities.max(axis=1)
    cost = {
        which: (before - occluded_probability(model, many_pixels, np.stack(np.divmod(cells, 4), 1), labels))
        for which, cells in {"hottest": hottest, "random": np.array(others)}.items()
    }
    assert cost["hottest"].mean() > max(cost["random"].mean(), 0)


@pytest.mark.parametrize("content", [None, b"nonsense"], ids=["missing", "damaged"])
def test_read_head_without_readable_file_raises_invalid_model(tmp_path, content):
    if content:
        (tmp_path / "head.safetensors").write_bytes(content)
    with pytest.raises(InvalidModel, match=r"head\.safetensors"):
        read_head(tmp_path)
