"""The transformer against the official code's logits, and segment-causal attention."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.errors import ModelError
from nextscale.model.attention import Cache
from nextscale.model.config import TransformerConfig
from nextscale.model.layers import area_downsample
from nextscale.model.transformer import CLASS_FREE, Condition, Stack, Transformer
from nextscale.upscale.nextscale import NextScale
from tests.official import OfficialState, official_stack, official_state


def stages_of(latent: Tensor) -> list[Tensor]:
    """Latents on the canvases 8, 16 and 32."""
    return [area_downsample(latent, side) for side in (8, 16, 32)]


@pytest.fixture(scope="module")
def state(fixtures: Path) -> OfficialState:
    return official_state(fixtures)


@torch.no_grad()
def test_blocks_and_head_give_the_official_logits(state: OfficialState, fixtures: Path) -> None:
    data = {name: torch.from_numpy(value) for name, value in np.load(fixtures / "var_tiny.npz").items()}
    condition = state["class_emb.weight"][data["label"]]
    words = data["teacher_input"] @ state["word_embed.weight"].T + state["word_embed.bias"]
    tokens = torch.cat([condition[:, None] + state["pos_start"], words], dim=1)
    tokens = tokens + state["lvl_embed.weight"][state["lvl_1L"][0]] + state["pos_1LC"]
    logits = official_stack(state)(tokens, condition, [1, 4, 9, 16], None)
    assert float((logits - data["logits"]).abs().max()) < 1e-4


def test_a_token_sees_its_segment_and_earlier_ones_only() -> None:
    torch.manual_seed(0)
    stack = Stack(TransformerConfig(depth=2, width=64, heads=1), 16).eval()
    tokens, condition = torch.randn(1, 14, 64), torch.randn(1, 64)
    before = stack(tokens, condition, [1, 4, 9], None)
    changed = tokens.clone()
    changed[:, 3] += 1
    after = stack(changed, condition, [1, 4, 9], None)
    moved = (before - after).abs().amax(-1)[0] > 0
    assert moved.tolist() == [False] + [True] * 13


def test_the_prefix_sees_only_itself_and_all_see_it(model: NextScale) -> None:
    transformer = model.transformer
    latent = torch.randn(1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    condition = Condition(stages_of(latent), torch.tensor([0]))
    start = transformer.start(condition)
    plain = transformer.logits([start], condition)
    nudged = latent.clone()
    nudged[..., 5, 5] += 1
    assert not torch.equal(plain, transformer.logits([start], Condition(stages_of(nudged), condition.classes)))
    first, second = Cache(), Cache()
    transformer.logits([start], condition, first)
    transformer.logits([start + 1], condition, second)
    assert torch.equal(first._cached[1][..., :1024, :], second._cached[1][..., :1024, :])


def test_cached_segments_give_the_whole_sequence_logits(model: NextScale) -> None:
    transformer = model.transformer
    generator = torch.Generator().manual_seed(0)
    condition = Condition(stages_of(torch.randn(2, 32, 32, 32, generator=generator)), torch.tensor([0, 1]))
    maps = [torch.randn(2, 32, side, side, generator=generator) for side in (6, 8, 10)]
    segments = [transformer.start(condition), *(transformer.embed(m, k) for k, m in enumerate(maps, start=1))]
    whole = transformer.logits(segments, condition)
    cache = Cache()
    parts = torch.cat([transformer.logits([segment], condition, cache) for segment in segments], dim=1)
    assert whole.shape == (2, 16 + 36 + 64 + 100, 64)
    assert float((whole - parts).abs().max()) < 1e-4


def test_each_step_has_a_temperature_of_its_own(model: NextScale) -> None:
    plain = model.transformer
    temperatures = tuple(1 + 0.1 * step for step in range(10))
    config = dataclasses.replace(plain.config, temperatures=temperatures)
    scaled = Transformer(config, plain.ladder, 64, 32)
    scaled.load_state_dict(plain.state_dict())
    generator = torch.Generator().manual_seed(0)
    condition = Condition(stages_of(torch.randn(1, 32, 32, 32, generator=generator)), torch.tensor([0]))
    maps = [torch.randn(1, 32, side, side, generator=generator) for side in (6, 8)]
    wanted = plain(condition, maps).split([16, 36, 64], dim=1)
    cache = Cache()
    for step, found in enumerate(scaled(condition, maps).split([16, 36, 64], dim=1)):
        torch.testing.assert_close(found, wanted[step] / temperatures[step])
        tokens = scaled.embed(maps[step - 1], step) if step else scaled.start(condition)
        torch.testing.assert_close(scaled.logits([tokens], condition, cache), found, atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match="2 temperatures for 10 steps"):
        Transformer(dataclasses.replace(config, temperatures=(1.0, 2.0)), plain.ladder, 64, 32)
    with pytest.raises(ModelError, match="above 0"):
        dataclasses.replace(config, temperatures=(0.0,) * 10)


def test_the_class_changes_the_logits(model: NextScale) -> None:
    condition = Condition(stages_of(torch.zeros(1, 32, 32, 32)), torch.tensor([0]))
    free = condition.class_free()
    assert free.classes.tolist() == [CLASS_FREE]
    a, b = (model.transformer.logits([model.transformer.start(c)], c) for c in (condition, free))
    assert not torch.equal(a, b)


def test_aligned_conditioning_and_gates_start_neutral() -> None:
    from nextscale.model.config import tiny

    fresh = NextScale.create(tiny()).transformer
    assert fresh.aligned is not None
    assert not bool(fresh.aligned.weight.any())
    assert all(not bool(block.ada_offset.any()) for block in fresh.stack.blocks)  # type: ignore[operator]
