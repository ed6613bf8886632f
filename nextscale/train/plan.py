"""What a training will take on given hardware: FLOPs, memory, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console, Group, RenderableType
from rich.table import Table

from nextscale.console import lasting
from nextscale.model.config import ModelConfig, RestorerConfig
from nextscale.train.config import LoopConfig
from nextscale.train.costs import WHOLE, Piece, Training, pieces, preparation_flops, tokens_per_sample, training_flops
from nextscale.train.hardware import GIB, PlanConfig

WIDE = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True)
class Plan:
    """A training's cost on given hardware, for one process unless said otherwise."""

    training: Training
    parts: list[Piece]
    """Of one sample at the largest side."""
    tokens: tuple[int, int]
    """Of the prefix and of the steps, at the largest side (transformer training)."""
    batches: dict[int, int]
    """Samples at a time by side in pixels."""
    samples: float
    """Per optimizer step, all processes together."""
    steps: int
    photographs: int
    """In the training data (0: unknown)."""
    step_flops: float
    """Forward and backward of an optimizer step, all processes together."""
    step_preparation: float
    """FLOPs that only run forward, likewise."""
    seconds: float
    """Per optimizer step."""
    rate: float
    """Peak of a device at the training's precision, 10^12 FLOPs a second."""
    memory: dict[str, float]
    """Bytes by purpose, at the most demanding side."""
    machine: PlanConfig
    memory_gib: float

    @property
    def peak(self) -> float:
        """Bytes that a process needs."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a process's memory is enough."""
        return self.peak <= self.memory_gib * GIB


