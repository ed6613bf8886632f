"""The recipes in runs/: every command in them is one that the command line knows, and `tiny` runs from data to a model.

A script is run by bash itself with stand-ins for python, accelerate and nextscale on its path, which write their
arguments down; so variables, arrays and functions are those of a real run.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tyro

from nextscale import NextScale, UpscaleOptions
from nextscale.cli import main
from nextscale.config import paper
from nextscale.train.plan import PlanConfig, plan

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "runs").glob("*.sh"))
ARGUMENTS = {"tiny": ["data", "{out}"], "paper": ["openimages", "photos", "benches", "checkpoints", "{out}"]}
"""What each script is called with."""
LATER: list[list[str]] = [["evaluate"]]
"""Commands that a recipe already names and the command line does not have yet. Once it does, their lines count."""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
pytestmark = needs_bash

STAND_IN = """#!/bin/sh
printf '%s\\0' "$0" "$@" end-of-command >> "$RECORD"
"""


def commands(name: str, folder: Path, **environment: str) -> list[list[str]]:
    """Arguments of every `nextscale` that a script starts."""
    record, programs = folder / "record", folder / "bin"
    programs.mkdir()
    for program in ("python", "python3", "accelerate", "nextscale"):
        (programs / program).write_text(STAND_IN)
        (programs / program).chmod(0o755)
    arguments = [argument.format(out=folder / "out") for argument in ARGUMENTS[name]]
    search = os.pathsep.join([str(programs), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(ROOT / "runs" / f"{name}.sh"), *arguments],
        env={"PATH": search, "RECORD": str(record), **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [call.split("\0")[:-1] for call in record.read_text().split("end-of-command\0")[:-1]]
    return [own for own in (own_arguments(call) for call in calls) if own is not None]


def own_arguments(call: list[str]) -> list[str] | None:
    """What `nextscale` is given in a call of itself, of python or of accelerate; None for another program."""
    if Path(call[0]).name == "nextscale":
        return call[1:]
    module = [i for i, word in enumerate(call[:-1]) if word == "-m" and call[i + 1] == "nextscale.cli"]
    return call[module[0] + 2 :] if module else None


def parse(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command that the real command line makes of its arguments, without running it."""
    parsed: list[Any] = []
    real = tyro.cli

    def only(*args: Any, **options: Any) -> Any:
        parsed.append(real(*args, **options))
        return SimpleNamespace(run=lambda: 0)

    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", only)
        assert main(arguments) == 0
    return parsed[0]


