"""Difficult pictures at x4 beside bicubic and Real-ESRGAN: labeled sheets at 1:1, and the noise that is left.

    python benchmarks/hard.py FOLDER --out SHEETS [--model tiny] [--panel 420] [--dials 1 0.5 0] [--fast]
        [--crops N] [--blind SEED [--turned]]

Each sheet shows one picture, all panels the same crop at 1:1: the part of the enlarged input with most detail. One part
may be judged otherwise than the rest: `--crops 3` draws three, which overlap where a picture is small. Pictures
named flat*.png are smooth ramps with noise: for them the noise left is printed, in 8-bit levels, as the deviation from
the best quadratic surface of each color. `--blind` hides which method is which, for people who are to say which they
would rather have. Some of them prefer a side: `--turned` draws the same sheets with the panels in the other order.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nextscale import NextScale
from nextscale import image as images
from nextscale.console import run_program, say
from nextscale.errors import OptionError
from nextscale.evaluate.methods import RealEsrgan
from nextscale.upscale.options import UpscaleOptions

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
CAPTION, GAP = 22, 8
SHOWN = -5.0
"""In place of the detail of pixels that a crop shows already: the next avoids them, as far as the picture is large."""


@dataclass(frozen=True)
class Settings:
    """Sheets and noise of a folder of pictures."""

    folder: tyro.conf.Positional[Path]
    """The pictures."""
    out: Path = Path("out/hard")
    """Where the sheets go."""
    model: tuple[str, ...] = ("tiny",)
    """Shipped names or folders of models, a panel each."""
    panel: int = 420
    """Side of a panel in pixels, at most."""
    crops: int = 1
    """Sheets of a picture, at most: parts that overlap as little as its size lets them, PICTURE-2.png the second."""
    dials: tuple[float, ...] = ()
    """Values of the denoise dial, a panel each (default: that of the options alone)."""
    peers: bool = True
    """Show Real-ESRGAN x4plus too (extra `peers`)."""
    blind: int | None = None
    """Call the methods 1, 2 and so on, in an order that this seed draws for each picture. Which is which stands beside
    the folder of the sheets, in OUT-key.json."""
    turned: bool = False
    """With `blind`: the other way around, since whoever judges may prefer a side."""
    options: Annotated[UpscaleOptions, tyro.conf.arg(name="")] = field(default_factory=UpscaleOptions)


def noise_left(pixels: Pixels) -> float:
    """Deviation of H W 3 from the best quadratic surface of each color, in levels."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].reshape(2, -1) / max(height, width)
    basis = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)
    values = pixels.reshape(-1, 3).astype(np.float64)
    fitted = basis @ np.linalg.lstsq(basis, values, rcond=None)[0]
    return float((values - fitted).std())


def busiest(pixels: Pixels, side: int, count: int = 1) -> list[Box]:
    """The crops with most detail, up to so many different ones; each avoids what those before it show."""
    height, width = pixels.shape[:2]
    wide, high = min(side, width), min(side, height)
    detail = np.hypot(*np.gradient(pixels.mean(axis=2))).clip(0, 40)
    boxes: list[Box] = []
    for _ in range(count):
        sums = np.zeros((height + 1, width + 1))
        sums[1:, 1:] = detail.cumsum(0).cumsum(1)
        inside = sums[high:, wide:] - sums[high:, :-wide] - sums[:-high, wide:] + sums[:-high, :-wide]
        top, left = (16 * int(at) for at in np.unravel_index(inside[::16, ::16].argmax(), inside[::16, ::16].shape))
        box = (left, top, left + wide, top + high)
        if box in boxes:
            break
        boxes.append(box)
        detail[top : top + high, left : left + wide] = SHOWN
    return boxes


def sheet(panels: dict[str, Pixels], box: Box) -> Image.Image:
    """The same crop of every panel, side by side under its name."""
    wide, high = box[2] - box[0], box[3] - box[1]
    canvas = Image.new("RGB", (len(panels) * (wide + GAP) + GAP, high + CAPTION + 2 * GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for number, (name, pixels) in enumerate(panels.items()):
        left = GAP + number * (wide + GAP)
        draw.text((left, GAP), name, fill="black", font=font)
        canvas.paste(Image.fromarray(pixels).crop(box), (left, GAP + CAPTION))
    return canvas


def hidden(panels: dict[str, Pixels], seed: str, *, turned: bool = False) -> tuple[dict[str, Pixels], dict[str, str]]:
    """Panels whose first is the enlarged input, the others under numbers in an order that the seed draws, or the other
    way around (`turned`); and which method each number is."""
    first, *methods = panels
    random.Random(seed).shuffle(methods)
    if turned:
        methods.reverse()
    key = {str(number): method for number, method in enumerate(methods, 1)}
    return {"input": panels[first], **{number: panels[method] for number, method in key.items()}}, key


def main() -> int:
    """Print the noise left in the ramps, and write a sheet for each other picture."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.turned and settings.blind is None:
        raise OptionError("--turned has no effect without --blind; leave it out")
    if settings.crops < 1:
        raise OptionError(f"--crops must be 1 or more, got {settings.crops}")
    settings.out.mkdir(parents=True, exist_ok=True)
    models = {name: NextScale.from_pretrained(name) for name in settings.model}
    peer = RealEsrgan() if settings.peers else None
    keys: dict[str, dict[str, str]] = {}
    for path in sorted(p for p in settings.folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")):
        picture = images.read(path)
        pixels = images.rgb8(picture)
        size = (4 * pixels.shape[1], 4 * pixels.shape[0])
        panels = {"bicubic": np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))}
        if peer is not None:
            panels["Real-ESRGAN x4plus"] = peer.enlarged(pixels)
        for name, model in models.items():
            for value in settings.dials or (settings.options.denoise,):
                options = replace(settings.options, scale=4.0, denoise=value)
                # By the name as given: two folders may both be called `model`.
                label = f"{name}, denoise {value:g}" if settings.dials else f"nextscale {name}"
                panels[label] = images.rgb8(model.upscale(picture, options).picture)
        if path.name.startswith("flat"):
            left = {name: noise_left(made) for name, made in panels.items()}
            words = [f"{name} {value:.2f} ({value / left['bicubic']:.2f})" for name, value in left.items()]
            say(f"{path.name}: {', '.join(words)}")
        else:
            boxes = busiest(panels["bicubic"], settings.panel, settings.crops)
            for number, box in enumerate(boxes, 1):
                name = path.stem if number == 1 else f"{path.stem}-{number}"
                shown = panels
                if settings.blind is not None:
                    shown, keys[name] = hidden(panels, f"{settings.blind} {name}", turned=settings.turned)
                sheet(shown, box).save(settings.out / f"{name}.png")
    if keys:
        settings.out.with_name(f"{settings.out.name}-key.json").write_text(json.dumps(keys, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
