"""Random views of a film for training: one affine warp, one tone curve, noise and an erased box.

Works on the arrays that `preprocess` makes and knows no framework, so all three models train on
the same views. Pillow does the warp: at 128x128 a view takes well under a millisecond.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["Augmentation", "augment"]


@dataclass(frozen=True)
class Augmentation:
    """Strengths. Ranges named by one number are symmetric about "no change"."""

    rotation: float = 15.0  # degrees
    quarter_turn: float = 0.3  # probability
    mirror: float = 0.5  # probability
    zoom: float = 0.18  # log scale
    aspect: float = 0.10  # log ratio
    shift: float = 0.10  # fraction of the side
    gamma: float = 0.25  # log exponent
    contrast: float = 0.15
    brightness: float = 0.08
    inversion: float = 0.05  # probability
    noise: float = 0.02  # largest standard deviation
    erase: float = 0.5  # probability of one erased box


def augment(image, strength, rng):
    """Return one random view of `image` (float32 [H, W] in 0..1), same shape and range.

    `strength` is an Augmentation; all randomness comes from `rng`, a numpy Generator.
    """
    height, width = image.shape
    matrix = _output_to_input(strength, rng, width, height)
    warped = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    view = np.array(warped, dtype=np.float32)  # a copy: Pillow's buffer is read-only

    view **= np.exp(rng.uniform(-strength.gamma, strength.gamma))
    contrast = 1 + rng.uniform(-strength.contrast, strength.contrast)
    brightness = rng.uniform(-strength.brightness, strength.brightness)
    view = (view - 0.5) * contrast + 0.5 + brightness
    if rng.random() < strength.inversion:
        view = 1 - view
    view += rng.normal(0, rng.uniform(0, strength.noise) + 1e-8, view.shape).astype(np.float32)
    if rng.random() < strength.erase:
        box_h, box_w = rng.integers(height // 10, height // 3, 2)
        top, left = rng.integers(0, height - box_h), rng.integers(0, width - box_w)
        view[top : top + box_h, left : left + box_w] = rng.random()
    return np.clip(view, 0, 1, out=view)


def _output_to_input(strength, rng, width, height):
    """The six coefficients of Pillow's AFFINE: where in the input each output pixel is read."""
    angle = np.radians(rng.uniform(-strength.rotation, strength.rotation))
    if rng.random() < strength.quarter_turn:
        angle += np.pi / 2 * rng.integers(1, 4)
    zoom = np.exp(rng.uniform(-strength.zoom, strength.zoom))
    aspect = np.exp(rng.uniform(-strength.aspect, strength.aspect) / 2)
    mirror = -1 if rng.random() < strength.mirror else 1
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotate @ np.diag([mirror / (zoom * aspect), aspect / zoom])
    centre = np.array([width, height]) / 2
    shift = rng.uniform(-strength.shift, strength.shift, 2) * (width, height)
    offset = centre + shift - linear @ centre
    return (*linear[0], offset[0], *linear[1], offset[1])
