"""One training loop for every task: optimiser, schedule, averaging, log, exact resume.

A task draws everything random from (seed, step), so the step alone restores the run; no generator state is kept.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nextscale.errors import NextScaleError
from nextscale.train.config import LoopConfig


class Task(Protocol):
    """What the loop trains."""

    @property
    def model(self) -> nn.Module:
        """What is optimised, averaged and saved."""

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, with `lr` as an absolute peak."""

    def losses(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step and the numbers to log."""

    def after(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Called after each optimiser step."""


def decay_groups(parameters: Iterator[tuple[str, nn.Parameter]], lr: float, decay: float) -> list[dict[str, Any]]:
    """No decay on vectors, embeddings and tables, as VAR does (utils/lr_control.py)."""
    free: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or any(word in name for word in ("embed", "position", "start", "scale_mul"))
            (free if plain else decayed).append(parameter)
    return [
        {"params": decayed, "lr": lr, "weight_decay": decay},
        {"params": free, "lr": lr, "weight_decay": 0.0},
    ]


def learning_rate(step: int, config: LoopConfig) -> float:
    """Share of the peak at a step: linear warm-up, then a cosine to `final_lr`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(task: Task, config: LoopConfig, folder: Path) -> nn.Module:
    """Run or resume a training; returns the averaged model.

    `folder` holds `log.jsonl` and `state.pt` (weights, average, optimiser, step), replaced atomically.

    Raises:
        NextScaleError: the saved state is damaged, or the loss is no longer finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    groups = task.groups(config)
    optimiser = torch.optim.AdamW(groups, betas=config.betas)
    peaks = [group["lr"] for group in groups]
    average = copy.deepcopy(task.model).eval().requires_grad_(False)
    state_path = folder / "state.pt"
    step = _resume(state_path, task.model, average, optimiser) if state_path.exists() else 0
    device = next(task.model.parameters()).device
    trained = [p for group in groups for p in group["params"]]
    saved = started = time.monotonic()
    first = step
    sums: dict[str, float] = {}
    summed = 0
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        while step < config.steps:
            scale = learning_rate(step, config)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                loss, numbers = task.losses(step, config.batch)
            if not torch.isfinite(loss):
                raise NextScaleError(f"the loss is {loss.item()} at step {step}; resume with a lower learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            numbers["grad_norm"] = float(nn.utils.clip_grad_norm_(trained, config.clip))
            optimiser.step()
            task.after(step, optimiser)
            _average(average, task.model, min(config.ema, (1 + step) / (10 + step)))
            step += 1
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + value
            summed += 1
            if step % config.log_every == 0 or step == config.steps:
                seconds = time.monotonic() - started
                row = {"step": step, "lr": scale, "seconds": round(seconds, 1)}
                row |= {name: round(total / summed, 5) for name, total in sums.items()}
                row["samples_per_second"] = round((step - first) * config.batch / seconds, 3)
                log.write(json.dumps(row) + "\n")
                log.flush()
                sums, summed = {}, 0
            if time.monotonic() - saved > 60 * config.save_minutes or step == config.steps:
                _save(state_path, task.model, average, optimiser, step)
                saved = time.monotonic()
    return average


def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def _save(path: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    part = path.with_name(path.name + ".part")
    try:
        torch.save(state, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise NextScaleError(f"{path}: the checkpoint could not be written ({error}); free some space") from None


def _resume(path: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NextScaleError(f"{path}: not a state of this training ({reason}); move it away to start anew") from None
    return int(state["step"])
