"""Changes of a film that should not change its fracture: what a model is tested on besides the film.

A table of functions from a film, grey float32 [H, W] in 0..1 as `read_film` gives, to the changed
film, same dtype and range. The model gets it by the usual way, `preprocess`.
"""

import io

import numpy as np
from PIL import Image

__all__ = ["CHANGES", "mask_markers"]

MARKER_TONE = 0.9  # a burned-in letter is nearly white,
MARKER_SIDE = 0.15  # spans no more than this share of a side,
MARKER_BORDER = 0.25  # lies in this outer part of it
MARKER_GROUND = 0.3  # and on a ground darker than this: bone lies in grey soft tissue


def _turned(degrees):
    def change(film):
        turned = Image.fromarray(film).rotate(degrees, Image.Resampling.BILINEAR, expand=True)
        return np.asarray(turned)

    return change


def _jpeg(film):
    file = io.BytesIO()
    Image.fromarray(np.uint8(255 * film + 0.5)).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file), np.float32) / 255


def _brighter(factor):
    return lambda film: np.clip(film * np.float32(factor), 0, 1)


def _contrast(factor):
    return lambda film: np.clip((film - 0.5) * np.float32(factor) + 0.5, 0, 1)


def mask_markers(film):
    """Paint over what looks like a burned-in letter or arrow, in the tone of what surrounds it."""
    from scipy.ndimage import find_objects, label

    blobs, _ = label(film >= MARKER_TONE, structure=np.ones((3, 3)))
    height, width = film.shape
    masked = film.copy()
    for rows, columns in find_objects(blobs):
        y, x = (rows.start + rows.stop) / 2 / height, (columns.start + columns.stop) / 2 / width
        span = max((rows.stop - rows.start) / height, (columns.stop - columns.start) / width)
        if span > MARKER_SIDE or all(MARKER_BORDER < at < 1 - MARKER_BORDER for at in (y, x)):
            continue
        box = tuple(slice(max(0, s.start - 3), s.stop + 3) for s in (rows, columns))
        around = film[box][film[box] < MARKER_TONE]
        if around.size and (ground := np.median(around)) < MARKER_GROUND:
            masked[box][film[box] > MARKER_GROUND] = ground
    return masked


CHANGES = {
    "mirrored": lambda film: film[:, ::-1],
    "quarter turn left": np.rot90,
    "quarter turn right": lambda film: np.rot90(film, -1),
    "turned by 15 degrees": _turned(15),
    "turned by -15 degrees": _turned(-15),
    "JPEG, quality 40": _jpeg,
    "brightness + 30 %": _brighter(1.3),
    "brightness - 30 %": _brighter(0.7),
    "contrast + 30 %": _contrast(1.3),
    "contrast - 30 %": _contrast(0.7),
    "burned-in markers masked": mask_markers,
}
