"""`make demo`: one photograph restored at x1, x2 and x4, its expected error, and all of it side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image, ImageDraw, ImageFont

from nextscale.commands.main import main as nextscale
from nextscale.console import complain, say
from nextscale.errors import NextScaleError

WIDTH, GAP, CAPTION = 480, 12, 26


@dataclass(frozen=True)
class Demo:
    """Restore one photograph at every factor and draw the results side by side."""

    photo: tyro.conf.Positional[Path] = Path("examples/chelsea.jpg")
    """The photograph."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out")
    """The folder of the results."""


def sheet(photo: Path, folder: Path) -> Image.Image:
    """Input, bicubic, x1, x2, x4 and the expected error in two rows, all at one size."""
    stem = photo.stem
    given = Image.open(photo).convert("RGB")
    large = (given.width * 4, given.height * 4)
    restored = {f: Image.open(folder / f"{stem}_x{f}.png").convert("RGB") for f in (1, 2, 4)}
    # Most pixels are expected to be off by a few levels of 255: brighter, so that they can be seen.
    error = Image.open(folder / f"{stem}_x4_confidence.png").convert("L").point(lambda level: min(255, 6 * level))
    cells = [
        (f"input, {given.width} x {given.height}", given.resize(large, Image.Resampling.NEAREST)),
        ("input enlarged by bicubic", given.resize(large, Image.Resampling.BICUBIC)),
        ("nextscale x4", restored[4]),
        ("nextscale x1 (cleaned)", restored[1].resize(large, Image.Resampling.NEAREST)),
        ("nextscale x2", restored[2].resize(large, Image.Resampling.NEAREST)),
        ("expected error, times 6", error.convert("RGB")),
    ]
    height = round(WIDTH * large[1] / large[0])
    font = ImageFont.load_default(size=16)
    canvas = Image.new("RGB", (3 * WIDTH + 4 * GAP, 2 * (height + CAPTION) + 3 * GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (caption, cell) in enumerate(cells):
        left = GAP + index % 3 * (WIDTH + GAP)
        top = GAP + index // 3 * (height + CAPTION + GAP)
        draw.text((left, top + 2), caption, fill="black", font=font)
        canvas.paste(cell.resize((WIDTH, height), Image.Resampling.LANCZOS), (left, top + CAPTION))
    return canvas


def main() -> int:
    """Run the demo; the exit status is the command's."""
    demo = tyro.cli(Demo, prog="python -m nextscale.demo")
    target = demo.out / f"{demo.photo.stem}_x4.png"
    status = nextscale(["upscale", "-i", str(demo.photo), "-o", str(target), "--all-factors", "--confidence"])
    if status:
        return status
    path = demo.out / f"{demo.photo.stem}_sheet.png"
    try:
        sheet(demo.photo, demo.out).save(path)
    except (OSError, NextScaleError) as error:
        complain(f"{path}: the sheet could not be drawn ({error})")
        return 1
    say(f"side by side: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
