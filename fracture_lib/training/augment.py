"""Random augmentation: a random view in one affine warp, one tone curve, noise and an erased box.

It imports no framework, so all models train on the same views. Pillow does the warp: a view takes well under
a millisecond.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.io.views import INPUT_SIZE, View, window

__all__ = ["Augmentation", "augment", "change_tones", "random_affine", "warp"]


@dataclass(frozen=True)
class Augmentation:
    """Strengths; a range given by one number is symmetric about "no change", and `_p` is a probability."""

    aspect: tuple[float, float] = (0.0, 1.0)  # exponent of `io.views.View`
    zoom: tuple[float, float] = (0.62, 1.12)  # side of the window; uniform in its logarithm
    shift: float = 0.05  # fraction of the window's side
    rotation: float = 15.0  # degrees
    rot90_p: float = 0.15  # 90, 180 or 270 degrees on top
    hflip_p: float = 0.5
    gamma: float = 0.25  # log exponent
    contrast: float = 0.15
    brightness: float = 0.08
    invert_p: float = 0.05
    noise: float = 0.02  # largest standard deviation
    erase_p: float = 0.5  # one box


def augment(
    image: NDArray[np.float32], strength: Augmentation, rng: np.random.Generator, size: int = INPUT_SIZE
) -> NDArray[np.float32]:
    """Return one random view, float32 [size, size] in 0..1, of an image float32 [H, W] in 0..1.

    The same state of `rng` gives the same view.
    """
    return change_tones(warp(image, random_affine(image.shape, strength, rng, size), size), strength, rng)


def warp(
    image: NDArray[np.float32], coefficients: tuple[float, ...], size: int = INPUT_SIZE
) -> NDArray[np.float32]:
    """Return the view float32 [size, size] of an image that `random_affine` describes."""
    warped = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.array(warped, dtype=np.float32)  # a copy: Pillow's buffer is read-only


def change_tones(
    view: NDArray[np.float32], strength: Augmentation, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change a view in place: one tone curve, noise and an erased box; return it."""
    size = len(view)
    view **= np.float32(np.exp(rng.uniform(-strength.gamma, strength.gamma)))
    contrast = 1 + rng.uniform(-strength.contrast, strength.contrast)
    brightness = rng.uniform(-strength.brightness, strength.brightness)
    view *= np.float32(contrast)
    view += np.float32(0.5 * (1 - contrast) + brightness)
    if rng.random() < strength.invert_p:
        np.subtract(1, view, out=view)
    view += np.float32(rng.uniform(0, strength.noise)) * rng.standard_normal(view.shape, np.float32)
    if rng.random() < strength.erase_p:
        box_height, box_width = rng.integers(size // 10, size // 3, 2)
        top, left = rng.integers(0, size - box_height), rng.integers(0, size - box_width)
        view[top : top + box_height, left : left + box_width] = rng.random()
    return np.clip(view, 0, 1, out=view)


def random_affine(
    shape: tuple[int, int], strength: Augmentation, rng: np.random.Generator, size: int
) -> tuple[float, ...]:
    """Return Pillow's six coefficients (a, b, c, d, e, f): output (x, y) reads input (ax+by+c, dx+ey+f)."""
    low, high = np.log(strength.zoom)
    view = View(
        aspect=rng.uniform(*strength.aspect),
        zoom=float(np.exp(rng.uniform(low, high))),
        position=(rng.random(), rng.random()),
    )
    top, left, bottom, right = window(shape, view)
    extent = np.array([right - left, bottom - top])
    angle = np.radians(rng.uniform(-strength.rotation, strength.rotation))
    if rng.random() < strength.rot90_p:
        angle += np.pi / 2 * rng.integers(1, 4)
    flip = -1 if rng.random() < strength.hflip_p else 1
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = np.diag(extent / size) @ rotate @ np.diag([flip, 1])
    center = np.array([left, top]) + extent * (0.5 + rng.uniform(-strength.shift, strength.shift, 2))
    offset = center - linear @ np.array([size / 2, size / 2])
    return (*linear[0], offset[0], *linear[1], offset[1])
