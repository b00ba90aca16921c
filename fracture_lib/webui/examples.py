"""The X-rays that a visitor can try, from FracAtlas; see examples/LICENSE.txt."""

from pathlib import Path

from PIL import Image, ImageOps

__all__ = ["ATTRIBUTION", "EXAMPLES", "read_thumbnail"]

FOLDER = Path(__file__).parent / "examples"
CAPTIONS = {
    "lower-leg.jpg": "Lower leg",
    "thigh.jpg": "Thigh",
    "leg-in-cast.jpg": "Cast",
    "wrist.jpg": "Wrist",
    "shoulder.jpg": "Shoulder",
    "knee.jpg": "Knee",
}
EXAMPLES = [(FOLDER / name, caption) for name, caption in CAPTIONS.items()]
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
