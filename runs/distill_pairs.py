"""Pairs from which the restorer learns outlines: small pictures, and what Real-ESRGAN x4plus makes of them.

    python runs/distill_pairs.py DATA OUT COUNT [--faces FACES] [--pages PAGES] [--clean SHARE] [--seed SEED]

DATA, FACES and PAGES are folders or shards of photographs, of faces and of rendered pages (`nextscale data pages`). OUT
gets LR/ and HR/, as `nextscale train restorer --restoration.pairs OUT` reads them; what is there already is kept. The
degradations are those on which Real-ESRGAN's pictures were nearer to the photograph than the restorer's; SHARE of the
inputs are only reduced, where people like its outlines better (LOG.md). Needs `pip install '.[peers]'`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from nextscale import image as images
from nextscale.data.crops import Crops
from nextscale.evaluate.methods import RealEsrgan
from nextscale.train.config import RestorationConfig
from nextscale.train.stream import Samples

SIDE, FACTOR = 48, 4
PRESETS = ("compressed", "noisy", "noisy", "x4plus", "stablesr", "stablesr")


def main(
    data: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    count: tyro.conf.Positional[int],
    faces: str = "",
    pages: str = "",
    clean: float = 0.2,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Make the pairs from where the folder ends."""
    # The shares of faces and pages count only where such photographs are named.
    config = RestorationConfig(
        side=SIDE,
        presets=PRESETS,
        clean=clean,
        soft=0.2,
        faces_share=0.2,
        pages_share=0.25,
        smooth_share=0.0,
        grain=0.0,
    )
    photographs, face, page = (Crops([n], SIDE * FACTOR, seed=seed) if n else None for n in (data, faces, pages))
    assert photographs is not None
    samples, teacher = Samples(photographs, face, page, config), RealEsrgan(threads=threads)
    for folder in ("LR", "HR"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{number:06d}.png"
        if (out / "HR" / name).exists():
            continue
        small = pixels(samples[number][1])
        # The larger one last: where it is there, both are.
        images.write(out / "LR" / name, images.Picture(small))
        images.write(out / "HR" / name, images.Picture(teacher.enlarged(small)))


def pixels(image: Tensor) -> np.ndarray:
    """3 H W in [-1, 1] -> H W 3, uint8."""
    rounded = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(1, 2, 0).numpy())


if __name__ == "__main__":
    tyro.cli(main)