def exists(command: list[str]) -> bool:
    """Whether the command line has a command, and its help the option and value that may follow it."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), command))
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit):
        main([*words, "--help"])
    # An unknown command gets the help of what comes before it.
    found = shown.getvalue()
    return found.startswith(f"usage: nextscale {' '.join(words)} ") and all(word in found for word in command)


def test_every_script_is_covered() -> None:
    assert {script.stem for script in SCRIPTS} == set(ARGUMENTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.stem))
def test_scripts_are_sound_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_command_of_a_recipe_parses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(name, tmp_path)
    assert len(found) >= 4
    for arguments in found:
        if any(arguments[: len(later)] == later and not exists(later) for later in LATER):
            continue
        capsys.readouterr()
        try:
            parse(arguments, monkeypatch)
        except SystemExit:
            pytest.fail(f"nextscale {' '.join(arguments)}\n{''.join(capsys.readouterr())}")


def test_a_wrong_option_in_a_recipe_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parse(["train", "transformer", "--data", "d", "--out", "o", "--tokenizer", "t", "--no-such"], monkeypatch)
    assert not exists(["no-such"])
    assert not exists(["train", "tokenizer", "--phase", "no-such"])
    assert exists(["train", "tokenizer", "--phase", "decoders"])
    assert exists(["train", "transformer"])


def recorded(found: list[list[str]], *words: str) -> list[str]:
    """The one command that holds these words one after another."""
    (command,) = [c for c in found if any(tuple(c[i : i + len(words)]) == words for i in range(len(c)))]
    return command


def test_paper_trains_with_the_papers_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands("paper", tmp_path)
    training = parse(recorded(found, "train", "transformer"), monkeypatch).part
    loop, codes = training.loop, training.codes
    assert (loop.lr, loop.weight_decay, loop.betas, loop.clip) == (1e-3, 0.005, (0.9, 0.95), 2.0)
    assert loop.batch * loop.accumulate * 24 == 384
    assert loop.steps == pytest.approx(200 * 25274 / 384, abs=1)
    assert (loop.schedule, loop.warmup) == ("linear", loop.steps // 50)
    assert (codes.clean, codes.class_free, codes.sides, codes.balance) == (0.25, 0.1, (128,), 0.0)
    tokenizer = parse(recorded(found, "--phase", "decoders"), monkeypatch).part
    loop = tokenizer.loop
    assert (loop.lr, loop.weight_decay, loop.steps, loop.batch * loop.accumulate * 24) == (2.5e-4, 0.05, 25000, 384)
    terms = tokenizer.reconstruction
    assert (terms.continuous, terms.vocabulary, terms.squared) == (0.5, True, True)
    assert (terms.pixel, terms.lpips, terms.feature, terms.grid) == (1.0, 5.0, 0.0, 0.0)
    assert not parse(recorded(found, "train", "fusion"), monkeypatch).part.reconstruction.decoders


def test_paper_fits_the_gpus_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands("paper", tmp_path)
    machine = PlanConfig("a100-80", processes=24)
    transformer = parse(recorded(found, "train", "transformer"), monkeypatch).part
    planned = plan(paper(), "transformer", transformer.loop, machine, sides=transformer.codes.sides)
    assert planned.fits
    assert planned.samples == 384
    # It took the authors about 13 hours.
    assert 2 * 3600 < planned.seconds * planned.steps < 13 * 3600
    decoders = parse(recorded(found, "--phase", "decoders"), monkeypatch).part
    assert plan(paper(), "decoders", decoders.loop, machine).fits


def test_paper_keeps_384_samples_on_fewer_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands("paper", tmp_path, GPUS="8", MACHINES="1", ACCUMULATE="12", ACCUMULATE_TRANSFORMER="6")
    loop = parse(recorded(found, "train", "transformer"), monkeypatch).part.loop
    assert loop.batch * loop.accumulate * 8 == 384
    (tmp_path / "other").mkdir()
    with pytest.raises(AssertionError, match="384 samples do not divide into 5 GPUs"):
        commands("paper", tmp_path / "other", GPUS="5")


@pytest.mark.slow
def test_twenty_steps_of_tiny_make_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole recipe, each phase cut to 20 steps on small pictures: STEPS=20 SIDE=64 runs/tiny.sh DATA OUT."""
    weights = Path(os.environ.get("NEXTSCALE_WEIGHTS") or ROOT.parent / "shared" / "weights")
    if not weights.is_dir():
        pytest.skip(f"no perceptual weights in {weights}: set NEXTSCALE_WEIGHTS")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": search, "STEPS": "20", "SIDE": "64", "NEXTSCALE_WEIGHTS": str(weights)}
    monkeypatch.delenv("RANK", raising=False)
    done = subprocess.run(
        ["bash", str(ROOT / "runs" / "tiny.sh"), str(ROOT / "examples"), str(tmp_path / "out")],
        env=dict(os.environ) | settings,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = NextScale.from_pretrained(tmp_path / "out" / "tiny", device="cpu")
    result = model.upscale(ROOT / "examples" / "rocket.jpg", UpscaleOptions(scale=2.0))
    assert result.picture.size == (238, 400)
    assert (tmp_path / "out" / "tiny" / "model.safetensors").stat().st_size < 32e6
