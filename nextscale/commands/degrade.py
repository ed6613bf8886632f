"""The `nextscale degrade` command: plain settings, free of torch until it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nextscale.console import complain, say
from nextscale.errors import OptionError


@dataclass(frozen=True)
class Degrade:
    """Generate degraded low-resolution inputs: nextscale degrade -i PHOTOS -o LR --preset stablesr --seed 0"""

    pictures: Annotated[Path, tyro.conf.arg(aliases=["-i"], metavar="DIR")]
    """A folder of photographs; its subfolders count, too."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """A folder outside it (created) for a PNG of each photograph and the JSON of its recipe."""
    preset: Literal["x4plus", "stablesr", "camera", "fullsize", "compressed", "noisy", "scan", "clean", "bilinear"] = (
        "stablesr"
    )
    """Real-ESRGAN's degradation, StableSR's milder one, a camera's blur, the same and its sharpening, strong
    compression, strong noise, a scan's blur and compression, or a reduction only (by several filters, or bilinear)."""
    seed: int = 0
    """With the photograph's name in the folder it decides the recipe: the same seed gives the same bytes."""
    factor: int = 4
    """How many times smaller; photographs are cut to multiples of it."""
    recipes: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The output of an earlier run, whose recipes and factors to repeat instead of drawing some."""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also draw twenty of the results, enlarged to squares, with the main numbers of their recipes."""

    def run(self) -> int:
        from nextscale.data.degrade_folder import Plan, degrade_folder

        if self.recipes is not None:
            drawn = Plan()
            for name in ("preset", "seed", "factor"):
                if getattr(self, name) != getattr(drawn, name):
                    raise OptionError(f"--recipes repeats what was drawn before, --{name} included; leave it out")
        plan = Plan(self.preset, self.seed, self.factor, self.recipes)
        failed = 0
        for outcome in degrade_folder(self.pictures, self.output, plan, sheet=self.sheet):
            if outcome.error:
                failed += 1
                complain(f"{outcome.photo}: {outcome.error}")
            else:
                (width, height), (new_width, new_height) = outcome.size, outcome.lr_size
                say(f"{outcome.photo}: {width} x {height} -> {new_width} x {new_height} -> {outcome.lr}")
        return 1 if failed else 0
