"""Synthetic radiographs: schematic drawings for the page's examples and the tests. No real bone.

An image is a function of two coordinates of one long bone: `across`, -1 to 1 from edge to edge, and
`along`, -1 to 1 from end to end. A fracture is a dark line, a shift or a bend in them.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fracture_lib.labels import LABEL2ID

__all__ = ["synthetic_radiograph"]

Floats = NDArray[np.floating]


def synthetic_radiograph(label: str, seed: int = 0, width: int = 240, height: int = 360) -> Image.Image:
    """Return a schematic radiograph of the class `label`: Pillow image, mode L. `seed` varies its look."""
    rng = np.random.default_rng((LABEL2ID[label], seed))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    tilt = rng.uniform(-0.12, 0.12)
    along = 1.15 * y + tilt * x + rng.uniform(-0.05, 0.05)
    axis = tilt * y + rng.uniform(-0.08, 0.08)  # x of the bone's middle
    line = along - rng.uniform(-0.2, 0.2)  # 0 where the fracture crosses the shaft
    limb = axis + 0.06 * np.sin(2 * y + rng.uniform(0, 6))  # soft tissue does not follow the fracture

    if label == "Greenstick":
        axis = axis + 0.25 * np.abs(line)
    if label == "Dislocation":
        axis = axis + 0.45 * (line > 0)
    if label == "Oblique":
        axis = axis + 0.08 * (line > x - axis)  # shifted along the slant

    half_width = 0.22 + 0.14 * (np.exp(-(((along - 1) / 0.3) ** 2)) + np.exp(-(((along + 1) / 0.3) ** 2)))
    across = (x - axis) / half_width
    # Rounded ends, and beyond each the end of the neighbouring bone.
    joint = 0.97 - np.abs(along) - 0.06 * across**2
    bone = _ramp(1 - np.abs(across), 0.12) * _ramp(np.abs(joint) - 0.025, 0.05)
    # The marrow is a hollow in the shaft and a mesh in the ends; the cortex is the denser rim.
    ends = _ramp(np.abs(along) - 0.45, 0.4)
    cortex = np.abs(across) ** 4 * (1 - 0.6 * ends)
    mesh = _grain(rng, width, height, 3) * (0.015 + 0.03 * ends)
    density = bone * (0.2 + 0.12 * ends + 0.34 * cortex + mesh)
    density = density * (1 - _fracture_gap(label, across, line, rng) * bone)
    if label == "Impacted":
        density = density + 0.25 * bone * np.exp(-((line / 0.07) ** 2))
    if label == "Avulsion":
        chip = ((x - axis - 0.42) / 0.07) ** 2 + ((along - 0.72) / 0.09) ** 2
        density = density + 0.4 * _ramp(1 - chip, 0.3)

    # Rays cross a round limb on chords, so soft tissue is brightest in the middle; muscle makes it uneven.
    chord = np.sqrt(np.clip(1 - ((x - limb) / rng.uniform(0.66, 0.8)) ** 2, 0, 1))
    tissue = chord * (rng.uniform(0.26, 0.38) + 0.05 * _grain(rng, width, height, max(height // 6, 8)))
    image = 0.05 + tissue + density
    image = image * (1 + rng.uniform(-0.15, 0.15) * x + rng.uniform(-0.2, 0.2) * y)  # uneven exposure
    edge_x, edge_y = rng.uniform(0.93, 1.02, 2)
    field = _ramp(edge_x - np.abs(x), 0.02) * _ramp(edge_y - np.abs(y), 0.015)
    image = image * (0.2 + 0.8 * field)  # some rays scatter into the collimator's shadow
    image = image + 0.008 * _grain(rng, width, height, 2) + rng.normal(0, 0.008, image.shape)
    return Image.fromarray((255 * np.clip(image, 0, 1)).astype(np.uint8))


def _grain(rng: np.random.Generator, width: int, height: int, size: int) -> Floats:
    """Return noise of unit variance, float32 [height, width], in blobs of about `size` pixels."""
    coarse = rng.normal(size=(height // size + 2, width // size + 2)).astype(np.float32)
    grain = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return grain / grain.std()


def _fracture_gap(label: str, across: Floats, line: Floats, rng: np.random.Generator) -> Floats:
    """Return the darkness 0..1 of the fracture itself."""
    if label == "Hairline":
        return 0.5 * _stroke(line - 0.1 * across, 0.008)
    if label == "Greenstick":
        return 0.9 * _stroke(line, 0.02) * (across < 0.1)
    if label == "Oblique":
        return 0.8 * _stroke(line - 0.2 * across, 0.026)
    if label == "Spiral":
        return 0.85 * _stroke(line - 0.3 * np.sin(1.5 * across), 0.02)
    if label == "Longitudinal":
        return 0.85 * _stroke(across - 0.15 * np.sin(6 * line), 0.08) * (np.abs(line) < 0.5)
    if label == "Comminuted":
        slopes = rng.uniform(-0.35, 0.35, 5)
        return 0.9 * np.max([_stroke(line - s * across - s / 2, 0.018) for s in slopes], axis=0)
    if label == "Pathological":
        hole = np.exp(-((across / 0.7) ** 2) - (line / 0.16) ** 2)
        return np.maximum(0.75 * hole, 0.8 * _stroke(line, 0.012))
    if label == "Dislocation":
        return 0.95 * _stroke(line, 0.03)
    return np.zeros_like(line)  # Avulsion, Impacted: the shaft itself is whole


def _ramp(distance: Floats, width: float) -> Floats:
    """Rise from 0 to 1 over `width`."""
    return np.clip(distance / width, 0, 1)


def _stroke(distance: Floats, width: float) -> Floats:
    """Return 1 on a line, falling off with the distance from it."""
    return np.exp(-((distance / width) ** 2))
