import numpy as np
import pytest

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.labels import CLASSES

LABELS = [c.label for c in CLASSES]


@pytest.mark.parametrize("label", LABELS)
def test_synthetic_radiograph_of_every_label_is_gray_and_uses_the_range(label):
    image = synthetic_radiograph(label, width=60, height=90)
    assert (image.mode, image.size) == ("L", (60, 90))
    assert np.ptp(np.asarray(image).astype(int)) > 100


@pytest.mark.parametrize("label", LABELS)
def test_synthetic_radiograph_with_same_seed_repeats_and_with_another_differs(label):
    first, again, other = (synthetic_radiograph(label, seed, 60, 90).tobytes() for seed in (4, 4, 5))
    assert first == again != other


def test_synthetic_radiograph_of_different_labels_differs():
    assert len({synthetic_radiograph(label).tobytes() for label in LABELS}) == len(LABELS)
