"""The options of evaluation, and the lists of names and factors that they take. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from nextscale.errors import OptionError

UNREFERENCED = ("musiq", "maniqa", "clipiqa")
"""Metrics of a picture alone that pyiqa computes, where it is installed."""
METRICS = ("psnr", "ssim", "lpips", "dists", "fid", "niqe", *UNREFERENCED)


def split_words(words: Sequence[str]) -> tuple[str, ...]:
    """`psnr,ssim lpips` as the command line gives it -> psnr, ssim, lpips, each once."""
    return tuple(dict.fromkeys(word for text in words for word in text.split(",") if word))


Names = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME[,NAME ...]",
        instance_from_str=lambda words: split_words(words),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
        str_from_instance=lambda names: [",".join(names)],
    ),
]
Factors = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="+",
        metavar="F[,F ...]",
        instance_from_str=lambda words: tuple(map(float, split_words(words))),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, float | int) for item in value),
        str_from_instance=lambda factors: [",".join(f"{factor:g}" for factor in factors)],
    ),
]


@dataclass(frozen=True)
class ScoreOptions:
    """How restored pictures are compared with true ones.

    Raises:
        OptionError: a metric is unknown or a value out of range.
    """

    metrics: Names = ("psnr", "ssim", "lpips")
    """Some of psnr, ssim, lpips, dists, fid, niqe, with spaces or commas between them; and of musiq, maniqa, clipiqa,
    which need pyiqa."""
    channel: Literal["y", "rgb"] = "y"
    """PSNR and SSIM of the luma, or of the three colors."""
    border: int = 0
    """Pixels at every edge that PSNR, SSIM and NIQE leave out."""
    lpips_net: Literal["alex", "squeeze", "vgg"] = "alex"
    """The network of LPIPS."""
    download: bool = False
    """Fetch official weights of metrics that are nowhere on this machine, checked by their sha256."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise OptionError(f"metrics must be some of {' '.join(METRICS)}, got {' '.join(unknown) or 'none'}")
        if self.border < 0:
            raise OptionError(f"border must be 0 or more, got {self.border}")


@dataclass(frozen=True)
class BenchOptions:
    """Which pictures of a set are restored, to which factors, and beside whom.

    Raises:
        OptionError: a factor is not a number above 0, or a value is out of range.
    """

    factors: Factors = (1.0, 2.0, 4.0)
    """Factors to score; those below the set's are scored against the area mean of HR."""
    bench_factor: int = 4
    """How many times HR is as large as LR."""
    peers: Names = ("bicubic", "lanczos")
    """Methods to compare with (give the option without a value for none)."""
    limit: int = 0
    """Only the first pictures by name (0: all)."""
    crop: bool = False
    """Cut HR that is up to bench-factor - 1 pixels too wide or high, right and below."""
    pictures: bool = False
    """Keep the restored pictures as files."""

    def __post_init__(self) -> None:
        if self.bench_factor < 1 or self.limit < 0:
            raise OptionError("bench-factor must be 1 or more, limit 0 or more")
        for factor in self.factors or (0.0,):
            if factor <= 0 or self.bench_factor % factor:
                raise OptionError(f"factors must divide the set's, {self.bench_factor}; got {factor:g}")
