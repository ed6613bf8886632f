"""HR photographs -> realistic low-resolution inputs, in two parts: a sampled recipe, then the operations.

A `Recipe` is plain data that holds every random choice made for one photograph; `sample_recipes` draws it from a
`Preset` of ranges, `degrade` applies a list of them to a batch. The order and the numbers are those of the second-order
degradation of Real-ESRGAN (Wang et al. 2021): [blur, resize, noise, JPEG] twice, where the second JPEG comes before or
after the final resize and its ringing (sinc) filter.

Shape suffixes: B batch, C channels, H W pixels, k kernel side, N blocks of 8x8 pixels.
"""

from __future__ import annotations

import functools
import io
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextscale.errors import ModelError, OptionError
from nextscale.image.luma import BT601
from nextscale.model.config_io import ADDED, ALIASES, from_dict, to_dict

FACTOR = 4
"""Default factor: HR side over LR side."""

BLUR_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
KERNEL_KINDS = (*BLUR_KINDS, "sinc")
KERNEL_SIZES = tuple(range(7, 22, 2))
RESIZE_FILTERS = ("area", "bilinear", "bicubic")
NOISE_KINDS = ("gaussian", "poisson", "coarse")
CODECS = ("jpeg", "webp")

Range = tuple[float, float]
_T = TypeVar("_T")

BAND = 2**25
"""Images of more values than this are filtered and compressed in bands of rows, to bound the memory."""


# Presets: ranges and probabilities


@dataclass(frozen=True)
class PassRanges:
    """What one pass of blur, resize, noise and JPEG is drawn from."""

    blur_prob: float
    sinc_prob: float
    """Probability that the blur kernel is a sinc filter."""
    blur_sigma: Range
    generalized_beta: Range
    plateau_beta: Range
    resize_probs: tuple[float, ...]
    """Of enlarging, of shrinking, of keeping the size."""
    resize_scale: Range
    noise_sigma: Range
    """Of Gaussian noise, in 8-bit levels."""
    poisson_scale: Range
    jpeg_quality: Range
    gaussian_prob: float = 0.5
    """Probability of Gaussian noise; otherwise it is Poisson noise."""
    gray_prob: float = 0.4
    """Probability that the three channels share their noise."""
    blur_probs: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Of each of BLUR_KINDS."""
    coarse_prob: float = 0.0
    """Probability that Gaussian noise has grains of several pixels, as a phone's denoiser leaves them."""


@dataclass(frozen=True)
class Preset:
    """The distribution of recipes."""

    name: str
    first: PassRanges | None
    second: PassRanges | None
    final_filters: tuple[str, ...] = RESIZE_FILTERS
    final_sinc_prob: float = 0.8
    sinc_first_prob: float = 0.5
    """Probability that the final resize and sinc filter come before the second JPEG."""
    clean_prob: float = 0.0
    """Probability of no degradation but an exact area mean."""
    recompress_prob: float = 0.0
    """Probability of a last compression at the LR size, on a block grid that may be shifted."""
    recompress_quality: Range = (20.0, 70.0)
    webp_prob: float = 0.0
    """Probability that the last compression is WebP instead of JPEG."""
    dark_prob: float = 0.0
    """Probability of too little light: input and target get darker alike, the noise does not."""
    exposure: Range = (0.25, 0.8)
    """Range of the factor by which too little light reduces the values."""
    unsharp_prob: float = 0.0
    """Probability of an unsharp mask at the LR size, before a last compression."""
    unsharp_sigma: Range = (0.5, 1.2)
    """Of the mask's blur, in pixels of the input."""
    unsharp_amount: Range = (0.2, 1.6)
    enlarged: Range | None = None
    """How many times training enlarges a part of the photograph before it is degraded: the target is then as soft to
    the pixel as such photographs are. None leaves that to the training's `soft`."""


X4PLUS = Preset(
    name="x4plus",
    first=PassRanges(
        blur_prob=1.0,
        sinc_prob=0.1,
        blur_sigma=(0.2, 3.0),
        generalized_beta=(0.5, 4.0),
        plateau_beta=(1.0, 2.0),
        resize_probs=(0.2, 0.7, 0.1),
        resize_scale=(0.15, 1.5),
        noise_sigma=(1.0, 30.0),
        poisson_scale=(0.05, 3.0),
        jpeg_quality=(30.0, 95.0),
    ),
    second=PassRanges(
        blur_prob=0.8,
        sinc_prob=0.1,
        blur_sigma=(0.2, 1.5),
        generalized_beta=(0.5, 4.0),
        plateau_beta=(1.0, 2.0),
        resize_probs=(0.3, 0.4, 0.3),
        resize_scale=(0.3, 1.2),
        noise_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
        jpeg_quality=(30.0, 95.0),
    ),
)
"""Real-ESRGAN x4plus: strong."""

