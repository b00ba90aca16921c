"""Images that are not X-rays."""

import numpy as np
from PIL import Image, ImageDraw


def page_of_text():
    page = Image.new("L", (400, 560), 250)
    text = "\n".join(["Findings: none of note. Follow up."] * 30)
    ImageDraw.Draw(page).multiline_text((20, 20), text, fill=10)
    return page


def line_drawing():
    page = Image.new("L", (300, 300), 255)
    pen = ImageDraw.Draw(page)
    pen.ellipse((60, 40, 240, 220), outline=0, width=4)
    pen.line((40, 280, 150, 160, 260, 280), fill=0, width=4)
    return page


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8))
