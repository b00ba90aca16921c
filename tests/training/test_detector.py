"""Training the fracture detector: what is written, what it resumes from, and what serves."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fracture_lib.data.fracatlas import FINDINGS, load_fracatlas
from fracture_lib.errors import InvalidArgument, InvalidData, ModelUnavailable
from fracture_lib.io.image import content
from fracture_lib.io.views import DETECTOR_SIZE, LETTERBOX, make_views
from fracture_lib.models.detector import read_detector
from fracture_lib.models.efficientnet import DetectorLearner
from fracture_lib.models.json_files import read_json
from fracture_lib.models.report import DetectorReport
from fracture_lib.registry import DETECTOR, MODELS
from fracture_lib.training.augment import Augmentation
from fracture_lib.training.detector import DetectorRun, prepare, train_detector
from tests.helpers.detector import TINY_DETECTOR_RECIPE, write_random_efficientnet

pytestmark = pytest.mark.slow  # PyTorch's export takes most of the time


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return write_random_efficientnet(tmp_path_factory.mktemp("weights") / "efficientnet.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fracatlas_folder, pretrained, dataset_folder):
    """The folder of a detector with its checkpoints, and the report that training returned."""
    out = tmp_path_factory.mktemp("out") / "detector"
    report = train_detector(
        fracatlas_folder,
        out,
        pretrained,
        recipe=TINY_DETECTOR_RECIPE,
        external=dataset_folder,
        n_overlays=1,
        keep_checkpoints=True,
    )
    return out, report


@pytest.fixture
def views(fracatlas_folder):
    """What the detector sees of each image: float32 [N, 1, 256, 256]."""
    images = [content(path, DETECTOR_SIZE) for path in load_fracatlas(fracatlas_folder).paths]
    return np.stack([make_views(image, (LETTERBOX,), DETECTOR_SIZE) for image in images])


@pytest.fixture
def learner(trained, pretrained):
    """The detector in PyTorch with the weights that are kept."""
    learner = DetectorLearner(pretrained, len(FINDINGS), seed=0, weight_decay=0.0, clip_norm=1.0)
    learner.set_weights(load_file(trained[0] / "checkpoints" / "all.safetensors"))
    return learner


def test_report_has_the_counts_and_is_the_one_written(trained, fracatlas_folder):
    out, report = trained
    assert (report.n, report.n_groups, report.n_fractured) == (24, 12, 8)
    assert report.outcomes["fractured"].n == 8 and report.outcomes["not fractured"].n == 16
    assert report.external["all"].n == 40 and report.external["Spiral"].n == 4
    assert report.data.fingerprint == load_fracatlas(fracatlas_folder).fingerprint
    assert report.training_minutes is not None
    assert {name: found.n for name, found in report.localization.items()} == {
        DETECTOR: 8,
        **dict.fromkeys(MODELS, 1),
    }
    assert DetectorReport.read(out) == report


def test_config_names_the_detector_and_how_it_was_trained(trained):
    config = read_json(trained[0] / "config.json")
    assert config["model_name"] == DETECTOR and config["seed"] == 0
    assert config["pretrained"] == "random EfficientNet-Lite0"
    assert config["recipe"]["epochs"] == TINY_DETECTOR_RECIPE.epochs


def test_graph_gives_the_predictions_of_pytorch(trained, learner, views):
    logits, maps, embeddings = learner.predict(views[:, 0])
    detector = read_detector(trained[0])
    for i in (0, 1):
        output = detector.forward(views[i : i + 1])
        assert output.logit == pytest.approx(logits[i], abs=1e-3)
        np.testing.assert_allclose(output.heatmap[0], maps[i], atol=1e-3)
        np.testing.assert_allclose(output.embedding, embeddings[i], atol=1e-3)


def test_graph_is_small_and_holds_no_paths(trained):
    graph = onnx.load(trained[0] / "model.onnx").graph
    assert not any(node.metadata_props or node.doc_string for node in graph.node)
    assert (trained[0] / "model.onnx").stat().st_size < 20e6


@pytest.fixture
def steps(monkeypatch):
    """What each training step gets, without making it."""
    recorded = []
    monkeypatch.setattr(DetectorLearner, "step", lambda learner, *batch: recorded.append(batch) or (0.0, 0.0))
    return recorded


STILL = Augmentation(
    aspect=(0, 0), zoom=(1, 1), shift=0, rotation=0, rot90_p=0, hflip_p=0, invert_p=0, erase_p=0
)


def fit_on_all(root, pretrained, folder, **changes):
    run = prepare(root, folder, pretrained, replace(TINY_DETECTOR_RECIPE, **changes), seed=0)
    run.fit(np.ones(len(run.images), np.bool_), folder / "all.safetensors", "all images")


def test_fit_shows_fractures_in_the_boxes(steps, fracatlas_folder, pretrained, tmp_path):
    fit_on_all(fracatlas_folder, pretrained, tmp_path, augmentation=STILL)
    for pixels, findings, places, _ in steps:
        assert pixels.shape[1:] == (256, 256) and pixels.min() >= 0 and pixels.max() <= 1
        np.testing.assert_array_equal(findings[:, 0] > 0, places.max((1, 2)) > 0.5)
    assert {0, 1} == {y for _, findings, _, _ in steps for y in findings[:, 0]}


def test_fit_on_views_that_cut_the_fracture_off_has_no_fractures(
    steps, fracatlas_folder, pretrained, tmp_path
):
    fit_on_all(fracatlas_folder, pretrained, tmp_path, augmentation=replace(STILL, zoom=(0.02, 0.02)))
    for _, findings, places, _ in steps:
        assert (findings[:, 0] <= (places.max((1, 2)) > 0)).all()
    assert not all(findings[:, 0].all() for _, findings, _, _ in steps)


def test_prepare_moves_boxes_into_what_is_left_inside_the_borders(fracatlas_folder, pretrained, tmp_path):
    root = shutil.copytree(fracatlas_folder, tmp_path / "copy")
    path = load_fracatlas(root).paths[0]
    framed = Image.new("L", (64, 192), 255)
    framed.paste(Image.open(path), (0, 96))
    framed.save(path)
    run = prepare(root, tmp_path, pretrained, TINY_DETECTOR_RECIPE, seed=0)
    assert run.images[0].shape == (96, 64)
    # The box spans rows 77 to 115 of 192: the first fifth of the 96 that are left.
    np.testing.assert_allclose(run.boxes[0][0, [1, 3]], [0, 0.2], atol=0.01)


def test_train_again_restores_every_fit_of_folds_that_keep_groups_whole(
    trained, fracatlas_folder, pretrained, dataset_folder, tmp_path, monkeypatch
):
    out, report = trained
    shutil.copytree(out / "checkpoints", tmp_path / "checkpoints")
    masks, fit = [], DetectorRun.fit

    def record(run, train, path, title):
        masks.append(train)
        return fit(run, train, path, title)

    monkeypatch.setattr(DetectorRun, "fit", record)
    monkeypatch.setattr(DetectorLearner, "step", None)  # nothing is trained again
    monkeypatch.setattr(DetectorLearner, "save", lambda learner, path: shutil.copy(out / "model.onnx", path))
    again = train_detector(
        fracatlas_folder,
        tmp_path,
        pretrained,
        recipe=TINY_DETECTOR_RECIPE,
        external=dataset_folder,
        n_overlays=1,
    )
    assert again == replace(report, training_minutes=None)
    assert not (tmp_path / "checkpoints").exists()
    groups = load_fracatlas(fracatlas_folder).groups
    assert len(masks) == 6 and masks[5].all()
    assert (np.sum(masks[:5], axis=0) == 4).all()  # each image is held out once
    assert all(not set(groups[train]) & set(groups[~train]) for train in masks[:5])


def test_train_over_checkpoints_of_another_run_names_the_difference(trained, fracatlas_folder, pretrained):
    recipe = replace(TINY_DETECTOR_RECIPE, epochs=2)
    with pytest.raises(InvalidData, match="with another seed, recipe"):
        train_detector(fracatlas_folder, trained[0], pretrained, seed=1, recipe=recipe)


def test_train_on_too_few_groups_raises_invalid_data(fracatlas_folder, pretrained, tmp_path):
    data = shutil.copytree(fracatlas_folder, tmp_path / "data")
    lines = (data / "manifest.csv").read_text(encoding="utf-8").splitlines()
    (data / "manifest.csv").write_text("\n".join(lines[:12]), encoding="utf-8")
    with pytest.raises(InvalidData, match="5 folds need 5 groups"):
        train_detector(data, tmp_path / "out", pretrained)
    assert not (tmp_path / "out").exists()


def test_train_with_a_wrong_seed_or_without_weights_raises(fracatlas_folder, tmp_path):
    with pytest.raises(InvalidArgument, match="seed is -1"):
        train_detector(fracatlas_folder, tmp_path / "out", tmp_path / "none", seed=-1)
    with pytest.raises(ModelUnavailable, match="There is no file"):
        train_detector(fracatlas_folder, tmp_path / "out", tmp_path / "none")
    assert not (tmp_path / "out").exists()
