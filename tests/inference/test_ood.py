"""Out-of-distribution detection by the bundled detector."""

from dataclasses import replace

import pytest

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.ood import detect_ood
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.io.image import load_image, preprocess
from fracture_lib.labels import CLASSES
from tests.helpers.other_images import line_drawing, noise, page_of_text


@pytest.fixture(scope="module")
def detect():
    """A function from a LoadedImage to its OODResult."""
    backbone = InferencePipeline().ood_backbone()

    def detect(image):
        features = backbone.forward(preprocess(image)[None, None]).features
        return detect_ood(image, features[0])

    return detect


@pytest.mark.parametrize("label", [c.label for c in CLASSES])
def test_detect_ood_of_synthetic_radiograph_accepts_it(detect, label):
    result = detect(load_image(synthetic_radiograph(label)))
    assert not result.is_ood and result.reason == result.message == "" and result.score <= result.threshold


@pytest.mark.parametrize("draw", [page_of_text, line_drawing, noise])
def test_detect_ood_of_other_image_rejects_it_with_a_reason(detect, draw):
    result = detect(load_image(draw()))
    assert result.is_ood and result.score > result.threshold
    assert result.message == (
        "This does not look like a bone X-ray. It looks unlike the X-rays the models were trained on."
    )


def test_detect_ood_of_colour_image_or_other_modality_names_it(detect):
    image = load_image(synthetic_radiograph("Spiral"))
    assert detect(replace(image, colorfulness=0.5)).reason == "It is a colour image; X-rays are greyscale."
    assert "modality is CT" in detect(replace(image, modality="CT")).reason
    assert not detect(replace(image, modality="DX")).is_ood
