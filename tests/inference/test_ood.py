"""Out-of-distribution detection by the bundled detector."""

from dataclasses import replace

import numpy as np
import pytest

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidModel
from fracture_lib.inference.layout import describe_layout
from fracture_lib.inference.ood import Discriminant, detect_ood
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.io.image import load_image, preprocess
from fracture_lib.io.views import FAST_VIEWS
from fracture_lib.labels import CLASSES
from tests.helpers.other_images import line_drawing, noise, page_of_text


@pytest.fixture(scope="module")
def detect():
    """A function from a LoadedImage to its OODResult."""
    backbone = InferencePipeline().ood_backbone()

    def detect(image):
        pixels = preprocess(image, FAST_VIEWS)
        return detect_ood(image, pixels[0], backbone.forward(pixels[None]).features[0, 0])

    return detect


# The fragments of a drawn comminuted fracture look like a drawing.
@pytest.mark.parametrize("label", [c.label for c in CLASSES if c.label != "Comminuted"])
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


def test_detect_ood_with_features_of_another_network_says_what_to_run():
    with pytest.raises(InvalidModel, match="Run `fracture fit-ood`"):
        detect_ood(load_image(noise()), np.zeros((128, 128), np.float32), np.ones((7, 4, 4), np.float32))


def test_discriminant_adds_the_distance_and_the_way_along_the_direction():
    discriminant = Discriminant(np.array([1.0, 0.0]), np.eye(2), np.array([0.0, 10.0]))
    assert discriminant.score(np.array([[4.0, 4.0], [1.0, 0.0], [1.0, -1.0]])).tolist() == [45, 0, -9]


def test_describe_layout_tells_a_closed_disc_from_a_bar_that_leaves_the_frame():
    y, x = np.mgrid[:128, :128] - 63.5
    disc, bar = (describe_layout(mask.astype(np.float32)) for mask in (np.hypot(x, y) < 50, abs(x) < 20))
    assert disc.shape == (18,) and np.isfinite(disc).all()
    assert disc[1] == 0 and bar[1] == pytest.approx(40 / 128)  # the largest share of a side that is touched
    assert abs(disc[4]) < 0.01 < 1 < bar[4]  # elongation
    assert np.isfinite(describe_layout(np.zeros((128, 128), np.float32))).all()