STABLESR = Preset(
    name="stablesr",
    first=PassRanges(
        blur_prob=1.0,
        sinc_prob=0.1,
        blur_sigma=(0.2, 1.5),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=(0.2, 0.7, 0.1),
        resize_scale=(0.3, 1.5),
        noise_sigma=(1.0, 15.0),
        poisson_scale=(0.05, 2.0),
        jpeg_quality=(60.0, 95.0),
    ),
    second=PassRanges(
        blur_prob=0.5,
        sinc_prob=0.1,
        blur_sigma=(0.2, 1.0),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=(0.3, 0.4, 0.3),
        resize_scale=(0.6, 1.2),
        noise_sigma=(1.0, 12.0),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60.0, 100.0),
    ),
    clean_prob=0.01,
)
"""StableSR at 512: milder."""

CAMERA = Preset(
    name="camera",
    first=PassRanges(
        blur_prob=1.0,
        sinc_prob=0.05,
        blur_sigma=(1.0, 3.5),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=(0.0, 0.0, 1.0),
        resize_scale=(1.0, 1.0),
        noise_sigma=(0.0, 3.0),
        poisson_scale=(0.0, 0.2),
        jpeg_quality=(92.0, 100.0),
    ),
    second=None,
    final_filters=("area", "bicubic"),
    final_sinc_prob=0.0,
)
"""A camera's picture as it is: the lens's blur, little noise, hardly compressed."""

FULLSIZE = replace(CAMERA, name="fullsize", unsharp_prob=0.75, enlarged=(1.2, 2.6))
"""A camera's picture at full size: soft to the pixel, as lens and color filter leave it, and then sharpened by the
camera itself."""

BILINEAR = Preset("bilinear", None, None, final_filters=("bilinear",), final_sinc_prob=0.0)
"""Bilinear x1/4 and nothing else: the class of clean inputs."""

CLEAN = Preset("clean", None, None, final_filters=("area", "area", "bilinear"), final_sinc_prob=0.0)
"""A small picture of good quality, which a restorer must leave as it is."""

_LR_SIZE = (0.0, 0.0, 1.0)
"""Probabilities of enlarging, shrinking, keeping: the second pass at exactly the LR size."""

COMPRESSED = Preset(
    name="compressed",
    first=PassRanges(
        blur_prob=0.5,
        sinc_prob=0.1,
        blur_sigma=(0.2, 2.0),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=_LR_SIZE,
        resize_scale=(1.0, 1.0),
        noise_sigma=(0.0, 6.0),
        poisson_scale=(0.0, 0.5),
        jpeg_quality=(80.0, 100.0),
    ),
    second=PassRanges(
        blur_prob=0.2,
        sinc_prob=0.3,
        blur_sigma=(0.2, 0.8),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=_LR_SIZE,
        resize_scale=(1.0, 1.0),
        noise_sigma=(0.0, 3.0),
        poisson_scale=(0.0, 0.2),
        jpeg_quality=(20.0, 75.0),
    ),
    final_sinc_prob=0.0,
    sinc_first_prob=1.0,
    recompress_prob=0.5,
    webp_prob=0.4,
)
"""A picture that messengers and sites have compressed strongly, often twice."""

NOISY = Preset(
    name="noisy",
    first=PassRanges(
        blur_prob=0.6,
        sinc_prob=0.05,
        blur_sigma=(0.2, 2.0),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=_LR_SIZE,
        resize_scale=(1.0, 1.0),
        noise_sigma=(0.0, 4.0),
        poisson_scale=(0.0, 0.5),
        jpeg_quality=(90.0, 100.0),
    ),
    second=PassRanges(
        blur_prob=0.0,
        sinc_prob=0.0,
        blur_sigma=(0.2, 0.8),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=_LR_SIZE,
        resize_scale=(1.0, 1.0),
        noise_sigma=(2.0, 30.0),
        poisson_scale=(0.5, 3.0),
        jpeg_quality=(60.0, 100.0),
        gaussian_prob=0.75,
        gray_prob=0.25,
        coarse_prob=0.3,
    ),
    final_sinc_prob=0.0,
    sinc_first_prob=1.0,
    dark_prob=0.4,
)
"""Strong noise of a small sensor or of too little light, at the size of the input."""

SCAN = Preset(
    name="scan",
    first=None,
    second=PassRanges(
        blur_prob=0.75,
        sinc_prob=0.0,
        blur_sigma=(1.0, 5.0),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_probs=_LR_SIZE,
        resize_scale=(1.0, 1.0),
        noise_sigma=(0.0, 10.0),
        poisson_scale=(0.0, 0.5),
        jpeg_quality=(25.0, 95.0),
        coarse_prob=0.5,
    ),
    final_sinc_prob=0.0,
    sinc_first_prob=1.0,
    recompress_prob=0.2,
)
"""A page or a sign that was scanned, photographed or enlarged: blurred over pixels of the input, then compressed."""

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {p.name: p for p in (X4PLUS, STABLESR, CAMERA, FULLSIZE, COMPRESSED, NOISY, SCAN, CLEAN, BILINEAR)}
)


