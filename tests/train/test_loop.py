"""The loop itself: many processes train as one, nothing that happens to a run changes its result, and it says so."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.errors import NextScaleError, OptionError
from nextscale.install import how_to_install
from nextscale.model.config import Ladder, TokenizerConfig, paper
from nextscale.model.layers import ResBlock
from nextscale.model.tokenizer import Tokenizer
from nextscale.train import checkpoint as state
from nextscale.train import distributed
from nextscale.train.config import LoopConfig, ReconstructionConfig
from nextscale.train.log import Log, Tally, rates
from nextscale.train.loop import checkpoint_units, checkpointed, decay_groups, learning_rate, train
from nextscale.train.tasks.reconstruction import ReconstructionTask
from tests.conftest import random_model
from tests.train.toy import Stopped, Toy, codes_task, stop_after

ROOT = Path(__file__).parents[2]
PLAIN = {"batch": 4, "lr": 1e-2, "warmup": 2, "bf16": False, "log_every": 1, "ema": 0.5, "threads": 1}
TIMES = ("seconds", "samples_per_second", "resumed_from")


def loop(steps: int, **changes: Any) -> LoopConfig:
    return LoopConfig(**({"steps": steps} | PLAIN | changes))


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


def program(task: str, folder: Path, settings: dict[str, Any], *, processes: int = 0) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    return [sys.executable, *launch, "-m", "tests.train.toy", task, str(folder), json.dumps(PLAIN | settings)]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(command: list[str]) -> str:
    """Run to the end; returns stderr."""
    process = start(command)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    return errors


def weights(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in model.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- one step ----------------------------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    whole, parts = Toy(), Toy()
    train(whole, loop(4, batch=12), tmp_path / "whole")
    train(parts, loop(4, batch=4, grad_accum_steps=3), tmp_path / "parts")
    assert parts.drawn == whole.drawn == list(range(48))
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for one, other in zip(weights(whole.model), weights(parts.model), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_recomputing_the_blocks_changes_no_gradient() -> None:
    task = codes_task()
    runs = []
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for block in checkpoint_units(task.model):
        block.get_submodule("attn").register_forward_hook(count)
    for modules in ([], checkpoint_units(task.model)):
        calls = 0
        with checkpointed(modules):
            task.losses(0, 1)[0].backward()  # type: ignore[no-untyped-call]
        runs.append([p.grad for p in task.model.parameters() if p.grad is not None])
        task.model.zero_grad()
        assert calls == (4 if modules else 2)
    assert equal(runs[0], runs[1])
    assert "forward" not in vars(checkpoint_units(task.model)[0])


def narrow_paper() -> ReconstructionTask:
    """The paper's autoencoder with narrow widths on a small ladder."""
    torch.manual_seed(0)
    auto = dataclasses.replace(paper().tokenizer.autoencoder, channels=8, latent_channels=8)
    ladder = Ladder((2, 4, 8), (1, 2, 3), (0, 1, 2), input_canvas=2)
    tokenizer = Tokenizer(TokenizerConfig(ladder, auto, codebook_size=16))
    config = ReconstructionConfig(side=32, feature=0, lpips=0, unquantized_prob=1.0)
    return ReconstructionTask(tokenizer, Crops([str(ROOT / "examples")], 128), config)


def test_the_papers_tokenizer_recomputes_its_blocks_with_the_same_gradients() -> None:
    task = narrow_paper()
    units = checkpoint_units(task.model)
    config = paper().tokenizer.autoencoder
    levels, blocks = len(config.multipliers), config.blocks  # type: ignore[union-attr]
    encoder, decoder = levels * blocks + blocks + 3, levels * (blocks + 1) + blocks + 1 + 3
    assert len(units) == encoder + 3 * decoder
    calls: list[nn.Module] = []
    for unit in units:
        # The first layer of a block: running it again ends as soon as all that the backward pass needs is there.
        first = unit.get_submodule("norm1" if isinstance(unit, ResBlock) else "norm")
        first.register_forward_hook(lambda module, *_: calls.append(module))
    grads, counts = [], []
    for modules in ([], units):
        calls.clear()
        with checkpointed(modules):
            task.losses(0, 1)[0].backward()  # type: ignore[no-untyped-call]
        counts.append(len(calls))
        grads.append([p.grad for p in task.model.parameters() if p.grad is not None])
        task.model.zero_grad()
    assert counts == [3 * encoder + 3 * decoder, 2 * (3 * encoder + 3 * decoder)]
    assert equal(grads[0], grads[1])


