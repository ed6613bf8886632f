"""The `nextscale convert` command: plain settings, free of torch until it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nextscale.console import say


@dataclass(frozen=True)
class Convert:
    """Convert an official checkpoint of VAR, Switti or Real-ESRGAN to a model folder."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A .pth or .safetensors file."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to write."""
    origin: Annotated[Literal["var", "switti", "varsr", "realesrgan"], tyro.conf.arg(name="from")]
    """Whose checkpoint it is."""
    part: Literal["tokenizer", "transformer", "restorer"] = "tokenizer"
    """Which part of it."""
    steps: Annotated[str | None, tyro.conf.arg(metavar="SIDES")] = None
    """Sides of a one-stage ladder, e.g. 1,2,3,4 (default: the preset's hierarchical ladder)."""

    def run(self) -> int:
        from nextscale.model.convert import convert

        for line in convert(self.source, self.target, self.origin, self.part, steps=self.steps):
            say(line)
        return 0
