"""Schematic radiographs, drawn: the page's examples and the tests' data. Nobody's bone.

A film is a function of two coordinates of one long bone: `across`, -1 to 1 from edge to edge, and
`along`, -1 to 1 from end to end. A fracture is a dark line, a shift or a bend in them.
"""

import numpy as np
from PIL import Image

from fracture_lib.labels import LABEL2ID

__all__ = ["draw_film"]


def draw_film(label, seed=0, width=240, height=360):
    """Return a schematic film of the class `label`: Pillow image, mode L. Seeds vary its looks."""
    rng = np.random.default_rng((LABEL2ID[label], seed))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    tilt = rng.uniform(-0.12, 0.12)
    along = 1.15 * y + tilt * x + rng.uniform(-0.05, 0.05)
    centre = tilt * y + rng.uniform(-0.08, 0.08)
    line = along - rng.uniform(-0.2, 0.2)  # 0 where the break crosses the shaft
    flesh = 0.2 * np.exp(-((x - centre) ** 2) / 0.35)

    if label == "Greenstick":
        centre = centre + 0.25 * np.abs(line)
    if label == "Dislocation":
        centre = centre + 0.45 * (line > 0)
    if label == "Oblique":
        centre = centre + 0.08 * (line > x - centre)  # shifted along the slant

    half_width = 0.2 + 0.12 * (np.exp(-(((along - 1) / 0.3) ** 2)) + np.exp(-(((along + 1) / 0.3) ** 2)))
    across = (x - centre) / half_width
    bone = _smooth(1 - np.abs(across), 0.06) * _smooth(1 - np.abs(along), 0.03)
    film = flesh + bone * (0.4 + 0.32 * np.abs(across) ** 3)  # the cortex is the denser rim
    film = film * (1 - _gap(label, across, line, rng) * bone)
    if label == "Impacted":
        film = film + 0.25 * bone * np.exp(-((line / 0.07) ** 2))
    if label == "Avulsion":
        chip = ((x - centre - 0.42) / 0.07) ** 2 + ((along - 0.72) / 0.09) ** 2
        film = film + 0.5 * _smooth(1 - chip, 0.3)
    film = film + rng.normal(0, 0.012, film.shape)
    return Image.fromarray(np.uint8(255 * np.clip(film, 0, 1)))


def _gap(label, across, line, rng):
    """Darkness 0..1 of the break itself."""
    if label == "Hairline":
        return 0.5 * _stroke(line - 0.1 * across, 0.008)
    if label == "Greenstick":
        return 0.9 * _stroke(line, 0.02) * (across < 0.1)
    if label == "Oblique":
        return 0.9 * _stroke(line - 0.2 * across, 0.03)
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


def _smooth(distance, width):
    return np.clip(distance / width, 0, 1)


def _stroke(distance, width):
    return np.exp(-((distance / width) ** 2))
