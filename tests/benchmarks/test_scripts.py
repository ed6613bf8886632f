"""Every script of benchmarks/ and docs/ that has options parses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import hard, training

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if "tyro.cli" in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.stem))
def test_a_script_tells_its_options(script: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{script.stem}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_the_speed_of_training_is_measured_of_every_preset() -> None:
    settings = training.Settings(preset="tiny", side=64, runs=1, product=64, device="cpu", fp32=True)
    assert training.measure(settings)["tokens_per_second"] > 0


def test_models_of_one_folder_name_have_a_panel_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    model = SimpleNamespace(upscale=lambda *_: SimpleNamespace(picture=np.zeros((32, 32, 3), np.uint8)))
    shown: list[str] = []

    def sheet(panels: dict[str, Any], side: int) -> Image.Image:
        shown.extend(panels)
        return Image.new("RGB", (side, side))

    settings = hard.Settings(folder=tmp_path, out=tmp_path / "out", model=("a/model", "b/model"), peers=False)
    monkeypatch.setattr("benchmarks.hard.tyro.cli", lambda *_, **__: settings)
    monkeypatch.setattr("benchmarks.hard.NextScale.from_pretrained", lambda _: model)
    monkeypatch.setattr("benchmarks.hard.images.rgb8", lambda picture: np.asarray(getattr(picture, "rgb", picture)))
    monkeypatch.setattr(hard, "sheet", sheet)
    assert hard.main() == 0
    assert shown == ["bicubic", "nextscale a/model", "nextscale b/model"]
