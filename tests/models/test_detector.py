"""The contract of the fracture detector: its files, its graph, its output."""

import json
import shutil

import numpy as np
import pytest

from fracture_lib import CLASSES, MODELS
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.hub import BUNDLE
from fracture_lib.io.image import content
from fracture_lib.io.views import DETECTOR_SIZE, LETTERBOX, make_views
from fracture_lib.models.detector import OUTPUTS, read_detector, sigmoid
from fracture_lib.models.onnx import INPUT, open_session
from fracture_lib.registry import ALL_MODELS, DETECTOR, model_title

FOLDER = BUNDLE / DETECTOR
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def detector():
    return read_detector()


@pytest.fixture(scope="module")
def pixels():
    """The detector's input for four images: float32 [4, 1, 256, 256]."""
    images = [synthetic_radiograph(c.label) for c in CLASSES[:4]]
    return np.stack([make_views(content(i, DETECTOR_SIZE), (LETTERBOX,), DETECTOR_SIZE) for i in images])


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled detector, to damage."""
    return shutil.copytree(FOLDER, tmp_path / DETECTOR)


def test_detector_is_registered_beside_the_models_and_not_among_them():
    assert DETECTOR not in MODELS and DETECTOR not in ALL_MODELS
    assert model_title(DETECTOR) not in map(model_title, ALL_MODELS)


def test_bundled_folder_holds_the_graph_its_evaluation_and_a_card(detector):
    assert {p.name for p in FOLDER.iterdir()} == {"config.json", "evaluation.json", "model.onnx", "README.md"}
    assert json.loads((FOLDER / "config.json").read_text())
    assert 0.1 * MEGABYTE < detector.size_bytes < 20 * MEGABYTE


def test_graph_has_the_documented_signature_for_any_number_of_images(pixels):
    session = open_session(FOLDER / "model.onnx")
    assert [i.name for i in session.get_inputs()] == [INPUT]
    assert [o.name for o in session.get_outputs()] == list(OUTPUTS)
    together = session.run(OUTPUTS, {INPUT: pixels})
    assert [array.shape for array in together] == [(4, 1), (4, 16, 16), (4, 512)]
    singly = [session.run(OUTPUTS, {INPUT: image[None]}) for image in pixels]
    for array, parts in zip(together, zip(*singly, strict=True), strict=True):
        np.testing.assert_allclose(array, np.concatenate(parts), rtol=1e-3, atol=1e-3)


def test_forward_gives_the_calibrated_probability_a_map_and_an_embedding(detector, pixels):
    outputs = [detector.forward(image[None]) for image in pixels]
    report = detector.report
    for output in outputs:
        assert 0 <= output.probability <= 1 and output.milliseconds > 0
        assert output.probability == pytest.approx(
            1 / (1 + np.exp(-report.slope * output.logit - report.intercept))
        )
        assert output.heatmap.shape == (1, 16, 16) and output.embedding.shape == (512,)
    assert len({output.logit for output in outputs}) == len(outputs)


def test_forward_on_extreme_input_is_finite(detector):
    checkerboard = np.float32(np.indices((256, 256)).sum(axis=0) % 2)[None, None]
    for pixels in (checkerboard, np.zeros_like(checkerboard), np.ones_like(checkerboard)):
        output = detector.forward(pixels)
        assert np.isfinite([output.probability, output.heatmap.sum(), output.embedding.sum()]).all()


def test_report_has_ordered_thresholds_and_rates_that_add_up(detector):
    report = detector.report
    assert 0 < report.thresholds.none < report.thresholds.visible < 1 and report.slope > 0
    assert report.n_fractured < report.n and 0 <= (report.missed.value or 0) < 0.5
    for rates in (*report.outcomes.values(), *report.external.values()):
        assert rates.visible + rates.uncertain + rates.none == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("missing", ["model.onnx", "evaluation.json"])
def test_read_detector_with_missing_file_names_the_file(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(InvalidModel, match=missing):
        read_detector(folder)


def test_read_detector_with_damaged_graph_or_report_names_the_file(folder):
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(InvalidModel, match=r"model\.onnx cannot be read"):
        read_detector(folder)
    (folder / "evaluation.json").write_text("{}")
    with pytest.raises(InvalidModel, match=r"evaluation\.json lacks"):
        read_detector(folder)


def test_forward_with_wrong_input_raises_model_unavailable(detector):
    with pytest.raises(ModelUnavailable, match=f"{DETECTOR} failed to run"):
        detector.forward(np.zeros((1, 3, 64, 64), np.float32))


def test_sigmoid_of_large_values_is_0_and_1_without_a_warning():
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])
