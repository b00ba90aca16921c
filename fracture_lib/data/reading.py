"""Read many images in turn."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from fracture_lib.errors import InvalidData, InvalidImage
from fracture_lib.io.image import LoadedImage, load_image

__all__ = ["map_images"]

_T = TypeVar("_T")


def map_images(
    function: Callable[[LoadedImage], _T], paths: Sequence[Path], description: str
) -> Iterator[_T]:
    """Yield `function` of each image, which is read once, and show a progress bar.

    Raises InvalidData, which names the file, if one cannot be read or `function` raises InvalidImage.
    """
    for path in tqdm(paths, desc=description, unit="image", leave=False):
        try:
            yield function(load_image(path))
        except InvalidImage as error:
            raise InvalidData(f"{path.name} cannot be read: {error} Replace or remove it.") from error
