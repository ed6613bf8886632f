"""The front page's picture, docs/crops.png: 1:1 crops at x4 beside bicubic and Real-ESRGAN (extra `peers`).

python docs/make_crops.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nextscale import NextScale
from nextscale import image as images
from nextscale.evaluate.methods import RealEsrgan

ROOT = Path(__file__).parents[1]
SIDE, GAP, CAPTION = 248, 6, 22
CROPS = (("astronaut.jpg", (28, 0)), ("chelsea.jpg", (44, 16)), ("coffee.jpg", (30, 4)))
"""Photograph, and the left upper corner of its crop in input pixels."""


def main() -> None:
    """Restore the photographs and draw the sheet."""
    model, peer = NextScale.from_pretrained("tiny"), RealEsrgan()
    names = ("input", "bicubic", "Real-ESRGAN x4plus", "nextscale")
    canvas = Image.new("RGB", (4 * (SIDE + GAP) + GAP, 3 * (SIDE + GAP) + CAPTION + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for column, name in enumerate(names):
        draw.text((GAP + column * (SIDE + GAP), 3), name, fill="black", font=font)
    for row, (name, (left, top)) in enumerate(CROPS):
        pixels = images.rgb8(images.read(ROOT / "examples" / name))
        small = Image.fromarray(pixels)
        size = (4 * small.width, 4 * small.height)
        panels = [
            small.resize(size, Image.Resampling.NEAREST),
            small.resize(size, Image.Resampling.BICUBIC),
            Image.fromarray(peer.enlarged(pixels)),
            Image.fromarray(np.asarray(images.rgb8(model.upscale(pixels).picture))),
        ]
        for column, panel in enumerate(panels):
            crop = panel.crop((4 * left, 4 * top, 4 * left + SIDE, 4 * top + SIDE))
            canvas.paste(crop, (GAP + column * (SIDE + GAP), CAPTION + row * (SIDE + GAP)))
    canvas.save(ROOT / "docs" / "crops.png", optimize=True)


if __name__ == "__main__":
    main()
