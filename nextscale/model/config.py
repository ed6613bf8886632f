"""Model configurations: plain frozen dataclasses, free of torch.

Words: a *step* is one token map, a *stage* the steps after which an image can be decoded, a *canvas* the grid of
latents (side = the stage's last step) on which a stage's codes are summed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from nextscale.errors import ModelError, OptionError
from nextscale.model.config_io import ADDED

MOST_SIDE = 512
"""Tokens along one side of a ladder's largest map: a tile of 2048 px at x4."""


def phi_schedule(num_steps: int, num_phi: int = 4) -> tuple[int, ...]:
    """Index of the shared convolution Phi for each step, by VAR's rule (FoundationVision/VAR, models/quant.py).

    The nearest of `num_phi` evenly spaced ticks to the step's relative position. Several lengths have exact ties that
    only float64 rounding decides, so the result is stored in the ladder as data rather than recomputed.
    """
    margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    gap = ((1 - margin) - margin) / max(num_phi - 1, 1)
    ticks = [i * gap + margin for i in range(num_phi)]
    ticks[-1] = 1 - margin if num_phi > 1 else margin
    positions = [k / (num_steps - 1) if num_steps > 1 else 0.0 for k in range(num_steps)]
    return tuple(min(range(num_phi), key=lambda i: (abs(ticks[i] - t), i)) for t in positions)


