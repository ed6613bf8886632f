"""One optimization step at full size: that of `paper` fits into an ordinary machine's memory, as the plan says.

The step runs in a process of its own and prints its peak: `python -m tests.train.test_paper_step paper 1`.
"""

from __future__ import annotations

import copy
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from nextscale.data.crops import Crops
from nextscale.model.config import PRESETS
from nextscale.model.restorer import Restorer
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Transformer
from nextscale.train.config import CodesConfig, LoopConfig
from nextscale.train.hardware import GIB, PlanConfig
from nextscale.train.plan import plan
from nextscale.train.tasks.transformer import CodesTask

ROOT = Path(__file__).parents[2]
LIMIT = 20 * GIB


def one_step(preset: str, batch: int) -> dict[str, Any]:
    """Inputs of 128 px, 4476 tokens each: degradation, tokenization, forward, backward, AdamW, average."""
    torch.manual_seed(0)
    started = time.monotonic()
    config = PRESETS[preset]()
    side = config.tokenizer.ladder.input_side
    tokenizer = Tokenizer(config.tokenizer)
    transformer = Transformer(
        config.transformer,
        config.tokenizer.ladder,
        config.tokenizer.codebook_size,
        config.tokenizer.autoencoder.latent_channels,
    )
    crops = Crops([str(ROOT / "examples")], config.tokenizer.ladder.image_sides[-1])
    loop = LoopConfig(steps=1, batch=batch)
    restorer = None if config.restorer is None else Restorer(config.restorer)
    task = CodesTask(transformer, tokenizer, {side: crops}, CodesConfig(sides=(side,)), restorer=restorer)
    optimizer = torch.optim.AdamW(task.groups(loop), betas=loop.betas)
    average = copy.deepcopy(transformer).requires_grad_(False)
    _settle(optimizer)
    before = {name: float(p.detach().double().square().sum()) for name, p in transformer.named_parameters()}
    built = time.monotonic()
    with torch.autocast("cpu", torch.bfloat16):
        loss, numbers = task.losses(0, loop.batch)
    forward = time.monotonic()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(nn.utils.clip_grad_norm_(transformer.parameters(), loop.clip))
    optimizer.step()
    with torch.no_grad():
        for mean, value in zip(average.parameters(), transformer.parameters(), strict=True):
            mean.lerp_(value, 1 - loop.ema)
    ended = time.monotonic()
    after = {name: float(p.detach().double().square().sum()) for name, p in transformer.named_parameters()}
    return {
        "parameters": sum(p.numel() for p in transformer.parameters()),
        "loss": float(loss.detach()),
        "cross_entropy": float(numbers["cross_entropy"]),
        "grad_norm": norm,
        "still": sorted(name for name, value in before.items() if after[name] == value),
        "build_seconds": round(built - started, 1),
        "forward_seconds": round(forward - built, 1),
        "rest_seconds": round(ended - forward, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _settle(optimizer: torch.optim.Optimizer) -> None:
    """Hold gradients and moments from the start, as every step after the first does; changes no weight."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=False)


def measured(preset: str, batch: int) -> dict[str, Any]:
    """The report of a step in a process that is stopped beyond 20 GiB."""
    free = psutil.virtual_memory().available
    if free < LIMIT:
        pytest.skip(f"needs 20 GiB of free memory, this machine has {free / GIB:.0f}")
    command = [sys.executable, "-m", "tests.train.test_paper_step", preset, str(batch)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seen = psutil.Process(child.pid)
    while child.poll() is None:
        held = seen.memory_info().rss if seen.is_running() else 0
        if held > LIMIT:
            child.kill()
            child.communicate()
            pytest.fail(f"the step holds {held / GIB:.1f} GiB")
        time.sleep(0.2)
    output, _ = child.communicate()
    assert child.returncode == 0
    report: dict[str, Any] = json.loads(output)
    return report


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "batch", "parameters"), [("paper", 1, 310e6), ("tiny", 2, 7.5e6)])
def test_a_step_runs_within_20_gib_and_as_planned(preset: str, batch: int, parameters: float) -> None:
    report = measured(preset, batch)
    config = PRESETS[preset]()
    assert report["parameters"] == pytest.approx(parameters, rel=0.02)
    assert math.isfinite(report["loss"])
    # An untrained head is uniform over the codes.
    assert report["cross_entropy"] == pytest.approx(math.log(config.tokenizer.codebook_size), abs=0.5)
    # Of a class table only one row is used, but every tensor moves; but for the part of the stem that would guess the
    # stages whose latents are encoded, and its free channels, which wait for a map that starts at zero.
    assert all(name.startswith(("stem.down.1.", "stem.leave.0.", "stem.free.")) for name in report["still"])
    assert report["peak_bytes"] < LIMIT
    planned = plan(config, "transformer", LoopConfig(batch=batch), PlanConfig("cpu"))
    assert planned.peak == pytest.approx(report["peak_bytes"], rel=0.3)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(one_step(sys.argv[1], int(sys.argv[2]))) + "\n")
