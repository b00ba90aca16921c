"""The X-rays that a visitor can try, from FracAtlas; see examples/LICENSE.txt."""

from pathlib import Path

__all__ = ["ATTRIBUTION", "EXAMPLES"]

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
ATTRIBUTION = (
    "X-rays from [FracAtlas](https://doi.org/10.1038/s41597-023-02432-4) (Abedeen et al., CC BY 4.0), scaled "
    "down. All but the knee are fractured. The fracture detector was trained on them, so it does better here "
    "than on new X-rays."
)
