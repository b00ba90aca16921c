"""The function that every runtime and framework gives a loaded network."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Forward"]


class Forward(Protocol):
    """Run a network in inference mode on float32 [N, 1, 128, 128] in 0..1.

    Returns logits float32 [N, 10] and the last feature map float32 [N, C, h, w]. Raises
    ModelUnavailable if the runtime fails.
    """

    def __call__(self, pixels: NDArray[np.float32], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
