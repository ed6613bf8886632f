"""The pool of `runs/tiny_gpu.py`: what a batch holds together belongs to one sample, however the pool is renewed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nextscale.model.layers import area_downsample
from tests.conftest import random_model, script

GRAY = 6
"""Levels between one sample and the next."""


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("REHEARSE", "1")
    module = script("tiny_gpu", monkeypatch)
    monkeypatch.setattr(module, "SLOTS", {64: 12, 128: 4})
    monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
    return module


def write(recipe: Any, work: Path, first: int, count: int) -> None:
    """Samples that are one gray, another for each; every third keeps noise."""
    (work / "pool").mkdir(exist_ok=True)
    pool = recipe.Pool(work, 64, workers=1)
    for number in range(first, first + count):
        slot = number % pool.slots
        pool.arrays["hr"][slot] = pool.arrays["lr"][slot] = GRAY * number
        pool.arrays["marks"][slot] = (0.5 if number % 3 == 0 else 1.0, number % 2, 0.0, 1.0)
    pool.arrays["counts"][:] = first + count


def test_a_batch_is_of_whole_samples_and_of_one_kind(recipe: Any, tmp_path: Path) -> None:
    write(recipe, tmp_path, 0, 8)
    stream = recipe.PoolStream(tmp_path, 64, seed=3)
    kinds = set()
    for step in range(60):
        if step == 30:
            write(recipe, tmp_path, 8, 16)
        batch = stream.batch(step, 3)
        numbers = ((batch.targets[:, 0, 0, 0] + 1) * 127.5 / GRAY).round().long().tolist()
        torch.testing.assert_close(batch.targets.mean((1, 2, 3)), batch.inputs.mean((1, 2, 3)))
        assert batch.denoise.tolist() == [0.5 if number % 3 == 0 else 1.0 for number in numbers]
        assert batch.clean.tolist() == [number % 2 for number in numbers]
        assert batch.given.tolist() == [1, 1, 1]
        kinds.add(tuple(batch.denoise.tolist()))
    assert kinds == {(1.0, 1.0, 1.0), (0.5, 0.5, 0.5)}


class Repeating:
    """A restorer that makes pixels larger."""

    def features(self, inputs: torch.Tensor, factors: tuple[int, ...]) -> dict[int, torch.Tensor]:
        return dict.fromkeys(factors, inputs)

    def __call__(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.interpolate(inputs, scale_factor=float(factor)) for factor in (1, 2, 4)]


def test_latents_stay_those_of_their_photographs(recipe: Any, tmp_path: Path) -> None:
    tokenizer = random_model().tokenizer
    restorer = Repeating()
    write(recipe, tmp_path, 0, 8)
    (tmp_path / "pool").mkdir(exist_ok=True)
    recipe.Pool(tmp_path, 128, workers=1).arrays["counts"][:] = 0
    codes = recipe.PoolCodes(tmp_path, tokenizer, restorer, encoded=1)
    codes.batch(64, 0, 4)
    write(recipe, tmp_path, 8, 30)  # round and round
    for step in range(1, 4):
        batch = codes.batch(64, step, 4)
        torch.testing.assert_close(batch.own, batch.latents[:1])
        for row, features in enumerate(batch.features):
            photograph = torch.nn.functional.interpolate(features[None, :, :1, :1], size=(256, 256))
            expected = tokenizer.stage_latents(photograph, ladder=codes.ladders[64])
            for found, wanted in zip(batch.latents, expected, strict=True):
                torch.testing.assert_close(found[row], wanted[0], rtol=0.1, atol=0.1)
            number = int(((features[0, 0, 0] + 1) * 127.5 / GRAY).round())
            assert int(batch.classes[row]) == number % 2
    assert len(set(area_downsample(batch.features, 1).flatten().tolist())) > 1
