"""The bundled model in transformers, after `register_auto_classes`."""

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from fracture_lib import register_auto_classes
from fracture_lib.hub import BUNDLE
from fracture_lib.io.image import preprocess
from fracture_lib.labels import CLASSES
from fracture_lib.models.model import read_model

FOLDER = str(BUNDLE / "pytorch-cnn")


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_auto_classes()
    register_auto_classes()  # a second call does nothing


def test_auto_model_gives_the_librarys_probabilities_and_a_loss(pixels):
    model = AutoModelForImageClassification.from_pretrained(FOLDER).eval()
    assert model.config.id2label == {c.id: c.label for c in CLASSES}
    with torch.no_grad():
        output = model(torch.from_numpy(pixels), labels=torch.zeros(len(pixels), dtype=torch.long))
    expected = read_model("pytorch-cnn").predict_proba(pixels)
    np.testing.assert_allclose(output.logits.softmax(1).numpy(), expected, atol=1e-4)
    assert output.loss.item() == pytest.approx(-np.log(expected[:, 0]).mean(), abs=1e-3)


def test_auto_image_processor_preprocesses_one_image_or_many(image_path):
    processor = AutoImageProcessor.from_pretrained(FOLDER)
    expected = preprocess(image_path)
    single = processor(str(image_path), return_tensors="pt")["pixel_values"]
    several = processor([str(image_path)] * 2, return_tensors="pt")["pixel_values"]
    assert single.shape == (1, 1, 128, 128) and several.shape == (2, 1, 128, 128)
    np.testing.assert_array_equal(single[0, 0].numpy(), expected)


def test_image_classification_pipeline_gives_the_librarys_probabilities(image_path):
    classifier = pipeline("image-classification", model=FOLDER)
    probabilities = read_model("pytorch-cnn").predict_proba(preprocess(image_path)[None, None])[0]
    for prediction in classifier(str(image_path), top_k=10):
        expected = probabilities[[c.label for c in CLASSES].index(prediction["label"])]
        assert prediction["score"] == pytest.approx(expected, abs=1e-4)
