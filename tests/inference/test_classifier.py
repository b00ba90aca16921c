"""The library's front door: load_model and Classifier."""

import shutil
from collections import deque

import numpy as np
import pytest
from PIL import Image

from fracture_lib import (
    ALL_MODELS,
    CLASSES,
    InvalidArgument,
    InvalidImage,
    UnknownModel,
    detect_fracture,
    list_models,
    load,
    load_model,
)
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.hub import BUNDLE


@pytest.fixture(scope="module", params=ALL_MODELS)
def classifier(request):
    return load_model(request.param)


@pytest.fixture(scope="module")
def images():
    return [synthetic_radiograph(label) for label in ("Spiral", "Oblique")]


def test_predict_gives_the_top_k_labelled_probabilities_in_order(classifier, image_path):
    prediction = classifier.predict(image_path, top_k=10)
    probabilities = [s.probability for s in prediction.scores]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert {s.label for s in prediction.scores} == {c.label for c in CLASSES}
    assert (prediction.model, prediction.runtime) == (classifier.name, "onnx")
    assert prediction.source.kind == "bundle" and prediction.milliseconds > 0
    assert prediction.info == classifier.info
    assert classifier.predict(image_path).scores == prediction.scores[:3]


def test_predict_with_a_list_gives_one_prediction_per_image(classifier, images):
    predictions = classifier.predict(images, top_k=np.int64(1))
    assert [p.scores for p in predictions] == [classifier.predict(i, top_k=1).scores for i in images]
    assert classifier.predict([]) == []


def test_predict_proba_columns_follow_classes(classifier, images):
    probabilities = classifier.predict_proba(images)
    assert probabilities.shape == (2, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    top = [classifier.classes[i] for i in probabilities.argmax(axis=1)]
    assert top == [p.label for p in classifier.predict(images)]
    assert classifier.predict_proba(images[0]).shape == (1, 10)
    assert classifier.predict_proba([]).shape == (0, 10)


@pytest.mark.parametrize("kind", [iter, set, dict.fromkeys, deque, lambda paths: dict.fromkeys(paths).keys()])
def test_predict_with_another_collection_says_what_to_pass(image_path, kind):
    images = kind([str(image_path)])
    classifier = load_model("pytorch-cnn")
    for method in (classifier.predict, classifier.predict_proba):
        with pytest.raises(InvalidArgument, match="pass one image, or a list or tuple of images"):
            method(images)


def test_predict_with_an_open_file_reads_one_image(classifier, image_path):
    with image_path.open("rb") as file:
        assert classifier.predict(file).scores == classifier.predict(image_path).scores


def test_predict_on_photograph_warns_and_still_answers(classifier):
    colours = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)
    prediction = classifier.predict(Image.fromarray(colours).resize((96, 96)))
    assert prediction.ood.is_ood and prediction.ood.message in prediction.warnings
    assert len(prediction.scores) == 3 and "does not look like a bone X-ray" in repr(prediction)


def test_predict_on_radiograph_has_no_warning_and_the_detectors_result(classifier, image_path):
    prediction = classifier.predict(image_path)
    assert prediction.warnings == () and not prediction.ood.is_ood
    assert prediction.fracture == detect_fracture(image_path)


def test_predict_on_unreadable_file_raises_value_error(classifier, tmp_path):
    path = tmp_path / "notes.png"
    path.write_bytes(b"text")
    with pytest.raises(InvalidImage):
        classifier.predict(path)
    with pytest.raises(ValueError):
        classifier.predict_proba([path])


def test_repr_names_model_source_and_accuracy(classifier):
    assert classifier.name in repr(classifier) and "bundled weights" in repr(classifier)
    assert classifier.info.accuracy.percent() in repr(classifier)


def test_load_model_fast_uses_one_view(image_path):
    fast, slow = (load_model("pytorch-cnn", fast=fast).predict_proba(image_path) for fast in (True, False))
    one_view = load_model("pytorch-cnn", fast=True).predict(image_path, top_k=10)
    assert np.abs(fast - slow).max() > 1e-4
    assert one_view.probability == pytest.approx(fast.max(), abs=1e-5)


def test_load_model_accepts_every_listed_name_and_load_is_its_alias():
    assert list_models() == list(ALL_MODELS) and load is load_model


def test_load_model_from_path_or_local_dir_equals_the_bundled_model(tmp_path, image_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    expected = load_model("pytorch-cnn").predict(image_path).scores
    for reference in (folder, f"local-dir:{folder}"):
        assert load_model(reference).predict(image_path).scores == expected


@pytest.mark.parametrize("reference", ["resnet", "owner/name", "./trained/resnet50", ""])
def test_load_model_with_any_other_string_raises_unknown_model(reference):
    with pytest.raises(UnknownModel, match="Choose from pytorch-cnn"):
        load_model(reference)
    with pytest.raises(ValueError):
        load_model(reference)
