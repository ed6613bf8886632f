"""Trainings take their factor from the ladder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nextscale.commands.main import main
from nextscale.data.crops import Crops
from nextscale.errors import OptionError
from nextscale.model.config import Ladder, RestorerConfig
from nextscale.model.restorer import Restorer
from nextscale.train.config import RestorationConfig
from nextscale.train.pairs import pairs, whole_factor
from nextscale.train.stream import Samples
from nextscale.train.tasks.restorer import RestorerTask
from nextscale.upscale.nextscale import NextScale
from tests.conftest import small_config

pytestmark = pytest.mark.integration

EXAMPLES = str(Path(__file__).parents[2] / "examples")
TWO = {"sides": [4, 6, 8, 10, 14, 16], "stage_ends": [3, 6], "phi": [0, 0, 1, 1, 2, 3]}


def test_a_ladder_of_factors_1_and_2_trains_from_nothing_to_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.commands.train.PRESETS", {"tiny": small_config})
    file = tmp_path / "two.json"
    file.write_text(json.dumps({"tokenizer": {"ladder": TWO}}))
    plain = ["--data", EXAMPLES, "--steps", "1", "--batch", "1", "--no-bf16"]
    sheet = ["--validation.data", EXAMPLES, "--validation.count", "1", "--sheet-every", "1"]
    out = {name: tmp_path / name for name in ("ae", "cb", "tf")}
    terms = ["--reconstruction.feature", "0", "--reconstruction.lpips", "0"]
    words = ["train", "tokenizer", *plain, "--phase", "autoencoder", "--config", str(file), *terms, *sheet]
    assert main([*words, "--out", str(out["ae"])]) == 0
    kmeans = ["--codebook.kmeans-images", "8", "--codebook.kmeans-rounds", "1"]
    words = ["train", "tokenizer", *plain, "--phase", "codebook", "--start", str(out["ae"] / "model"), *kmeans]
    assert main([*words, "--out", str(out["cb"])]) == 0
    words = ["train", "transformer", *plain, "--tokenizer", str(out["cb"] / "model"), "--codes.sides", "64", *sheet]
    assert main([*words, "--out", str(out["tf"])]) == 0
    model = NextScale.from_pretrained(out["tf"] / "model", device="cpu", fp32=True)
    assert list(model.tokenizer.ladder.factors) == [1, 2]
    row = json.loads((out["tf"] / "log.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(row["loss"])
    assert "cross_entropy_6" in row
    assert "cross_entropy_7" not in row


@pytest.mark.parametrize("factor", [2, 8])
def test_pairs_of_other_factors(factor: int) -> None:
    targets, inputs, _ = pairs(Crops([EXAMPLES], 128), range(2), ["stablesr"], 0.0, factor=factor)
    assert targets.shape[-1] == factor * inputs.shape[-1] == 128


def test_only_whole_factors_train() -> None:
    assert whole_factor(Ladder((4, 8, 16, 32, 64), (2, 3, 4, 5), (0, 1, 2, 2, 3))) == 8
    with pytest.raises(OptionError, match=r"enlarges by 1\.5"):
        whole_factor(Ladder((4, 8, 12), (2, 3), (0, 1, 2)))


@pytest.mark.parametrize("factors", [(2,), (1, 2), (1, 2, 4, 8)])
def test_a_restorer_of_other_factors_trains(factors: tuple[int, ...]) -> None:
    config = RestorationConfig(side=16, workers=0, feature=0, lpips=0)
    samples = Samples(Crops([EXAMPLES], 16 * max(factors)), None, None, config)
    restorer = Restorer(RestorerConfig(channels=8, convs=1, factors=factors))
    if len(factors) > 3:
        with pytest.raises(OptionError, match=r"factor-weights: 3 given, the model has 4 factors"):
            RestorerTask(restorer, samples, config)
        return
    loss, numbers = RestorerTask(restorer, samples, config).losses(0, 2)
    assert math.isfinite(float(loss.detach()))
    assert f"pixel_{len(factors)}" in numbers
