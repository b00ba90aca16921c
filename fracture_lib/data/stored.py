"""Arrays in a file, read one at a time: memory holds a few of them, however many there are."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK_SIZE", "StoredArrays", "stack_chunks"]

CHUNK_SIZE = 64  # images


class StoredArrays:
    """Float32 arrays of any shapes in one file, each read when it is needed.

    Not a memory map: its pages would count as memory of the process, and Windows would keep the file.
    """

    def __init__(self, path: Path, arrays: Iterable[NDArray[np.float32]]) -> None:
        """Write `arrays` to `path`. Raises OSError if that fails, such as on a full disk."""
        self._path = path
        self._shapes: list[tuple[int, ...]] = []
        self._starts: list[int] = []
        with path.open("wb") as file:
            for array in arrays:
                self._shapes.append(array.shape)
                self._starts.append(file.tell())
                file.write(array.astype(np.float32).tobytes())

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        shape, start = self._shapes[index], self._starts[index]
        return np.fromfile(self._path, np.float32, count=int(np.prod(shape)), offset=start).reshape(shape)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[index] for index in range(len(self)))


def stack_chunks(arrays: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Yield arrays of one shape in stacks of CHUNK_SIZE; the last may hold fewer."""
    remaining = iter(arrays)
    while chunk := list(islice(remaining, CHUNK_SIZE)):
        yield np.stack(chunk)