@dataclass(frozen=True)
class Ladder:
    """The steps and stages of a hierarchical tokenizer (paper section 3, Algorithm 1), as data.

    A ladder of one stage is VAR's own flat residual quantization.
    """

    sides: tuple[int, ...] = (4, 6, 8, 10, 14, 16, 20, 24, 28, 32)
    """Side rho_k of each step's token map."""
    stage_ends: tuple[int, ...] = (3, 6, 10)
    """Number of steps after which each stage is complete."""
    phi: tuple[int, ...] = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    """Index of the shared convolution Phi of each step."""
    patch: int = 16
    """Image pixels along one side of a latent."""
    input_canvas: int = 8
    """Side in latents of the input photograph (factor x1)."""

    def __post_init__(self) -> None:
        if not self.sides or list(self.sides) != sorted(set(self.sides)) or self.sides[0] < 1:
            raise ModelError(f"a ladder's sides must be positive and rise from step to step, got {self.sides}")
        if list(self.stage_ends) != sorted(set(self.stage_ends)) or self.stage_ends[-1:] != (len(self.sides),):
            raise ModelError(f"a ladder's stage_ends must rise and end at {len(self.sides)}, got {self.stage_ends}")
        if self.stage_ends[0] < 1 or len(self.phi) != len(self.sides):
            raise ModelError("a ladder needs one phi index per step and at least one step per stage")
        if min(self.patch, self.input_canvas) < 1 or min(self.phi) < 0:
            raise ModelError("a ladder's patch and input_canvas must be 1 or more, its phi 0 or more")
        if self.sides[-1] > MOST_SIDE or self.sides[-1] * self.patch > MOST_SIDE * 16:
            raise ModelError(
                f"a ladder's largest image has at most {MOST_SIDE} tokens and {MOST_SIDE * 16} px a side, "
                f"got {self.sides[-1]} and {self.sides[-1] * self.patch}"
            )

    @property
    def num_steps(self) -> int:
        return len(self.sides)

    @property
    def num_stages(self) -> int:
        return len(self.stage_ends)

    @property
    def canvases(self) -> tuple[int, ...]:
        """Side in latents of each stage's canvas."""
        return tuple(self.sides[end - 1] for end in self.stage_ends)

    @property
    def image_sides(self) -> tuple[int, ...]:
        """Side in pixels of each stage's image."""
        return tuple(side * self.patch for side in self.canvases)

    @property
    def factors(self) -> tuple[float, ...]:
        """Enlargement of each stage's image over the input photograph."""
        return tuple(side / self.input_canvas for side in self.canvases)

    @property
    def input_side(self) -> int:
        """Side in pixels of the input photograph (one tile)."""
        return self.input_canvas * self.patch

    def stage_of(self, step: int) -> int:
        """Stage (from 0) to which a step (from 0) belongs."""
        return next(n for n, end in enumerate(self.stage_ends) if step < end)

    def steps_of(self, stage: int) -> range:
        """The steps that a stage adds."""
        return range(self.stage_ends[stage - 1] if stage else 0, self.stage_ends[stage])

    def tokens(self, stage: int | None = None) -> int:
        """Number of tokens that one stage adds, or of all stages."""
        steps = range(self.num_steps) if stage is None else self.steps_of(stage)
        return sum(self.sides[k] * self.sides[k] for k in steps)

    @property
    def unit(self) -> int:
        """What the input's side must be a multiple of, in pixels, for every canvas to have a whole side."""
        return math.lcm(*(self.input_side // math.gcd(self.input_side, c) for c in (*self.canvases, self.input_canvas)))

    def for_input(self, side: int) -> Ladder:
        """The same ladder for tiles of another input side in pixels.

        Canvases stay in proportion; a step between them takes the next smaller whole side.

        Raises:
            OptionError: the side does not keep every canvas a whole number, or the steps apart.
        """
        if side == self.input_side:
            return self
        unit = self.unit
        grown = tuple(s * side // self.input_side for s in self.sides)
        if grown[-1] > MOST_SIDE:
            raise OptionError(f"a tile of {side} px is larger than any that is worked on; use one of 2048 px or less")
        if side % unit or side < unit or grown[0] < 1 or list(grown) != sorted(set(grown)):
            least = next(
                n * unit
                for n in range(1, self.input_side + 1)
                if len({0, *(s * n * unit // self.input_side for s in self.sides)}) == 1 + len(self.sides)
            )
            raise OptionError(
                f"a tile of {side} px does not fit this model: use a multiple of {unit} from {least}, 0 for its own"
            )
        return dataclasses.replace(self, sides=grown, input_canvas=self.input_canvas * side // self.input_side)


def flat_ladder(sides: tuple[int, ...], *, input_canvas: int | None = None) -> Ladder:
    """VAR's own ladder: one stage that all steps share."""
    canvas = sides[-1] if input_canvas is None else input_canvas
    return Ladder(sides, (len(sides),), phi_schedule(len(sides)), input_canvas=canvas)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths of the encoder and of each decoder (FoundationVision/VAR, models/basic_vae.py, when `patch` is 1)."""

    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level in units of `channels`; between two levels the side halves."""
    blocks: int = 2
    """Residual blocks per encoder level; a decoder level has one more."""
    patch: int = 1
    """Side of the pixel patches that the first convolution reads and the last one writes."""
    attention: bool = True
    """Self-attention at the lowest level and in the middle."""
    linear_path: bool = False
    """Add a linear patch projection around the network, whose own last layer then starts at zero."""
    latent_channels: int = 32

    @property
    def reduction(self) -> int:
        """Image pixels along one side of a latent."""
        return self.patch << (len(self.multipliers) - 1)


@dataclass(frozen=True)
class TaesdConfig:
    """A small convolutional autoencoder at 1/8 of the side, and what makes latents of it (madebyollin/taesd, TAEF2)."""

    channels: int = 64
    inner_channels: int = 32
    """Of the autoencoder's own latents."""
    levels: int = 3
    """Halvings of the side."""
    blocks: int = 3
    """Residual blocks per level."""
    space_to_depth: int = 2
    """Side of the squares of its latents that become one latent of the tokenizer, by a linear map."""
    latent_channels: int = 64

    patch: ClassVar[int] = 1
    linear_path: ClassVar[bool] = False

    def __post_init__(self) -> None:
        sizes = (self.channels, self.inner_channels, self.levels, self.blocks, self.space_to_depth)
        if min(sizes) < 1 or not 1 <= self.latent_channels <= self.inner_channels * self.space_to_depth**2:
            raise ModelError(
                "an autoencoder's sizes are at least 1, and its latent channels at most inner_channels * "
                f"space_to_depth^2, got {self}"
            )

    @property
    def reduction(self) -> int:
        """Image pixels along one side of a latent."""
        return self.space_to_depth << self.levels


@dataclass(frozen=True)
class DecoderFusionConfig:
    """The branch that gives each decoder features of the degraded input (after CodeFormer, Zhou et al. 2022)."""

    channels: int = 64
    blocks: int = 8
    """Residual blocks on the input's features, shared by all stages."""
    stage_blocks: int = 4
    """Residual blocks of each stage after the codes have joined the features."""
    refine: int = 0
    """Residual blocks at the output's resolution, for factors above 1: without them, fine lines turn into dots."""


@dataclass(frozen=True)
class TokenizerConfig:
    """A hierarchical residual tokenizer."""

    ladder: Ladder = Ladder()
    autoencoder: AutoencoderConfig | TaesdConfig = AutoencoderConfig()
    codebook_size: int = 4096
    num_phi: int = 4
    fusion: DecoderFusionConfig | None = None

    def __post_init__(self) -> None:
        if self.autoencoder.reduction != self.ladder.patch:
            raise ModelError(
                f"the autoencoder reduces sides by {self.autoencoder.reduction}, the ladder expects {self.ladder.patch}"
            )
        if isinstance(self.autoencoder, TaesdConfig) and self.fusion is not None:
            raise ModelError("a tokenizer on TAESD has no fusion of its own; the model's fusion reads its decoders")
        if max(self.ladder.phi) >= self.num_phi:
            raise ModelError(f"the ladder uses Phi {max(self.ladder.phi)}, the tokenizer has {self.num_phi}")

    def with_ladder(self, ladder: Ladder) -> TokenizerConfig:
        """The same on another ladder; a fusion stays only where every stage keeps its factor."""
        old = self.ladder
        same_factors = ladder.input_canvas == old.input_canvas and set(ladder.canvases) <= set(old.canvases)
        return dataclasses.replace(self, ladder=ladder, fusion=self.fusion if same_factors else None)


@dataclass(frozen=True)
class RestorerConfig:
    """The convolutional restorer (SRVGGNetCompact of Real-ESRGAN, realesrgan/archs/srvgg_arch.py)."""

    channels: int = 64
    convs: int = 32
    """Convolutions between the first and the head."""
    factors: tuple[int, ...] = (1, 2, 4)
    """Enlargement factors, each with its own head."""
    grain_rank: int = 16
    """Rank of the change of each convolution that keeps the noise, mixed in by the denoise dial (0: no dial)."""
    largest_convs: int = field(default=0, metadata=ADDED)
    """Last convolutions before the head that the largest factor has for itself; the others share the body's."""
    largest_blocks: int = field(default=0, metadata=ADDED)
    """Residual blocks of two convolutions that follow these."""
    precleaned: float = field(default=0.0, metadata=ADDED)
    """Share of the picture at factor 1 in the one that the largest factor enlarges (0: it enlarges the input alone).
    Its own convolutions then read what the shared ones make of both."""
    refined_channels: int = field(default=0, metadata=ADDED)
    """Channels of the layers that refine the largest factor's picture at its own resolution (0: there are none)."""
    refined_blocks: int = field(default=2, metadata=ADDED)
    """Residual blocks of two convolutions among them."""

    def __post_init__(self) -> None:
        if min(self.channels, self.convs, *self.factors, len(self.factors), self.grain_rank + 1) < 1:
            raise ModelError(f"a restorer needs channels, convs and whole factors from 1, got {self}")
        if not 0 <= self.largest_convs <= self.convs:
            raise ModelError(f"largest_convs must be from 0 to convs ({self.convs}), got {self.largest_convs}")
        if not 0 <= self.precleaned <= 1:
            raise ModelError(f"precleaned must be from 0 to 1, got {self.precleaned}")
        if self.precleaned and not (self.largest_convs and 1 in self.factors[:-1]):
            raise ModelError(f"precleaned needs largest_convs above 0, and factor 1 before the largest, got {self}")
        if self.largest_blocks and not self.largest_convs:
            raise ModelError(f"largest_blocks needs largest_convs above 0, got {self}")
        if min(self.largest_blocks, self.refined_channels, self.refined_blocks) < 0:
            raise ModelError(f"largest_blocks, refined_channels and refined_blocks must be 0 or more, got {self}")

    @property
    def reach(self) -> int:
        """How far from a place the input has a say there, in pixels: one for each convolution, first and head too.

        The picture at factor 1, where it goes in again (`precleaned`), passes them all and one more. Convolutions at
        the largest factor's resolution reach a pixel of that.
        """
        once = self.convs + 2
        more = 2 * self.largest_blocks
        refining = -(-2 * (1 + self.refined_blocks) // self.factors[-1]) if self.refined_channels else 0
        return once + (once + 1 if self.precleaned else 0) + more + refining


@dataclass(frozen=True)
class FusionConfig:
    """The fusion of the codes with the restorer's features, per stage."""

    channels: int = 64
    """Channels between the decoder's features and the scales and shifts made from them."""
    blocks: int = 1
    """Residual blocks after the features have been scaled and shifted."""
    error_channels: int = 32
    """Channels of the branch that predicts the error."""
    codes: bool = field(default=True, metadata=ADDED)
    """Whether the image follows the codes, through the decoder's features. Without, the codes only tell how far the
    image can be trusted, and nothing is decoded unless `fidelity` is below 1."""


@dataclass(frozen=True)
class StemConfig:
    """The small encoder that makes the transformer's condition of the restorer's features."""

    features: int = 64
    """Channels of the restorer's features."""
    channels: int = 64
    """Channels of its convolutions; those of the tokenizer's encoder, if it is to start from that."""
    blocks: int = 3
    """Of its last level, as in the encoder."""
    inner_channels: int = 32
    """Channels at 1/8 of a stage's image, as in the encoder."""
    out_channels: int = 128
    """Channels of the condition; the first ones stand for the tokenizer's latents."""
    encoded: int = field(default=0, metadata=ADDED)
    """So many of the first stages have the latents themselves there, which the tokenizer's encoder makes of the
    restored image, instead of the stem's guess: cheap at x1, nearly as much work as all the rest at x4."""

    def __post_init__(self) -> None:
        if min(self.features, self.channels, self.inner_channels, self.out_channels) < 1 or self.encoded < 0:
            raise ModelError(
                "a stem needs features, channels, inner_channels and out_channels from 1, and encoded from 0, "
                f"got {self}"
            )


@dataclass(frozen=True)
class TransformerConfig:
    """A next-scale transformer (FoundationVision/VAR, models/var.py; paper section 3)."""

    depth: int = 16
    width: int = 1024
    heads: int = 16
    mlp_ratio: float = 4.0
    classes: int = 3
    """0 degraded, 1 clean, 2 class-free."""
    attention: Literal["causal", "step"] = field(default="causal", metadata=ADDED)
    """What a token attends to beside the prefix: its own step and all earlier ones (causal, the paper), or its own step
    alone (step, Switti), where the earlier codes come in through the step's input map."""
    prefix: bool = field(default=True, metadata=ADDED)
    """Begin the sequence with the latent of the enlarged input (the paper)."""
    position_grid: int = 48
    shared_adaln: bool = False
    aligned_conditioning: bool = False
    """Add to each step token a linear map of the condition at the token's position (starts at zero)."""
    condition: Literal["latent", "restorer"] = field(default="latent", metadata=ADDED)
    """What the codes are conditioned on: the tokenizer's latents of the enlarged input (latent, the paper), or what a
    stem makes of the restorer's features (restorer)."""
    stem: StemConfig = field(default=StemConfig(), metadata=ADDED)
    """Sizes of the stem (condition: restorer)."""
    temperatures: tuple[float, ...] = field(default=(), metadata=ADDED)
    """What each step's logits are divided by, so that the probabilities are as often right as they say (temperature
    scaling, Guo et al. 2017); chosen on held-back photographs after the training. Empty: 1 at each step."""

    def __post_init__(self) -> None:
        if any(temperature <= 0 for temperature in self.temperatures):
            raise ModelError(f"temperatures of a transformer lie above 0, got {list(self.temperatures)}")
        if self.condition == "restorer" and (self.prefix or not self.aligned_conditioning):
            raise ModelError(
                "a transformer on the restorer's features has aligned_conditioning and no prefix; change the config"
            )
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise ModelError(f"a transformer's width ({self.width}) must be a multiple of its heads ({self.heads})")


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: tokenizer, transformer and, in newer models, a restorer and fusions."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    transformer: TransformerConfig = TransformerConfig()
    restorer: RestorerConfig | None = field(default=None, metadata=ADDED)
    fusion: FusionConfig | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        if (self.restorer is None) != (self.fusion is None):
            raise ModelError("a model has a restorer and a fusion, or neither")
        if self.restorer is not None:
            if self.tokenizer.fusion is not None:
                raise ModelError("a model with a restorer has no fusion in its tokenizer")
            if self.restorer.factors != self.tokenizer.ladder.factors:
                raise ModelError(
                    f"the restorer's factors are {self.restorer.factors}, the ladder's {self.tokenizer.ladder.factors}"
                )
        if self.transformer.condition == "restorer":
            if self.restorer is None:
                raise ModelError("a transformer on the restorer's features needs a restorer in the model")
            if self.transformer.stem.features != self.restorer.channels:
                raise ModelError(
                    f"the stem reads {self.transformer.stem.features} channels of features, the restorer has "
                    f"{self.restorer.channels}"
                )
            if self.transformer.stem.encoded > self.tokenizer.ladder.num_stages:
                raise ModelError(
                    f"the stem has {self.transformer.stem.encoded} stages encoded, the ladder has only "
                    f"{self.tokenizer.ladder.num_stages}"
                )
            if self.transformer.stem.out_channels < self.tokenizer.autoencoder.latent_channels:
                raise ModelError("the stem needs at least as many out_channels as the tokenizer has latent_channels")

    def codes_alone(self) -> ModelConfig:
        """The tokenizer and the transformer, without restorer and fusion; the condition is the input's latents then."""
        transformer = dataclasses.replace(self.transformer, condition="latent")
        return dataclasses.replace(self, transformer=transformer, restorer=None, fusion=None)


def paper() -> ModelConfig:
    """The paper's model: VAR's autoencoder and VAR-d16."""
    return ModelConfig()


def tiny() -> ModelConfig:
    """The shipped model's sizes, for a laptop's CPU: TAEF2's autoencoder, and codes conditioned on a restorer."""
    return ModelConfig(
        tokenizer=TokenizerConfig(autoencoder=TaesdConfig(), codebook_size=4096),
        transformer=TransformerConfig(
            depth=6,
            width=256,
            heads=4,
            attention="step",
            prefix=False,
            position_grid=32,
            shared_adaln=True,
            aligned_conditioning=True,
            condition="restorer",
            stem=StemConfig(encoded=1),
        ),
        restorer=RestorerConfig(largest_convs=25, largest_blocks=6, precleaned=0.2, refined_channels=16),
        fusion=FusionConfig(blocks=0, codes=False),
    )


PRESETS = {"paper": paper, "tiny": tiny}


@dataclass(frozen=True)
class SamplingOptions:
    """How the codes are chosen."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    cfg: float = 0.0
