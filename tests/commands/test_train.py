"""`--config`: a training under a difference of configurations, and what a trained tokenizer cannot become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextscale.commands.main import main
from nextscale.model.tokenizer import Tokenizer
from nextscale.upscale.nextscale import NextScale
from reproduce.tables import FlatBaseline
from tests.conftest import small_config

ROOT = Path(__file__).parents[2]
ABLATIONS = ROOT / "runs" / "ablations"
DATA = ["--data", str(ROOT / "examples"), "--steps", "1", "--batch", "1", "--no-bf16"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.commands.train.PRESETS", {"tiny": small_config})


@pytest.fixture(scope="module")
def tokenizer(model: NextScale, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.tokenizer.save_pretrained(tmp_path_factory.mktemp("tokenizer"))


def difference(folder: Path, content: Any) -> str:
    file = folder / "difference.json"
    file.write_text(json.dumps(content))
    return str(file)


def test_a_transformer_of_flat_codes_is_a_baseline_of_its_tokenizer(
    tokenizer: Path, model: NextScale, tmp_path: Path
) -> None:
    words = ["--tokenizer", str(tokenizer), "--config", str(ABLATIONS / "one-stage.json"), "--codes.sides", "64"]
    assert main(["train", "transformer", *DATA, *words, "--out", str(tmp_path)]) == 0
    flat = NextScale.from_pretrained(tmp_path / "model", device="cpu", fp32=True)
    assert flat.tokenizer.ladder.num_stages == 1
    assert FlatBaseline(flat, model.tokenizer, "baseline").name == "baseline"


def test_decoders_train_on_fewer_stages_of_a_trained_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    plain = ["--reconstruction.feature", "0", "--reconstruction.lpips", "0", "--phase", "decoders"]
    words = ["--start", str(tokenizer), "--config", str(ABLATIONS / "two-stages.json")]
    assert main(["train", "tokenizer", *DATA, *plain, *words, "--out", str(tmp_path)]) == 0
    trained = Tokenizer.from_pretrained(tmp_path / "model")
    assert trained.ladder.canvases == (16, 32)
    assert len(trained.decoders) == 2


def test_a_trained_tokenizer_changes_its_ladder_only(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "tokenizer",
        *DATA,
        "--phase",
        "codebook",
        "--start",
        str(tokenizer),
        "--out",
        str(tmp_path / "a"),
    ]
    assert main([*words, "--config", difference(tmp_path, {"tokenizer": {"codebook_size": 32}})]) == 2
    assert "only its ladder can change" in capsys.readouterr().err
    assert main([*words, "--config", difference(tmp_path, {"tokenizer": {"vocabulari": 32}})]) == 1
    assert "unknown key config.tokenizer.vocabulari" in capsys.readouterr().err


def test_a_started_transformer_has_its_configuration(
    tokenizer: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokenizer", str(tokenizer), "--start", str(model_folder), "--out", str(tmp_path / "a")]
    config = ["--config", str(ABLATIONS / "unaligned.json")]
    assert main(["train", "transformer", *DATA, *words, *config]) == 2
    assert "--start brings its own configuration" in capsys.readouterr().err


def test_a_plan_sees_the_difference(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*words: str) -> str:
        base = ["train", "transformer", *DATA, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "a"), "--plan"]
        assert main([*base, *words]) == 0
        return capsys.readouterr().out

    assert planned() != planned("--config", difference(tmp_path, {"transformer": {"depth": 4}}))
