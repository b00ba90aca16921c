import numpy as np
import pytest

from fracture_lib.evaluation.perturbations import PERTURBATIONS, mask_markers


@pytest.fixture
def marked_image():
    """Random gray blocks with a bright marker on a dark corner."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.random((12, 8)), np.ones((8, 8))).astype(np.float32)
    image[:20, :20] = 0.05
    image[4:10, 4:8] = 1
    return image


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbation_changes_the_image_and_keeps_dtype_and_range(marked_image, name):
    before = marked_image.copy()
    perturbed = PERTURBATIONS[name](marked_image)
    assert perturbed.dtype == np.float32 and perturbed.min() >= 0 and perturbed.max() <= 1
    assert perturbed.shape != before.shape or (np.abs(perturbed - before) > 0.01).any()
    np.testing.assert_array_equal(marked_image, before)


def test_mask_markers_paints_over_letters_at_the_border_and_keeps_bone():
    image = np.full((200, 200), 0.05, np.float32)
    image[60:140, 60:140] = 0.95  # bone: large and central
    image[10:20, 10:16] = 1  # a letter
    masked = mask_markers(image)
    np.testing.assert_allclose(masked[10:20, 10:16], 0.05)
    np.testing.assert_array_equal(masked[60:140, 60:140], image[60:140, 60:140])


def test_mask_markers_keeps_bright_spots_on_gray_tissue():
    image = np.full((200, 200), 0.5, np.float32)
    image[10:20, 10:16] = 1
    np.testing.assert_array_equal(mask_markers(image), image)
