"""The sampling loop: (model, condition) -> codes, stage by stage. It knows nothing of images or layers.

It calls three methods of the model: `start(condition)`, `embed(map, step)` and `logits(segments, condition, cache)`.
Shapes: B batch, L tokens of a step, V codebook size, rho side of a step, C latent channels, h w canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from nextscale.model.attention import Cache
from nextscale.model.config import Ladder, SamplingOptions
from nextscale.model.quantizer import Quantizer, Scan
from nextscale.model.tokenizer import Codes


class Conditioned(Protocol):
    """A condition that can drop its class."""

    def class_free(self) -> Any: ...


ConditionT = TypeVar("ConditionT", bound=Conditioned, contravariant=True)


class NextStepModel(Protocol[ConditionT]):
    """What the sampler needs of a model; `Transformer` is one."""

    def start(self, condition: ConditionT, /) -> Tensor: ...
    def embed(self, input_map: Tensor, step: int, /) -> Tensor: ...

    def logits(self, segments: Sequence[Tensor], condition: ConditionT, cache: Cache | None, /) -> Tensor:
        """Logits B L V of the tokens of `segments`, which follow those in the cache."""
        ...


@dataclass(frozen=True)
class StageSample:
    """A stage as soon as its last step is chosen."""

    stage: int
    codes: Codes
    """All steps so far."""
    f: Tensor
    """The canvas to decode, B C h w, float32."""
    probabilities: list[Tensor]
    """Per step so far, the model's probability of each chosen token, B rho rho."""


Noise = Callable[[int, int], Tensor]
"""(step, tokens) -> uniform numbers in [0, 1), B x tokens, float64."""


def tile_noise(seed: int, tiles: Sequence[tuple[int, int]]) -> Noise:
    """Noise keyed by (seed, tile row, tile column, step): codes do not depend on batch or tile order."""

    def draw(step: int, tokens: int) -> Tensor:
        rows = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *tile, step)))).random(tokens)
            for tile in tiles
        ]
        return torch.from_numpy(np.stack(rows))

    return draw


def filter_logits(logits: Tensor, *, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Set the logits of unlikely tokens to -inf: VAR's top-k, then top-p (models/helpers.py). 0 keeps all.

    Top-p drops a token when the ascending cumulative probability up to it is at most 1 - p; the best one stays.

    Args:
        logits: ... V, any leading shape, which the result has too.
    """
    if top_k and top_k < logits.shape[-1]:
        worst = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < worst, -torch.inf)
    if 0 < top_p < 1:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def choose(logits: Tensor, options: SamplingOptions, noise: Callable[[int], Tensor]) -> Tensor:
    """Choose token ids: the likeliest at temperature 0, else drawn by inverse cumulative probability.

    Args:
        logits: B L V.
        options: temperature and filters.
        noise: from L to uniform numbers in [0, 1), B L float64.

    Returns:
        ids B L, int64.
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    filtered = filter_logits(logits / options.temperature, top_k=options.top_k, top_p=options.top_p)
    cumulative = filtered.double().softmax(dim=-1).cumsum(dim=-1)
    uniform = noise(logits.shape[1]).to(cumulative.device)[..., None]
    # The factor keeps the point below the total, which rounding may leave a little under one.
    point = uniform * cumulative[..., -1:] * (1 - 1e-12)
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: NextStepModel[ConditionT],
    quantizer: Quantizer,
    ladder: Ladder,
    condition: ConditionT,
    options: SamplingOptions,
    *,
    noise: Noise,
    stages: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[StageSample]:
    """Choose the codes of a batch step by step, and yield each stage as it is complete.

    Guidance doubles the work: logits = (1 + t) * with class - t * without, where t rises linearly from 0 to `cfg`
    (VAR, models/var.py).

    Args:
        model: gives logits; it is asked step by step and keeps nothing itself.
        quantizer: the tokenizer's, which turns chosen codes into the next step's input map.
        ladder: of the tiles' size.
        condition: of B tiles.
        options: how codes are chosen, and guidance.
        noise: uniform numbers per step; unused at temperature 0.
        stages: stop after so many stages; the codes are the prefix of a full run.
        on_step: called after each step with its index.
    """
    scan = Scan(quantizer, ladder)
    guided = options.cfg != 0
    conditions = [condition, condition.class_free()] if guided else [condition]
    steps = ladder.stage_ends[(stages or ladder.num_stages) - 1]
    later = sum(side * side for side in ladder.sides[1:steps])
    caches = [Cache(later) for _ in conditions]
    chosen: list[Tensor] = []
    probabilities: list[Tensor] = []
    for step in range(steps):
        input_map = scan.input() if step else None
        side = ladder.sides[step]
        answers = []
        for one, cache in zip(conditions, caches, strict=True):
            tokens = model.start(one) if input_map is None else model.embed(input_map, step)
            answers.append(model.logits([tokens], one, cache))
        logits = answers[0]
        if guided:
            strength = options.cfg * step / max(1, ladder.num_steps - 1)
            logits = (1 + strength) * answers[0] - strength * answers[1]
        ids = choose(logits, options, lambda tokens, step=step: noise(step, tokens))  # type: ignore[misc]
        probability = logits.softmax(dim=-1).gather(-1, ids[..., None]).squeeze(-1)
        chosen.append(ids.view(-1, side, side))
        probabilities.append(probability.view(-1, side, side))
        scan.push(chosen[-1])
        if step == steps - 1:  # the decoder comes next and needs the memory
            for cache in caches:
                cache.clear()
        if on_step is not None:
            on_step(step)
        if scan.step == ladder.stage_ends[scan.stage]:
            assert scan.f is not None
            yield StageSample(scan.stage, Codes(list(chosen), ladder), scan.f, list(probabilities))
