"""The options of upscaling: one plain dataclass for the API, the commands and the page. Torch-free."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal

from nextscale.errors import OptionError, check_type, check_values
from nextscale.model.config import SamplingOptions

InputClass = Literal["degraded", "clean"]
ColorFix = Literal["auto", "wavelet", "adain", "none"]
STRETCH = 1.25
"""By how much the result of a model's largest factor is enlarged plainly rather than by another pass."""
MOST_PASSES = 3
"""Passes of the model at most: a tile of a fourth would show two pixels of the photograph, with nothing to restore."""


@dataclass(frozen=True)
class UpscaleOptions:
    """How a photograph is restored.

    Raises:
        OptionError: a value is out of range; the message names the option and the range.
    """

    scale: float = 4.0
    """Enlargement, any number above 0: the next native factor (1, 2, 4), then an exact resize; above 5 the model runs
    again on its own result, up to x64."""
    all_factors: bool = False
    """Give every smaller native factor (1, 2, 4), too."""
    confidence: bool = False
    """Give the map of the expected error, too: the value of each pixel says by how many 8-bit levels the result may be
    off there (models without a fusion: bright where the codes are sure, dark where they are guessed)."""
    fidelity: float = 1.0
    """1: the picture of restorer and fusion, nearest to the input; 0: the picture that the codes alone describe."""
    denoise: float = 1.0
    """How much of the input's noise to remove: 1 all of it, 0 none, so that grain stays; blur and compression go
    either way."""
    fast: bool = False
    """The restorer alone: no codes, no confidence map, a fraction of the time."""
    seed: int = 0
    """Seed of the draws at a temperature above 0; the same seed gives the same bytes."""
    temperature: float = 0.0
    """0: greedy, the likeliest code; above 0: sample (1: from the model's own distribution)."""
    top_k: int = 0
    """Draw among the k likeliest codes only (0: all)."""
    top_p: float = 0.0
    """Draw among the likeliest codes of this total probability only (0: all)."""
    cfg: float = 0.0
    """Guidance towards the input class (0: off); doubles the work."""
    input_class: InputClass = "degraded"
    """What the photograph is: degraded (blur, noise, compression) or clean (only small)."""
    tile: int = 0
    """Side in input pixels of the tiles that the model sees (0: its own)."""
    tile_overlap: int = 24
    """Input pixels that neighboring tiles share."""
    tile_batch: int = 4
    """Tiles per pass; halved by itself when memory runs out."""
    color_fix: ColorFix = "auto"
    """Keep the input's colors: wavelet (its low frequencies), adain (its mean and spread), none, or auto: none where
    the restorer keeps them (fidelity 1), else wavelet."""

    def __post_init__(self) -> None:
        for name in ("scale", "fidelity", "denoise", "temperature", "top_p", "cfg"):
            check_type(self, name, numbers.Real, "a number")
        for name in ("seed", "top_k", "tile", "tile_overlap", "tile_batch"):
            check_type(self, name, numbers.Integral, "a whole number")
        checks = [
            ("scale", 0 < self.scale <= 100_000, "above 0 (and at most 100000)"),
            ("fidelity", 0 <= self.fidelity <= 1, "in [0, 1]"),
            ("denoise", 0 <= self.denoise <= 1, "in [0, 1]"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
            ("temperature", 0 <= self.temperature <= 10, "in [0, 10]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 <= self.top_p <= 1, "in [0, 1]"),
            ("cfg", 0 <= self.cfg <= 20, "in [0, 20]"),
            ("tile", self.tile >= 0, "0 or more"),
            ("tile_overlap", self.tile_overlap >= 0, "0 or more"),
            ("tile_batch", self.tile_batch >= 1, "1 or more"),
            ("input_class", self.input_class in ("degraded", "clean"), "degraded or clean"),
            ("color_fix", self.color_fix in ("auto", "wavelet", "adain", "none"), "auto, wavelet, adain or none"),
        ]
        check_values(self, checks)
        if self.fast and self.confidence:
            raise OptionError("--fast makes no confidence map, which needs the codes; leave out one of the two")
        if self.fast and self.fidelity < 1:
            raise OptionError("--fast has no codes for --fidelity to turn to; leave out one of the two")

    def changed(self, **changes: Any) -> UpscaleOptions:
        """The same options but for some: changed(scale=2).

        Raises:
            OptionError: there is no such option, or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise OptionError(f"there is no option {name}; {remedy}")
        return dataclasses.replace(self, **changes)

    @property
    def sampling(self) -> SamplingOptions:
        return SamplingOptions(self.temperature, self.top_k, self.top_p, self.cfg)

    def factors(self, native: tuple[float, ...]) -> list[float]:
        """The factors of the results that a model of these native factors gives, in rising order."""
        # Results are named by `:g`: beside a scale of 2.0000001 there is no other x2.
        smaller = [f for f in native if f < self.scale and f"{f:g}" != f"{self.scale:g}"] if self.all_factors else []
        return [*sorted(smaller), self.scale]


def cascade(scale: float, factors: tuple[float, ...]) -> list[float]:
    """The native factor of each pass on the way to a scale; an exact resize does the rest.

    Up to the largest factor, and a little beyond it (`STRETCH`), one pass. Above, as few as reach the scale, at most
    `MOST_PASSES`, the smallest factor first: a pass costs as much as its input is large. What the first one gives is
    reduced so that the last one comes out at the scale (`plan.plan_work`).
    """
    top = max(factors)
    if scale <= top * STRETCH or top <= 1:
        return [min((f for f in factors if f >= scale), default=top)]
    passes = 2
    while passes < MOST_PASSES and scale > top**passes * STRETCH:
        passes += 1
    least = min(scale, top**passes) / top ** (passes - 1)
    return [min(f for f in factors if f >= least), *[top] * (passes - 1)]


def output_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) times a scale, halves rounded up, at least one pixel."""
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return width, height