def check_presets(names: Sequence[str]) -> None:
    """Refuse names that no preset has, and none at all.

    Raises:
        OptionError: naming the first unknown one, and the known ones.
    """
    unknown = [name for name in names if name not in PRESETS]
    if unknown or not names:
        what = f"unknown preset {unknown[0]!r}" if unknown else "no preset of degradations is named"
        raise OptionError(f"{what} (known: {', '.join(PRESETS)})")


# Recipes: every choice made for one photograph


@dataclass(frozen=True)
class KernelSpec:
    """A blur kernel (sigmas, rotation, beta) or a sinc filter (cutoff); what a kind does not use is 0."""

    kind: str
    size: int
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    rotation: float = 0.0
    beta: float = 0.0
    cutoff: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("kernel kind", self.kind, KERNEL_KINDS)
        if self.size < 1 or self.size % 2 == 0:
            raise OptionError(f"a kernel's size must be odd and positive, got {self.size}")
        needed = ["cutoff"] if self.kind == "sinc" else ["sigma_x", "sigma_y"]
        needed += ["beta"] * self.kind.startswith(("generalized", "plateau"))
        for name in needed:
            if getattr(self, name) <= 0:
                raise OptionError(f"a kernel of the kind {self.kind} needs a {name} above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class NoiseSpec:
    """Noise of one kind; `strength` is the sigma in 8-bit levels (Gaussian) or the scale (Poisson)."""

    kind: str
    strength: float
    gray: bool
    seed: int

    def __post_init__(self) -> None:
        _check_choice("noise kind", self.kind, NOISE_KINDS)
        if self.strength < 0 or not 0 <= self.seed < 2**32:
            raise OptionError(f"noise needs a strength from 0 and a 32-bit seed, got {self.strength} and {self.seed}")


@dataclass(frozen=True)
class PassSpec:
    """One pass: blur, resize, noise, JPEG, in this order; None leaves an operation out."""

    blur: KernelSpec | None
    resize_scale: float
    """Of the HR side in the first pass, of the LR side in the second."""
    resize_filter: str
    noise: NoiseSpec | None
    jpeg_quality: float | None

    def __post_init__(self) -> None:
        _check_choice("resize filter", self.resize_filter, RESIZE_FILTERS)
        if self.resize_scale <= 0:
            raise OptionError(f"a resize scale must be above 0, got {self.resize_scale}")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise OptionError(f"a JPEG quality lies in 1..100, got {self.jpeg_quality}")


@dataclass(frozen=True)
class CompressSpec:
    """A last compression at the LR size; its block grid starts `shift_y` rows and `shift_x` columns inside."""

    codec: str
    quality: float
    shift_y: int = 0
    shift_x: int = 0

    def __post_init__(self) -> None:
        _check_choice("codec", self.codec, CODECS)
        if not 1 <= self.quality <= 100 or not (0 <= self.shift_y < 8 and 0 <= self.shift_x < 8):
            raise OptionError(f"a compression needs a quality in 1..100 and shifts in 0..7, got {self}")


@dataclass(frozen=True)
class UnsharpSpec:
    """An unsharp mask: the picture plus `amount` of what a Gaussian blur of `sigma` pixels takes away."""

    sigma: float
    amount: float

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.amount < 0:
            raise OptionError(f"an unsharp mask needs a sigma above 0 and an amount from 0, got {self}")


@dataclass(frozen=True)
class Recipe:
    """How one photograph is degraded: the same recipe on the same pixels gives the same bytes."""

    preset: str
    first: PassSpec | None
    second: PassSpec | None
    final_filter: str
    """Filter of the resize to the LR size."""
    final_sinc: KernelSpec | None
    sinc_first: bool
    """Resize to the LR size and filter before the second JPEG (True) or after it."""
    recompress: CompressSpec | None = field(default=None, metadata=ADDED)
    exposure: float = field(default=1.0, metadata=ADDED)
    """Factor on the values of input and target alike."""
    unsharp: UnsharpSpec | None = field(default=None, metadata=ADDED)
    """Of the input at its size, before a last compression."""

    def __post_init__(self) -> None:
        _check_choice("resize filter", self.final_filter, RESIZE_FILTERS)
        if not 0 < self.exposure <= 1:
            raise OptionError(f"an exposure lies above 0 and up to 1, got {self.exposure}")

    def without_noise(self) -> Recipe:
        """The same without noise and compression."""

        def quiet(spec: PassSpec | None) -> PassSpec | None:
            return None if spec is None else replace(spec, noise=None, jpeg_quality=None)

        return replace(self, first=quiet(self.first), second=quiet(self.second), recompress=None)

    def without_compression(self) -> Recipe:
        """The same without JPEG and WebP."""

        def plain(spec: PassSpec | None) -> PassSpec | None:
            return None if spec is None else replace(spec, jpeg_quality=None)

        return replace(self, first=plain(self.first), second=plain(self.second), recompress=None)

    def to_json(self) -> str:
        """One line of JSON; what older recipes lack is left out where it does nothing, so that their lines stay."""
        data = to_dict(self)
        for added in fields(self):
            if added.metadata == ADDED and data[added.name] == added.default:
                del data[added.name]
        return json.dumps(data, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read `to_json`'s line strictly.

        Raises:
            OptionError: naming the unknown, missing or mistyped key.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant, object_hook=_with_todays_kind)
            return from_dict(cls, data, where="recipe")
        except json.JSONDecodeError as error:
            raise OptionError(f"a recipe is one line of JSON: {error}") from error
        except ModelError as error:
            raise OptionError(str(error)) from error


def _with_todays_kind(data: dict[str, Any]) -> dict[str, Any]:
    """An object of a recipe with an old name of a kernel's kind replaced."""
    kind = data.get("kind")
    return data | {"kind": ALIASES[kind]} if isinstance(kind, str) and kind in ALIASES else data


def _refuse_constant(constant: str) -> None:
    raise OptionError(f"a recipe holds finite numbers only, got {constant}")


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"unknown {what} {value!r} (known: {', '.join(known)})")


