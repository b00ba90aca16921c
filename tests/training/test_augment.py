import numpy as np
import pytest

from fracture_lib.training.augment import Augmentation, augment

OFF = Augmentation(**dict.fromkeys(vars(Augmentation()), 0))


def test_augment_with_seeded_generators_differs_by_seed_and_stays_in_range(pixels):
    image = pixels[9, 0]
    views = [augment(image, Augmentation(), np.random.default_rng(seed)) for seed in range(30)]
    for view in views:
        assert view.shape == image.shape and view.dtype == np.float32
        assert view.min() >= 0 and view.max() <= 1
    assert len({view.tobytes() for view in views}) == 30
    np.testing.assert_array_equal(augment(image, Augmentation(), np.random.default_rng(3)), views[3])


def test_augment_with_zero_strength_returns_the_image(pixels):
    for image in pixels[:, 0]:
        np.testing.assert_allclose(augment(image, OFF, np.random.default_rng(0)), image, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("hflip_p", lambda image: image[:, ::-1]),
        ("invert_p", lambda image: 1 - image),
    ],
)
def test_augment_with_certain_flip_or_inversion_applies_only_that(pixels, field, expected):
    strength = Augmentation(**{**vars(OFF), field: 1})
    view = augment(pixels[9, 0], strength, np.random.default_rng(0))
    np.testing.assert_allclose(view, expected(pixels[9, 0]), atol=1e-5)


def test_augment_with_certain_rot90_turns_by_a_quarter_half_or_three_quarters(pixels):
    image = pixels[9, 0]
    turned = [np.rot90(image, k) for k in (1, 2, 3)]
    found = set()
    for seed in range(20):
        view = augment(image, Augmentation(**{**vars(OFF), "rot90_p": 1}), np.random.default_rng(seed))
        errors = [np.abs(view - expected).mean() for expected in turned]
        assert min(errors) < 0.01
        found.add(int(np.argmin(errors)))
    assert found == {0, 1, 2}


def test_augment_with_certain_erasing_fills_one_box_evenly(pixels):
    image = pixels[9, 0]
    view = augment(image, Augmentation(**{**vars(OFF), "erase_p": 1}), np.random.default_rng(0))
    rows, columns = np.nonzero(np.abs(view - image) > 1e-5)
    box = view[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert np.ptp(box) < 1e-6 and 12 <= box.shape[0] < 43 and 12 <= box.shape[1] < 43


def test_augment_does_not_change_its_input(pixels):
    before = pixels[0, 0].copy()
    augment(pixels[0, 0], Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(pixels[0, 0], before)
