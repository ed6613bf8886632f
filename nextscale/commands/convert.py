"""The `nextscale convert` command: plain settings, free of torch until it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nextscale.console import say


@dataclass(frozen=True)
class Convert:
    """Convert an official checkpoint of VAR, Switti, Real-ESRGAN or TAESD to a model folder."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A .pth or .safetensors file; of TAESD the encoder's, with the decoder's beside it."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to write."""
    origin: Annotated[Literal["var", "switti", "varsr", "realesrgan", "taesd"], tyro.conf.arg(name="from")]
    """Whose checkpoint it is."""
    part: Literal["tokenizer", "transformer", "restorer"] = "tokenizer"
    """Which part of it."""
    steps: Annotated[str | None, tyro.conf.arg(metavar="SIDES")] = None
    """Sides of a one-stage ladder, e.g. 1,2,3,4 (default: the preset's hierarchical ladder)."""
    noisy: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """For a restorer: the same network's weights that keep the noise (realesr-general-wdn-x4v3), the other end of the
    denoise dial."""

    def run(self) -> int:
        from nextscale.model.convert import convert

        for line in convert(self.source, self.target, self.origin, self.part, steps=self.steps, noisy=self.noisy):
            say(line)
        return 0
