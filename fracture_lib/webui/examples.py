"""The X-rays that a visitor can try."""

from pathlib import Path

from PIL import Image, ImageOps

from fracture_lib.data import examples as data

__all__ = ["ATTRIBUTION", "EXAMPLES", "read_thumbnail"]

CAPTIONS = {
    "lower-leg": "Lower leg",
    "thigh": "Thigh",
    "leg-in-cast": "Cast",
    "wrist": "Wrist",
    "shoulder": "Shoulder",
    "knee": "Knee",
}
EXAMPLES = [(data.EXAMPLES[name], caption) for name, caption in CAPTIONS.items()]
THUMBNAIL_SIDE = 360  # pixels, twice the size on the page
ATTRIBUTION = (
    "X-rays from [FracAtlas](https://doi.org/10.1038/s41597-023-02432-4) (Abedeen et al., CC BY 4.0), scaled "
    "down. All but the knee are fractured. The fracture detector was trained on them, so it does better here "
    "than on new X-rays."
)


def read_thumbnail(path: Path) -> Image.Image:
    """Return the middle of an example as a square: a tenth of its bytes."""
    with Image.open(path) as image:
        return ImageOps.fit(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
