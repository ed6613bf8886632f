"""Scores of restorers on held-back photographs, by kind of damage: to choose between trainings.

    python benchmarks/held_back.py DATA [--models tiny run/restorer/model ...] [--pages PAGES] [--crops 16] [--side 64]

DATA is a folder, shard or glob of photographs that no training saw. Each kind of damage gets the same crops for every
model. The table has LPIPS-alex at the largest factor, whose weights NEXTSCALE_WEIGHTS names, its mean over the kinds,
and the mean PSNR-Y. VAL and REALSR stay for reports: what is chosen on them cannot be reported on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
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


@dataclass(frozen=True)
class Settings:
    """Scores of restorers on held-back photographs."""

    data: tyro.conf.Positional[str]
    """Photographs that no training saw: a folder, a .tar shard or a glob."""
    models: tuple[str, ...] = ("tiny",)
    """Restorers, by themselves or in whole models: folders or shipped names."""
    pages: str = ""
    """Rendered pages (`nextscale data pages`), for scans of letters."""
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
    stream = Samples(Crops([data], settings.side * factor, seed=settings.seed), None, None, alone)
    targets, inputs = zip(*(stream[place][:2] for place in range(settings.crops)), strict=True)
    return torch.stack(targets), torch.stack(inputs)


@torch.inference_mode()
def score(restorer: Restorer, targets: Tensor, inputs: Tensor, lpips: torch.nn.Module) -> tuple[float, float]:
    """Mean LPIPS and PSNR-Y (dB) at the largest factor of targets N 3 H H and inputs N 3 h h in [-1, 1]."""
    factor = restorer.config.factors[-1]
    distances, ratios = [], []
    for target, image in zip(targets[:, None], inputs[:, None], strict=True):
        picture = restorer.draft(restorer.features(image, factors=(factor,)), image, factor).clamp(-1, 1)
        distances.append(float(lpips(picture, target)))
        ratios.append(float(psnr(picture / 2 + 0.5, target / 2 + 0.5)))
    return sum(distances) / len(distances), sum(ratios) / len(ratios)


def table(
    names: Sequence[str], kinds: Sequence[str], scores: Mapping[tuple[str, str], tuple[float, float]]
) -> list[str]:
    """A row for each model, a column for each kind of damage."""
    lines = [f"| model | {' | '.join(kinds)} | mean | PSNR-Y |", "| --- " * (len(kinds) + 3) + "|"]
    for name in names:
        distances, ratios = zip(*(scores[name, kind] for kind in kinds), strict=True)
        cells = [f"{value:.4f}" for value in (*distances, sum(distances) / len(kinds))]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(ratios) / len(kinds):.2f} |")
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
    scores: dict[tuple[str, str], tuple[float, float]] = {}
    for kind, (data, config) in damage.items():
        targets, inputs = samples(data, config, settings, factors[0])
        scores |= {(name, kind): score(restorer, targets, inputs, lpips) for name, restorer in restorers.items()}
    for line in table(list(restorers), list(damage), scores):
        say(line)
    return 0


if __name__ == "__main__":
    run_program(main)