def test_a_model_without_blocks_refuses_checkpointing(tmp_path: Path) -> None:
    task = Toy()
    task.net.checkpoint_units = list  # type: ignore[method-assign]
    with pytest.raises(OptionError, match="declares no blocks"):
        train(task, loop(1, activation_checkpointing=True), tmp_path)


def test_activation_checkpointing_trains_to_the_same_weights(tmp_path: Path) -> None:
    one, other = Toy(), Toy()
    train(one, loop(3), tmp_path / "one")
    train(other, loop(3, activation_checkpointing=True), tmp_path / "other")
    assert equal(weights(one.model), weights(other.model))


def test_the_learning_rate_can_fall_in_a_line() -> None:
    config = loop(110, warmup=10, final_lr=0.1, schedule="linear")
    assert learning_rate(4, config) == pytest.approx(0.5)
    assert learning_rate(60, config) == pytest.approx(0.55)
    assert learning_rate(110, config) == pytest.approx(0.1)


def test_tables_and_the_codebook_do_not_decay() -> None:
    quantizer = random_model().tokenizer.quantizer.requires_grad_(True)
    decayed, free = decay_groups(quantizer.named_parameters(prefix="quantizer"), 1.0, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in free["params"]} == {1, 2}


@pytest.mark.parametrize("name", ["log.jsonl", "options.json", "model/config.json"])
def test_a_folder_that_holds_something_else_is_refused(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OptionError, match=r"no (log|note) of a training|model: is there already"):
        train(Toy(), loop(1), tmp_path / "run", {"data": ("a",)})
    assert mine.read_text() == "mine"
    with pytest.raises(OptionError, match=r"cannot be made .*; name another --out"):
        train(Toy(), loop(1), mine)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "options.json").mkdir()
    with pytest.raises(OptionError, match=r"options\.json: cannot be written .*; name another --out"):
        train(Toy(), loop(1), tmp_path)


def test_a_state_of_another_network_names_what_does_not_fit(tmp_path: Path) -> None:
    train(Toy(), loop(1), tmp_path)
    other = Toy()
    other.net.more = nn.Linear(3, 3)
    with pytest.raises(NextScaleError, match=r"state_dict for \w+: Missing key.*; give the options that it began with"):
        train(other, loop(2), tmp_path)


