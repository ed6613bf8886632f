"""Trainings take their factor from the ladder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nextscale.commands.main import main
from nextscale.data.crops import Crops
from nextscale.errors import OptionError
from nextscale.model.checkpoint import save_folder
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
LADDERS: dict[int, dict[str, Any]] = {
    2: {"sides": [1, 2, 3, 4], "stage_ends": [2, 4], "phi": [0, 1, 2, 3], "input_canvas": 2},
    8: {"sides": [1, 2, 4, 8, 16], "stage_ends": [2, 3, 4, 5], "phi": [0, 0, 1, 2, 3], "input_canvas": 2},
}
"""By the largest factor; an input is 32 px."""


@pytest.mark.parametrize("largest", LADDERS)
def test_ladders_of_other_factors_train_from_nothing_to_a_whole_model(
    largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = tuple(f for f in (1, 2, 4, 8) if f <= largest)
    monkeypatch.setattr("nextscale.commands.train.PRESETS", {"tiny": small_config})
    file = tmp_path / "ladder.json"
    file.write_text(json.dumps({"tokenizer": {"ladder": LADDERS[largest]}}))
    plain = ["--data", EXAMPLES, "--steps", "1", "--batch", "1", "--no-bf16"]
    sheet = ["--validation.data", EXAMPLES, "--validation.count", "1", "--sheet-every", "1"]
    out = {name: tmp_path / name for name in ("ae", "cb", "tf", "fusion")}

    def trained(what: str, name: str, *words: str) -> None:
        assert main(["train", what, *plain, *words, "--out", str(out[name])]) == 0

    terms = ["--reconstruction.feature", "0", "--reconstruction.lpips", "0", "--reconstruction.side", "32"]
    trained("tokenizer", "ae", "--phase", "autoencoder", "--config", str(file), *terms, *sheet)
    kmeans = ["--codebook.kmeans-images", "8", "--codebook.kmeans-rounds", "1", "--codebook.side", "32"]
    trained("tokenizer", "cb", "--phase", "codebook", "--start", str(out["ae"] / "model"), *kmeans)
    trained("transformer", "tf", "--tokenizer", str(out["cb"] / "model"), "--codes.sides", "32", *sheet)
    row = json.loads((out["tf"] / "log.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(row["loss"])
    steps = len(LADDERS[largest]["sides"])
    assert f"cross_entropy_{steps}" in row
    assert f"cross_entropy_{steps + 1}" not in row
    sizes = RestorerConfig(channels=8, convs=1, factors=factors)
    (tmp_path / "restorer").mkdir()
    save_folder(tmp_path / "restorer", "restorer", sizes, Restorer(sizes).state_dict())
    terms = ["--restoration.feature", "0", "--restoration.lpips", "0", "--restoration.side", "32"]
    terms += ["--restoration.workers", "0", "--restoration.factor-weights", *["1"] * len(factors)]
    start = ["--start", str(out["tf"] / "model"), "--restorer", str(tmp_path / "restorer")]
    trained("fusion", "fusion", *start, *terms, *sheet)
    model = NextScale.from_pretrained(out["fusion"] / "model", device="cpu", fp32=True)
    assert tuple(model.tokenizer.ladder.factors) == factors
    assert model.restorer is not None


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
