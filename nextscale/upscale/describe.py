"""What a host program needs to know of a model before it runs it: factors, channels, sizes, tiling, types, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nextscale.model.config import AutoencoderConfig, ModelConfig, TaesdConfig
from nextscale.upscale.options import UpscaleOptions, output_size
from nextscale.upscale.pipeline import Pipeline
from nextscale.upscale.plan import plan_for, reach_for

WORKING_SHARE = {AutoencoderConfig: 14.0, TaesdConfig: 3.7}
"""Bytes that a tile's codes and their decoding take at their peak over those of the largest tensor: see `tile_bytes`.

Measured in float32 on a CPU, by the process's peak with batches of 1 to 8 tiles: of version 4's `tiny` 58 MB a tile, of
which the largest tensor is 4.2; of the present one 243 MB at fidelity 0, of which it is 67.
"""
RESTORING_SHARE = 16.0
"""The same for the restorer, over its features of the input: 67 MB of 4.2."""
REFINING_SHARE = 3.0
"""The same for what its layers at the largest picture's resolution add, over one tensor of theirs: 50 MB of 16.8."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that restoring a picture takes."""

    weights: int
    """On the device, all the time."""
    tiles: int
    """On the device, at the peak of a batch of tiles; halved by itself when memory runs out."""
    pictures: int
    """On the host: the input, the canvases of every factor, and the maps asked for."""


@dataclass(frozen=True)
class ModelDescription:
    """A model as a host sees it."""

    architecture: Literal["nextscale"]
    config: ModelConfig
    factors: tuple[float, ...]
    """Native ones; any other scale is an exact resize of the next, or several passes."""
    scale: float
    """The largest native factor, which is also the default."""
    input_channels: int
    """3: RGB in [0, 1]; gray goes in as gray and comes out so, and alpha is restored apart."""
    output_channels: int
    minimum_side: int
    """Of a picture, in pixels."""
    multiple_of: int
    """What a picture's sides must be a multiple of: 1, any size goes in as it is."""
    square: bool
    """Whether a picture must be."""
    tiling: Literal["internal"]
    """The model cuts pictures into tiles and blends them by itself: hand it whole pictures."""
    tile: int
    """Side of these tiles in input pixels."""
    dtypes: tuple[str, ...]
    """Types that it computes in; pictures go in and come out as float32."""
    parameters: int
    weights: int
    """Bytes of the weights as they are now."""

    def memory(
        self, width: int, height: int, options: UpscaleOptions | None = None, *, bits: Literal[8, 16] = 8
    ) -> MemoryEstimate:
        """An estimate for a picture of width x height pixels in RGB.

        Args:
            bits: per channel of the picture.
        """
        options = options or UpscaleOptions()
        reach = reach_for(self.config.restorer, options)
        plan = plan_for(self.config.tokenizer.ladder, (width, height), options, reach=reach)
        # A batch holds no tiles of two rows.
        working = max(
            min(options.tile_batch, len(run.tiles.lefts)) * tile_bytes(self.config, options, run.tiles.tile / self.tile)
            for run in plan.passes
        )
        planes = 3 * bits // 8 + (5 if options.confidence else 0)  # a byte of confidence, a float of expected error
        canvases = {run.reach: run.result for run in plan.passes}
        canvases |= {factor: output_size(plan.size, factor) for factor in options.factors(self.factors)}
        pictures = sum(map(math.prod, [plan.size, *canvases.values()])) * planes
        return MemoryEstimate(self.weights, math.ceil(working), pictures)


def describe(pipeline: Pipeline) -> ModelDescription:
    """The description of a loaded model."""
    ladder = pipeline.tokenizer.ladder
    weights = list(pipeline.modules.parameters())
    return ModelDescription(
        architecture="nextscale",
        config=pipeline.config,
        factors=ladder.factors,
        scale=max(ladder.factors),
        input_channels=3,
        output_channels=3,
        minimum_side=1,
        multiple_of=1,
        square=False,
        tiling="internal",
        tile=ladder.input_side,
        dtypes=("float32", "bfloat16", "float16"),
        parameters=sum(weight.numel() for weight in weights),
        weights=sum(weight.numel() * weight.element_size() for weight in weights),
    )


def tile_bytes(config: ModelConfig, options: UpscaleOptions, grown: float = 1.0) -> float:
    """Bytes that one tile takes at its peak, for tiles `grown` times as wide as the model's own.

    The largest tensors are the logits of the last step and the features at the output's resolution, in float32, or the
    restorer's features and those of the layers that refine its largest picture. Which come with the options: the
    restorer is done before the codes begin, and where the fusion reads none, they are decoded below fidelity 1 alone.
    """
    ladder, auto, restorer = config.tokenizer.ladder, config.tokenizer.autoencoder, config.restorer
    restoring = coding = 0.0
    if restorer is not None:
        features = restorer.channels * ladder.input_side**2
        refined = restorer.refined_channels * ladder.image_sides[-1] ** 2
        restoring = RESTORING_SHARE * features + REFINING_SHARE * refined
    if not options.fast:
        coding = ladder.sides[-1] ** 2 * config.tokenizer.codebook_size
        if config.fusion is None or config.fusion.codes or options.fidelity < 1:
            widest = auto.channels * (auto.multipliers[0] if isinstance(auto, AutoencoderConfig) else 1)
            coding = max(coding, (ladder.image_sides[-1] // auto.patch) ** 2 * widest)
    return 4 * max(restoring, WORKING_SHARE[type(auto)] * coding) * grown**2
