"""A model beside Real-ESRGAN x4plus on the CPU, turn by turn: 128 px -> 128, 256 and 512 px against x4 alone.

    python benchmarks/peers.py [--threads 2] [--runs 9] > peers.json

Needs the extra `peers`. Both methods get the same picture and threads; `ratio` is the median over the rounds of
our seconds over Real-ESRGAN's in the same round, so that what slows the machine for a while slows both. Seconds of one
machine mean little on another; `over_matrix_product` counts them in large matrix products of the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from nextscale import NextScale, UpscaleOptions
from nextscale.console import run_program
from nextscale.device import Timer, product_rate
from nextscale.evaluate.methods import RealEsrgan
from nextscale.image import Picture, write

SIDE = 128
"""Of the picture, in pixels."""
PRODUCT = 2048
"""Side of the matrices, in float32."""


@dataclass(frozen=True)
class Settings:
    """What to time."""

    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """A shipped model, a folder, or a hub id."""
    threads: int = 2
    runs: int = 9
    """Rounds after a first one that is not counted."""
    fp32: bool = False


def measure(settings: Settings) -> dict[str, Any]:
    """All numbers of one run."""
    torch.set_num_threads(settings.threads)
    timer = Timer(torch.device("cpu"))
    loading = timer.now()
    model = NextScale.from_pretrained(settings.model, device="cpu", fp32=settings.fp32)
    loaded = timer.now() - loading
    peer = RealEsrgan(threads=settings.threads)
    options = UpscaleOptions(all_factors=True)
    parts: list[dict[str, float]] = []
    ours, theirs = [], []
    products = [product_rate(PRODUCT, torch.float32, timer, runs=5)]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        write(photo, Picture(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)))
        for _ in range(1 + settings.runs):
            ours.append(timer.once(lambda: parts.append(model.upscale(photo, options).timings)))
            theirs.append(timer.once(lambda: peer(photo)))
    products.append(product_rate(PRODUCT, torch.float32, timer, runs=5))
    product = 2 * PRODUCT**3 / max(products)
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    return {
        "model": settings.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": settings.threads,
        "runs": settings.runs,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "seconds": {"ours": _median(ours[1:]), "realesrgan": _median(theirs[1:])},
        "over_matrix_product": {
            "ours": round(statistics.median(ours[1:]) / product, 1),
            "realesrgan": round(statistics.median(theirs[1:]) / product, 1),
        },
        "parts_seconds": {name: _median([run[name] for run in parts[1:]]) for name in parts[0]},
        "load_seconds": round(loaded, 3),
        "matrix_product_seconds": round(product, 4),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> int:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(measure(tyro.cli(Settings, description=__doc__)), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
