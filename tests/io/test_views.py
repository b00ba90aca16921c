"""Views: where each pixel of an image lies in a model input, and back."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fracture_lib.io.views import (
    FAST_VIEWS,
    LETTERBOX,
    VIEWS,
    View,
    make_views,
    project_maps,
    shrink,
    window,
)

SHAPES = [(240, 120), (120, 240), (128, 128), (300, 90), (17, 200), (700, 500)]
CELLS = 8  # per side of a class activation map of one view
OTHER_VIEWS = (
    LETTERBOX,
    View(aspect=1.0, mirror=True),
    View(aspect=0.3, zoom=1.4),
    View(aspect=1.0, zoom=0.5, position=(0.2, 0.9)),
)
ALL_VIEWS = (*VIEWS, *OTHER_VIEWS)


def textured(shape, seed=0):
    """A smooth random image float32 [H, W] in 0..1 that uses all of its range."""
    noise = np.random.default_rng(seed).random((9, 9), np.float32)
    smooth = np.asarray(Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BICUBIC))
    return (smooth - smooth.min()) / np.ptp(smooth)


def test_fast_view_is_the_first_of_the_views():
    assert VIEWS[:1] == FAST_VIEWS and len(set(VIEWS)) == len(VIEWS)


# window


@pytest.mark.parametrize(
    ("aspect", "width"), [(0.0, 200), (0.5, 200 * 0.25**0.5), (1.0, 50)], ids=["letterbox", "root", "stretch"]
)
def test_window_with_aspect_exponent_keeps_reduces_or_removes_the_aspect_ratio(aspect, width):
    top, left, bottom, right = window((200, 50), View(aspect=aspect))
    assert (top, bottom) == (0, 200)
    assert right - left == pytest.approx(width) and left + right == pytest.approx(50)
    turned = window((50, 200), View(aspect=aspect))
    assert turned == (left, top, right, bottom), "the same along the other side"


@pytest.mark.parametrize(("position", "span"), [(0.0, (0, 140)), (0.5, (30, 170)), (1.0, (60, 200))])
def test_window_of_a_crop_lies_at_either_end_or_between(position, span):
    view = View(aspect=0.0, zoom=0.7, position=(position, 0.1))
    top, left, bottom, right = window((200, 50), view)
    assert (top, bottom) == pytest.approx(span)
    assert (left, right) == pytest.approx((-45, 95)), "wider than the image, so in its middle"
    assert window((50, 200), view)[1::2] == pytest.approx(span), "along the longer side"


def test_window_with_zoom_above_one_exceeds_the_image_on_all_sides():
    assert window((100, 100), View(zoom=1.5, position=(0.9, 0.1))) == (-25, -25, 125, 125)


# shrink


@pytest.mark.parametrize("size", [128, 256])
def test_shrink_limits_the_longer_side_and_keeps_the_aspect_ratio(size):
    small = shrink(textured((900, 300)), size)
    assert small.shape == (round(1.54 * size), round(1.54 * size / 3)) and small.dtype == np.float32
    assert small.min() >= 0 and small.max() <= 1


def test_shrink_leaves_a_small_image_as_it_is():
    image = textured((150, 40))
    assert shrink(image) is image


# make_views


@pytest.mark.parametrize("shape", [*SHAPES, (16, 1), (1, 16), (1, 1), (60_000, 16), (16, 60_000)])
def test_make_views_gives_finite_squares_in_range(shape):
    image = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    views = make_views(image, ALL_VIEWS)
    assert views.shape == (len(ALL_VIEWS), 128, 128) and views.dtype == np.float32
    assert np.isfinite(views).all() and views.min() >= 0 and views.max() <= 1


@pytest.mark.parametrize("shape", [*SHAPES, (1, 16), (16, 60_000)])
def test_make_views_of_white_image_shows_as_much_of_it_as_the_window(shape):
    small = shrink(np.ones(shape, np.float32)).shape
    for view, pixels in zip(ALL_VIEWS, make_views(np.ones(shape, np.float32), ALL_VIEWS), strict=True):
        top, left, bottom, right = window(small, view)
        height = (min(bottom, small[0]) - max(top, 0)) / (bottom - top)
        width = (min(right, small[1]) - max(left, 0)) / (right - left)
        assert set(np.unique(pixels)) <= {0.0, 1.0}, "nothing between the image and its padding"
        rows, columns = pixels.any(axis=1).sum(), pixels.any(axis=0).sum()
        assert (rows, columns) == pytest.approx((128 * height, 128 * width), abs=1)
        assert pixels.sum() == rows * columns


def test_make_views_of_another_size_shows_the_same():
    image = textured((400, 250))
    large, small = make_views(image, VIEWS, 256), make_views(image)
    assert large.shape == (len(VIEWS), 256, 256)
    assert np.abs(large.reshape(-1, 128, 2, 128, 2).mean((2, 4)) - small).mean() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_make_views_of_mirrored_image_is_mirrored(shape):
    """A view at one end of the longer side becomes the one at the other end."""
    image = textured(shape)
    for view in ALL_VIEWS:
        along, across = view.position
        opposite = replace(view, position=(1 - along, 1 - across))
        [turned] = make_views(np.ascontiguousarray(image[::-1, ::-1]), (opposite,))
        [expected] = make_views(image, (view,))
        # Its edge may be rounded to the next pixel.
        assert np.abs(turned[::-1, ::-1] - expected).mean() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_make_views_of_transposed_image_is_transposed(shape):
    image = textured(shape)
    if shape[0] == shape[1]:
        image = image[:, :-1]  # of two equal sides, the first counts as the longer one
    views = [replace(view, mirror=False) for view in ALL_VIEWS]  # mirrored, up and down would change places
    turned = make_views(np.ascontiguousarray(image.T), views).swapaxes(1, 2)
    np.testing.assert_allclose(turned, make_views(image, views), atol=1e-5)


def test_make_views_mirrors_left_and_right():
    image = textured((240, 100))
    for view in ALL_VIEWS:
        plain, mirrored = make_views(image, [replace(view, mirror=mirror) for mirror in (False, True)])
        np.testing.assert_array_equal(mirrored, plain[:, ::-1])


# Registration

PLACES = [(0.2, 0.3), (0.5, 0.5), (0.85, 0.6), (0.45, 0.8)]  # of the image, from its top and left


def place_in_view(place, shape, view):
    """Return where a place of an image, in 0..1, lies in a view; None near its edge."""
    top, left, bottom, right = window(shape, view)
    y = (place[0] * shape[0] - top) / (bottom - top)
    x = (place[1] * shape[1] - left) / (right - left)
    x = 1 - x if view.mirror else x
    return (y, x) if 0.1 < y < 0.9 and 0.1 < x < 0.9 else None


@pytest.mark.parametrize("shape", [(240, 120), (120, 240), (150, 150), (600, 500), (350, 90)])
@pytest.mark.parametrize("place", PLACES)
def test_a_bright_dot_lies_where_the_window_says(shape, place):
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    radius = max(shape) / 40
    distance = np.hypot(y - place[0] * shape[0], x - place[1] * shape[1])
    views = make_views(np.exp(-((distance / radius) ** 2)).astype(np.float32), ALL_VIEWS)
    n_seen = 0
    for view, pixels in zip(ALL_VIEWS, views, strict=True):
        if expected := place_in_view(place, shape, view):
            n_seen += 1
            centers = (np.arange(128) + 0.5) / 128
            found = [pixels.sum(axis=axis) @ centers / pixels.sum() for axis in (1, 0)]
            assert found == pytest.approx(expected, abs=1 / 128)
    assert n_seen >= 3


@pytest.mark.parametrize("shape", [(240, 120), (120, 240), (150, 150), (350, 90)])
@pytest.mark.parametrize("place", PLACES)
def test_project_maps_puts_a_hot_cell_of_each_view_back_at_its_place(shape, place):
    seen = [(view, inside) for view in ALL_VIEWS if (inside := place_in_view(place, shape, view))]
    assert len(seen) >= 3
    for view, inside in seen:
        row, column = (int(CELLS * p) for p in inside)
        maps = np.zeros((1, 2, CELLS, CELLS), np.float32)
        maps[0, 1, row, column] = 1
        projected = project_maps(maps, shape, (view,))
        assert projected.shape == (2, 32, 32) and projected.dtype == np.float32
        assert (projected[0] == 0).all() and projected.min() >= 0
        y, x = np.divmod(projected[1].argmax(), 32)
        top, left, bottom, right = window(shape, view)
        cell = (bottom - top) / shape[0] / CELLS, (right - left) / shape[1] / CELLS  # in the image
        assert abs((y + 0.5) / 32 - place[0]) <= cell[0] / 2 + 1 / 32
        assert abs((x + 0.5) / 32 - place[1]) <= cell[1] / 2 + 1 / 32


@pytest.mark.parametrize("shape", [(240, 120), (120, 240), (150, 150)])
def test_project_maps_keeps_the_sum_of_what_lies_on_the_image(shape):
    """A view's map is evidence, which is spread over the image and not multiplied."""
    maps = np.random.default_rng(0).random((1, 3, CELLS, CELLS), np.float32)
    for view in (View(aspect=1.0), View(aspect=1.0, zoom=0.5), View(aspect=1.0, zoom=0.7, position=(1, 0))):
        projected = project_maps(maps, shape, (view,))
        np.testing.assert_allclose(projected.sum((1, 2)), maps[0].sum((1, 2)), rtol=0.06)
    half = project_maps(maps, shape, (LETTERBOX,)).sum()
    on_image = min(shape) / max(shape)
    assert half == pytest.approx(on_image * maps.sum(), rel=0.1), "what lies on padding is left out"


def test_project_maps_of_several_views_is_their_sum():
    maps = np.random.default_rng(1).normal(size=(len(VIEWS), 10, CELLS, CELLS)).astype(np.float32)
    single = [project_maps(maps[i : i + 1], (240, 120), (view,)) for i, view in enumerate(VIEWS)]
    np.testing.assert_allclose(project_maps(maps, (240, 120), VIEWS), np.sum(single, axis=0), atol=1e-5)


def test_project_maps_outside_a_crop_is_zero():
    """The upper crop says nothing about the lower end of the image."""
    ones = np.ones((1, 1, CELLS, CELLS), np.float32)
    [projected] = project_maps(ones, (200, 100), (View(aspect=0.0, zoom=0.5, position=(0.0, 0.5)),))
    assert (projected[16:] == 0).all() and (projected[:16] > 0).all()


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (17, 60_000)])
def test_project_maps_over_a_thin_image_stays_finite(shape):
    maps = np.ones((len(ALL_VIEWS), 1, CELLS, CELLS), np.float32)
    projected = project_maps(maps, shape, ALL_VIEWS)
    assert np.isfinite(projected).all() and projected.sum() > 0