def test_a_run_that_resumes_with_other_options_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"lr": 1.0, "betas": (0.9, 0.95), "data": ("a",), "start": Path("b")}
    train(Toy(), loop(1), tmp_path, given)
    train(Toy(), loop(2), tmp_path, given)
    assert "other options" not in capsys.readouterr().err
    train(Toy(), loop(3), tmp_path, given | {"lr": 0.5, "start": None})
    said = f"nextscale: {tmp_path}: this run began with other options (lr was 1.0; start was b); it goes on"
    assert said in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_state_starts_anew(tmp_path: Path) -> None:
    for options in ({}, {"data": ("a",), "lr": 1.0}):
        folder = tmp_path / str(len(options))
        train(Toy(), loop(2, log_every=1), folder, options)
        for file in folder.glob("state*"):
            file.unlink()
        train(Toy(), loop(2, log_every=1), folder, options)
        assert [row["step"] for row in rows(folder)] == [1, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(value: float, tmp_path: Path) -> None:
    task = Toy()
    before = weights(task.model)
    losses = task.losses
    task.losses = lambda step, batch: (losses(step, batch)[0] * value, {})  # type: ignore[method-assign]
    with pytest.raises(NextScaleError, match=r"the loss is (nan|inf) at step 0; resume with"):
        train(task, loop(3), tmp_path)
    assert equal(before, weights(task.model))


# -- processes ---------------------------------------------------------------------------------------------------------


def test_positions_of_all_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = [place for step in range(3) for place in distributed.positions(step, 6)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    several: list[int] = []
    for step in range(3):
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            several += distributed.positions(step, 2)
    assert several == one == list(range(18))


@pytest.mark.integration
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(parallel: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 4, "grad_accum_steps": 2, "activation_checkpointing": True}
    train(Toy(), loop(**settings | {"batch": 4}), tmp_path / "one")
    settings |= {"batch": 2, "parallel": parallel}
    finish(program("toy", tmp_path / "two", settings, processes=2))
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("one", "two"))
    for part in ("model", "average"):
        for name, tensor in one[part].items():
            assert torch.allclose(tensor, two[part][name], atol=1e-5), name
    assert one["optimizer"]["state"].keys() == two["optimizer"]["state"].keys()
    assert torch.load(tmp_path / "two" / "final.pt", weights_only=True)["sharded"] is (parallel == "fsdp")


@pytest.mark.integration
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_the_transformer_as_one(parallel: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 3, "lr": 1e-3}
    train(codes_task(), loop(**settings | {"batch": 2}), tmp_path / "one")
    finish(program("codes", tmp_path / "two", settings | {"batch": 1, "parallel": parallel}, processes=2))
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.mark.integration
def test_a_sharded_run_resumes_in_one_process_and_the_other_way_round(tmp_path: Path) -> None:
    # A warm-up longer than the run does not depend on where the run ends.
    settings: dict[str, Any] = {"warmup": 100, "parallel": "fsdp"}
    whole = Toy()
    train(whole, loop(6, **settings, batch=4), tmp_path / "whole")
    finish(program("toy", tmp_path / "run", settings | {"steps": 2, "batch": 2}, processes=2))
    train(Toy(), loop(4, **settings, batch=4), tmp_path / "run")
    errors = finish(program("toy", tmp_path / "run", settings | {"steps": 6, "batch": 2}, processes=2))
    assert errors.count("resuming at step 4 from") == 1
    found = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.allclose(tensor, found["model"][name], atol=1e-5), name
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_several_processes_without_accelerate_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(NextScaleError, match=re.escape(how_to_install("train"))):
        train(Toy(), loop(1), tmp_path)


def test_one_process_needs_no_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    train(Toy(), loop(1, parallel="fsdp"), tmp_path)
    assert len(rows(tmp_path)) == 1


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = {"steps": 150, "save_minutes": 0.0, "log_every": 7}
    finish(program("toy", tmp_path / "whole", settings))
    draw = random.Random(5)
    kills = 0
    while kills < 3:
        process = start(program("toy", tmp_path / "killed", settings))
        # Importing torch takes most of a run; the moment counts from the first row of the log, or its growth.
        log = tmp_path / "killed" / "log.jsonl"
        begun = (log.stat().st_size if log.exists() else 0) if kills else 0
        while process.poll() is None and not (log.exists() and log.stat().st_size > begun):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run was too short to be killed"
        kills += 1
    assert not (tmp_path / "killed" / "final.pt").exists()
    assert "resuming at step" in finish(program("toy", tmp_path / "killed", settings))
    whole, killed = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    assert whole["own"] == killed["own"] == {"seen": 600}
    assert all(torch.equal(tensor, killed["average"][name]) for name, tensor in whole["average"].items())
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


def run_until(step: int, folder: Path, **changes: Any) -> Toy:
    """A run of six steps that is stopped after this many."""
    task = Toy()
    stop_after(step, task)
    with pytest.raises(Stopped):
        train(task, loop(6, save_minutes=0.0, **changes), folder)
    return task


def test_the_two_newest_states_are_kept(tmp_path: Path) -> None:
    run_until(3, tmp_path)
    found = {path.name: torch.load(path, weights_only=True)["step"] for path in tmp_path.glob("state*")}
    assert found == {"state.pt": 3, "state.previous.pt": 2}


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_state_falls_back_to_the_one_before(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Toy()
    train(whole, loop(6), tmp_path / "whole")
    run_until(3, tmp_path / "run")
    newest = tmp_path / "run" / "state.pt"
    written = bytearray(newest.read_bytes())
    weight = torch.load(newest, weights_only=True)["model"]["first.weight"].numpy().tobytes()
    written[written.index(weight)] ^= 1
    damaged = {"cut": written[: len(written) // 2], "flipped": written, "empty": bytearray()}
    newest.write_bytes(damaged[how])
    resumed = Toy()
    train(resumed, loop(6), tmp_path / "run")
    errors = capsys.readouterr().err
    assert "state.pt: not a state of this training" in errors
    assert "resuming at step 2 from" in errors
    assert equal(weights(whole.model), weights(resumed.model))
    assert rows(tmp_path / "whole") == rows(tmp_path / "run")
    # The damaged one did not become the previous one.
    assert torch.load(tmp_path / "run" / "state.previous.pt", weights_only=True)["step"] == 2


def test_a_kill_between_the_two_renames_loses_one_state(tmp_path: Path) -> None:
    run_until(3, tmp_path)
    (tmp_path / "state.pt").unlink()
    assert state.exists(tmp_path)
    found = state.load(tmp_path)
    assert found is not None
    assert (found[0]["step"], found[1]) == (2, "state.previous.pt")


def test_a_state_of_another_training_is_refused_and_kept(tmp_path: Path) -> None:
    run_until(3, tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(NextScaleError, match=r"state\.pt: not a state of this training"):
        train(codes_task(), loop(6), tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_state_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil(), "average": {}, "optimizer": {}, "step": 1}, tmp_path / "state.pt")
    with pytest.raises(NextScaleError, match="not a state of this training"):
        train(Toy(), loop(2), tmp_path)
    assert not (tmp_path / "ran").exists()


def full_disk(monkeypatch: pytest.MonkeyPatch, *saves: int) -> None:
    """A disk that is full at these saves, counted from one, after half of the file."""
    write, count = torch.save, 0

    def save(value: object, file: io.BufferedWriter) -> None:
        nonlocal count
        count += 1
        if count in saves:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(value, file)

    monkeypatch.setattr("nextscale.train.checkpoint.torch.save", save)


def test_a_full_disk_keeps_the_state_before_and_the_training_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, 2, 3)
    run_until(3, tmp_path)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("No space left on device" in line and "the training goes on" in line for line in errors)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_disk_that_is_full_in_the_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch, 3)
    with pytest.raises(NextScaleError, match=r"could not be written \(.*No space left.*\); free some space"):
        train(Toy(), loop(3, save_minutes=0.0), tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2


def test_the_log_is_rewound_to_the_step_that_resumes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = Log(path, 2)
    log.write({"step": 3, "again": 1})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": 1}\n'


def test_means_between_two_rows_outlive_a_kill(tmp_path: Path) -> None:
    train(Toy(), loop(6, log_every=4), tmp_path / "whole")
    run_until(3, tmp_path / "run", log_every=4)
    train(Toy(), loop(6, log_every=4), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "run")] == [4, 6]


def test_rows_wait_while_the_disk_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path / "log.jsonl", 0)
    disk = log.lines.file

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            del data
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log.lines.file = Full()  # type: ignore[assignment]
    log.write({"step": 1})
    assert "rows wait to be written" in capsys.readouterr().err
    log.lines.file = disk
    log.write({"step": 2})
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_weights_alone_go_on_at_a_step_with_a_short_warm_up(tmp_path: Path) -> None:
    config = loop(20, warmup=4, start_step=10, rewarm=3)
    plain = loop(20, warmup=4)
    shares = [learning_rate(step, config) / learning_rate(step, plain) for step in range(10, 15)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    task = Toy()
    train(task, config, tmp_path)
    assert task.drawn == list(range(40, 80))
    log = rows(tmp_path)
    assert [row["step"] for row in log] == list(range(11, 21))
    assert log[0]["lr"] == pytest.approx(config.lr * learning_rate(10, config))


def test_a_saved_state_goes_before_the_start_step(tmp_path: Path) -> None:
    run_until(5, tmp_path, start_step=3)
    resumed = Toy()
    train(resumed, loop(6, start_step=3), tmp_path)
    assert resumed.drawn == list(range(20, 24))


@pytest.mark.parametrize("changes", [{"start_step": 6}, {"grad_accum_steps": 0}])
def test_impossible_settings_are_refused(changes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        train(Toy(), loop(6, **changes), tmp_path)


# -- what it tells -----------------------------------------------------------------------------------------------------


class Weights:
    """Stands in for validation photographs: the score of a model is the sum of its first weights."""

    def scores(self, outputs: list[Tensor]) -> dict[str, float]:
        return {"weight": float(outputs[0].sum())}

    def sheet(self, outputs: list[Tensor]) -> Image.Image:
        return Image.new("RGB", outputs[0].shape)  # type: ignore[arg-type]


class Shown(Toy):
    """A task with everything that it may have."""

    tokens_per_sample = 10.0
    flops_per_sample = 1e9

    def __init__(self) -> None:
        super().__init__()
        self.validation = Weights()

    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        assert not average.training
        return [next(average.parameters())]


def test_validation_and_sheets_come_when_they_are_due(tmp_path: Path) -> None:
    average = train(Shown(), loop(5, validate_every=2, sheet_every=2, log_every=5), tmp_path)
    log = rows(tmp_path)
    assert [row["step"] for row in log] == [2, 4, 5]
    assert [sorted(row) for row in log[:2]] == [["step", "val_weight"]] * 2
    assert {"val_weight", "loss", "lr", "grad_norm"} <= log[2].keys()
    assert log[2]["val_weight"] == float(next(average.parameters()).sum())
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == [
        f"step-00000{step}.png" for step in (2, 4, 5)
    ]
    with Image.open(tmp_path / "sheets" / "step-000004.png") as sheet:
        assert sheet.size == (8, 4)


def test_nothing_is_validated_without_photographs(tmp_path: Path) -> None:
    task = Shown()
    task.validation = None  # type: ignore[assignment]
    train(task, loop(2, validate_every=1, sheet_every=1), tmp_path)
    assert "val_weight" not in rows(tmp_path)[0]
    assert not (tmp_path / "sheets").exists()


def test_a_row_holds_rates_only_of_what_is_known(tmp_path: Path) -> None:
    train(Toy(), loop(1), tmp_path / "plain")
    train(Shown(), loop(1, peak_tflops=1.0), tmp_path / "known")
    plain, known = ({*rows(tmp_path / name)[0]} for name in ("plain", "known"))
    assert plain == {"step", "lr", "loss", "size", "grad_norm"}
    assert known - plain == {"tokens_per_second", "mfu"}
    assert "samples_per_second" in json.loads((tmp_path / "plain" / "log.jsonl").read_text())


def test_utilization_leaves_out_the_time_of_the_data() -> None:
    tally = Tally(2, 4.0, {"seconds_degrade": 1.0, "seconds_tokenize": 2.0, "loss": 5.0})
    found = rates(tally, 6, Shown(), processes=2, peak_tflops=0.004)
    assert found == pytest.approx(
        {"samples_per_second": 1.5, "tokens_per_second": 15.0, "mfu": 6e9 / (4 - 3 / 2) / (2 * 0.004e12)}
    )


def test_numbers_of_some_steps_are_averaged_over_those(tmp_path: Path) -> None:
    task = Toy()
    losses = task.losses

    def sometimes(step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        loss, numbers = losses(step, batch)
        return loss, numbers | ({"rare": 3.0} if step % 2 else {})

    task.losses = sometimes  # type: ignore[method-assign]
    train(task, loop(4, log_every=4), tmp_path)
    assert rows(tmp_path)[0]["rare"] == 3.0


def test_without_a_terminal_every_row_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Toy(), loop(4, log_every=2), tmp_path)
    out, errors = capsys.readouterr()
    assert not errors
    first, second = out.splitlines()
    assert first.startswith("2/4 steps  loss ")
    assert "samples/s" in first
    assert second.endswith("  about 0 s left")


def test_a_terminal_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    train(Toy(), loop(4), tmp_path)
    assert "4/4" in terminal.getvalue()
    assert "samples/s" in terminal.getvalue()


def test_tensorboard_holds_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(Toy(), loop(3, tensorboard=True), tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = [event.value for event in board.Scalars("loss")]
    assert found == pytest.approx([row["loss"] for row in rows(tmp_path)])


def test_without_tensorboard_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(NextScaleError, match=re.escape(how_to_install("tensorboard"))):
        train(Toy(), loop(1, tensorboard=True), tmp_path)


def test_a_state_with_the_names_of_0_1_loads(tmp_path: Path) -> None:
    old = {
        "model": {},
        "average": {},
        "optimiser": {"state": {}},
        "step": 3,
        "critic": {"optimiser": {"param_groups": []}},
    }
    torch.save(old, tmp_path / "state.pt")
    read = state.read(tmp_path / "state.pt")
    assert (read["optimizer"], read["critic"]) == ({"state": {}}, {"optimizer": {"param_groups": []}})
