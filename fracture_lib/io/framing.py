"""How an X-ray is framed: flat borders, which are cut off, and framing that deserves a warning.

The thresholds were chosen on the radiographs of the training data and on generated examples; EXPERIMENTS.md
has the rates.
"""

from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracture_lib.io.limits import MIN_SIDE

__all__ = ["crop_borders", "framing_warnings"]

Floats: TypeAlias = NDArray[np.float32]
Box: TypeAlias = tuple[slice, slice]  # of rows and columns

# Largest difference from a border's tone, which allows for noise and JPEG: 1.5 to 13 of 255 gray levels. A
# dark border must be more even than a bright one, as an X-ray's own background is dark, too. A background is
# seldom black and even, so a black border is tried with several tolerances.
BLACK, DARK = 0.012, 0.15
BLACK_TOLERANCES, DARK_TOLERANCES, TOLERANCES = (0.006, 0.012, 0.025), (0.006,), (0.05,)
MAX_OUTLIERS = 0.01  # share of a flat line's pixels that may have another tone
EDGE_PIXELS = 16  # within which a border ends: JPEG's blocks have 8, and scaling blurs
STEP_PIXELS = 3  # within which half of the step lies; a background fades more slowly
MIN_EDGE_SHARE = 0.5  # of the side, along which the border must end within EDGE_PIXELS ...
MIN_STRAIGHT_SHARE = 0.75  # ... or of what lies beyond, along which it must end within half of them
MAX_BLURRED = 0.05  # share of a blurred line's pixels that may be nearer to the image than to the border
MIN_BORDER = 0.05  # share of the height or width; the models were trained with narrow borders
MAX_NESTED = 6  # flat layers cut off one after another
LINE_SAMPLES = 1024  # pixels of a line that are compared, at most
FLAT_SAMPLES = 32  # pixels of a line that tell at once that it is not flat
CHUNK_LINES = 64  # lines compared at once

WARNING_SIDE = 512  # of the reduced copy that the warnings are derived from
MIN_WARNING_SIDE = 64
GUTTER_PLACE = 0.15, 0.85  # along a side: two views have similar sizes
GUTTER_EDGE = 4  # pixels within which the image begins beside a gutter
MAX_GUTTER_SHADING = 0.012  # across it; that of a bone's marrow is stronger
MIN_GUTTER_EDGE_SHARE = 0.3
MIN_WINDOW_LINES = 2  # straight lines across most of the image, each beside an even tone
WINDOW_LINE_LENGTH = 0.7
WINDOW_LINE_SAMPLING = 4  # every fourth pixel tells at once that no line is long
WINDOW_LINE_STEP, WINDOW_LINE_EVENNESS = 0.015, 0.01
RIM_INSETS, RIM_WIDTH = (0.0, 0.05), 0.06
BRIGHT, MIN_BRIGHT_RIM = 0.55, 0.7


def crop_borders(pixels: Floats) -> Box:
    """Return the slices of rows and columns inside flat borders; the whole image if there are none.

    `pixels` float32 [H, W] in 0 to 1. A border is a strip of one tone, up to a little noise, along a whole
    side, which ends at once along most of what it borders: a background that fades is not a border.
    Borders of several tones may be nested. Borders that together take at most MIN_BORDER stay, as the models
    were trained with them. At least MIN_SIDE pixels are left per side.
    """
    rows, columns = whole = slice(0, pixels.shape[0]), slice(0, pixels.shape[1])
    for _ in range(MAX_NESTED):
        before = rows, columns
        for at_end in (False, True):
            rows = _cut(pixels[rows, columns], rows, at_end)
            columns = _cut(pixels[rows, columns].T, columns, at_end)
        if (rows, columns) == before:
            break
    box = rows, columns
    shares = [1 - (part.stop - part.start) / side for part, side in zip(box, pixels.shape, strict=True)]
    is_blank = np.ptp(pixels[box]) <= max(TOLERANCES)
    return whole if max(shares) <= MIN_BORDER or is_blank else box


