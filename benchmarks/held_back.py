"""Scores of restorers on held-back photographs, by kind of damage: to choose between trainings.

    python benchmarks/held_back.py DATA [--models tiny run/restorer/model ...] [--pages PAGES] [--prints PRINTS]

DATA is a folder, shard or glob of photographs that no training saw. Each kind of damage gets the same crops for every
model and for bicubic enlargement. Two tables give LPIPS-alex, whose weights NEXTSCALE_WEIGHTS names, and PSNR-Y at the
largest factor, with their means over the kinds. VAL and REALSR stay for reports: what is chosen on them cannot be
reported on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from nextscale.console import run_program, say
from nextscale.data.crops import Crops
from nextscale.errors import OptionError
from nextscale.evaluate.metrics.lpips import Lpips
from nextscale.evaluate.metrics.psnr_ssim import psnr
from nextscale.model.restorer import Restorer
from nextscale.train.config import RestorationConfig
from nextscale.train.stream import Samples
from nextscale.upscale.nextscale import read_restorer

DAMAGE: Mapping[str, RestorationConfig] = {
    **{
        name: RestorationConfig(presets=(name,), clean=0.0, soft=0.0)
        for name in ("stablesr", "x4plus", "camera", "fullsize", "compressed", "noisy")
    },
    "reduced": RestorationConfig(clean=1.0, soft=0.0),
    "reduced, soft": RestorationConfig(clean=1.0, soft=1.0),
    "faint lines": RestorationConfig(lines_share=1.0),
}
"""Kinds of damage to photographs: presets, and inputs that are only reduced, of sharp and of soft photographs. The last
are no photographs: smooth ramps with faint lines, which a restorer can take for noise."""
SCANS = RestorationConfig(presets=("scan",), clean=0.0, soft=0.0)
"""That of rendered pages."""
PRINTS = RestorationConfig(prints_share=1.0)
"""That of rendered small print, beside the plain enlargement of the undamaged input."""

Model = Callable[[Tensor], Tensor]
"""The picture 1 3 H H of an input 1 3 h h, both in [-1, 1]."""


@dataclass(frozen=True)
class Settings:
    """Scores of restorers on held-back photographs."""

    data: tyro.conf.Positional[str]
    """Photographs that no training saw: a folder, a .tar shard or a glob."""
    models: tuple[str, ...] = ("tiny",)
    """Restorers, by themselves or in whole models: folders or shipped names."""
    pages: str = ""
    """Rendered pages (`nextscale data pages`), for scans of letters."""
    prints: str = ""
    """Rendered pages of small print (`nextscale data pages --kinds print --letters 15 38`)."""
    crops: int = 16
    """Crops of each kind of damage."""
    side: int = 64
    """Side of the inputs in pixels."""
    seed: int = 0
    """Another seed, other crops."""


def samples(data: str, config: RestorationConfig, settings: Settings, factor: int) -> tuple[Tensor, Tensor]:
    """Targets N 3 H H and inputs N 3 h h in [-1, 1] of one kind of damage."""
    # Nothing but this damage: no ramps, and no noise that stays.
    alone = replace(config, side=settings.side, smooth_share=0.0, grain=0.0)
    crops = Crops([data], settings.side * factor, seed=settings.seed)
    stream = Samples(crops, None, None, alone, prints=crops if config is PRINTS else None)
    targets, inputs = zip(*(stream[place][:2] for place in range(settings.crops)), strict=True)
    return torch.stack(targets), torch.stack(inputs)


def bicubic(factor: int) -> Model:
    """Enlargement without a model."""
    return partial(F.interpolate, scale_factor=factor, mode="bicubic")


def largest(restorer: Restorer) -> Model:
    """A restorer's picture at its largest factor."""
    factor = restorer.config.factors[-1]
    return lambda image: restorer.draft(restorer.features(image, factors=(factor,)), image, factor)


@torch.inference_mode()
def score(model: Model, targets: Tensor, inputs: Tensor, lpips: torch.nn.Module) -> tuple[float, float]:
    """Mean LPIPS and PSNR-Y (dB) of a model's pictures of inputs N 3 h h, beside targets N 3 H H, in [-1, 1]."""
    distances, ratios = [], []
    for target, image in zip(targets[:, None], inputs[:, None], strict=True):
        picture = model(image).clamp(-1, 1)
        distances.append(float(lpips(picture, target)))
        ratios.append(float(psnr(picture / 2 + 0.5, target / 2 + 0.5)))
    return sum(distances) / len(distances), sum(ratios) / len(ratios)


def table(title: str, digits: int, scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A row for each model, a column for each kind of damage and their mean."""
    kinds = list(next(iter(scores.values())))
    lines = [f"| {title} | {' | '.join(kinds)} | mean |", "| --- " * (len(kinds) + 2) + "|"]
    for name, row in scores.items():
        cells = [f"{value:.{digits}f}" for value in (*row.values(), sum(row.values()) / len(kinds))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Print the table."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.crops < 1:
        raise OptionError(f"--crops must be 1 or more, got {settings.crops}")
    restorers = {name: read_restorer(name) for name in settings.models}
    factors = sorted({restorer.config.factors[-1] for restorer in restorers.values()})
    if len(factors) > 1:
        named = ", ".join(map(str, factors))
        raise OptionError(f"--models: their largest factors differ ({named}); name models of one")
    lpips = Lpips("alex").eval()
    damage = {kind: (settings.data, config) for kind, config in DAMAGE.items()}
    if settings.pages:
        damage["scan"] = settings.pages, SCANS
    if settings.prints:
        damage["small print"] = settings.prints, PRINTS
    models = {"bicubic": bicubic(factors[0])} | {name: largest(restorer) for name, restorer in restorers.items()}
    distances: dict[str, dict[str, float]] = {name: {} for name in models}
    ratios: dict[str, dict[str, float]] = {name: {} for name in models}
    for kind, (data, config) in damage.items():
        targets, inputs = samples(data, config, settings, factors[0])
        for name, model in models.items():
            distances[name][kind], ratios[name][kind] = score(model, targets, inputs, lpips)
    for line in (*table("LPIPS", 4, distances), "", *table("PSNR-Y", 2, ratios)):
        say(line)
    return 0


if __name__ == "__main__":
    run_program(main)
