import numpy as np
import pytest
from PIL import Image

from fracture_lib.io.views import View, make_views
from fracture_lib.training.augment import Augmentation, augment

OFF = Augmentation(**(dict.fromkeys(vars(Augmentation()), 0) | {"aspect": (0.0, 0.0), "zoom": (1.0, 1.0)}))


@pytest.fixture
def images(pixels):
    """One square view of each class: float32 [10, 128, 128]."""
    return pixels[:, 0]


def test_augment_with_seeded_generators_differs_by_seed_and_stays_in_range(images):
    image = images[9]
    views = [augment(image, Augmentation(), np.random.default_rng(seed)) for seed in range(30)]
    for view in views:
        assert view.shape == image.shape and view.dtype == np.float32
        assert view.min() >= 0 and view.max() <= 1
    assert len({view.tobytes() for view in views}) == 30
    np.testing.assert_array_equal(augment(image, Augmentation(), np.random.default_rng(3)), views[3])


def test_augment_with_zero_strength_returns_the_image(images):
    for image in images:
        np.testing.assert_allclose(augment(image, OFF, np.random.default_rng(0)), image, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("hflip_p", lambda image: image[:, ::-1]),
        ("invert_p", lambda image: 1 - image),
    ],
)
def test_augment_with_certain_flip_or_inversion_applies_only_that(images, field, expected):
    strength = Augmentation(**{**vars(OFF), field: 1})
    view = augment(images[9], strength, np.random.default_rng(0))
    np.testing.assert_allclose(view, expected(images[9]), atol=1e-5)


def test_augment_with_certain_rot90_turns_by_a_quarter_half_or_three_quarters(images):
    image = images[9]
    turned = [np.rot90(image, k) for k in (1, 2, 3)]
    found = set()
    for seed in range(20):
        view = augment(image, Augmentation(**{**vars(OFF), "rot90_p": 1}), np.random.default_rng(seed))
        errors = [np.abs(view - expected).mean() for expected in turned]
        assert min(errors) < 0.01
        found.add(int(np.argmin(errors)))
    assert found == {0, 1, 2}


def test_augment_with_certain_erasing_fills_one_box_evenly(images):
    image = images[9]
    view = augment(image, Augmentation(**{**vars(OFF), "erase_p": 1}), np.random.default_rng(0))
    rows, columns = np.nonzero(np.abs(view - image) > 1e-5)
    box = view[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert np.ptp(box) < 1e-6 and 12 <= box.shape[0] < 43 and 12 <= box.shape[1] < 43


@pytest.mark.parametrize("shape", [(180, 60), (60, 180), (128, 128)])
@pytest.mark.parametrize("aspect", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.1])
def test_augment_with_one_geometry_gives_the_view_of_that_geometry(images, shape, aspect, zoom):
    """Training and serving cut the same windows; only the filter differs."""
    image = np.asarray(Image.fromarray(images[3]).resize(shape[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    strength = Augmentation(**{**vars(OFF), "aspect": (aspect, aspect), "zoom": (zoom, zoom)})
    view = augment(image, strength, np.random.default_rng(0))
    drawn = np.random.default_rng(0).uniform(size=4)  # aspect, zoom and the position, in this order
    [expected] = make_views(image, (View(aspect, zoom, (drawn[2], drawn[3])),))
    assert np.abs(view - expected).mean() < 0.015


def test_augment_of_another_size_gives_that_size(images):
    assert augment(images[0], Augmentation(), np.random.default_rng(0), size=64).shape == (64, 64)


@pytest.mark.parametrize("shape", [(16, 1), (1, 16), (1, 1)])
def test_augment_of_thin_image_stays_finite(shape):
    for seed in range(5):
        view = augment(np.ones(shape, np.float32), Augmentation(), np.random.default_rng(seed))
        assert view.shape == (128, 128) and np.isfinite(view).all()


def test_augment_does_not_change_its_input(images):
    before = images[0].copy()
    augment(images[0], Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(images[0], before)
