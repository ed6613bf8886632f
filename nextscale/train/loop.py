"""One training loop for every task and any number of processes: optimizer, schedule, averaging, exact resume.

A task draws everything random from (seed, position), so the step alone restores the run; no generator state is kept.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextscale.console import complain, counted, say
from nextscale.errors import NextScaleError, OptionError
from nextscale.files import check_earlier, check_free, write_atomic
from nextscale.train import checkpoint as state
from nextscale.train import distributed
from nextscale.train.adversarial import Adversary
from nextscale.train.config import LoopConfig
from nextscale.train.log import Board, Log, Numbers, Row, Tally, rates, write_sheet

OPTIONS = "options.json"
"""What a run began with."""


class Task(Protocol):
    """What the loop trains. A task may also have these, and the loop then uses them:

    | | |
    | --- | --- |
    | `after(step, optimizer)` -> numbers to log | called after each optimizer step, in every process |
    | `adversary` (`Adversary` or None) | critics that take a step after each optimizer step; part of the saved state |
    | `state_dict()`, `load_state_dict(state)` | what else it carries from step to step beside the model, in plain data |
    | `validation` (`Validation` or None) and `validation_pictures(average)` -> B 3 h h in [-1, 1] per factor | scored as `val_...` every `validate_every` steps and shown every `sheet_every`, by the first process alone |
    | `tokens_per_sample`, `flops_per_sample` | for `tokens_per_second` and `mfu` in the log |
    """  # noqa: E501

    @property
    def model(self) -> nn.Module:
        """What is optimized, averaged and saved."""

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer, with `lr` as an absolute peak."""

    def losses(self, step: int, batch: int) -> tuple[Tensor, Numbers]:
        """The loss of one batch and the numbers to log, which may still be on the device.

        Args:
            step: number of the batch: the optimizer's step x grad_accum_steps + the batch's place in that step.
            batch: samples of this process, those at `distributed.positions(step, batch)`.
        """


