"""Six X-rays of FracAtlas, for the page and for what must not depend on the images of the types.

See examples/LICENSE.txt.
"""

from pathlib import Path

__all__ = ["EXAMPLES"]

FOLDER = Path(__file__).parent / "examples"
EXAMPLES = {path.stem: path for path in sorted(FOLDER.glob("*.jpg"))}
