"""Read many images in turn."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from fracture_lib.errors import InvalidData, InvalidImage
from fracture_lib.io.image import LoadedImage, load_image

__all__ = ["map_images"]

N_WARNINGS = 3  # of different texts that the log shows

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


def map_images(
    function: Callable[[LoadedImage], _T], paths: Sequence[Path], description: str
) -> Iterator[_T]:
    """Yield `function` of each image, which is read once, and show a progress bar.

    At the end, one line of the log counts the images that were read with warnings. Raises InvalidData, which
    names the file, if one cannot be read or `function` raises InvalidImage.
    """
    n_with_warnings, warnings = 0, Counter[str]()
    for path in tqdm(paths, desc=description, unit="image", leave=False):
        try:
            image = load_image(path)
            result = function(image)
        except InvalidImage as error:
            raise InvalidData(f"{path.name} cannot be read: {error} Replace or remove it.") from error
        n_with_warnings += bool(image.warnings)
        warnings.update(image.warnings)
        yield result
    if n_with_warnings:
        common = "; ".join(f"{text.rstrip('.')} ({n})" for text, n in warnings.most_common(N_WARNINGS))
        more = "; and others" if len(warnings) > N_WARNINGS else ""
        _logger.warning(
            "%s: %d of %d images were read with a warning: %s%s.",
            description.capitalize(),
            n_with_warnings,
            len(paths),
            common,
            more,
        )