def decay_groups(parameters: Iterator[tuple[str, nn.Parameter]], lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay: none on vectors, embeddings and tables, as in VAR
    (utils/lr_control.py)."""
    free: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            words = ("embed", "codebook", "position", "start", "scale_mul")  # VAR calls its codebook `embedding`
            plain = parameter.ndim < 2 or any(word in name for word in words)
            (free if plain else decayed).append(parameter)
    return [
        {"params": decayed, "lr": lr, "weight_decay": decay},
        {"params": free, "lr": lr, "weight_decay": 0.0},
    ]


def learning_rate(step: int, config: LoopConfig) -> float:
    """Share of the peak at a step: linear warm-up, then a cosine or a line to `final_lr`; after `start_step` a second,
    shorter warm-up."""
    rewarm = (step - config.start_step + 1) / config.rewarm if config.start_step and config.rewarm else 1.0
    rewarm = min(1.0, rewarm)
    if step < config.warmup:
        return rewarm * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    falling = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return rewarm * (config.final_lr + (1 - config.final_lr) * falling)


class Losses(nn.Module):
    """Wraps a task's losses as one module's forward, into which DDP and FSDP hook."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, step: int, batch: int) -> tuple[Tensor, Numbers]:
        return self.task.losses(step, batch)


class Run:
    """Everything that changes from step to step, as it is saved and restored.

    Args:
        schedule: from the step to the share of the peak learning rate (default: `learning_rate` of the config).
    """

    def __init__(self, task: Task, config: LoopConfig, schedule: Callable[[int], float] | None = None) -> None:
        self.task = task
        self.adversary: Adversary | None = getattr(task, "adversary", None)
        self.config = config
        self.schedule = schedule or functools.partial(learning_rate, config=config)
        self.average = copy.deepcopy(task.model).eval().requires_grad_(False)
        self.losses = distributed.wrap(Losses(task), checkpoint_units(task.model), config.parallel)
        self.device = next(task.model.parameters()).device
        self.average.to(self.device)
        groups = task.groups(config)
        self.trained: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.peaks = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=config.betas)
        # The average of sharded weights is sharded as they are, and whole only when somebody wants to see it.
        self.means = [
            p.detach().clone() if distributed.is_sharded(p) else mean
            for p, mean in zip(task.model.parameters(), self.average.parameters(), strict=True)
        ]
        self.step = config.start_step
        self.tally = Tally()

    def advance(self) -> tuple[float, float]:
        """One optimizer step; returns the loss and the learning rate of the first group.

        Raises:
            NextScaleError: the loss or the gradient is no longer finite; the weights are those before.
        """
        config, started = self.config, time.monotonic()
        share = self.schedule(self.step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.optimizer.zero_grad(set_to_none=True)
        mean = 0.0
        for place in range(config.grad_accum_steps):
            with distributed.keep_gradients(self.losses, place + 1 < config.grad_accum_steps):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
                    loss, numbers = self.losses(self.step * config.grad_accum_steps + place, config.batch)
                (loss / config.grad_accum_steps).backward()
            mean += float(loss.detach()) / config.grad_accum_steps
            self.tally.add(as_floats(numbers))
        norm = float(distributed.full(nn.utils.clip_grad_norm_(self.trained, config.clip)))
        bad_loss, bad_gradient = distributed.any_process(not math.isfinite(mean), not math.isfinite(norm))
        if bad_loss or bad_gradient:
            what = f"loss is {sum(distributed.gathered(mean))}" if bad_loss else f"gradient's norm is {norm}"
            raise NextScaleError(f"the {what} at step {self.step}; resume with a lower learning rate")
        self.optimizer.step()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            if hasattr(self.task, "after"):
                self.tally.add(self.task.after(self.step, self.optimizer))
            if self.adversary is not None:
                self.tally.add(self.adversary.step())
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            # In one call: on a GPU one for each tensor takes as long as a small model's step.
            torch._foreach_lerp_(self.means, list(self.task.model.parameters()), 1 - decay)
        self.step += 1
        self.tally.add({"grad_norm": norm})
        self.tally.steps += 1
        self.tally.seconds += time.monotonic() - started
        return mean, float(self.optimizer.param_groups[0]["lr"])

    def averaged(self) -> nn.Module:
        """The averaged model, whole in every process."""
        with torch.no_grad():
            for parameter, mean in zip(self.average.parameters(), self.means, strict=True):
                if parameter is not mean:
                    parameter.copy_(distributed.full(mean))
        return self.average

    def state_dict(self) -> dict[str, Any]:
        """Plain data and whole tensors; the same for any number of processes, which must ask together."""
        return {
            "model": distributed.gather(self.task.model.state_dict()),
            "average": self.averaged().state_dict(),
            "optimizer": distributed.gather(self.optimizer.state_dict()),
            "step": self.step,
            "tally": asdict(Tally.merged(distributed.gathered(self.tally))),
            "task": getattr(self.task, "state_dict", dict)(),
            "critic": {} if self.adversary is None else self.adversary.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a saved state."""
        model = self.task.model
        like = model.state_dict()
        shards = {name: distributed.shard(t, like.get(name, t)) for name, t in saved["model"].items()}
        model.load_state_dict(shards, assign=False)
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                moments[name] = distributed.shard(value, parameter)
        with torch.no_grad():
            for full, mean in zip(self.average.parameters(), self.means, strict=True):
                if full is not mean:
                    mean.copy_(distributed.shard(full.detach(), mean))
        self.step = int(saved["step"])
        # The sums of all processes go on in the first one alone.
        if distributed.rank() == 0:
            self.tally = Tally(**saved.get("tally", {}))
        if saved.get("task"):
            cast(Any, self.task).load_state_dict(saved["task"])
        if self.adversary is not None:
            self.adversary.load_state_dict(saved["critic"])


def train(task: Task, config: LoopConfig, folder: Path, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Run or resume a training; returns the averaged model, in every process.

    `folder`, which all processes must see, holds `log.jsonl`, `state.pt` (weights, average, optimizer, step),
    `state.previous.pt`, `options.json`, and what the options ask for: `sheets/`, `tensorboard/`.

    Args:
        task: what is trained.
        config: how.
        folder: of the run.
        options: what else its weights follow from, plain data by name; a run that resumes with others says so.

    Raises:
        NextScaleError: no saved state can be read, the last one cannot be written, or the loss is no longer finite.
        OptionError: the options contradict each other.
    """
    if not 0 <= config.start_step < config.steps:
        raise OptionError(f"--start-step {config.start_step}: must be before the last step, {config.steps}")
    if config.threads:
        torch.set_num_threads(config.threads)
    first = distributed.rank() == 0
    if first:
        _make(folder, options or {})
    run = Run(task, config)
    resumed = _resume(run, folder)
    with ExitStack() as stack:
        if config.activation_checkpointing:
            if not checkpoint_units(task.model):
                raise OptionError("--activation-checkpointing: this model declares no blocks to run again")
            stack.enter_context(checkpointed(checkpoint_units(task.model)))
        logs: list[Log | Board] = []
        if first:
            logs.append(Log(folder / "log.jsonl", run.step))
            stack.callback(logs[0].close)
            if config.tensorboard:
                logs.append(Board(folder / "tensorboard", run.step))
                stack.callback(logs[1].close)
        show = stack.enter_context(counted("steps", say)) if first else None
        saved = time.monotonic()
        while run.step < config.steps:
            loss, rate = run.advance()
            last = run.step == config.steps
            speed = _samples(run) / run.tally.seconds
            row = _validate(run, folder)
            due = run.step % config.log_every == 0 or last
            if due:
                row = _row(run, rate) | row | resumed
                resumed = {}
            if row:
                for log in logs:
                    log.write({"step": run.step} | row)
            if show:
                show(run.step, config.steps, f"loss {loss:.4f}  {speed:.1f} samples/s", due=due)
            # The clocks of the processes differ; what one decides holds for all.
            if distributed.any_process(last or time.monotonic() - saved > 60 * config.save_minutes)[0]:
                _save(run, folder, must=last)
                saved = time.monotonic()
    average = run.averaged()
    distributed.barrier()
    return average


def as_floats(numbers: Numbers) -> dict[str, float]:
    """The same as floats, fetched from the device at once: each fetch waits until the device has caught up."""
    tensors = {name: value.reshape(()) for name, value in numbers.items() if not isinstance(value, float | int)}
    plain: dict[str, float] = {name: value for name, value in numbers.items() if isinstance(value, float | int)}
    if tensors:
        plain |= dict(zip(tensors, torch.stack([t.float() for t in tensors.values()]).tolist(), strict=True))
    return {name: plain[name] for name in numbers}


def _samples(run: Run) -> int:
    """Samples that all processes have seen since the last row."""
    return run.tally.steps * run.config.batch * run.config.grad_accum_steps * distributed.world()


def _row(run: Run, rate: float) -> Row:
    """The log row of the steps since the last one, over all processes; resets the tally."""
    tally = Tally.merged(distributed.gathered(run.tally))
    speeds = rates(tally, _samples(run), run.task, processes=distributed.world(), peak_tflops=run.config.peak_tflops)
    run.tally = Tally()
    return {"lr": rate} | {name: float(f"{value:.7g}") for name, value in (tally.means() | speeds).items()}


def _validate(run: Run, folder: Path) -> Row:
    """Write the sheet and return the scores, where they are due and the task has validation photographs."""
    config, task = run.config, cast(Any, run.task)
    if getattr(task, "validation", None) is None:
        return {}
    shows, scores = (
        every > 0 and (run.step % every == 0 or run.step == config.steps)
        for every in (config.sheet_every, config.validate_every)
    )
    if not (shows or scores):
        return {}
    average = run.averaged()
    if distributed.rank() != 0:
        return {}
    with torch.no_grad():
        pictures = task.validation_pictures(average)
        if shows:
            write_sheet(folder, run.step, task.validation.sheet(pictures))
        return {f"val_{name}": value for name, value in task.validation.scores(pictures).items()} if scores else {}


def _make(folder: Path, options: Mapping[str, Any]) -> None:
    """Make the folder of a run; one without a state must hold nothing that this run would write. See `_compare`.

    Raises:
        OptionError: it does, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{folder}: cannot be made ({error.strerror}); name another --out") from None
    if not state.exists(folder):
        check_free(folder, ("model",))
        # A run that ended before its first state has these.
        check_earlier(folder / "log.jsonl", "log of a training", ('{"step": ',))
        first = next(iter(options), None)
        own = "{}" if first is None else _noted({first: None}).partition(": ")[0]
        check_earlier(folder / OPTIONS, "note of a training's options", (own,))
    _compare(folder, options)


def _compare(folder: Path, options: Mapping[str, Any]) -> None:
    """Note the options of a run that begins; of one that resumes, say which differ."""
    file, now = folder / OPTIONS, json.loads(json.dumps(options, default=str))
    if not state.exists(folder):
        try:
            write_atomic(file, _noted(now))
        except OSError as error:
            raise OptionError(f"{file}: cannot be written ({error.strerror}); name another --out") from None
        return
    try:
        then = json.loads(file.read_text())
    except (OSError, ValueError):  # of an earlier release
        return
    differ = [f"{name} was {then.get(name)}" for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if differ:
        complain(f"{folder}: this run began with other options ({'; '.join(differ)}); it goes on with those given now")


def _noted(options: Mapping[str, Any]) -> str:
    """What the file of the options holds."""
    return json.dumps(options, indent=1) + "\n"


def _save(run: Run, folder: Path, *, must: bool) -> None:
    """Save a checkpoint in the first process; a failure before the last step is only reported."""
    saved = run.state_dict()
    if distributed.rank() == 0:
        try:
            state.save(folder, saved)
        except NextScaleError as error:
            if must:
                raise
            complain(f"{error}; the training goes on, its state is still that of the checkpoint before")


def _resume(run: Run, folder: Path) -> Row:
    """Go on from the newest whole state, if there is one; returns what the log says about it."""
    found = state.load(folder) if distributed.rank() == 0 else None
    name = distributed.gathered(found and found[1])[0]
    if name is None:
        return {}
    saved = found[0] if found else state.read(folder / name)
    try:
        run.load_state_dict(saved)
    except Exception as error:
        raise state.misfit(folder / name, error) from None
    if distributed.rank() == 0:
        complain(f"resuming at step {run.step} from {folder / name}")
    return {"resumed_from": name}


def checkpoint_units(model: nn.Module) -> list[nn.Module]:
    """The parts that a model, or each member of a list of models, declares for checkpointing and sharding."""
    if isinstance(model, nn.ModuleList):
        return [unit for member in model for unit in checkpoint_units(member)]
    declared = getattr(model, "checkpoint_units", None)
    return declared() if declared else []


@contextmanager
def checkpointed(modules: list[nn.Module]) -> Iterator[None]:
    """Inside, the modules keep only their inputs for the backward pass, which runs them again."""
    for module in modules:
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
