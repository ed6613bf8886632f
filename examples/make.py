"""Makes the example photographs: small, worn copies of five free pictures in scikit-image's wheel.

    .venv/bin/python examples/make.py

Each is cropped, averaged down, blurred, given sensor noise and saved as a JPEG: roughly what a picture goes through
between an old phone and a chat. The noise is seeded by the file's name, so the same libraries write the same bytes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageFilter

HERE = Path(__file__).parent
ORIGINALS = Path(skimage.data.__file__).parent


@dataclass(frozen=True)
class Wear:
    """What happens to one picture, in this order."""

    original: str
    box: tuple[int, int, int, int]  # left, top, right, bottom in the original
    long_side: int  # after averaging down
    blur: float  # sigma, in pixels of the small picture
    noise: float  # deviation, of 255
    quality: int  # of the JPEG


EXAMPLES = {
    "astronaut.jpg": Wear("astronaut.png", (60, 0, 410, 512), long_side=192, blur=0.5, noise=4, quality=70),
    "camera.jpg": Wear("camera.png", (60, 20, 460, 420), long_side=160, blur=0.5, noise=4, quality=75),
    "chelsea.jpg": Wear("chelsea.png", (0, 0, 451, 300), long_side=181, blur=0.4, noise=3, quality=75),
    "coffee.jpg": Wear("coffee.png", (100, 30, 520, 390), long_side=160, blur=0.6, noise=5, quality=70),
    "rocket.jpg": Wear("rocket.jpg", (200, 0, 455, 427), long_side=200, blur=0.4, noise=2, quality=65),
}


def worn(wear: Wear, seed: int) -> Image.Image:
    """The small picture, before it is saved."""
    with Image.open(ORIGINALS / wear.original) as original:
        picture = original.convert("RGB").crop(wear.box)
    shrink = wear.long_side / max(picture.size)
    size = (round(picture.width * shrink), round(picture.height * shrink))
    small = picture.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(wear.blur))
    pixels = np.asarray(small, dtype=np.float64)
    noisy = pixels + np.random.default_rng(seed).normal(scale=wear.noise, size=pixels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def main() -> None:
    """Write every example next to this file."""
    for name, wear in EXAMPLES.items():
        worn(wear, seed=zlib.crc32(name.encode())).save(HERE / name, quality=wear.quality)


if __name__ == "__main__":
    main()
