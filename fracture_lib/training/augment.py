"""Random augmentation: one affine warp, one tone curve, noise and an erased box.

It works on the arrays of `io.image.preprocess` and imports no framework, so all models train on the same
views. Pillow does the warp: a 128x128 view takes well under a millisecond.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Augmentation", "augment"]


@dataclass(frozen=True)
class Augmentation:
    """Strengths; a range given by one number is symmetric about "no change", and `_p` is a probability."""

    rotation: float = 15.0  # degrees
    rot90_p: float = 0.3  # 90, 180 or 270 degrees on top
    hflip_p: float = 0.5
    zoom: float = 0.18  # log scale
    aspect: float = 0.10  # log ratio
    shift: float = 0.10  # fraction of the side
    gamma: float = 0.25  # log exponent
    contrast: float = 0.15
    brightness: float = 0.08
    invert_p: float = 0.05
    noise: float = 0.02  # largest standard deviation
    erase_p: float = 0.5  # one box


def augment(
    image: NDArray[np.float32], strength: Augmentation, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return one random view of `image`, float32 [H, W] in 0..1, with the same shape and range.

    The same state of `rng` gives the same view.
    """
    height, width = image.shape
    coefficients = _affine_coefficients(strength, rng, width, height)
    warped = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    view = np.array(warped, dtype=np.float32)  # a copy: Pillow's buffer is read-only

    view **= np.exp(rng.uniform(-strength.gamma, strength.gamma))
    contrast = 1 + rng.uniform(-strength.contrast, strength.contrast)
    brightness = rng.uniform(-strength.brightness, strength.brightness)
    view = (view - 0.5) * contrast + 0.5 + brightness
    if rng.random() < strength.invert_p:
        view = 1 - view
    view += rng.normal(0, rng.uniform(0, strength.noise) + 1e-8, view.shape).astype(np.float32)
    if rng.random() < strength.erase_p:
        box_height, box_width = rng.integers(height // 10, height // 3, 2)
        top, left = rng.integers(0, height - box_height), rng.integers(0, width - box_width)
        view[top : top + box_height, left : left + box_width] = rng.random()
    return np.clip(view, 0, 1, out=view)


def _affine_coefficients(
    strength: Augmentation, rng: np.random.Generator, width: int, height: int
) -> tuple[float, ...]:
    """Return Pillow's six coefficients (a, b, c, d, e, f): output (x, y) reads input (ax+by+c, dx+ey+f)."""
    angle = np.radians(rng.uniform(-strength.rotation, strength.rotation))
    if rng.random() < strength.rot90_p:
        angle += np.pi / 2 * rng.integers(1, 4)
    zoom = np.exp(rng.uniform(-strength.zoom, strength.zoom))
    aspect = np.exp(rng.uniform(-strength.aspect, strength.aspect) / 2)
    flip = -1 if rng.random() < strength.hflip_p else 1
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotate @ np.diag([flip / (zoom * aspect), aspect / zoom])
    center = np.array([width, height]) / 2
    shift = rng.uniform(-strength.shift, strength.shift, 2) * (width, height)
    offset = center + shift - linear @ center  # keeps the center in place, but for the shift
    return (*linear[0], offset[0], *linear[1], offset[1])
