"""Fitting and measuring the out-of-distribution detector, and what the bundled one reaches."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.data.fracatlas import load_fracatlas
from fracture_lib.errors import InvalidData
from fracture_lib.evaluation.ood import PROTOCOL, fit_discriminant, fit_ood_detector
from fracture_lib.hub import BUNDLE
from fracture_lib.inference.ood import DISCRIMINANT_FILE, OOD_FOLDER
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.models.report import OODReport
from tests.helpers.other_images import noise, page_of_text


@pytest.fixture(scope="module")
def features():
    """A function from model inputs [1, 128, 128] to 64 channels of the OOD backbone's feature map."""
    backbone = InferencePipeline().ood_backbone()
    return lambda pixels: backbone.forward(pixels[None]).features[0, 0, :64]


@pytest.fixture(scope="module")
def images(dataset_folder):
    return load_dataset_folder(dataset_folder)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder <kind>/<image> with a page of text, noise and a file that is not an image."""
    root = tmp_path_factory.mktemp("others")
    for kind, image in {"documents": page_of_text(), "noise": noise()}.items():
        (root / kind).mkdir()
        image.save(root / kind / f"{kind}1.png")
    (root / "noise" / "damaged.png").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def fitted(images, others, features, tmp_path_factory):
    """The report and the folder of a detector fitted on `images`."""
    folder = tmp_path_factory.mktemp("detector")
    return fit_ood_detector(images, others, features, folder), folder


# The bundled detector


def test_bundled_detector_rarely_rejects_an_xray_and_detects_most_other_kinds():
    report = OODReport.read(OOD_FOLDER)
    assert report.protocol == PROTOCOL and (report.n, report.n_groups) == (989, 689)
    assert report.false_rejection.low <= report.false_rejection.value < 0.05
    for kind in (
        "photographs_colour",
        "photographs_grey",
        "documents",
        "screenshots",
        "blank_noise",
        "drawings",
    ):
        assert report.detection[kind].n >= 30 and report.detection[kind].value > 0.7
    assert report.detection["ct_mr"].n >= 30 and report.detection["ct_mr"].value > 0.6
    assert report.radiographs is not None and report.radiographs.value < 0.04


# Fitting


def test_fit_ood_detector_measures_each_kind_and_counts_unreadable_files(fitted):
    report, folder = fitted
    assert (report.n, report.n_groups) == (40, 40)
    assert {kind: rate.n for kind, rate in report.detection.items()} == {"documents": 1, "noise": 2}
    assert report.detection["noise"].value == 1
    assert 0 <= report.false_rejection.low <= report.false_rejection.value < 0.3
    assert OODReport.read(folder) == report


def test_fit_ood_detector_writes_the_keys_of_the_bundled_report(fitted):
    _, folder = fitted
    content, bundled = (
        json.loads((path / "evaluation.json").read_text()) for path in (folder, BUNDLE / "ood")
    )
    assert content.keys() == bundled.keys()
    assert content["thresholds"].keys() == bundled["thresholds"].keys()
    assert content["detection"]["noise"].keys() == bundled["detection"]["documents"].keys()


def test_fit_ood_detector_writes_the_discriminant_in_half_precision(fitted):
    tensors = load_file(fitted[1] / DISCRIMINANT_FILE)
    n_features = len(tensors["mean"])
    assert {name: array.shape for name, array in tensors.items()} == {
        "mean": (n_features,),
        "whitening": (n_features, n_features),
        "direction": (n_features,),
    }
    assert all(array.dtype == np.float16 and np.isfinite(array).all() for array in tensors.values())


def test_fit_discriminant_whitens_xrays_and_points_to_other_images():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 3)) * [1, 5, 0.1] + 7
    kinds = np.repeat([-2, -1, 0, 1], 100)
    vectors[200:300, 0] += 9
    vectors[300:, 2] += 0.9
    discriminant = fit_discriminant(vectors, kinds)
    whitened = (vectors[:200] - discriminant.mean) @ discriminant.whitening
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(3), atol=0.1)
    scores = discriminant.score(vectors)
    assert scores[200:].min() > np.quantile(scores[:200], 0.95)


@pytest.mark.slow
def test_fit_ood_detector_again_writes_identical_files(fitted, images, others, features, tmp_path):
    report, folder = fitted
    assert fit_ood_detector(images, others, features, tmp_path) == report
    for name in (DISCRIMINANT_FILE, "evaluation.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_fit_ood_detector_scores_an_image_against_other_groups_only(images, others, tmp_path):
    """Copies of an image in its own group do not make it look in distribution."""

    def one_direction_per_group(pixels):
        return 100 * np.eye(6, dtype=np.float32)[next(group)][:, None, None]

    groups = np.arange(40) // 8
    group = iter([*groups, 5, 5])  # then the two readable files of `others`
    report = fit_ood_detector(replace(images, groups=groups), others, one_direction_per_group, tmp_path)
    discriminant = load_file(tmp_path / DISCRIMINANT_FILE)
    assert report.n_groups == 5 and report.thresholds.score > 20 * np.sqrt(len(discriminant["mean"]))


def test_fit_ood_detector_with_radiographs_measures_them_but_sets_no_threshold_by_them(
    images, others, features, fracatlas_folder, tmp_path
):
    report = fit_ood_detector(images, others, features, tmp_path, load_fracatlas(fracatlas_folder))
    assert report.n == 40 and report.radiographs.n == 24 and report.radiographs.value < 0.5


def test_fit_ood_detector_without_other_images_raises_invalid_data(images, features, tmp_path):
    with pytest.raises(InvalidData, match=r"There are no folders of images in .*missing"):
        fit_ood_detector(images, tmp_path / "missing", features, tmp_path / "out")
    (tmp_path / "empty" / "documents").mkdir(parents=True)
    with pytest.raises(InvalidData, match="There are no images in documents"):
        fit_ood_detector(images, tmp_path / "empty", features, tmp_path / "out")
    for number in (1, 2):
        noise().save(tmp_path / "empty" / "documents" / f"page{number}.png")
    with pytest.raises(InvalidData, match="need at least two sources"):
        fit_ood_detector(images, tmp_path / "empty", features, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fit_ood_detector_with_unreadable_xray_names_the_file(images, others, features, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"not an image")
    with pytest.raises(InvalidData, match=r"damaged\.png cannot be read"):
        fit_ood_detector(
            replace(images, paths=(damaged, *images.paths[1:])), others, features, tmp_path / "out"
        )
