"""The recipes in runs/: every command in them is one that the command line knows, and `tiny` runs from data to a model.

A script is run by bash itself with stand-ins for python, accelerate and nextscale on its path, which write their
arguments down; so variables, arrays and functions are those of a real run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file

from nextscale import NextScale, UpscaleOptions
from nextscale.commands.main import main
from nextscale.model.config import paper, tiny
from nextscale.model.config_io import read_difference
from nextscale.train.hardware import PlanConfig
from nextscale.train.plan import plan
from reproduce.__main__ import main as reproduce
from tests.model.test_restorer import compact_state
from tests.model.test_taesd import official
from tests.skips import shared

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "runs").glob("*.sh"))
ARGUMENTS = {
    "tiny": ["data", "taef2_encoder.pth", "start.pth", "{out}"],
    "paper": ["openimages", "photos", "benches", "checkpoints", "{out}"],
    "ablations": ["data", "tiny", "bench", "{out}"],
    "results": ["tiny", "benches", "{out}"],
}
"""What each script is called with."""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
pytestmark = [pytest.mark.integration, needs_bash]

STAND_IN = """#!/bin/sh
printf '%s\\0' "$0" "$@" end-of-command >> "$RECORD"
"""


def commands(name: str, folder: Path, **environment: str) -> list[list[str]]:
    """Arguments of every `nextscale` and `reproduce` that a script starts."""
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
    """What `nextscale` or `reproduce` is given in a call of python or of accelerate; None for another program."""
    if Path(call[0]).name == "nextscale":
        return call[1:]
    module = [i for i, word in enumerate(call[:-1]) if word == "-m" and call[i + 1] in ("nextscale", "reproduce")]
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
        assert (reproduce if arguments[0] == "report" else main)(arguments) == 0
    return parsed[0]


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
        capsys.readouterr()
        try:
            parse(arguments, monkeypatch)
        except SystemExit:
            pytest.fail(f"nextscale {' '.join(arguments)}\n{''.join(capsys.readouterr())}")


def test_a_wrong_option_in_a_recipe_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parse(["train", "transformer", "--data", "d", "--out", "o", "--tokenizer", "t", "--no-such"], monkeypatch)


def recorded(found: list[list[str]], *words: str) -> list[str]:
    """The one command that holds these words one after another."""
    (command,) = [c for c in found if any(tuple(c[i : i + len(words)]) == words for i in range(len(c)))]
    return command


def test_paper_trains_with_the_papers_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands("paper", tmp_path)
    training = parse(recorded(found, "train", "transformer"), monkeypatch).part
    loop, codes = training.loop, training.codes
    assert (loop.lr, loop.weight_decay, loop.betas, loop.clip) == (1e-3, 0.005, (0.9, 0.95), 2.0)
    assert loop.batch * loop.grad_accum_steps * 24 == 384
    assert loop.steps == pytest.approx(200 * 25274 / 384, abs=1)
    assert (loop.schedule, loop.warmup) == ("linear", loop.steps // 50)
    assert (codes.clean, codes.class_free, codes.sides, codes.balance) == (0.25, 0.1, (128,), 0.0)
    tokenizer = parse(recorded(found, "--phase", "decoders"), monkeypatch).part
    loop = tokenizer.loop
    assert (loop.lr, loop.weight_decay, loop.steps) == (2.5e-4, 0.05, 25000)
    assert loop.batch * loop.grad_accum_steps * 24 == 384
    terms = tokenizer.reconstruction
    assert (terms.unquantized_prob, terms.codebook, terms.squared) == (0.5, True, True)
    assert (terms.pixel, terms.lpips, terms.feature, terms.grid) == (1.0, 5.0, 0.0, 0.0)


def test_the_ablations_take_the_same_time_and_change_what_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        file.stem: read_difference(tiny().codes_alone(), file) for file in (ROOT / "runs" / "ablations").glob("*.json")
    }
    assert changes["one-stage"].tokenizer.ladder.num_stages == 1
    found = [command for command in commands("ablations", tmp_path) if command[:2] == ["train", "transformer"]]
    trained = {run.part.out.parent.name: run.part for run in (parse(command, monkeypatch) for command in found)}
    assert {name: part.loop.steps for name, part in trained.items()} == {
        "base": 82,
        "causal": 63,
        "photograph": 71,
        "restored-preference": 71,
        "latents": 90,
        "preference": 90,
        "flat": 90,
        "prefix": 55,
        "prefix-causal": 50,
    }
    assert {part.loop.batch for part in trained.values()} == {8}
    restored = {name for name, part in trained.items() if part.codes.target == "restored"}
    assert restored == {"base", "causal", "restored-preference"}
    assert [name for name, part in trained.items() if part.codes.preference] == ["restored-preference", "preference"]
    # What begins anew has its change; the others have theirs in the folder that they start from.
    assert {name: part.config.stem for name, part in trained.items() if part.config} == {
        "latents": "latents",
        "preference": "latents",
        "flat": "one-stage",
        "prefix": "prefix",
        "prefix-causal": "prefix-causal",
    }


def test_some_rows_of_the_ablations_make_their_tables(tmp_path: Path) -> None:
    found = commands("ablations", tmp_path, ROWS="latents flat")
    outs = [Path(command[command.index("--out") + 1]) for command in found]
    assert [out.parent.name if out.name == "transformer" else out.name for out in outs] == [
        "latents",
        "latents",
        "flat",
        "table-2",
    ]


def test_the_ablations_of_the_tokenizer_differ_in_what_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = commands("ablations", tmp_path, TAEF2="taef2_encoder.pth")
    parts = [parse(command, monkeypatch).part for command in found if command[:2] == ["train", "tokenizer"]]
    rows = {part.out.name: part for part in parts}
    assert list(rows) == ["codebook", "codebook-flat", "hybrid", "plain"]
    assert [row.config.stem if row.config else None for row in rows.values()] == [None, "one-stage", None, None]
    assert rows["codebook"].codebook == rows["codebook-flat"].codebook
    assert rows["hybrid"].start == rows["plain"].start
    assert rows["plain"].reconstruction == replace(rows["hybrid"].reconstruction, unquantized_prob=0.0)
    assert recorded(found, "convert")[1] == "taef2_encoder.pth"
    # Without the file there is nothing to begin from.
    (tmp_path / "without").mkdir()
    without = commands("ablations", tmp_path / "without")
    assert not [command for command in without if command[:2] == ["train", "tokenizer"] or command[0] == "convert"]


def test_every_block_of_the_results_page_has_its_report(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    blocks = set(re.findall(r"<!-- end ([\w.-]+) -->", page))
    outs = set()
    for name in ("results", "ablations"):
        (tmp_path / name).mkdir()
        for command in commands(name, tmp_path / name, TAEF2="taef2_encoder.pth"):
            if command[0] == "report" and "--out" in command:
                outs.add(Path(command[command.index("--out") + 1]).name)
    assert blocks
    assert blocks <= outs


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
    assert loop.batch * loop.grad_accum_steps * 8 == 384
    (tmp_path / "other").mkdir()
    with pytest.raises(AssertionError, match="384 samples do not divide into 5 GPUs"):
        commands("paper", tmp_path / "other", GPUS="5")


def run_tiny(out: Path, taef2: Path, start: Path, **settings: str) -> NextScale:
    """The whole recipe of `tiny` on the examples, at a small size; the model that it makes."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(ROOT / "runs" / "tiny.sh"), str(ROOT / "examples"), str(taef2), str(start), str(out)],
        env={name: value for name, value in os.environ.items() if name != "RANK"}
        | {"PATH": search, "SIDE": "64", "CODES_BATCH": "4"}
        | settings,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "tiny" / "model.safetensors").stat().st_size < 32e6
    return NextScale.from_pretrained(out / "tiny", device="cpu")


