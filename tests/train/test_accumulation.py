"""What is drawn belongs to the sample: a step over accumulated batches, or over processes, is that over one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.data.crops import Crops
from nextscale.model.config import RestorerConfig
from nextscale.model.restorer import Restorer
from nextscale.train.config import (
    CodebookConfig,
    FusionTrainingConfig,
    LoopConfig,
    ReconstructionConfig,
    RestorationConfig,
)
from nextscale.train.loop import as_floats
from nextscale.train.stream import Samples
from nextscale.train.tasks.codebook import CodebookTask
from nextscale.train.tasks.fusion import FusionTask
from nextscale.train.tasks.reconstruction import ReconstructionTask
from nextscale.train.tasks.restorer import RestorerTask
from nextscale.train.tasks.transformer import _distance
from nextscale.train.terms import Terms, chances, resampled_lpips, window_of
from tests.conftest import random_model, restoring_model

EXAMPLES = str(Path(__file__).parents[2] / "examples")


def reconstruction() -> ReconstructionTask:
    config = ReconstructionConfig(feature=0, lpips=0, noise=0.2, soft=0.5)
    return ReconstructionTask(random_model().tokenizer, Crops([EXAMPLES], 256), config)


def restorer() -> RestorerTask:
    torch.manual_seed(0)
    config = RestorationConfig(side=16, workers=0, feature=0, lpips=0)
    samples = Samples(Crops([EXAMPLES], 64), None, None, config)
    return RestorerTask(Restorer(RestorerConfig(channels=8, convs=2)), samples, config)


def fusion() -> FusionTask:
    config = FusionTrainingConfig(side=64, workers=0, feature=0, lpips=0, predicted=1.0, predicted_after=2, cycle=8)
    samples = Samples(Crops([EXAMPLES], 256), None, None, config)
    return FusionTask(restoring_model(untrained=False), samples, config)


@pytest.mark.integration
@pytest.mark.parametrize("make", [reconstruction, restorer, fusion])
def test_two_accumulated_batches_are_one_of_twice_the_size(make: Callable[[], Any]) -> None:
    def step(batch: int, count: int) -> tuple[float, list[Tensor]]:
        task = make()
        task.groups(LoopConfig(grad_accum_steps=count))
        losses = [task.losses(count + place, batch)[0] / count for place in range(count)]
        total = torch.stack(losses).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach()), [p.grad for p in task.model.parameters() if p.grad is not None]

    (whole, wanted), (parts, found) = step(4, 1), step(2, 2)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert len(found) == len(wanted) > 0
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.integration
def test_the_codebook_is_revived_from_all_accumulated_batches() -> None:
    def step(batch: int, count: int) -> Tensor:
        tokenizer = random_model().tokenizer
        tokenizer.quantizer.codebook.weight.data[:8] = 1e6  # never chosen
        task = CodebookTask(tokenizer, Crops([EXAMPLES], 256), CodebookConfig(revive_every=1))
        optimizer = torch.optim.AdamW(task.groups(LoopConfig()), lr=0.0)
        losses = [task.losses(count + place, batch)[0] / count for place in range(count)]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        task.after(0, optimizer)
        return tokenizer.quantizer.codebook.weight.detach()

    whole, parts = step(4, 1), step(2, 2)
    assert whole.abs().max() < 1e5
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
def test_the_cycle_of_the_fusion_counts_the_samples_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    task, places = fusion(), []

    def batch(place: int, size: int) -> None:
        places.append(place)
        assert size == 2
        raise StopIteration

    monkeypatch.setattr(task.stream, "batch", batch)
    for step in range(5):
        with pytest.raises(StopIteration):
            task.losses(step, 2)
    assert places == [0, 1, 0, 1, 0]  # twice two samples, of a cycle of eight


def test_predicted_codes_of_a_saved_state_go_to_the_device_of_the_training() -> None:
    task = fusion()
    task.device = torch.device("meta")
    task.load_state_dict({"remembered": {3: [torch.zeros(4), torch.ones(4)]}})
    assert [row.device.type for row in task.predicted[3]] == ["meta", "meta"]


def test_terms_are_means_over_all_samples_however_many_are_smooth() -> None:
    config = RestorationConfig(feature=0, lpips=0, factor_weights=(1.0,))
    terms = Terms(config, [1], torch.device("cpu"))
    terms.lpips = lambda a, b: (a - b).abs().mean(dim=(1, 2, 3))  # type: ignore[assignment]
    terms.vgg = lambda x: [x]  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    picture, target = (torch.rand(4, 3, 40, 40, generator=generator) for _ in range(2))
    smooth = torch.tensor([True, False, False, False])
    chance = (0.2, 0.5, 0.5)
    whole, _ = terms.terms(0, picture, target, smooth, chance)
    halves = [terms.terms(0, picture[s], target[s], smooth[s], chance)[0] for s in (slice(0, 2), slice(2, 4))]
    assert set(whole) == {"pixel", "smooth", "lpips", "feature"}
    for name, value in whole.items():
        parts = [half.get(name, torch.zeros(())) for half in halves]
        torch.testing.assert_close(torch.stack(parts).mean(), value)


def test_the_distance_to_latents_is_a_mean_over_the_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(4, 8, 4, 4, generator=generator)
    latent = torch.randn(4, 6, 4, 4, generator=generator) * torch.tensor([0.5, 1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    halves = [_distance(condition[s], latent[s]) for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(halves).mean(), _distance(condition, latent))


def test_windows_and_sizes_belong_to_the_step() -> None:
    pictures = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    chance = chances(0, 2, 5)
    assert chance == chances(0, 2, 5)
    assert len({chance, chances(1, 2, 5), chances(0, 1, 5), chances(0, 2, 6)}) == 4
    whole = window_of(pictures, chance, 16)
    top, left = (int(c * 25) for c in chance[:2])
    assert torch.equal(whole, pictures[..., top : top + 16, left : left + 16])
    assert torch.equal(window_of(pictures, chance, 64), pictures)


def test_pictures_are_resampled_as_by_interpolation() -> None:
    pictures = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def distance(one: Tensor, other: Tensor) -> Tensor:
        seen.append(one)
        assert torch.equal(one, other)
        return one.abs().mean(dim=(1, 2, 3))

    for scale, side in ((0.9, 36), (0.1, 32), (1.5, 60)):
        resampled_lpips(distance, pictures, pictures, scale)  # type: ignore[arg-type]
        expected = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
        torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-6)


def test_numbers_come_from_the_device_at_once() -> None:
    numbers = as_floats({"a": 1.5, "b": torch.tensor(2.0), "c": torch.tensor([3.0]), "d": 4})
    assert numbers == {"a": 1.5, "b": 2.0, "c": 3.0, "d": 4}
    assert list(numbers) == ["a", "b", "c", "d"]


def test_the_configs_of_restorer_and_fusion_share_their_terms() -> None:
    common = {f.name for f in dataclasses.fields(RestorationConfig)}
    assert {f.name for f in dataclasses.fields(FusionTrainingConfig)} - common == {
        *("error", "predicted", "predicted_after", "cycle"),
    }
