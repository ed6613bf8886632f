"""PSNR-Y, SSIM-Y and LPIPS-alex of a model and of bicubic on a folder of pairs DIR/LR, DIR/HR.

    python benchmarks/quality.py DIR [--model tiny] [--limit N] [options of `nextscale upscale`]

Targets of x1 and x2 are the exact area mean of HR. `--fidelity`, `--temperature` and so on are those of upscaling.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from nextscale import NextScale, UpscaleOptions
from nextscale.console import complain
from nextscale.errors import ImageError, NextScaleError
from nextscale.evaluate.metrics import psnr, ssim
from nextscale.evaluate.perceptual import Lpips
from nextscale.tokenizer.layers import area_downsample


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    bench: tyro.conf.Positional[Path]
    """Folder with LR and HR."""
    options: tyro.conf.OmitArgPrefixes[UpscaleOptions] = field(default_factory=UpscaleOptions)
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    limit: int = 0
    """Only the first pictures (0: all)."""
    threads: int = 0
    fp32: bool = False


def load(path: Path) -> Tensor:
    """1 3 H W in [-1, 1]."""
    return as_tensor(np.asarray(Image.open(path).convert("RGB")))


def as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def pair_paths(bench: Path, limit: int) -> list[tuple[Path, Path]]:
    """(LR, HR) paths with the same stem."""
    lr = {p.stem: p for p in sorted((bench / "LR").glob("*.*"))}
    hr = {p.stem: p for p in sorted((bench / "HR").glob("*.*"))}
    if not hr or set(lr) != set(hr):
        odd = ", ".join(sorted(set(lr) ^ set(hr))[:5]) or "no pictures"
        raise ImageError(f"{bench}: LR and HR must hold the same names ({odd})")
    return [(lr[name], hr[name]) for name in sorted(hr)][: limit or None]


@torch.no_grad()
def main() -> int:
    """Print one JSON object: method -> factor -> [PSNR-Y, SSIM-Y, LPIPS-alex]."""
    settings = tyro.cli(Settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = NextScale.from_pretrained(settings.model, device="cpu", fp32=settings.fp32)
    options = replace(settings.options, scale=4.0, all_factors=True)
    distance = Lpips("alex")
    rows: dict[tuple[str, int], list[list[float]]] = {}

    def score(method: str, factor: int, given: Tensor, target: Tensor) -> None:
        metrics: list[Callable[[], Tensor]] = [
            lambda: psnr(given / 2 + 0.5, target / 2 + 0.5),
            lambda: ssim(given / 2 + 0.5, target / 2 + 0.5),
            lambda: distance(given, target),
        ]
        rows.setdefault((method, factor), []).append([float(metric()) for metric in metrics])

    pairs = pair_paths(settings.bench, settings.limit)
    for lr, hr in pairs:
        whole, given = load(hr), Image.open(lr).convert("RGB")
        result = model.upscale(lr, options)
        for factor in (1, 2, 4):
            target = area_downsample(whole, whole.shape[-1] * factor // 4)
            size = (given.width * factor, given.height * factor)
            score("bicubic", factor, as_tensor(np.asarray(given.resize(size, Image.Resampling.BICUBIC))), target)
            score("nextscale", factor, as_tensor(result.images[float(factor)].rgb), target)
    table = {
        f"{method} x{factor}": [round(float(v), 4) for v in np.mean(values, axis=0)]
        for (method, factor), values in sorted(rows.items())
    }
    sys.stdout.write(json.dumps({"bench": settings.bench.name, "pictures": len(pairs), "rows": table}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NextScaleError as error:
        complain(str(error))
        sys.exit(1)