def plan(
    config: ModelConfig | RestorerConfig,
    training: Training,
    loop: LoopConfig,
    machine: PlanConfig | None = None,
    *,
    sides: Sequence[int] = (),
    stages: int = 0,
    photographs: int = 0,
    anchored: float | None = None,
) -> Plan:
    """Plan a training.

    Args:
        config: a restorer's for its training, else a whole model's.
        sides: of the input photograph in pixels, in turn (none: the model's own). Larger ones than the smallest take
            fewer samples, as transformer training does.
        photographs: in the training data, to tell the epochs (0: unknown).
        anchored: as for `pieces`.
    """
    machine = machine or PlanConfig()
    hardware = machine.hardware
    if not sides:
        sides = (48,) if isinstance(config, RestorerConfig) else (config.tokenizer.ladder.input_side,)
    batches = {side: max(1, loop.batch * min(sides) ** 2 // side**2) for side in sorted(set(sides))}
    costs = {
        s: pieces(config, training, s, stages=stages, batch=n, bf16=loop.bf16, anchored=anchored)
        for s, n in batches.items()
    }
    rate = hardware.bf16 if loop.bf16 else hardware.fp32
    flops = preparation = seconds = samples = 0.0
    for side in sides:
        times = loop.grad_accum_steps / len(sides)
        trained, before = training_flops(costs[side]), preparation_flops(costs[side])
        again = sum(p.flops for p in costs[side] if p.passes > 1) if loop.activation_checkpointing else 0.0
        samples += times * batches[side] * machine.processes
        flops += times * machine.processes * trained
        preparation += times * machine.processes * before
        frozen = sum(p.flops / (hardware.fp32 if p.exact else rate) for p in costs[side] if p.passes == 1)
        seconds += times * ((trained + again) / rate + frozen) / (1e12 * machine.utilization)
    largest = max(batches)
    tokens = (0, 0)
    if training == "transformer" and isinstance(config, ModelConfig):
        tokens = tokens_per_sample(config, largest, stages=stages)
    return Plan(
        training=training,
        parts=[replace(p, flops=p.flops / batches[largest]) for p in costs[largest]],
        tokens=tokens,
        batches=batches,
        samples=samples,
        steps=loop.steps,
        photographs=photographs,
        step_flops=flops,
        step_preparation=preparation,
        seconds=seconds,
        rate=rate,
        memory=max((_memory(costs[s], training, loop, machine) for s in batches), key=lambda m: sum(m.values())),
        machine=machine,
        memory_gib=hardware.memory_gib,
    )


def _memory(parts: Sequence[Piece], training: Training, loop: LoopConfig, machine: PlanConfig) -> dict[str, float]:
    """Bytes by purpose of one process, at the end of the forward pass of any step but the first."""
    trained = sum(p.parameters for p in parts if p.passes > 1)
    resident = sum(p.parameters for p in parts)
    # The tokenizer is averaged as a whole, the other models without what they are trained beside.
    averaged = resident if training in ("autoencoder", "codebook", "finetune-codebook", "decoders") else trained
    joined = machine.processes > 1
    share = machine.processes if joined and loop.parallel == "fsdp" else 1
    memory = {
        "weights": WIDE * (trained / share + resident - trained),
        "gradients": WIDE * trained / share,
        "optimizer": 2 * WIDE * trained / share,
        # Sharded weights have a sharded average beside the whole one that is saved.
        "average": WIDE * averaged * (1 if share == 1 else 1 + 1 / share),
        "exchange between processes": WIDE * trained if joined and share == 1 else 0.0,
        "activations": sum(p.checkpointed if loop.activation_checkpointing else p.kept for p in parts),
        "framework": (0.4 if machine.on_cpu else 1.0) * GIB,
    }
    return {name: size for name, size in memory.items() if size}


def show(plan: Plan) -> None:
    """Print a plan."""
    Console().print(render(plan))


def render(plan: Plan) -> RenderableType:
    """A plan as tables."""
    columns = ("part", "parameters", "FLOPs a sample", "passes")
    caption = "without reading, degradation and perceptual networks"
    parts = Table(*columns, title=f"{plan.training} training", caption=caption)
    for part in plan.parts:
        done = {1: "forward", 3: "trained"}[part.passes] if part.flops else "held"
        parts.add_row(part.name, count(part.parameters), count(part.flops), done)
    parts.add_row("all", count(sum(p.parameters for p in plan.parts)), "", "", style="bold")
    machine = plan.machine
    prefix, steps = plan.tokens
    at = ", ".join(f"{batch} of {side} px" for side, batch in plan.batches.items())
    run = f"{lasting(plan.seconds * plan.steps)} for {plan.steps} steps"
    if plan.photographs:
        run += f", {plan.steps * plan.samples / plan.photographs:.3g} epochs"
    rows = [
        ("samples at a time", at),
        ("samples a step", f"{plan.samples:g} on {machine.processes} x {machine.name}"),
        ("FLOPs a step", f"{count(plan.step_flops)} forward and backward, {count(plan.step_preparation)} before them"),
        ("time a step", f"{lasting(plan.seconds)} at {machine.utilization:.0%} of {plan.rate:.3g} TFLOPS"),
        ("time of the run", run),
    ]
    if steps:
        rows.insert(0, ("tokens a sample", f"{prefix + steps} = {prefix} prefix + {steps}"))
    numbers = Table(show_header=False)
    for name, value in rows:
        numbers.add_row(name, value)
    memory = Table("memory of a process", "GiB")
    for name, size in plan.memory.items():
        memory.add_row(name, f"{size / GIB:.2f}")
    memory.add_row("all", f"{plan.peak / GIB:.1f} of {plan.memory_gib:.0f}", style="bold")
    verdict = "It fits." if plan.fits else f"It does not fit: {remedy(plan)}."
    return Group(parts, numbers, memory, verdict)


def remedy(plan: Plan) -> str:
    """What to change about a plan that does not fit."""
    if plan.peak - plan.memory.get("activations", 0.0) > plan.memory_gib * GIB:
        shared = "use --parallel fsdp over more processes" if plan.training not in WHOLE else "use a larger device"
        return f"the weights and their optimizer alone do not; {shared}"
    return "use --activation-checkpointing, or a smaller --batch with a larger --grad-accum-steps"


def count(number: float) -> str:
    """1234567 -> 1.23 M."""
    for power, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g} {unit}"
    return f"{number:.3g}"