def sample_recipes(preset: Preset, count: int, rng: random.Random) -> list[Recipe]:
    """Draw `count` recipes.

    Only `rng.random()` is called, whose sequence Python keeps for a given seed in every version.
    """
    return [sample_recipe(preset, rng) for _ in range(count)]


def sample_recipe(preset: Preset, rng: random.Random) -> Recipe:
    """Draw one recipe."""
    if rng.random() < preset.clean_prob:
        return Recipe(preset.name, None, None, final_filter="area", final_sinc=None, sinc_first=False)
    return Recipe(
        preset=preset.name,
        first=_sample_pass(preset.first, rng),
        second=_sample_pass(preset.second, rng),
        final_filter=_choose(preset.final_filters, rng),
        final_sinc=_sample_sinc(math.pi / 3, rng) if rng.random() < preset.final_sinc_prob else None,
        sinc_first=rng.random() < preset.sinc_first_prob,
        recompress=_sample_compression(preset, rng),
        exposure=_uniform(preset.exposure, rng) if preset.dark_prob and rng.random() < preset.dark_prob else 1.0,
        unsharp=_sample_unsharp(preset, rng),
    )


def _sample_unsharp(preset: Preset, rng: random.Random) -> UnsharpSpec | None:
    if not preset.unsharp_prob or rng.random() >= preset.unsharp_prob:
        return None
    return UnsharpSpec(_uniform(preset.unsharp_sigma, rng), _uniform(preset.unsharp_amount, rng))


def _sample_compression(preset: Preset, rng: random.Random) -> CompressSpec | None:
    # A preset without it draws nothing, so that the recipes of older presets stay what they were.
    if not preset.recompress_prob or rng.random() >= preset.recompress_prob:
        return None
    codec = "webp" if rng.random() < preset.webp_prob else "jpeg"
    quality = _uniform(preset.recompress_quality, rng)
    return CompressSpec(codec, quality, shift_y=int(8 * rng.random()), shift_x=int(8 * rng.random()))


def _sample_pass(ranges: PassRanges | None, rng: random.Random) -> PassSpec | None:
    if ranges is None:
        return None
    return PassSpec(
        blur=_sample_blur(ranges, rng) if rng.random() < ranges.blur_prob else None,
        resize_scale=_sample_scale(ranges, rng),
        resize_filter=_choose(RESIZE_FILTERS, rng),
        noise=_sample_noise(ranges, rng),
        jpeg_quality=_uniform(ranges.jpeg_quality, rng),
    )


def _sample_blur(ranges: PassRanges, rng: random.Random) -> KernelSpec:
    if rng.random() < ranges.sinc_prob:
        return _sample_sinc(None, rng)
    kind = _choose(BLUR_KINDS, rng, ranges.blur_probs)
    size = _choose(KERNEL_SIZES, rng)
    sigma_x = _uniform(ranges.blur_sigma, rng)
    aniso = kind.endswith("aniso")
    sigma_y = _uniform(ranges.blur_sigma, rng) if aniso else sigma_x
    rotation = _uniform((-math.pi, math.pi), rng) if aniso else 0.0
    beta = 0.0
    if kind.startswith(("generalized", "plateau")):
        low, high = ranges.generalized_beta if kind.startswith("generalized") else ranges.plateau_beta
        beta = _uniform((low, 1.0) if rng.random() < 0.5 else (1.0, high), rng)
    return KernelSpec(kind, size, sigma_x, sigma_y, rotation, beta)


def _sample_sinc(lowest: float | None, rng: random.Random) -> KernelSpec:
    """A sinc filter; without `lowest` cutoff, it depends on the size."""
    size = _choose(KERNEL_SIZES, rng)
    if lowest is None:
        lowest = math.pi / 3 if size < 13 else math.pi / 5
    return KernelSpec("sinc", size, cutoff=_uniform((lowest, math.pi), rng))


