"""From pixel cells to stored values: which bits of each cell belong to the image.

Section numbers refer to the DICOM standard, PS3.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["extend_sign", "extract_stored_bits", "is_smoother"]

SAMPLE_SIZE = 2**20  # pixels that are compared to tell an overlay from the image
# An overlay is drawn on the image: without it, nearly all steps at its edges shrink, and it has few edges.
# An image whose high bits are cut off jumps where the values wrap around. Of 3906 variants of radiographs
# with 8 to 12 bits stored and 9 to 16 used, 4 are taken for an overlay.
MIN_SHRINKING_STEPS = 0.95
MAX_EDGES = 0.3

_WRONG_HIGH_BIT = "The file's HighBit does not fit its pixels and was ignored."
_SIGNED = "The file's PixelRepresentation does not fit its pixels; they were read as signed."
_OVERLAY = "Bits of the pixels beyond BitsStored look like an overlay and were left out."


def extract_stored_bits(
    cells: NDArray[Any],
    bits_stored: int,
    high_bit: int,
    overlay_bits: Collection[int],
    messages: list[str],
) -> NDArray[Any]:
    """Return the values that lie in the bits up to `high_bit` of each pixel cell (PS3.5 8.1.1).

    `cells` are integers of any shape and sign, as allocated, and may be changed; `bits_stored` - 1 <=
    `high_bit` < their number of bits. `overlay_bits` are those that the file declares as embedded overlays
    (retired, PS3.3 C.9.2 in 2004), which are cleared.

    The other bits should be unused, or repeat the sign of signed values. Where they are not, they hold an
    overlay that the file does not declare, and are cleared, or BitsStored is too low, and they are kept. The
    pixels decide, and a message says so. They also decide whether values announced as unsigned are signed.
    """
    cells = cells.astype(cells.dtype.newbyteorder("="), copy=False)
    n_bits = 8 * cells.itemsize
    is_signed = cells.dtype.kind == "i"
    shift = high_bit + 1 - bits_stored
    overlay_bits = [bit for bit in overlay_bits if bit < n_bits and not shift <= bit <= high_bit]
    for bit in overlay_bits:
        unsigned = cells.view(f"u{cells.itemsize}")
        np.bitwise_and(unsigned, unsigned.dtype.type(2**n_bits - 1 - 2**bit), out=unsigned)
    if shift and _fits(cells, bits_stored) and (cells & (2**shift - 1)).any():
        messages.append(_WRONG_HIGH_BIT)
    elif shift:
        np.right_shift(cells, shift, out=cells)
    if _fits(cells, bits_stored):
        return cells
    if not is_signed and _fits(cells.view(f"i{cells.itemsize}"), bits_stored):
        messages.append(_SIGNED)
        return cells.view(f"i{cells.itemsize}")
    stored = cells << (n_bits - bits_stored)
    stored >>= n_bits - bits_stored  # signed numbers keep their sign
    if is_signed and overlay_bits:
        return stored  # their sign cannot be read from the cells
    if is_signed and cells.min() >= 0 and cells.max() < 2**bits_stored and is_smoother(stored, cells):
        return stored  # negative numbers whose unused bits are 0
    kind = _kind_of_high_bits(cells, stored)
    if kind == "image":
        n_used = int(cells.max()).bit_length()
        if is_signed:
            n_used = 1 + max(n_used, int(~cells.min()).bit_length())
        messages.append(f"The pixels use {n_used} bits, not the {bits_stored} of BitsStored; all are read.")
        return cells
    if kind == "overlay":
        messages.append(_OVERLAY)
    return stored


def extend_sign(cells: NDArray[Any], n_bits: int) -> NDArray[Any]:
    """Return unsigned integers as signed ones, two's complement of `n_bits` (PS3.5 8.1.1)."""
    shift = 8 * cells.itemsize - n_bits
    extended = (cells << shift).view(f"i{cells.itemsize}")
    extended >>= shift
    return extended


def is_smoother(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Return whether the steps between neighbours, where they differ, are mostly smaller in `first`."""
    n_different, n_smaller, _ = _compare_steps(first, second)
    return n_smaller > n_different / 2


def _fits(cells: NDArray[Any], bits_stored: int) -> bool:
    if cells.dtype.kind == "u":
        return int(cells.max()) < 2**bits_stored
    return -(2 ** (bits_stored - 1)) <= int(cells.min()) and int(cells.max()) < 2 ** (bits_stored - 1)


def _kind_of_high_bits(cells: NDArray[Any], stored: NDArray[Any]) -> str:
    """Return whether the bits of `cells` that `stored` lacks are "image", "overlay" or "constant"."""
    if stored.min() == stored.max() and int(np.bitwise_or.reduce(cells ^ stored, axis=None)).bit_count() > 2:
        return "image"  # more planes than a blank image with an overlay has
    n_different, n_smaller, n_steps = _compare_steps(stored, cells)
    if n_different == 0:
        return "constant"
    is_overlay = n_smaller >= MIN_SHRINKING_STEPS * n_different and n_different <= MAX_EDGES * n_steps
    return "overlay" if is_overlay else "image"


def _compare_steps(first: NDArray[Any], second: NDArray[Any]) -> tuple[int, int, int]:
    """Compare steps between neighbours, both across and down, in a sample of lines where the arrays differ.

    Returns the number of steps that differ, of those that are smaller in `first`, and of all.
    """
    n_different = n_smaller = n_steps = 0
    for one, other in ((first, second), (first.swapaxes(0, 1), second.swapaxes(0, 1))):
        lines = np.flatnonzero((one != other).reshape(len(one), -1).any(axis=1))
        n_lines = max(1, SAMPLE_SIZE // one[0].size)
        lines = lines[:: -(-len(lines) // n_lines) or 1]
        steps, other_steps = (
            np.abs(np.diff(array[lines].astype(np.float64), axis=1)) for array in (one, other)
        )
        n_different += int((steps != other_steps).sum())
        n_smaller += int((steps < other_steps).sum())
        n_steps += steps.size
    return n_different, n_smaller, n_steps
