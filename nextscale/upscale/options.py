"""The options of upscaling, sampling, packing, evaluation, timing: each one dataclass for API and CLI. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from nextscale.errors import OptionError
from nextscale.model.config import SamplingOptions

InputClass = Literal["degraded", "clean"]
ColorFix = Literal["wavelet", "adain", "none"]


@dataclass(frozen=True)
class UpscaleOptions:
    """How a photograph is restored.

    Raises:
        OptionError: a value is out of range; the message names the option and the range.
    """

    scale: Annotated[float, tyro.conf.arg(aliases=["-s"])] = 4.0
    """Enlargement, any number above 0: the next native factor (1, 2, 4), then an exact resize; above 4 the model runs
    again on its own result."""
    all_factors: bool = False
    """Give every smaller native factor (1, 2, 4), too."""
    confidence: bool = False
    """Give the map of the expected error, too: the value of each pixel says by how many 8-bit levels the result may be
    off there (models without a fusion: bright where the codes are sure, dark where they are guessed)."""
    fidelity: float = 1.0
    """0: the picture as the codes alone describe it; 1: keep most of the input."""
    denoise: float = 1.0
    """How much of the input's noise to remove: 0 keeps grain and texture, 1 removes noise and compression."""
    fast: bool = False
    """The restorer alone: no codes, no confidence map, a fraction of the time."""
    seed: int = 0
    """Seed of the draws at a temperature above 0; the same seed gives the same bytes."""
    temperature: float = 0.0
    """0 chooses the likeliest code; 1 draws from the model's own distribution."""
    top_k: int = 0
    """Draw among the k likeliest codes only (0: all)."""
    top_p: float = 0.0
    """Draw among the likeliest codes of this total probability only (0: all)."""
    cfg: float = 0.0
    """Guidance towards the input class (0: off); doubles the work."""
    input: InputClass = "degraded"
    """What the photograph is: degraded (blur, noise, compression) or clean (only small)."""
    tile: Annotated[int, tyro.conf.arg(aliases=["-t"])] = 0
    """Side in input pixels of the tiles that the model sees (0: its own)."""
    tile_overlap: int = 24
    """Input pixels that neighbouring tiles share."""
    tile_batch: int = 4
    """Tiles per pass; halved by itself when memory runs out."""
    color_fix: ColorFix = "wavelet"
    """Keep the input's colours: wavelet (its low frequencies), adain (its mean and spread) or none."""

    def __post_init__(self) -> None:
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
            ("input", self.input in ("degraded", "clean"), "degraded or clean"),
            ("color_fix", self.color_fix in ("wavelet", "adain", "none"), "wavelet, adain or none"),
        ]
        for name, good, allowed in checks:
            if not good:
                raise OptionError(f"{name.replace('_', '-')} must be {allowed}, got {getattr(self, name)}")
        if self.fast and self.confidence:
            raise OptionError("--fast makes no confidence map, which needs the codes; leave out one of the two")
        if self.fast and self.fidelity < 1:
            raise OptionError("--fast has no codes for --fidelity to turn to; leave out one of the two")

    @property
    def sampling(self) -> SamplingOptions:
        return SamplingOptions(self.temperature, self.top_k, self.top_p, self.cfg)

    def factors(self, native: tuple[float, ...]) -> list[float]:
        """The factors of the results that a model of these native factors gives, in rising order."""
        smaller = [f for f in native if f < self.scale] if self.all_factors else []
        return [*sorted(smaller), self.scale]


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
    """Crops of one photograph at most."""
    min_sharpness: float = 0.65
    """Finest detail over that of twice the size: about 0.7 to 1.2 where a photograph is sharp, 0.5 where it is blurred,
    2 in pure noise."""
    min_detail: float = 1.0
    """Finest detail in 8-bit levels, below which a crop is flat."""
    near: int = 4
    """Crops and photographs whose 64-bit hashes differ by so many bits or fewer are the same."""
    quality: int = 95
    """Of the JPEG files, which keep full colour resolution."""
    source: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Where all the photographs come from (default: what stands beside each, else its folder's name)."""
    licence: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """The licence of all the photographs (default: what stands beside each)."""
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
        for name, good, allowed in checks:
            if not good:
                raise OptionError(f"{name.replace('_', '-')} must be {allowed}, got {getattr(self, name)}")


METRICS = ("psnr", "ssim", "lpips", "fid", "niqe")


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
    """Some of psnr, ssim, lpips, fid, niqe, with spaces or commas between them."""
    channel: Literal["y", "rgb"] = "y"
    """PSNR and SSIM of the luma, or of the three colours."""
    border: int = 0
    """Pixels at every edge that PSNR, SSIM and NIQE leave out."""
    lpips_net: Literal["alex", "squeeze", "vgg"] = "alex"
    """The network of LPIPS."""

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
        OptionError: a factor is none, or a value is out of range.
    """

    factors: Factors = (1.0, 2.0, 4.0)
    """Factors to score; those below the set's are scored against the area mean of HR."""
    bench_factor: int = 4
    """How many times HR is as large as LR."""
    peers: Names = ("bicubic", "lanczos")
    """Methods for rows beside the model's; none after the option for no others."""
    limit: int = 0
    """Only the first pictures by name (0: all)."""
    crop: bool = False
    """Cut HR that is up to bench-factor - 1 pixels too wide or high, right and below."""
    pictures: bool = False
    """Keep the restored pictures, too."""

    def __post_init__(self) -> None:
        if self.bench_factor < 1 or self.limit < 0:
            raise OptionError("bench-factor must be 1 or more, limit 0 or more")
        for factor in self.factors or (0.0,):
            if factor <= 0 or self.bench_factor % factor:
                raise OptionError(f"factors must divide the set's, {self.bench_factor}; got {factor:g}")
