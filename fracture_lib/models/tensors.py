"""Write safetensors files of a model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

__all__ = ["write_tensors"]


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions that the umask gives.

    safetensors' own `save_file` gives them to the owner alone, so a shared or served copy is unreadable.
    """
    # `save` ignores strides.
    in_order = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    path.write_bytes(save(in_order, dict(metadata) if metadata else None))
