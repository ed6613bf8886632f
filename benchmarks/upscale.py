"""Time and memory of one tile, 128 px -> 128, 256 and 512 px, part by part, beside a fixed amount of matrix work.

    python benchmarks/upscale.py [--model tiny] [--threads 2] [--runs 5]

Seconds vary from machine to machine; the ratio to a large matrix product timed in the same run does so less.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import tyro

from nextscale import NextScale, UpscaleOptions
from nextscale.device import Timer, product_rate
from nextscale.model.config import PRESETS

PRODUCT = 2048
"""Side of the matrices, in float32."""


@dataclass(frozen=True)
class Settings:
    """What to time."""

    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """A shipped model, a folder, a hub id, or `random:PRESET` for fresh weights."""
    threads: int = 2
    runs: int = 5
    fp32: bool = False


def main() -> int:
    """Print one JSON object."""
    settings = tyro.cli(Settings)
    torch.set_num_threads(settings.threads)
    started = time.perf_counter()
    if settings.model.startswith("random:"):
        model = NextScale.create(PRESETS[settings.model.removeprefix("random:")]()).to("cpu", fp32=settings.fp32)
    else:
        model = NextScale.from_pretrained(settings.model, device="cpu", fp32=settings.fp32)
    loaded = time.perf_counter() - started
    photo = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    options = UpscaleOptions(all_factors=True)
    model.upscale(photo, options)
    runs = [model.upscale(photo, options).timings for _ in range(settings.runs)]
    parts = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    product = 2 * PRODUCT**3 / product_rate(PRODUCT, torch.float32, Timer(torch.device("cpu")), runs=5)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {
        "model": settings.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": settings.threads,
        "load_seconds": round(loaded, 3),
        "seconds": parts,
        "matrix_product_seconds": round(product, 4),
        "total_over_matrix_product": round(parts["total"] / product, 1),
        "peak_memory_mib": round(peak),
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