def test_one_step_of_each_training_of_tiny_makes_a_model(tmp_path: Path) -> None:
    """With random weights in place of the published files, and without perceptual networks."""
    for name, state in zip(("encoder", "decoder"), official(0), strict=True):
        save_file(state, tmp_path / f"taef2_{name}.safetensors")
    for seed, name in enumerate(("quiet", "noisy")):
        save_file(compact_state(64, 32, seed=seed), tmp_path / f"{name}.safetensors")
    quiet, noisy = tmp_path / "quiet.safetensors", tmp_path / "noisy.safetensors"
    model = run_tiny(
        tmp_path / "out", tmp_path / "taef2_encoder.safetensors", quiet, STEPS="1", PIXELS="1", NOISY=f"{quiet} {noisy}"
    )
    assert model.config == NextScale.from_pretrained("tiny", device="cpu").config
    # What a training names itself wins over what its kind has in common.
    own = {
        "redrawn-2": ("hatching", 16.0),
        "even-letters": ("contrast", 0.8),
        "taught-letters": ("smooth-share", 0.08),
        "lined": ("smooth-share", 0.18),
        "settled": ("anchor", 8.0),
        "printed": ("pages-share", 0.0),
        "steadied": ("smooth-share", 0.32),
    }
    for name, (option, value) in own.items():
        assert json.loads((tmp_path / "out" / name / "options.json").read_text())[f"restoration.{option}"] == value
    restorer = model.pipeline.restorer
    assert restorer is not None
    assert restorer.grain is not None
    # A third of the way from one file's slopes to the other's.
    change = load_file(noisy)["body.1.weight"] - load_file(quiet)["body.1.weight"]
    torch.testing.assert_close(restorer.grain[0].slope.flatten(), 0.35 * change, atol=2e-3, rtol=0)  # type: ignore[operator]


@pytest.mark.slow
def test_twenty_steps_of_tiny_make_a_model(tmp_path: Path) -> None:
    """Each phase cut to 20 steps on small pictures."""
    weights = shared("NEXTSCALE_WEIGHTS", "weights")
    ends = " ".join(str(weights / f"realesr-general-{name}x4v3.safetensors") for name in ("", "wdn-"))
    start = weights / "restorer-start.safetensors"
    model = run_tiny(
        tmp_path / "out", weights / "taef2_encoder.safetensors", start,
        STEPS="20", NEXTSCALE_WEIGHTS=str(weights), NOISY=ends,
    )  # fmt: skip
    result = model.upscale(ROOT / "examples" / "rocket.jpg", UpscaleOptions(scale=2.0))
    assert result.picture.size == (238, 400)
