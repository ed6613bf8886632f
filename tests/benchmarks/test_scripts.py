"""Every script of benchmarks/ and docs/ that has options parses them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import hard, held_back, training
from nextscale.errors import OptionError
from nextscale.evaluate.metrics.psnr_ssim import psnr
from nextscale.model.checkpoint import save_folder
from nextscale.model.config import RestorerConfig
from nextscale.model.restorer import Restorer

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

    def sheet(panels: dict[str, Any], box: hard.Box) -> Image.Image:
        shown.extend(panels)
        return Image.new("RGB", box[2:])

    settings = hard.Settings(folder=tmp_path, out=tmp_path / "out", model=("a/model", "b/model"), peers=False)
    monkeypatch.setattr("benchmarks.hard.tyro.cli", lambda *_, **__: settings)
    monkeypatch.setattr("benchmarks.hard.NextScale.from_pretrained", lambda _: model)
    monkeypatch.setattr("benchmarks.hard.images.rgb8", lambda picture: np.asarray(getattr(picture, "rgb", picture)))
    monkeypatch.setattr(hard, "sheet", sheet)
    assert hard.main() == 0
    assert shown == ["bicubic", "nextscale a/model", "nextscale b/model"]


def test_crops_with_most_detail_avoid_what_those_before_show_and_differ() -> None:
    pixels = np.zeros((96, 160, 3), np.uint8)
    pixels[8:40, 8:40] = np.arange(32)[:, None, None] % 4 * 40  # most
    pixels[48:80, 100:132] = np.arange(32)[:, None, None] % 4 * 20
    boxes = hard.busiest(pixels, 48, 20)
    assert boxes[:2] == hard.busiest(pixels, 48, 2)
    assert boxes[0] == (0, 0, 48, 48)
    left, top, right, bottom = boxes[1]
    assert left <= 100 < 132 <= right
    assert top <= 48 < 80 <= bottom
    assert all((right - left, bottom - top) == (48, 48) for left, top, right, bottom in boxes)
    assert len(set(boxes)) == len(boxes)
    # Two of three crops that must share pixels share as few as the steps of 16 px let them.
    assert [box[:2] for box in hard.busiest(pixels[:48, :64], 48, 3)] == [(0, 0), (16, 0)]
    assert hard.busiest(pixels, 200, 3) == [(0, 0, 160, 96)]


def test_blind_sheets_say_nothing_and_the_key_tells() -> None:
    panels = {name: np.full((8, 8, 3), value, np.uint8) for value, name in enumerate(("bicubic", "a", "b", "c"))}
    orders = set()
    for seed in range(20):
        shown, key = hard.hidden(panels, str(seed))
        assert list(shown) == ["input", "1", "2", "3"]
        assert shown["input"] is panels["bicubic"]
        assert all(shown[number] is panels[name] for number, name in key.items())
        assert sorted(key.values()) == ["a", "b", "c"]
        assert hard.hidden(panels, str(seed))[1] == key
        turned, other = hard.hidden(panels, str(seed), turned=True)
        assert list(other.values()) == list(key.values())[::-1]
        assert all(turned[number] is panels[name] for number, name in other.items())
        orders.add(tuple(key.values()))
    assert len(orders) == 6


def test_the_key_of_blind_sheets_lies_beside_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    model = SimpleNamespace(upscale=lambda *_: SimpleNamespace(picture=np.zeros((32, 32, 3), np.uint8)))
    out = tmp_path / "sheets"
    settings = hard.Settings(folder=tmp_path, out=out, model=("x", "y"), peers=False, blind=3)
    monkeypatch.setattr("benchmarks.hard.tyro.cli", lambda *_, **__: settings)
    monkeypatch.setattr("benchmarks.hard.NextScale.from_pretrained", lambda _: model)
    monkeypatch.setattr("benchmarks.hard.images.rgb8", lambda picture: np.asarray(getattr(picture, "rgb", picture)))
    assert hard.main() == 0
    assert [file.name for file in out.iterdir()] == ["a.png"]
    key = json.loads((tmp_path / "sheets-key.json").read_text())
    assert sorted(key["a"].values()) == ["nextscale x", "nextscale y"]
    other = dataclasses.replace(settings, turned=True)
    monkeypatch.setattr("benchmarks.hard.tyro.cli", lambda *_, **__: other)
    assert hard.main() == 0
    turned = json.loads((tmp_path / "sheets-key.json").read_text())
    assert list(turned["a"].values()) == list(key["a"].values())[::-1]
    other = dataclasses.replace(other, blind=None)
    with pytest.raises(OptionError, match="--turned has no effect without --blind"):
        hard.main()


def test_held_back_scores_are_of_the_same_crops_for_every_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a mean difference in place of LPIPS, whose weights need not be there."""
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        restorer = Restorer(RestorerConfig(channels=4, convs=2, factors=(1, 2, 4)))
        save_folder(tmp_path / name, "restorer", restorer.config, restorer.state_dict())
    models = tuple(str(tmp_path / name) for name in ("one", "two", "one"))
    settings = held_back.Settings(
        data=str(ROOT / "examples"),
        models=models,
        pages=str(ROOT / "examples"),
        prints=str(ROOT / "examples"),
        crops=2,
        side=32,
    )
    monkeypatch.setattr("benchmarks.held_back.tyro.cli", lambda *_, **__: settings)
    monkeypatch.setattr("benchmarks.held_back.Lpips", lambda _: Apart())
    assert held_back.main() == 0
    distances, ratios = capsys.readouterr().out.strip().split("\n\n")
    kinds = [*held_back.DAMAGE, "scan", "small print"]
    # Each is a mean over the crops: of one kind of damage by hand.
    targets, inputs = held_back.samples(settings.data, held_back.DAMAGE["compressed"], settings, 4)
    with torch.no_grad():
        torch.manual_seed(0)
        made = Restorer(RestorerConfig(channels=4, convs=2, factors=(1, 2, 4)))(inputs)[-1].clamp(-1, 1)
    distance = float((made - targets).abs().mean())
    ratio = float(psnr(made / 2 + 0.5, targets / 2 + 0.5).mean())
    for title, part, value, digits in (("LPIPS", distances, distance, 4), ("PSNR-Y", ratios, ratio, 2)):
        head, _, *lines = part.splitlines()
        assert head == f"| {title} | {' | '.join(kinds)} | mean |"
        rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in lines)}
        assert list(rows) == ["bicubic", *models[:2]]
        assert all(len(row) == len(kinds) + 1 for row in rows.values())
        assert rows[models[0]] != rows[models[1]]
        assert float(rows[models[0]][kinds.index("compressed")]) == pytest.approx(value, abs=0.6 * 10**-digits)
    other = Restorer(RestorerConfig(channels=4, convs=2, factors=(1, 2)))
    save_folder(tmp_path / "two", "restorer", other.config, other.state_dict())
    monkeypatch.setattr("benchmarks.held_back.tyro.cli", lambda *_, **__: dataclasses.replace(settings, crops=0))
    with pytest.raises(OptionError, match="--crops must be 1 or more"):
        held_back.main()
    monkeypatch.setattr("benchmarks.held_back.tyro.cli", lambda *_, **__: settings)
    with pytest.raises(OptionError, match=r"their largest factors differ \(2, 4\)"):
        held_back.main()


class Apart(torch.nn.Module):
    """The mean absolute difference of two batches of pictures."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean(dim=(1, 2, 3))