def _sample_scale(ranges: PassRanges, rng: random.Random) -> float:
    low, high = ranges.resize_scale
    return _uniform(_choose(((1.0, high), (low, 1.0), (1.0, 1.0)), rng, ranges.resize_probs), rng)


def _sample_noise(ranges: PassRanges, rng: random.Random) -> NoiseSpec:
    kind = "gaussian" if rng.random() < ranges.gaussian_prob else "poisson"
    strength = _uniform(ranges.noise_sigma if kind == "gaussian" else ranges.poisson_scale, rng)
    if kind == "gaussian" and ranges.coarse_prob and rng.random() < ranges.coarse_prob:
        kind = "coarse"
    return NoiseSpec(kind, strength, gray=rng.random() < ranges.gray_prob, seed=int(rng.random() * 2**32))


def _uniform(bounds: Range, rng: random.Random) -> float:
    low, high = bounds
    return low + (high - low) * rng.random()


def _choose(options: Sequence[_T], rng: random.Random, probs: Sequence[float] | None = None) -> _T:
    draw = rng.random()
    if probs is None:
        return options[int(draw * len(options))]
    for option, prob in zip(options, probs, strict=True):
        draw -= prob
        if draw < 0:
            return option
    return options[-1]


# Kernels


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0) -> Tensor:
    """Gaussian exp(-q/2), k k in float64, of sum 1; `sigma_x` runs along the columns before the rotation."""
    return _normalized(torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, rotation)))


def generalized_gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0, *, beta: float
) -> Tensor:
    """Generalized Gaussian exp(-q^beta/2), k k in float64, of sum 1: beta < 1 has a sharper peak, > 1 a flatter top."""
    return _normalized(torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, rotation) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0, *, beta: float) -> Tensor:
    """Plateau 1/(1 + q^beta), k k in float64, of sum 1."""
    return _normalized(1 / (1 + _squared_distance(size, sigma_x, sigma_y, rotation) ** beta))


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Circular low-pass filter with the given cutoff in radians, k k in float64, of sum 1: it makes ringing."""
    x_kk, y_kk = _grid(size)
    radius_kk = torch.hypot(x_kk, y_kk)
    radius_kk[size // 2, size // 2] = 1.0
    kernel_kk = cutoff * torch.special.bessel_j1(cutoff * radius_kk) / (2 * math.pi * radius_kk)
    kernel_kk[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalized(kernel_kk)


def make_kernel(spec: KernelSpec) -> Tensor:
    """The kernel that a spec describes, k k in float64."""
    if spec.kind == "sinc":
        return sinc_kernel(spec.size, spec.cutoff)
    shape = (spec.size, spec.sigma_x, spec.sigma_y, spec.rotation)
    if spec.kind.startswith("generalized"):
        return generalized_gaussian_kernel(*shape, beta=spec.beta)
    if spec.kind.startswith("plateau"):
        return plateau_kernel(*shape, beta=spec.beta)
    return gaussian_kernel(*shape)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y_kk, x_kk = torch.meshgrid(axis, axis, indexing="ij")
    return x_kk, y_kk


def _squared_distance(size: int, sigma_x: float, sigma_y: float, rotation: float) -> Tensor:
    """q = p' S^-1 p for each pixel p, S the rotated covariance."""
    x_kk, y_kk = _grid(size)
    cos, sin = math.cos(rotation), math.sin(rotation)
    along_kk, across_kk = cos * x_kk + sin * y_kk, cos * y_kk - sin * x_kk
    return (along_kk / sigma_x) ** 2 + (across_kk / sigma_y) ** 2


def _normalized(kernel_kk: Tensor) -> Tensor:
    return kernel_kk / kernel_kk.sum()


# Operations


