"""The next-scale transformer: (condition, maps of the steps so far) -> logits of the next step's codes.

Notable: VAR-d16's blocks and head, which its checkpoint initializes; 1024 prefix tokens from the input's latent;
segment-causal attention without a mask; one grid of positions, resized to every step; optional aligned conditioning.
Shapes: B batch, L tokens, C width, Z latent channels, V codebook size, rho side of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import ModelError
from nextscale.model.attention import Block, Cache
from nextscale.model.config import Ladder, TransformerConfig
from nextscale.model.layers import area_downsample
from nextscale.model.stem import Stem

DEGRADED, CLEAN, CLASS_FREE = 0, 1, 2
"""The input's class; class-free stands for an unknown one."""


@dataclass(frozen=True)
class Condition:
    """What a batch of codes is conditioned on."""

    latents: list[Tensor]
    """B Z h w per stage, the last stage's last: latents of the enlarged input, or what the stem makes of the restorer's
    features. Aligned conditioning reads all of them, the prefix only the last."""
    classes: Tensor
    """B, int64: DEGRADED, CLEAN or CLASS_FREE."""

    @property
    def latent(self) -> Tensor:
        """The last stage's latent, B Z h w."""
        return self.latents[-1]

    def class_free(self) -> Condition:
        """The same input without its class, for guidance."""
        return replace(self, classes=torch.full_like(self.classes, CLASS_FREE))


def enlarge(inputs: Tensor, side: int) -> Tensor:
    """Input photographs enlarged bilinearly, as the paper's condition sees them (paper section 3)."""
    return F.interpolate(inputs, size=(side, side), mode="bilinear")


class Stack(nn.Module):
    """VAR's blocks and head: embedded tokens -> logits."""

    def __init__(self, config: TransformerConfig, codebook_size: int) -> None:
        super().__init__()
        width = config.width
        self.shared_ada = nn.Linear(width, 6 * width) if config.shared_adaln else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                config.mlp_ratio,
                shared_adaln=config.shared_adaln,
                own_step=config.attention == "step",
            )
            for _ in range(config.depth)
        )
        self.head_ada = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, codebook_size)

    def forward(
        self,
        x_BLC: Tensor,
        condition_BC: Tensor,
        segments: Sequence[int],
        cache: Cache | None,
        *,
        skip: int = 0,
        prefix: int = 0,
    ) -> Tensor:
        """Logits B L-skip V, float32, of the tokens after the first `skip`.

        Args:
            x_BLC: embedded tokens, which follow those in the cache.
            condition_BC: the embedded class.
            segments: lengths of the segments that x_BLC holds.
            cache: of the earlier segments; these are added.
            skip: tokens at the start that get no logits.
            prefix: length of the sequence's prefix, which may be in the cache.
        """
        shared = None
        if self.shared_ada is not None:
            shared = self.shared_ada(F.silu(condition_BC)).view(x_BLC.shape[0], 1, 6, -1)
        for layer, block in enumerate(self.blocks):
            x_BLC = block(x_BLC, condition_BC, shared, segments, layer, cache, prefix=prefix)
        if cache is not None:
            cache.segments += len(segments)
        x_BLC = x_BLC[:, skip:]
        scale, shift = self.head_ada(F.silu(condition_BC)).unsqueeze(1).chunk(2, dim=-1)
        h = F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=1e-6) * (1 + scale) + shift
        with torch.autocast(h.device.type, enabled=False):
            return F.linear(h.float(), self.head.weight.float(), self.head.bias.float())


