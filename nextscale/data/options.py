"""Which crops of photographs become training data. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from nextscale.errors import check_values


@dataclass(frozen=True)
class PackOptions:
    """Which crops of photographs become training data, and how they are written.

    Raises:
        OptionError: a value is out of range; the message names the option and the range.
    """

    side: int = 512
    """Side of the crops in pixels, a multiple of 4."""
    shard_mb: float = 12.0
    """Largest size of a shard in megabytes (10^6 bytes)."""
    per_photo: int = 4
    """At most this many crops of one photograph."""
    min_sharpness: float = 0.65
    """Finest detail over that of twice the size: about 0.7 to 1.2 where a photograph is sharp, 0.5 where it is blurred,
    2 in pure noise."""
    min_detail: float = 1.0
    """Crops with less fine detail than this, in 8-bit levels, are flat and left out."""
    near: int = 4
    """Crops and photographs whose 64-bit hashes differ by at most this many bits are duplicates."""
    quality: int = 95
    """Quality of the JPEG files, which are written without chroma subsampling."""
    source: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Where all the photographs come from (default: what stands beside each, else its folder's name)."""
    license: Annotated[str | None, tyro.conf.arg(metavar="TEXT", aliases=["--licence"])] = None
    """The license of all the photographs (default: what stands beside each)."""
    seed: int = 0
    """Seed of the order of crops."""

    def __post_init__(self) -> None:
        checks = [
            ("side", self.side >= 32 and self.side % 4 == 0, "a multiple of 4 from 32"),
            ("shard_mb", self.shard_mb > 0, "above 0"),
            ("per_photo", self.per_photo >= 1, "1 or more"),
            ("min_sharpness", self.min_sharpness >= 0, "0 or more"),
            ("min_detail", self.min_detail >= 0, "0 or more"),
            ("near", 0 <= self.near < 64, "from 0 to 63"),
            ("quality", 1 <= self.quality <= 100, "from 1 to 100"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
        check_values(self, checks)
