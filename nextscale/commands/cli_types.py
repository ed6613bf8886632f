"""What the command line adds to options that know nothing of it: short names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from nextscale.upscale.options import UpscaleOptions


@dataclass(frozen=True)
class UpscaleFlags(UpscaleOptions):
    """`UpscaleOptions`, with -s and -t for the two that are given most."""

    scale: Annotated[float, tyro.conf.arg(aliases=["-s"])] = UpscaleOptions.scale
    """Enlargement, any number above 0: the next native factor (1, 2, 4), then an exact resize; above 5 the model runs
    again on its own result, up to x64."""
    tile: Annotated[int, tyro.conf.arg(aliases=["-t"])] = UpscaleOptions.tile
    """Side in input pixels of the tiles that the model sees (0: its own)."""


@dataclass(frozen=True)
class BenchFlags(UpscaleFlags):
    """`UpscaleFlags`, where some follow from the factors to score."""

    scale: Annotated[float, tyro.conf.arg(aliases=["-s"])] = UpscaleOptions.scale
    """Refused here: --factors says it."""
    all_factors: bool = UpscaleOptions.all_factors
    """Refused here: --factors says it."""
    confidence: bool = UpscaleOptions.confidence
    """Refused here: `reproduce report confidence` scores it."""
