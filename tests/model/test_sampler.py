"""The sampling loop: official ids, caching, prefixes, determinism, and the trainer's inputs bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.model.attention import Cache
from nextscale.model.config import SamplingOptions, flat_ladder
from nextscale.model.sampler import choose, filter_logits, sample, tile_noise
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.model.transformer import Condition
from nextscale.upscale.nextscale import NextScale
from tests.official import Labels, OfficialModel, official_state

GREEDY = SamplingOptions()
DRAWN = SamplingOptions(temperature=1.0, top_k=20, top_p=0.9)


def condition_of(batch: int, seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(batch, 32, side, side, generator=generator) for side in (8, 16, 32)]
    return Condition(latents, torch.zeros(batch, dtype=torch.int64))


class Uncached:
    """A model that runs the whole sequence again at every step, without a cache."""

    def __init__(self, model: Any) -> None:
        self.start, self.embed, self.model = model.start, model.embed, model
        self.past: dict[int, list[Tensor]] = {}

    def logits(self, segments: Sequence[Tensor], condition: Any, cache: Cache | None, /) -> Tensor:
        past = self.past.setdefault(id(cache), [])  # one cache for each condition
        past += segments
        logits: Tensor = self.model.logits(past, condition, None)
        return logits[:, -sum(tokens.shape[1] for tokens in segments) :]


def run(
    model: NextScale,
    condition: Condition,
    options: SamplingOptions,
    *,
    stages: int | None = None,
    cached: bool = True,
    seed: int = 0,
) -> Codes:
    noise = tile_noise(seed, [(0, i) for i in range(len(condition.classes))])
    tokenizer = model.tokenizer
    made = list(
        sample(
            model.transformer if cached else Uncached(model.transformer),
            tokenizer.quantizer,
            tokenizer.ladder,
            condition,
            options,
            noise=noise,
            stages=stages,
        )
    )
    return made[-1].codes


@pytest.mark.parametrize(("cfg", "name"), [(0.0, "infer0_idx"), (1.5, "infer_idx")])
def test_greedy_ids_equal_the_official_sampler(fixtures: Path, official: Tokenizer, cfg: float, name: str) -> None:
    quantizer = official.quantizer
    data = np.load(fixtures / "var_tiny.npz")
    model = OfficialModel(official_state(fixtures))
    ladder, labels, noise = flat_ladder((1, 2, 3, 4)), Labels(torch.tensor([3, 5])), tile_noise(0, [(0, 0), (0, 1)])
    for asked in (model, Uncached(model)):
        (made,) = sample(asked, quantizer, ladder, labels, SamplingOptions(cfg=cfg), noise=noise)
        for k, ids in enumerate(made.codes.steps):
            assert torch.equal(ids.flatten(1), torch.from_numpy(data[f"{name}_{k}"]))


def test_the_filter_equals_the_official_one(fixtures: Path) -> None:
    data = np.load(fixtures / "var_tiny.npz")
    kept = filter_logits(torch.from_numpy(data["filter_in"]), top_k=10, top_p=0.75)
    assert torch.equal(kept, torch.from_numpy(data["filter_k10_p075"]))


class Replay:
    """A stub that answers with given codes and records what it is fed."""

    def __init__(self, codes: Codes, codebook_size: int) -> None:
        self.codes = codes
        self.codebook_size = codebook_size
        self.fed: list[Tensor] = []
        self.step = 0

    def start(self, condition: Condition, /) -> Tensor:
        return torch.zeros(len(condition.classes), self.codes.steps[0][0].numel(), 1)

    def embed(self, input_map: Tensor, step: int, /) -> Tensor:
        assert step == self.step
        self.fed.append(input_map.clone())
        return input_map.flatten(2).transpose(1, 2)

    def logits(self, segments: Sequence[Tensor], condition: Condition, cache: Cache | None, /) -> Tensor:
        del segments, condition, cache
        ids = self.codes.steps[self.step].flatten(1)
        self.step += 1
        return torch.nn.functional.one_hot(ids, self.codebook_size).float() * 10


def test_the_sampler_feeds_the_trainers_inputs_bit_for_bit(model: NextScale) -> None:
    tokenizer = model.tokenizer
    images = torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(images)
    stub = Replay(codes, tokenizer.config.codebook_size)
    made = list(
        sample(
            stub, tokenizer.quantizer, tokenizer.ladder, condition_of(2), GREEDY, noise=tile_noise(0, [(0, 0), (0, 1)])
        )
    )
    assert [stage.stage for stage in made] == [0, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(made[-1].codes.steps, codes.steps, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(stub.fed, tokenizer.step_inputs(codes), strict=True))
    assert all(torch.equal(stage.f, f) for stage, f in zip(made, tokenizer.canvases(codes), strict=True))


@pytest.mark.parametrize("options", [GREEDY, DRAWN, SamplingOptions(cfg=2.0)])
def test_cached_and_uncached_sampling_agree(model: NextScale, options: SamplingOptions) -> None:
    a, b = (run(model, condition_of(1), options, stages=2, cached=cached) for cached in (True, False))
    assert all(torch.equal(x, y) for x, y in zip(a.steps, b.steps, strict=True))


def test_stopping_early_gives_the_prefix_of_the_full_run(model: NextScale) -> None:
    whole = run(model, condition_of(1), DRAWN)
    for stages in (1, 2):
        part = run(model, condition_of(1), DRAWN, stages=stages)
        assert part.num_stages == stages
        assert all(torch.equal(x, y) for x, y in zip(part.steps, whole.steps, strict=False))


def test_same_seed_same_codes_and_other_seed_other_codes(model: NextScale) -> None:
    a, b, c = (run(model, condition_of(1), DRAWN, stages=1, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(x, y) for x, y in zip(a.steps, b.steps, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.steps, c.steps, strict=True))


def test_noise_depends_on_the_tile_not_on_its_place_in_the_batch() -> None:
    ab = tile_noise(1, [(0, 0), (2, 3)])(4, 10)
    ba = tile_noise(1, [(2, 3), (0, 0)])(4, 10)
    assert torch.equal(ab[0], ba[1])
    assert torch.equal(ab[1], ba[0])
    assert not torch.equal(ab[0], ab[1])
    assert not torch.equal(ab, tile_noise(1, [(0, 0), (2, 3)])(5, 10))
    assert bool(((ab >= 0) & (ab < 1)).all())


def test_draws_follow_the_distribution_and_never_leave_the_filter() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(1, 20000, 4)
    noise = tile_noise(0, [(0, 0)])
    drawn = choose(logits, SamplingOptions(temperature=1.0), lambda tokens: noise(0, tokens))
    share = torch.bincount(drawn.flatten(), minlength=4) / 20000
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.01)
    kept = choose(logits, SamplingOptions(temperature=1.0, top_k=2), lambda tokens: noise(0, tokens))
    assert set(kept.flatten().tolist()) == {0, 1}
    extreme = choose(
        logits[:, :2], SamplingOptions(temperature=1.0, top_k=3), lambda _: torch.tensor([[0.0, 1 - 2**-53]]).double()
    )
    assert extreme.flatten().tolist() == [0, 2]


def test_the_probability_of_each_chosen_token_is_the_models_own(model: NextScale) -> None:
    condition = condition_of(1)
    (stage,) = sample(
        model.transformer,
        model.tokenizer.quantizer,
        model.tokenizer.ladder,
        condition,
        DRAWN,
        noise=tile_noise(0, [(0, 0)]),
        stages=1,
    )
    logits = model.transformer.logits([model.transformer.start(condition)], condition)
    wanted = logits.softmax(-1).gather(-1, stage.codes.steps[0].flatten(1)[..., None]).view(1, 4, 4)
    assert torch.allclose(stage.probabilities[0], wanted, atol=1e-6)
    assert [tuple(p.shape) for p in stage.probabilities] == [(1, 4, 4), (1, 6, 6), (1, 8, 8)]


def test_keys_are_let_go_before_the_last_stage_is_decoded(model: NextScale, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []

    class Noted(Cache):
        def __init__(self, later: int) -> None:
            super().__init__(later)
            caches.append(self)

    monkeypatch.setattr("nextscale.model.sampler.Cache", Noted)
    tokenizer = model.tokenizer
    drawn = sample(
        model.transformer, tokenizer.quantizer, tokenizer.ladder, condition_of(1), GREEDY, noise=tile_noise(0, [(0, 0)])
    )
    # The prefix and the steps of the first stages; then nothing.
    assert [caches[0].segments for _ in drawn] == [1 + 3, 1 + 6, 0]