def _cut(lines: Floats, side: slice, at_end: bool) -> slice:
    """Return `side`, the place of `lines` [N, L], without the border at its start or end."""
    lines = lines[:: -1 if at_end else 1, :: max(1, lines.shape[1] // LINE_SAMPLES)]
    n = _border_width(lines)
    if len(lines) - n < MIN_SIDE:
        return side
    return slice(side.start, side.stop - n) if at_end else slice(side.start + n, side.stop)


def _border_width(lines: Floats) -> int:
    """Return how many of the first lines [N, L] are a flat border of one tone."""
    tone = float(np.median(lines[0]))
    tolerances = BLACK_TOLERANCES if tone < BLACK else DARK_TOLERANCES if tone < DARK else TOLERANCES
    return max(_border_width_within(lines, tone, tolerance) for tolerance in tolerances)


def _border_width_within(lines: Floats, tone: float, tolerance: float) -> int:
    """Return how many of the first lines [N, L] are a border of the tone."""
    n_flat = _count_flat(lines, tone, tolerance)
    if not 0 < n_flat <= len(lines) - EDGE_PIXELS:
        return 0
    edge = np.abs(lines[n_flat - 1 : n_flat + EDGE_PIXELS] - tone)
    difference = edge.mean(axis=1)
    steps = difference[STEP_PIXELS:] - difference[:-STEP_PIXELS]
    edge = edge[1:]
    if steps.max() < (difference[-1] - difference[0]) / 2 or not _is_straight(
        edge > tolerance, lines[n_flat:], tone, tolerance
    ):
        return 0
    difference = difference[1:]
    # Cut the blurred lines off, too; bright ones would set the range of the image.
    is_blurred = (edge > difference[-1] / 2).mean(axis=1) < MAX_BLURRED
    n_blurred = int(np.argmin(is_blurred))
    if difference[n_blurred] < 0.75 * difference[min(n_blurred + 2, EDGE_PIXELS - 1)]:
        n_blurred += 1
    return n_flat + n_blurred


def _count_flat(lines: Floats, tone: float, tolerance: float) -> int:
    """Return how many of the first lines [N, L] have the tone."""
    start, stop = 0, 1  # one line shows that an image has no border, as most have none
    while start < len(lines):
        is_flat = _is_flat(lines[start:stop], tone, tolerance)
        if not is_flat.all():
            return start + int(np.argmin(is_flat))
        start, stop = stop, stop + CHUNK_LINES
    return len(lines)


def _is_flat(lines: Floats, tone: float | Floats, tolerance: float) -> NDArray[np.bool_]:
    """Return bool [N]: whether each of the lines [N, L] has the tone, but for a few pixels."""
    return (np.abs(lines - tone) > tolerance).mean(axis=1) <= MAX_OUTLIERS


def _may_be_flat(lines: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Return bool [N]: false for lines [N, L] that no tone makes flat, as a sample of their pixels shows."""
    sample = np.sort(lines[:, :: max(1, lines.shape[1] // FLAT_SAMPLES)], axis=1)
    n_outliers = min(int(MAX_OUTLIERS * lines.shape[1]) + 1, sample.shape[1] - 1)
    spread = sample[:, sample.shape[1] - 1 - n_outliers :] - sample[:, : n_outliers + 1]
    return spread.min(axis=1) <= 2.001 * tolerance  # the tone may lie in the middle; float32 rounds


def _is_straight(off_tone: NDArray[np.bool_], rest: Floats, tone: float, tolerance: float) -> bool:
    """Return whether a border ends along a straight line.

    `off_tone` bool [E, L] marks other tones in the first of the lines `rest` [N, L] after the border.
    """
    if off_tone[-1].mean() >= MIN_EDGE_SHARE:
        return True
    sample = rest[:: max(1, len(rest) // LINE_SAMPLES)]
    beyond = ~_is_flat(sample.T, tone, tolerance)
    return bool(beyond.any()) and off_tone[EDGE_PIXELS // 2 - 1][beyond].mean() >= MIN_STRAIGHT_SHARE


def framing_warnings(pixels: Floats, box: Box) -> tuple[str, ...]:
    """Return a sentence for each kind of unusual framing.

    `pixels` float32 [H, W] in 0 to 1 is the image with its borders, `box` what `crop_borders` returned.
    """
    warnings = []
    content = pixels[box]
    if content.shape != pixels.shape:
        warnings.append("Flat borders were cut off.")
    content = _reduce(content)
    if min(content.shape) < MIN_WARNING_SIDE:
        return tuple(warnings)
    if _has_gutter(content) or _has_gutter(content.T):
        warnings.append("This looks like several views in one image. Crop one of them.")
    elif _has_window_lines(content):
        warnings.append("This looks like a screenshot. Crop the X-ray or export it from the viewer.")
    elif _has_bright_rim(content):
        warnings.append("This looks like a photograph of an X-ray or a negative. Use the original image.")
    return tuple(warnings)


def _reduce(pixels: Floats) -> Floats:
    """Return every n-th pixel, so that flat areas stay flat and edges sharp."""
    step = -(-max(pixels.shape) // WARNING_SIDE)
    return np.ascontiguousarray(pixels[::step, ::step])


def _has_gutter(lines: Floats) -> bool:
    """Return whether a flat strip with sharp edges crosses the lines [N, L] and divides them."""
    first, last = (round(place * len(lines)) for place in GUTTER_PLACE)
    may_be_flat = _may_be_flat(lines, max(BLACK_TOLERANCES))
    if not may_be_flat[first:last].any():  # as in most images
        return False
    tones, is_flat = np.zeros((len(lines), 1), np.float32), np.zeros(len(lines), np.bool_)
    candidates = lines[may_be_flat]
    tones[may_be_flat] = np.median(candidates, axis=1, keepdims=True)
    for tolerance in BLACK_TOLERANCES:
        is_flat[may_be_flat] = _is_flat(candidates, tones[may_be_flat], tolerance)
        changes = np.diff(is_flat) | (np.abs(np.diff(tones[:, 0])) > MAX_GUTTER_SHADING)
        for start, stop in pairwise((0, *(np.flatnonzero(changes) + 1), len(lines))):
            is_inside = max(first, GUTTER_EDGE) <= start and stop <= min(last, len(lines) - GUTTER_EDGE)
            if is_flat[start] and is_inside and np.ptp(tones[start:stop]) <= MAX_GUTTER_SHADING:
                before = lines[start] - lines[start - GUTTER_EDGE]
                after = lines[stop - 1] - lines[stop - 1 + GUTTER_EDGE]
                least = tolerance if tones[start] < DARK else max(TOLERANCES)
                is_brighter, is_darker = np.minimum(before, after) > least, np.maximum(before, after) < -least
                if (is_brighter | is_darker).mean() >= MIN_GUTTER_EDGE_SHARE:
                    return True
    return False


def _has_window_lines(pixels: Floats) -> bool:
    """Return whether there are as many long straight lines as between the panels of a window."""
    n = 0
    for lines in (pixels, pixels.T):
        min_length = WINDOW_LINE_LENGTH * lines.shape[1]
        sample = _mark_straight_edges(lines, WINDOW_LINE_SAMPLING)
        if not (sample.sum(axis=1) >= min_length // WINDOW_LINE_SAMPLING).any():  # as in most images
            continue
        is_edge = _mark_straight_edges(lines)
        is_long = is_edge.sum(axis=1) >= min_length  # of few lines, whose longest runs take time to find
        is_long[is_long] = _longest_run(is_edge[is_long]) >= min_length
        n += int((is_long & ~np.r_[False, is_long[:-1]]).sum())  # a wide line counts once
    return n >= MIN_WINDOW_LINES


def _mark_straight_edges(lines: Floats, step: int = 1) -> NDArray[np.bool_]:
    """Return bool [N - 3, L / step]: where every step-th pixel lies on an edge beside an even line.

    The edge [i] lies between the lines i + 1 and i + 2 of `lines` [N, L].
    """
    sample = lines[:, ::step]
    across = np.abs(np.diff(sample, axis=0))
    along = np.abs(sample[1:, 1:] - lines[1:, step - 1 :: step][:, : sample.shape[1] - 1])
    is_even = across <= WINDOW_LINE_EVENNESS  # line i + 1: its change from line i ...
    is_even[:, 1:] &= along <= WINDOW_LINE_EVENNESS  # ... and from its own pixel before
    is_even_before, is_even_after = is_even[:-2], is_even[2:]
    return (across[1:-1] > WINDOW_LINE_STEP) & (is_even_before | is_even_after)


def _longest_run(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return int64 [N]: the longest run of true values in each row of bool [N, L]."""
    position = np.arange(1, mask.shape[1] + 1)
    return (position - np.maximum.accumulate(np.where(mask, 0, position), axis=1)).max(axis=1)


def _has_bright_rim(pixels: Floats) -> bool:
    """Return whether the rim is bright, as on a light box; an X-ray's background is dark."""
    low, high = float(pixels.min()), float(pixels.max())
    is_bright = pixels > low + BRIGHT * (high - low)
    for inset in RIM_INSETS:  # behind the dark frame of a light box
        rim, inner = (
            is_bright[border : len(is_bright) - border, border : is_bright.shape[1] - border]
            for border in (round(share * min(pixels.shape)) for share in (inset, inset + RIM_WIDTH))
        )
        if np.count_nonzero(rim) - np.count_nonzero(inner) >= MIN_BRIGHT_RIM * (rim.size - inner.size):
            return True
    return False
