"""The teacher passes on fine detail alone, and looks at each input once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nextscale.data.crops import Crops
from nextscale.model.layers import area_downsample
from nextscale.train.config import ReconstructionConfig
from nextscale.train.pairs import pairs
from nextscale.train.tasks.fusion import FusionTask
from nextscale.train.teacher import Teacher, with_detail_of
from tests.conftest import random_model


class Doubled:
    """In the place of Real-ESRGAN: every pixel four by four, inverted; counts its calls."""

    calls = 0

    def enlarged(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        type(self).calls += 1
        inverted: NDArray[np.uint8] = 255 - pixels.repeat(4, axis=0).repeat(4, axis=1)
        return inverted


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> type[Doubled]:
    monkeypatch.setattr("nextscale.train.teacher.RealEsrgan", Doubled)
    monkeypatch.setattr(Doubled, "calls", 0)
    return Doubled


@pytest.fixture
def crops(tmp_path: Path) -> Crops:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).resize((300, 300), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return Crops([str(folder)], 256, seed=0)


def test_an_input_is_looked_at_once_and_kept_between_runs(network: type[Doubled], tmp_path: Path) -> None:
    inputs = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = Teacher(tmp_path / "lessons")
    made = first.picture(inputs)
    assert made.shape == (3, 32, 32)
    assert torch.equal(first.picture(inputs), made)
    assert network.calls == 1
    assert torch.equal(Teacher(tmp_path / "lessons").picture(inputs), made)
    assert network.calls == 1
    assert not torch.equal(first.picture(inputs.flip(-1)), made)
    assert sorted(path.suffix for path in (tmp_path / "lessons").iterdir()) == [".png", ".png"]


def test_coarse_content_stays_the_photographs_and_fine_detail_becomes_the_other_pictures() -> None:
    place = torch.arange(128.0)
    coarse, fine = torch.sin(place / 128 * 2 * torch.pi), torch.where(place % 2 == 0, 0.25, -0.25)
    photograph, other = (row.expand(1, 3, 128, 128) for row in (coarse, fine - coarse))
    taught = with_detail_of(photograph, other, 2.0)
    inner = (..., slice(16, -16))
    assert float((taught - (coarse + fine))[inner].abs().max()) < 0.02
    assert torch.equal(with_detail_of(photograph, photograph, 2.0), photograph)


def test_samples_with_predicted_codes_are_taught_and_those_with_the_photographs_are_not(crops: Crops) -> None:
    model = random_model()

    def wanted(**settings: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        config = ReconstructionConfig(feature=0, lpips=0, continuous=0.0, **settings)
        task = FusionTask(model.tokenizer, model.transformer, crops, config)
        photographs, inputs, _ = pairs(crops, 0, 4, ["stablesr"], 0.0)
        return photographs, task.wanted(photographs, inputs, 0)

    photographs, plain = wanted(predicted=0.0, taught=1.0)
    assert torch.equal(plain[2], photographs)
    _, same = wanted(predicted=1.0, taught=0.0)
    assert torch.equal(same[2], photographs)
    _, taught = wanted(predicted=1.0, taught=1.0)
    assert not any(torch.equal(a, b) for a, b in zip(photographs, taught[2], strict=True))
    # Inverted by the stand-in, yet as bright as before where colours are looked at coarsely.
    assert float((area_downsample(taught[2], 8) - area_downsample(photographs, 8)).abs().mean()) < 0.1
    assert torch.allclose(taught[1], area_downsample(taught[2], 128))
    # The first stage is left out, unless it is asked for.
    assert torch.equal(taught[0], plain[0])
    _, all_stages = wanted(predicted=1.0, taught=1.0, taught_from=1)
    assert torch.allclose(all_stages[0], area_downsample(taught[2], 64))
    _, half = wanted(predicted=0.5, taught=1.0)
    assert 0 < sum(torch.equal(a, b) for a, b in zip(photographs, half[2], strict=True)) < len(photographs)
