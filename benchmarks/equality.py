"""Fingerprints of the shipped model's results on two examples: a refactor must leave them equal.

    OMP_NUM_THREADS=1 python benchmarks/equality.py > before.txt

Names of cases after the script: only those.
Each line is a name and the sha256 of codes or of a picture's pixels, in float32 on one thread.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextscale.image import Picture
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions

EXAMPLES = Path(__file__).parents[1] / "examples"


def crop(name: str, side: int) -> Picture:
    """The middle of an example."""
    with Image.open(EXAMPLES / name) as image:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return Picture(np.asarray(image.convert("RGB").crop((left, top, left + side, top + side))))


def digest(*arrays: Any) -> str:
    """The sha256 of arrays, their types and shapes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def fingerprints(model: NextScale, name: str, picture: Picture, options: UpscaleOptions) -> list[str]:
    """One line per result of a picture."""
    result = model.upscale(picture, options)
    lines = [
        f"{name} codes {digest(*(ids.numpy() for _, codes in sorted(result.codes.items()) for ids in codes.steps))}"
    ]
    for factor, whole in result.images.items():
        lines.append(f"{name} x{factor:g} {digest(*(a for a in (whole.rgb, whole.alpha) if a is not None))}")
    lines += [f"{name} map x{factor:g} {digest(values)}" for factor, values in result.maps.items()]
    for reveal in model.upscale(picture, options, stream=True):
        lines.append(f"{name} reveal x{reveal.factor:g} {reveal.complete} {digest(reveal.picture.rgb)}")
    return lines


def main() -> None:
    torch.set_num_threads(1)
    model = NextScale.from_pretrained("tiny", device="cpu", fp32=True)
    coffee, astronaut = crop("coffee.jpg", 150), crop("astronaut.jpg", 96)
    ramp = np.linspace(0, 255, 96).astype(np.uint8)[None].repeat(96, 0)
    cases = {
        "coffee": (coffee, UpscaleOptions(all_factors=True, confidence=True)),
        "astronaut": (astronaut, UpscaleOptions(scale=3, all_factors=True, confidence=True)),
        "alpha": (Picture(astronaut.rgb, ramp), UpscaleOptions(scale=3, all_factors=True, fidelity=0.5, tile_batch=1)),
        "cascade": (crop("astronaut.jpg", 40), UpscaleOptions(scale=6, confidence=True, temperature=1.0, seed=3)),
    }
    for name in sys.argv[1:] or cases:
        picture, options = cases[name]
        sys.stdout.write("\n".join(fingerprints(model, name, picture, options)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