def filter2d(image_BCHW: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with a kernel: one for all (k k) or one per sample (B k k); reflected borders."""
    k = kernel.shape[-1]
    padded_BCHW = _reflect_pad(image_BCHW, k // 2)
    kernel_BCkk = kernel.to(image_BCHW).reshape(-1, 1, k, k)
    if image_BCHW.numel() <= BAND:
        return _correlate(padded_BCHW, kernel_BCkk)
    filtered_BCHW = torch.empty_like(image_BCHW)
    for rows in _bands(image_BCHW):
        filtered_BCHW[..., rows, :] = _correlate(padded_BCHW[..., rows.start : rows.stop + k - 1, :], kernel_BCkk)
    return filtered_BCHW


def _correlate(padded_BCHW: Tensor, kernel_BCkk: Tensor) -> Tensor:
    """Correlation without a border: the result is smaller by k - 1."""
    # By Fourier transform, whose time does not grow with the kernel: on a CPU six times as fast as a convolution at 21.
    k = kernel_BCkk.shape[-1]
    H, W = (side - k + 1 for side in padded_BCHW.shape[-2:])
    size = [_transform_length(side + k - 1) for side in (H, W)]
    spectrum_BCHW = torch.fft.rfft2(padded_BCHW, s=size) * torch.fft.rfft2(kernel_BCkk, s=size).conj()
    filtered_BCHW: Tensor = torch.fft.irfft2(spectrum_BCHW, s=size)[..., :H, :W]
    return filtered_BCHW


def _bands(image_BCHW: Tensor) -> list[slice]:
    """The rows of an image in slices of at most BAND numbers; their heights are multiples of 16, as JPEG needs."""
    H = image_BCHW.shape[-2]
    height = max(1, BAND * H // image_BCHW.numel() // 16) * 16
    return [slice(top, min(H, top + height)) for top in range(0, H, height)]


@functools.cache
def _transform_length(least: int) -> int:
    """The next even length of factors 2, 3 and 5 only, which are the fast ones."""
    length = least + least % 2
    while 60**20 % length:
        length += 2
    return length


def _reflect_pad(image_BCHW: Tensor, pad: int) -> Tensor:
    """Mirror at the borders without repeating them, as often as a small image needs."""
    H, W = image_BCHW.shape[-2:]
    if pad < min(H, W):
        return F.pad(image_BCHW, (pad, pad, pad, pad), mode="reflect")
    rows, columns = (_mirror(side, pad).to(image_BCHW.device) for side in (H, W))
    return image_BCHW[..., rows, :][..., columns]


def _mirror(side: int, pad: int) -> Tensor:
    """For each position from -pad to side + pad, the one that it mirrors."""
    last = side - 1
    position = torch.arange(-pad, side + pad)
    return last - (position.remainder(max(2 * last, 1)) - last).abs()


def resize(
    image_BCHW: Tensor, method: str, *, scale: float | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Resize by a scale or to a size (H, W) by the method area, bilinear or bicubic, without antialiasing."""
    align = None if method == "area" else False
    return F.interpolate(image_BCHW, size=size, scale_factor=scale, mode=method, align_corners=align)


def usm_sharpen(image_BCHW: Tensor, *, weight: float = 0.5, size: int = 51, threshold: float = 10.0) -> Tensor:
    """Unsharp mask of images in [0, 1], as Real-ESRGAN and StableSR apply it to their targets (BasicSR's USMSharp).

    Args:
        image_BCHW: sides of at least half of `size`.
        weight: of the difference to the blur that is added.
        size: side of the Gaussian kernel, odd.
        threshold: only what differs from its blur by more 8-bit levels is sharpened.
    """
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8  # OpenCV's rule for a Gaussian of a given size
    kernel_kk = gaussian_kernel(size, sigma, sigma)
    residual = image_BCHW - filter2d(image_BCHW, kernel_kk)
    mask = filter2d((residual.abs() * 255 > threshold).to(image_BCHW), kernel_kk)
    sharp = (image_BCHW + weight * residual).clamp(0, 1)
    return torch.lerp(image_BCHW, sharp, mask).clamp(0, 1)


def unsharp(image_BCHW: Tensor, spec: UnsharpSpec) -> Tensor:
    """The unsharp mask that a spec describes, of images in [0, 1]."""
    side = 2 * math.ceil(3 * spec.sigma) + 1
    blurred_BCHW = filter2d(image_BCHW, gaussian_kernel(side, spec.sigma, spec.sigma))
    return (image_BCHW + spec.amount * (image_BCHW - blurred_BCHW)).clamp(0, 1)


def add_gaussian_noise(image_CHW: Tensor, sigma: float, *, gray: bool, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of `sigma` 8-bit levels and clip to [0, 1]; the generator lives on the CPU."""
    C, H, W = image_CHW.shape
    noise = torch.randn(1 if gray else C, H, W, generator=generator).to(image_CHW)
    return (image_CHW + noise * (sigma / 255)).clamp(0, 1)


def add_poisson_noise(image_CHW: Tensor, scale: float, *, gray: bool, generator: torch.Generator) -> Tensor:
    """Add `scale` times the photon noise of as many levels as the image has, clip to [0, 1]; generator on the CPU.

    Gray noise is that of the luma, added to all channels.
    """
    light = _luma(image_CHW) if gray else image_CHW
    levels = (light * 255).round().clamp(0, 255).to(device="cpu", dtype=torch.uint8)
    num_levels = int(levels.flatten().bincount(minlength=256).count_nonzero())
    photons = float(2 ** math.ceil(math.log2(num_levels)))
    mean = levels.float() / 255
    noise = torch.poisson(mean * photons, generator=generator) / photons - mean
    return (image_CHW + scale * noise.to(image_CHW)).clamp(0, 1)


def _luma(image_CHW: Tensor) -> Tensor:
    """Luma by torchvision's rounded weights, with which Real-ESRGAN draws its gray noise."""
    return (image_CHW * image_CHW.new_tensor((0.2989, 0.587, 0.114))[:, None, None]).sum(0, keepdim=True)


def add_noise(image_CHW: Tensor, spec: NoiseSpec) -> Tensor:
    """Add the noise that a spec describes."""
    generator = torch.Generator().manual_seed(spec.seed)
    add = {"gaussian": add_gaussian_noise, "poisson": add_poisson_noise, "coarse": add_coarse_noise}[spec.kind]
    return add(image_CHW, spec.strength, gray=spec.gray, generator=generator)


def add_coarse_noise(image_CHW: Tensor, sigma: float, *, gray: bool, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of `sigma` 8-bit levels, half of its energy in grains of 2 to 4 px; clip to [0, 1]."""
    C, H, W = image_CHW.shape
    size = float(torch.rand((), generator=generator)) * 2 + 2
    shape = (1 if gray else C, H, W)
    coarse = coarse_noise(shape, size, generator)
    fine = torch.randn(shape, generator=generator)
    noise: Tensor = (coarse + fine).to(image_CHW) * math.sqrt(0.5)
    return (image_CHW + noise * (sigma / 255)).clamp(0, 1)


def coarse_noise(shape: tuple[int, int, int], size: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise C H W of variance 1 whose grains measure `size` pixels, as in enlarged photographs."""
    C, H, W = shape
    small = torch.randn(1, C, int(H / size) + 2, int(W / size) + 2, generator=generator)
    noise = F.interpolate(small, size=(H, W), mode="bicubic", align_corners=False)[0]
    return noise / noise.std().clamp(min=1e-3)


def compress(image_13HW: Tensor, spec: CompressSpec) -> Tensor:
    """A compression of an image 1 3 H W in [0, 1] whose block grid starts inside the image.

    WebP is libwebp's own, by Pillow; JPEG is `jpeg`.
    """
    H, W = image_13HW.shape[-2:]
    top, left = (8 - spec.shift_y) % 8, (8 - spec.shift_x) % 8
    image_13HW = F.pad(image_13HW.clamp(0, 1), (left, 0, top, 0), mode="replicate")
    coded = jpeg(image_13HW, spec.quality) if spec.codec == "jpeg" else _webp(image_13HW, round(spec.quality))
    out: Tensor = coded[..., top : top + H, left : left + W]
    return out


def _webp(image_13HW: Tensor, quality: int) -> Tensor:
    pixels = quantize_8bit(image_13HW)[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", quality=quality, method=2)
    with Image.open(file) as coded:
        decoded = torch.from_numpy(np.array(coded.convert("RGB")))
    return decoded.permute(2, 0, 1)[None].to(image_13HW) / 255


def quantize_8bit(image: Tensor) -> Tensor:
    """The nearest 8-bit levels, in [0, 1]."""
    return (image * 255).round().clamp(0, 255) / 255


# JPEG

# Quantization tables of ITU-T T.81, annex K; the chroma table is 99 outside its upper left quarter.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))


def jpeg(image_B3HW: Tensor, quality: float | Sequence[float] | Tensor) -> Tensor:
    """Images in [0, 1] after JPEG compression at one quality, or one per sample.

    4:2:0 with the baseline tables, without the entropy coding, which loses nothing; black up to multiples of 16.
    """
    B = len(image_B3HW)
    quality_B = torch.as_tensor(quality, dtype=torch.float32, device=image_B3HW.device).expand(B)
    if image_B3HW.numel() <= BAND:
        return _jpeg(image_B3HW, quality_B)
    coded_B3HW = torch.empty_like(image_B3HW)
    for rows in _bands(image_B3HW):
        coded_B3HW[..., rows, :] = _jpeg(image_B3HW[..., rows, :], quality_B)
    return coded_B3HW


def _jpeg(image_B3HW: Tensor, quality_B: Tensor) -> Tensor:
    H, W = image_B3HW.shape[-2:]
    factor_B = torch.where(quality_B < 50, 50 / quality_B, 2 - quality_B / 50).clamp(min=1e-3)
    to_ycc, to_rgb, luma_64, chroma_64 = (t.to(image_B3HW) for t in _jpeg_constants())
    padded = F.pad(image_B3HW, (0, -W % 16, 0, -H % 16))
    ycc = F.conv2d(padded * 255, to_ycc)
    luma = _code_blocks(ycc[:, :1] - 128, luma_64, factor_B) + 128
    chroma = _code_blocks(F.avg_pool2d(ycc[:, 1:], 2), chroma_64, factor_B)
    chroma = F.interpolate(chroma, scale_factor=2, mode="nearest")
    rgb = F.conv2d(torch.cat((luma, chroma), dim=1), to_rgb)
    return (rgb[:, :, :H, :W] / 255).clamp(0, 1)


def _code_blocks(plane_BCHW: Tensor, table_64: Tensor, factor_B: Tensor) -> Tensor:
    """Quantize the cosine transform of each 8x8 block."""
    B, C, H, W = plane_BCHW.shape
    transform = _block_transform().to(plane_BCHW)
    blocks_BN64 = plane_BCHW.reshape(B, C, H // 8, 8, W // 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(B, -1, 64)
    step_B164 = (factor_B[:, None] * table_64)[:, None]
    coefficients_BN64 = (blocks_BN64 @ transform.T / step_B164).round() * step_B164
    decoded_BN64 = coefficients_BN64 @ transform
    return decoded_BN64.reshape(B, C, H // 8, W // 8, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(B, C, H, W)


@functools.cache
def _block_transform() -> Tensor:
    """The orthonormal cosine transform of a flattened 8x8 block, 64 64."""
    n = torch.arange(8, dtype=torch.float64)
    line = 0.5 * torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16)
    line[0] /= math.sqrt(2)
    return torch.kron(line, line)


@functools.cache
def _jpeg_constants() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RGB -> YCbCr and back as 1x1 convolutions, and both quantization tables, flattened."""
    to_ycc = torch.tensor([BT601, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=torch.float64)
    to_rgb = torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], dtype=torch.float64)
    chroma = torch.full((8, 8), 99.0, dtype=torch.float64)
    chroma[:4, :4] = torch.tensor(_CHROMA_CORNER)
    # Transposed, as in the codec of BasicSR; the chroma table is symmetric.
    luma = torch.tensor(_LUMA_TABLE, dtype=torch.float64).T
    return to_ycc[:, :, None, None], to_rgb[:, :, None, None], luma.reshape(64), chroma.reshape(64)


# The pipeline


@torch.no_grad()
def degrade(hr_B3HW: Tensor, recipes: Sequence[Recipe], *, factor: int = FACTOR) -> Tensor:
    """Apply one recipe per sample to HR photographs in [0, 1]: LR, B 3 H/factor W/factor, in [0, 1] at 8-bit levels."""
    B, C, H, W = hr_B3HW.shape
    if C != 3 or H % factor or W % factor:
        raise ValueError(f"degrade takes RGB with sides that are multiples of {factor}, got {tuple(hr_B3HW.shape)}")
    if len(recipes) != B:
        raise ValueError(f"degrade takes one recipe per sample, got {len(recipes)} for {B}")
    size = (H // factor, W // factor)
    # Sizes differ from sample to sample between the first resize and the last.
    samples = [_degrade_one(hr_B3HW[i : i + 1], recipes[i], size) for i in range(B)]
    return quantize_8bit(torch.cat(samples))


def _degrade_one(image_13HW: Tensor, recipe: Recipe, size: tuple[int, int]) -> Tensor:
    image_13HW = _degrade_passes(image_13HW * recipe.exposure, recipe, size)
    if recipe.unsharp is not None:
        image_13HW = unsharp(image_13HW.clamp(0, 1), recipe.unsharp)
    return image_13HW if recipe.recompress is None else compress(image_13HW, recipe.recompress)


def _degrade_passes(image_13HW: Tensor, recipe: Recipe, size: tuple[int, int]) -> Tensor:
    if recipe.first is not None:
        image_13HW = _blur_resize_noise(image_13HW, recipe.first, image_13HW.shape[-2:])
        image_13HW = _code(image_13HW, recipe.first)
    if recipe.second is not None:
        image_13HW = _blur_resize_noise(image_13HW, recipe.second, size)
    if recipe.sinc_first:
        return _code(_finish(image_13HW, recipe, size), recipe.second)
    return _finish(_code(image_13HW, recipe.second), recipe, size)


def _blur_resize_noise(image_13HW: Tensor, spec: PassSpec, base: Sequence[int]) -> Tensor:
    if spec.blur is not None:
        image_13HW = filter2d(image_13HW, make_kernel(spec.blur))
    # To a whole size rather than by the scale, so that LR and HR stay aligned up to the last row and column.
    image_13HW = _resize_to(image_13HW, spec.resize_filter, [max(1, int(side * spec.resize_scale)) for side in base])
    if spec.noise is not None:
        image_13HW = add_noise(image_13HW[0], spec.noise)[None]
    return image_13HW


def _code(image_13HW: Tensor, spec: PassSpec | None) -> Tensor:
    if spec is None or spec.jpeg_quality is None:
        return image_13HW
    return jpeg(image_13HW.clamp(0, 1), spec.jpeg_quality)


def _finish(image_13HW: Tensor, recipe: Recipe, size: tuple[int, int]) -> Tensor:
    image_13HW = _resize_to(image_13HW, recipe.final_filter, size)
    return image_13HW if recipe.final_sinc is None else filter2d(image_13HW, make_kernel(recipe.final_sinc))


def _resize_to(image_13HW: Tensor, method: str, size: Sequence[int]) -> Tensor:
    H, W = size
    return image_13HW if image_13HW.shape[-2:] == (H, W) else resize(image_13HW, method, size=(H, W))
