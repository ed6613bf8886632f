"""Scores of images decoded from three kinds of codes: the photograph's, the predicted ones, the enlarged input's.

    python benchmarks/codes.py DIR [--model tiny] [--limit N] [--fidelities 1 0]

DIR holds pairs LR (of the model's own input side) and HR. One JSON object: codes -> w -> factor ->
[PSNR-Y, LPIPS-alex]. `python -m reproduce report codes` tells how often these codes agree.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from nextscale import NextScale
from nextscale.console import run_program
from nextscale.errors import ImageError
from nextscale.evaluate.datasets import pairs
from nextscale.evaluate.metrics.lpips import Lpips
from nextscale.evaluate.metrics.psnr_ssim import psnr
from nextscale.evaluate.scores import read_pixels, to_tensor
from nextscale.model.layers import area_downsample
from nextscale.model.transformer import enlarge
from nextscale.train.tasks.transformer import predict


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    bench: tyro.conf.Positional[Path]
    """Folder with LR and HR."""
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    limit: int = 0
    """Only the first pictures (0: all)."""
    fidelities: tuple[float, ...] = (1.0, 0.0)
    """Values of fidelity to compare."""


def decoded(model: NextScale, f: Tensor, stage: int, inputs: Tensor, fidelity: float) -> Tensor:
    """The image of a stage's canvas; a fusion is told that each code is as likely as not."""
    if model.restorer is None:
        return model.tokenizer.decode_canvas(f, stage, inputs=inputs, fidelity=fidelity).float()
    ladder = model.tokenizer.ladder
    maps = [torch.full((1, ladder.sides[k], ladder.sides[k]), 0.5) for k in ladder.steps_of(stage)]
    return model.pipeline.fuse(f, stage, inputs, model.restorer.features(inputs), maps, fidelity)[0].float()


@torch.no_grad()
def main() -> int:
    """Print the JSON object."""
    settings = tyro.cli(Settings)
    model = NextScale.from_pretrained(settings.model, device="cpu", fp32=True)
    tokenizer, ladder = model.tokenizer, model.tokenizer.ladder
    distance = Lpips("alex")
    scores: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
    for pair in pairs(settings.bench)[: settings.limit or None]:
        inputs, truth = (to_tensor(read_pixels(path)).float() * 2 - 1 for path in (pair.lr, pair.hr))
        if inputs.shape[-2:] != (ladder.input_side, ladder.input_side):
            raise ImageError(f"{pair.lr}: this benchmark needs inputs of {ladder.input_side} px a side")
        kinds = {
            "truth": tokenizer.encode(truth),
            "predicted": predict(
                model.transformer, tokenizer, ladder, inputs, torch.zeros(1, dtype=torch.long), model.restorer
            ),
            "input": tokenizer.encode(enlarge(inputs, truth.shape[-1])),
        }
        for name, codes in kinds.items():
            for stage, f in enumerate(tokenizer.canvases(codes)):
                target = area_downsample(truth, ladder.image_sides[stage])
                for fidelity in settings.fidelities:
                    image = decoded(model, f, stage, inputs, fidelity).clamp(-1, 1)
                    row = [float(psnr(image / 2 + 0.5, target / 2 + 0.5)), float(distance(image, target))]
                    by_factor = scores.setdefault(name, {}).setdefault(f"fidelity={fidelity:g}", {})
                    by_factor.setdefault(f"x{ladder.factors[stage]:g}", []).append(row)
    table = {
        name: {
            fidelity: {factor: np.mean(rows, axis=0).round(4).tolist() for factor, rows in factors.items()}
            for fidelity, factors in fidelities.items()
        }
        for name, fidelities in scores.items()
    }
    sys.stdout.write(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