class Transformer(nn.Module):
    """Predicts the codes of a photograph from the latents of its degraded version (paper section 3).

    Training calls the module itself with the maps of all steps; the sampler calls `start`, `embed` and `logits`.

    Args:
        config: widths, depth, kind of attention.
        ladder: of the model's own tile size; other sizes work too.
        codebook_size: V.
        latent_channels: Z.

    Raises:
        ModelError: the config has temperatures for another number of steps.
    """

    def __init__(self, config: TransformerConfig, ladder: Ladder, codebook_size: int, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.ladder = ladder
        if config.temperatures and len(config.temperatures) != ladder.num_steps:
            raise ModelError(
                f"the transformer has {len(config.temperatures)} temperatures for {ladder.num_steps} steps; "
                "change transformer.temperatures in the config"
            )
        width = config.width
        self.prefix_embed = nn.Linear(latent_channels, width) if config.prefix else None
        self.word_embed = nn.Linear(latent_channels, width)
        self.class_embed = nn.Embedding(config.classes, width)
        self.start_tokens = nn.Parameter(torch.empty(1, width, ladder.sides[0], ladder.sides[0]))
        self.level_embed = nn.Embedding(1 + ladder.num_steps, width)
        self.position = nn.Parameter(torch.empty(1, width, config.position_grid, config.position_grid))
        self.stem = Stem(config.stem, ladder, latent_channels) if config.condition == "restorer" else None
        conditioned = latent_channels if self.stem is None else config.stem.out_channels
        self.aligned = nn.Linear(conditioned, width) if config.aligned_conditioning else None
        self.stack = Stack(config, codebook_size)
        if self.position.device.type != "meta":
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """VAR's initialization (models/var.py, init_weights).

        | weight | distribution |
        | --- | --- |
        | linear, embeddings, start, level, position | truncated normal, std sqrt(1 / 3C) |
        | biases, aligned | 0 |
        | head | x 0.02 |
        | AdaLN scale and shift rows, head AdaLN | x 0.5; gate rows x 0.001 |
        | attention and feed-forward output | / sqrt(2 depth) |
        """
        width, depth = self.config.width, self.config.depth
        std = math.sqrt(1 / width / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        nn.init.trunc_normal_(self.start_tokens, std=std)
        nn.init.trunc_normal_(self.position, std=std)
        if self.aligned is not None:
            self.aligned.weight.zero_()
        self.stack.head.weight.mul_(0.02)
        self.stack.head_ada.weight.mul_(0.5)
        adas = [self.stack.shared_ada, *(block.ada for block in self.stack.blocks)]
        for ada in adas:
            if isinstance(ada, nn.Linear):
                ada.weight[2 * width :].mul_(0.5)
                ada.weight[: 2 * width].mul_(1e-3)
        for block in self.stack.blocks:
            block.attn.proj.weight.div_(math.sqrt(2 * depth))  # type: ignore[union-attr, operator]
            block.ffn.fc2.weight.div_(math.sqrt(2 * depth))  # type: ignore[union-attr, operator]

    def checkpoint_units(self) -> list[nn.Module]:
        """The blocks that activation checkpointing runs again, and that FSDP gathers one at a time."""
        return list(self.stack.blocks)

    def forward(self, condition: Condition, maps: Sequence[Tensor]) -> Tensor:
        """Logits of the first 1 + len(maps) steps in one pass, B L V, float32 (teacher forcing).

        Args:
            condition: of B tiles.
            maps: the input map of each step but the first, B Z rho rho, as `Tokenizer.step_inputs` gives them.
        """
        tokens = [self.start(condition), *(self.embed(m, step) for step, m in enumerate(maps, start=1))]
        return self.logits(tokens, condition)

    def start(self, condition: Condition) -> Tensor:
        """Tokens of the first step: class + start vectors + level + position, B L C."""
        side = self.ladder.sides[0] * condition.latent.shape[-1] // self.ladder.canvases[-1]
        grid: Tensor = self.start_tokens
        if grid.shape[-1] != side:
            grid = F.interpolate(grid, size=(side, side), mode="bilinear")
        classes: Tensor = self.class_embed(condition.classes)
        return classes[:, None] + grid.flatten(2).transpose(1, 2) + self._place(side, 1)

    def embed(self, input_map: Tensor, step: int) -> Tensor:
        """Tokens of a later step from its input map B Z rho rho: word + level + position, B L C."""
        words: Tensor = self.word_embed(_tokens(input_map, self.word_embed.weight.dtype))
        return words + self._place(input_map.shape[-1], 1 + step)

    def logits(self, segments: Sequence[Tensor], condition: Condition, cache: Cache | None = None) -> Tensor:
        """Logits of the given steps' tokens, B L V, float32.

        Args:
            segments: embedded tokens, B L C each, of consecutive steps from the first one that the cache does not hold
                (without a cache: from the first step).
            condition: the same at every call of a sequence.
            cache: of the steps before; prefix and these steps are added.
        """
        latent = condition.latent
        cached = 0 if cache is None else cache.segments
        first = max(0, cached - (self.prefix_embed is not None))
        parts = []
        for step, tokens in enumerate(segments, start=first):
            if self.aligned is not None:
                aligned = area_downsample(condition.latents[self.ladder.stage_of(step)], math.isqrt(tokens.shape[1]))
                tokens = tokens + self.aligned(_tokens(aligned, self.aligned.weight.dtype))
            parts.append(tokens)
        assert first + len(parts) <= self.ladder.num_steps
        skip, prefix_length = 0, latent.shape[-2] * latent.shape[-1]
        if self.prefix_embed is None:
            prefix_length = 0
        elif not cached:
            prefix = self.prefix_embed(_tokens(latent, self.prefix_embed.weight.dtype))
            parts.insert(0, prefix + self._place(latent.shape[-1], 0))
            skip = parts[0].shape[1]
        x_BLC = torch.cat(parts, dim=1)
        condition_BC = self.class_embed(condition.classes)
        lengths = [part.shape[1] for part in parts]
        logits: Tensor = self.stack(x_BLC, condition_BC, lengths, cache, skip=skip, prefix=prefix_length)
        if not self.config.temperatures:
            return logits
        temperatures = self.config.temperatures[first : first + len(segments)]
        scales = [
            logits.new_full((tokens.shape[1], 1), 1 / temperature)
            for tokens, temperature in zip(segments, temperatures, strict=True)
        ]
        return logits * torch.cat(scales)

    def _place(self, side: int, level: int) -> Tensor:
        """Level embedding plus positions on a grid of the side, 1 L C."""
        grid = area_downsample(self.position, side)
        return grid.flatten(2).transpose(1, 2) + self.level_embed.weight[level]


def _tokens(grid: Tensor, dtype: torch.dtype) -> Tensor:
    """B Z h w -> B (h w) Z."""
    return grid.flatten(2).transpose(1, 2).to(dtype)
