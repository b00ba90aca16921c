"""Heatmaps against boxes, with the values known from geometry."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.fracatlas import load_fracatlas
from fracture_lib.errors import ModelUnavailable
from fracture_lib.evaluation.localization import (
    BoxedImages,
    detector_heatmaps,
    localize,
    overlay_heatmaps,
    read_boxed_images,
)
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.labels import label_id

QUARTER = np.array([[0.0, 0.0, 0.5, 0.5]])
MIDDLE = np.array([[0.25, 0.25, 0.75, 0.75]])
BOTH_HALVES = np.array([[0.0, 0.0, 0.6, 1.0], [0.4, 0.0, 1.0, 1.0]])


def boxed(*boxes, shape=(100, 100)):
    n = len(boxes)
    return BoxedImages((Path("x.png"),) * n, np.arange(n), tuple(boxes), (shape,) * n)


def spot(row, column):
    heat = np.zeros((32, 32), np.float32)
    heat[row, column] = 1
    return heat


def test_localize_counts_maxima_in_boxes_and_heat_inside_them():
    found = localize(np.stack([spot(3, 3), spot(3, 30)]), boxed(QUARTER, QUARTER))
    assert found.n == 2
    assert found.pointing.value == found.inside.value == 0.5
    assert found.inside_random.value == 0.25  # the share of the area


def test_localize_lets_a_maximum_miss_by_one_cell():
    images = boxed(*[QUARTER] * 3)
    assert localize(
        np.stack([spot(0, 16), spot(16, 16), spot(0, 17)]), images
    ).pointing.value == pytest.approx(2 / 3, abs=1e-4)
    assert localize(np.stack([spot(0, 0)]), boxed(QUARTER)).pointing_random.value == pytest.approx(
        (17 / 32) ** 2, abs=1e-4
    )


def test_localize_compares_with_the_centre():
    found = localize(np.stack([spot(0, 0)] * 2), boxed(MIDDLE, np.array([[0.8, 0.8, 0.9, 0.9]])))
    assert found.pointing_center.value == 0.5
    assert localize(np.stack([spot(0, 0)]), boxed(MIDDLE)).inside_center.value > 0.4
    assert localize(np.stack([spot(0, 0)]), boxed(QUARTER)).inside_center.value == pytest.approx(0.25)


def test_localize_counts_overlapping_boxes_once():
    found = localize(np.ones((1, 32, 32)), boxed(BOTH_HALVES))
    assert found.inside.value == found.inside_random.value == found.pointing.value == 1


def test_localize_takes_a_map_without_heat_as_even():
    found = localize(np.zeros((1, 32, 32)), boxed(QUARTER))
    assert found.inside.value == found.inside_random.value


def test_detector_heatmaps_lie_over_the_image_without_padding():
    """In the letterbox view of an image twice as high as wide, the middle half of the columns show it."""
    maps = np.full((1, 16, 16), -20, np.float32)
    maps[0, 4, 5] = 20  # row 4 of 16; column 5, the second of the eight that show the image
    (heat,) = detector_heatmaps(maps, boxed(QUARTER, shape=(200, 100)))
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert row in (8, 9) and column in (4, 5, 6, 7)
    assert heat.min() >= 0


def test_read_boxed_images_moves_boxes_into_what_is_left_inside_the_borders(fracatlas_folder, tmp_path):
    plain = read_boxed_images(load_fracatlas(fracatlas_folder))
    root = shutil.copytree(fracatlas_folder, tmp_path / "copy")
    framed = Image.new("L", (64, 120), 255)
    framed.paste(Image.open(plain.paths[0]), (0, 24))
    framed.save(root / "images" / plain.paths[0].name)
    images = read_boxed_images(load_fracatlas(root))
    assert len(images.paths) == 8 and images.groups.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert images.shapes == plain.shapes == ((96, 64),) * 8
    np.testing.assert_allclose(plain.boxes[0], [[0.2, 0.4, 0.8, 0.6]])
    np.testing.assert_allclose(images.boxes[0], [[0.2, (0.4 * 120 - 24) / 96, 0.8, (0.6 * 120 - 24) / 96]])
    np.testing.assert_array_equal(plain.boxes[1], images.boxes[1])


def test_overlay_heatmaps_are_the_positive_part_of_the_most_probable_type(fracatlas_folder):
    images = read_boxed_images(load_fracatlas(fracatlas_folder))[np.array([2])]
    pipeline = InferencePipeline(fast=True)
    (heat,) = overlay_heatmaps(images, ["pytorch-cnn"], pipeline)["pytorch-cnn"]
    result = pipeline.predict(images.paths[0], "pytorch-cnn", skip_ood_check=True)
    prediction = result.predictions["pytorch-cnn"]
    np.testing.assert_array_equal(heat, np.maximum(prediction.cam[label_id(prediction.label)], 0))


def test_overlay_heatmaps_of_a_model_that_fails_raise(image_path, monkeypatch):
    def fail(self, reference):
        raise ModelUnavailable("out of order")

    monkeypatch.setattr(InferencePipeline, "get_model", fail)
    images = BoxedImages((image_path,), np.zeros(1, int), (QUARTER,), ((360, 240),))
    with pytest.raises(ModelUnavailable, match="resnet50: out of order"):
        overlay_heatmaps(images, ["resnet50"], InferencePipeline())
