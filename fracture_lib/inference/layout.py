"""How the content of an image lies in its frame: numbers that tell a closed slice from a limb."""

import numpy as np
from numpy.typing import NDArray

from fracture_lib.models.functional import EPSILON, Floats

__all__ = ["describe_layout"]

DARK = 0.06  # darker pixels are background
GRID = 8  # cells per side of the coarse image


def describe_layout(pixels: NDArray[np.float32]) -> Floats:
    """Return 18 numbers for a model input [S, S] in 0..1.

    A limb runs out of the frame on some sides, while a slice of a body lies closed and often symmetric inside
    it. The numbers: the content's area, how much of it touches the four sides, its elongation and how
    scattered it is; the brightest values along the sides; symmetries; the brightness of sides and center.
    """
    content = pixels > DARK
    touches = np.sort([side.mean() for side in (content[2], content[-3], content[:, 2], content[:, -3])])
    rows, columns = np.nonzero(content)
    spread = np.cov([rows, columns]) if len(rows) > 2 else np.zeros((2, 2))
    minor, major = np.linalg.eigvalsh(spread + np.eye(2) / 12)  # a pixel's own spread
    scatter = 4 * np.pi * np.sqrt(minor * major) / (len(rows) + 1)  # 1 for a filled ellipse
    strip = len(pixels) // 16
    strips = (
        pixels[:strip].max(0),
        pixels[-strip:].max(0),
        pixels[:, :strip].max(1),
        pixels[:, -strip:].max(1),
    )
    cell = len(pixels) // GRID
    coarse = pixels.reshape(GRID, cell, GRID, cell).mean((1, 3))
    sides = np.sort([side.mean() for side in (coarse[0], coarse[-1], coarse[:, 0], coarse[:, -1])])
    return np.array(
        [
            content.mean(),
            touches.max(),
            touches.mean(),
            touches[1],
            np.log(major / minor),
            np.log(scatter),
            *np.sort([values.mean() for values in strips]),
            *(_correlation(coarse, mirrored) for mirrored in (coarse[:, ::-1], coarse[::-1], coarse.T)),
            *sides,
            coarse[2:6, 2:6].mean(),
        ],
        np.float32,
    )


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + EPSILON))
