"""Draws docs/options.png: what fidelity, temperature and seed do to one photograph.

python docs/make_options.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nextscale import NextScale, UpscaleOptions

HERE = Path(__file__).parent
SIDE, CAPTION, GAP = 256, 24, 8
ROWS = [
    [("fidelity 1", {}), ("fidelity 0.5", {"fidelity": 0.5}), ("fidelity 0", {"fidelity": 0.0})],
    [(f"temperature {t:g}", {"temperature": t, "fidelity": 0.5}) for t in (0.0, 0.5, 1.0)],
    [(f"temperature 1, seed {s}", {"temperature": 1.0, "fidelity": 0.5, "seed": s}) for s in (0, 1, 2)],
]


def main() -> None:
    """Write the sheet."""
    model = NextScale.from_pretrained("tiny", device="cpu")
    photo = Image.open(HERE.parent / "examples" / "chelsea.jpg").convert("RGB").crop((20, 10, 84, 74))
    font = ImageFont.load_default(size=15)
    sheet = Image.new("RGB", (3 * (SIDE + GAP) + GAP, len(ROWS) * (SIDE + CAPTION + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(ROWS):
        for x, (caption, options) in enumerate(row):
            left, top = GAP + x * (SIDE + GAP), GAP + y * (SIDE + CAPTION + GAP)
            picture = model.upscale(np.asarray(photo), UpscaleOptions(**options)).pil  # type: ignore[arg-type]
            draw.text((left, top + 2), caption, fill="black", font=font)
            sheet.paste(picture.resize((SIDE, SIDE)), (left, top + CAPTION))
    sheet.save(HERE / "options.png", optimize=True)


if __name__ == "__main__":
    main()
