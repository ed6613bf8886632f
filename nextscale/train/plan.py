"""What a training will cost, by arithmetic alone: parameters, tokens, FLOPs, memory, time. Torch-free.

A FLOP is a multiplication or an addition. A backward pass counts twice its forward pass through trained layers and once
through frozen ones. Attention counts the keys that a segment really sees: nothing masked is ever computed. Elementwise
operations, the degradation and the perceptual networks are left out of the FLOPs, their memory of the estimate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from nextscale.errors import OptionError
from nextscale.model.config import AutoencoderConfig, DecoderFusionConfig, Ladder, ModelConfig, TokenizerConfig
from nextscale.train.config import LoopConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

Training = Literal["autoencoder", "codebook", "vocabulary", "decoders", "transformer", "fusion"]
"""What is trained."""
Device = Literal["a100-40", "a100-80", "h100", "h200", "l40s", "rtx3090", "rtx4090", "cpu"]

WIDE = 4
"""Bytes of a float32 number."""
GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One device: dense peaks in 10^12 FLOPs a second, and memory."""

    bf16: float
    fp32: float
    """With float32 in and out: TF32 on GPUs, which convolutions use unless told otherwise."""
    memory_gib: float


# The makers' data sheets, without sparsity.
HARDWARE: dict[str, Hardware] = {
    "a100-40": Hardware(312, 156, 40),
    "a100-80": Hardware(312, 156, 80),
    "h100": Hardware(989, 494, 80),
    "h200": Hardware(989, 494, 140),
    "l40s": Hardware(362, 183, 45),
    "rtx3090": Hardware(71, 35.6, 24),
    "rtx4090": Hardware(165, 82.6, 24),
}


@dataclass(frozen=True)
class PlanConfig:
    """The machine to plan a training for."""

    device: Device = "a100-80"
    """One process's device; cpu measures this machine."""
    processes: int = 1
    """How many of them train together."""
    tflops: float = 0.0
    """Peak of another device, in 10^12 bfloat16 operations a second (0: the named one's)."""
    memory_gib: float = 0.0
    """Memory of another device (0: the named one's)."""
    utilisation: float = 0.4
    """Share of the peak that the training is expected to reach."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.tflops < 0 or self.memory_gib < 0 or not 0 < self.utilisation <= 1:
            raise OptionError("a plan needs processes of at least 1, a utilisation in (0, 1] and no negative number")

    @property
    def name(self) -> str:
        """What to call the device."""
        return "given device" if self.tflops else self.device

    @property
    def hardware(self) -> Hardware:
        """What these settings name; measures the CPU where that is asked for."""
        found = HARDWARE[self.device] if self.device in HARDWARE else this_cpu()
        if self.tflops:
            found = replace(found, bf16=self.tflops, fp32=self.tflops / 2)
        return replace(found, memory_gib=self.memory_gib) if self.memory_gib else found


def this_cpu(side: int = 1024) -> Hardware:
    """This machine's CPU, by matrix products with the threads that torch would use."""
    import torch

    from nextscale.device import Timer, product_rate

    timer = Timer(torch.device("cpu"))
    bf16, fp32 = (1e-12 * product_rate(side, dtype, timer, runs=4) for dtype in (torch.bfloat16, torch.float32))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Hardware(bf16, fp32, memory)


@dataclass(frozen=True)
class Cost:
    """What a part of a model holds, and does for one sample."""

    parameters: int = 0
    flops: float = 0.0
    """Of a forward pass."""
    kept: float = 0.0
    """Bytes that the forward pass leaves for the backward pass."""
    working: float = 0.0
    """Bytes that come and go at the widest layer."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.kept + other.kept,
            max(self.working, other.working),
        )

    def again(self) -> Cost:
        """The same weights on another input."""
        return replace(self, parameters=0)

    def held(self) -> Cost:
        """The weights alone, not run."""
        return Cost(self.parameters)


def total(costs: Sequence[Cost]) -> Cost:
    """The sum of parts."""
    return sum(costs, Cost())


@dataclass(frozen=True)
class Precision:
    """Bytes per number that autocast leaves in the operands of matrix work, in group norms and in attention."""

    operand: int = WIDE
    norm: int = WIDE
    attention: int = WIDE

    @staticmethod
    def of(*, bf16: bool, cpu: bool) -> Precision:
        """CUDA's autocast normalises in float32; our attention runs in float32 on a CPU, where that is faster."""
        if not bf16:
            return Precision()
        return Precision(operand=2, norm=2 if cpu else WIDE, attention=WIDE if cpu else 2)


# Layers, in the order of tokenizer/layers.py. Sides are those of the output.


def _conv(channels: int, out: int, side: float, width: int, *, kernel: int = 3, stride: int = 1) -> Cost:
    weights = kernel * kernel * channels * out
    read, written = channels * (side * stride) ** 2, out * side**2
    return Cost(weights + out, 2 * weights * side**2, read * width, 2 * (read + written) * width)


def _norm_silu_conv(channels: int, out: int, side: float, precision: Precision) -> Cost:
    kept = 2 * channels * side**2 * precision.norm
    return Cost(2 * channels, kept=kept) + _conv(channels, out, side, precision.operand)


def _res_block(channels: int, out: int, side: float, precision: Precision) -> Cost:
    block = _norm_silu_conv(channels, out, side, precision) + _norm_silu_conv(out, out, side, precision)
    if channels == out:
        return block
    return block + _conv(channels, out, side, precision.operand, kernel=1)


def _attention_block(channels: int, side: float, precision: Precision) -> Cost:
    norm = Cost(2 * channels, kept=channels * side**2 * precision.norm)
    # Queries, keys and values (kept as one map) and the result before its projection.
    core = Cost(flops=4 * channels * side**4, kept=4 * channels * side**2 * precision.operand)
    qkv = _conv(channels, 3 * channels, side, precision.operand, kernel=1)
    return norm + qkv + core + _conv(channels, channels, side, precision.operand, kernel=1)


def _middle(channels: int, side: float, precision: Precision, *, attention: bool) -> Cost:
    blocks = [_res_block(channels, channels, side, precision)] * 2
    return total(blocks + [_attention_block(channels, side, precision)] * attention)


def encoder_cost(config: AutoencoderConfig, side: int, precision: Precision) -> Cost:
    """The encoder and its quant_conv on an image of a side in pixels."""
    at = side / config.patch
    operand = precision.operand
    parts = [_conv(3 * config.patch**2, config.channels, at, operand)]
    channels = config.channels
    for level, multiplier in enumerate(config.multipliers):
        lowest = level == len(config.multipliers) - 1
        width = config.channels * multiplier
        for _ in range(config.blocks):
            parts.append(_res_block(channels, width, at, precision))
            channels = width
            if config.attention and lowest:
                parts.append(_attention_block(width, at, precision))
        if not lowest:
            at /= 2
            parts.append(_conv(width, width, at, operand, stride=2))
    parts.append(_middle(channels, at, precision, attention=config.attention))
    parts.append(_norm_silu_conv(channels, config.latent_channels, at, precision))
    if config.linear_path:
        size = config.reduction
        parts.append(_conv(3, config.latent_channels, at, operand, kernel=size, stride=size))
    return total([*parts, _conv(config.latent_channels, config.latent_channels, at, operand)])


def decoder_cost(config: AutoencoderConfig, canvas: int, precision: Precision) -> Cost:
    """A decoder on a canvas of a side in latents."""
    widths = [config.channels * m for m in config.multipliers]
    channels, latent, operand = widths[-1], config.latent_channels, precision.operand
    pixels = 3 * config.patch**2
    at = float(canvas)
    parts = [_conv(latent, latent, at, WIDE), _conv(latent, channels, at, operand)]
    if config.linear_path:
        size = config.reduction
        weights = latent * 3 * size**2
        parts.append(Cost(weights + 3, 2 * weights * at**2, latent * at**2 * WIDE))
    parts.append(_middle(channels, at, precision, attention=config.attention))
    for level in reversed(range(len(widths))):
        lowest = level == len(widths) - 1
        if level == 0 and config.linear_path:
            parts.append(_conv(pixels, channels, at, operand))
        for _ in range(config.blocks + 1):
            parts.append(_res_block(channels, widths[level], at, precision))
            channels = widths[level]
            if config.attention and lowest:
                parts.append(_attention_block(channels, at, precision))
        if level:
            at *= 2
            parts.append(_conv(channels, channels, at, operand))
    parts.append(_norm_silu_conv(channels, pixels, at, precision))
    # The image in float32, and its difference from the target.
    parts.append(Cost(kept=2 * pixels * at**2 * WIDE))
    return total(parts)


def fusion_cost(config: DecoderFusionConfig, factor: int, side: int, precision: Precision) -> Cost:
    """One stage's fusion, for an input photograph of a side in pixels."""
    channels, operand = config.channels, precision.operand
    parts = [
        _conv(3 * factor**2, channels, side, operand),
        _conv(2 * channels, channels, side, operand),
        _conv(channels, 2 * channels, side, operand),
        # A rectifier's output, and both halves of the modulation.
        Cost(kept=3 * channels * side**2 * operand),
    ]
    parts += [_conv(channels, channels, side, operand)] * (2 * config.stage_blocks)
    at = float(side)
    half = channels // 2
    while factor > 1:
        growth = 2 if factor % 2 == 0 else factor
        parts.append(_conv(channels, half * growth**2, at, operand))
        channels, factor, at = half, factor // growth, at * growth
        if factor == 1:
            parts += [_conv(channels, channels, at, operand)] * (2 * config.refine)
    # Enlarged input, blend, codes' picture and image in float32.
    parts += [_conv(channels, 4, at, operand), Cost(kept=10 * at**2 * WIDE)]
    return total(parts)


def input_features_cost(config: DecoderFusionConfig, side: int, precision: Precision) -> Cost:
    """The branch that reads the input photograph of a side in pixels."""
    channels, operand = config.channels, precision.operand
    block = [_conv(channels, channels, side, operand)] * 2
    return total([_conv(3, channels, side, operand), *block * config.blocks])


def quantizer_parameters(config: TokenizerConfig) -> int:
    """Codebook and shared convolutions."""
    channels = config.autoencoder.latent_channels
    return config.codebook_size * channels + config.num_phi * (9 * channels + 1) * channels


def nearest_cost(config: TokenizerConfig, ladder: Ladder, stages: int) -> Cost:
    """The search for the nearest codes of the first stages."""
    tokens = sum(ladder.tokens(n) for n in range(stages))
    most = max(side**2 for side in ladder.sides[: ladder.stage_ends[stages - 1]])
    flops = 2 * config.codebook_size * config.autoencoder.latent_channels * tokens
    return Cost(flops=flops, working=2 * WIDE * most * config.codebook_size)


def scan_cost(config: TokenizerConfig, ladder: Ladder, stages: int) -> Cost:
    """One run of the residual recurrence over the first stages: a lift of every code to every canvas it is used on."""
    channels = config.autoencoder.latent_channels
    lifts = [
        _conv(channels, channels, ladder.canvases[n], WIDE).again()
        for n in range(stages)
        for _ in range(ladder.stage_ends[n])
    ]
    return total(lifts)


# The transformer.


def segments(ladder: Ladder, stages: int = 0) -> list[int]:
    """Tokens of the prefix and of each step."""
    steps = ladder.sides[: ladder.stage_ends[(stages or ladder.num_stages) - 1]]
    return [ladder.canvases[-1] ** 2, *(side * side for side in steps)]


def attention_pairs(lengths: Sequence[int]) -> int:
    """Pairs of a query and a key that it sees, over all segments."""
    return sum(length * sum(lengths[: i + 1]) for i, length in enumerate(lengths))


def transformer_costs(
    config: ModelConfig, ladder: Ladder, stages: int, precision: Precision, *, recompute: bool = False
) -> dict[str, Cost]:
    """Embeddings, blocks and head on one sample.

    Args:
        ladder: for the input's side; the weights are those of the model's own ladder.
        recompute: a block keeps only its input, and its forward pass runs again in the backward pass.
    """
    shape, tokenizer = config.transformer, config.tokenizer
    width, latent, vocabulary = shape.width, tokenizer.autoencoder.latent_channels, tokenizer.codebook_size
    hidden = round(width * shape.mlp_ratio)
    lengths = segments(ladder, stages)
    tokens, wanted = sum(lengths), sum(lengths[1:])
    linear = (latent + 1) * width
    tables = shape.classes + tokenizer.ladder.sides[0] ** 2 + 1 + tokenizer.ladder.num_steps + shape.position_grid**2
    embed = Cost(
        2 * linear + tables * width,
        2 * latent * width * (tokens - lengths[1]),
        # Each segment, and their concatenation, which the first block reads.
        tokens * width * WIDE,
    )
    if shape.aligned_conditioning:
        embed += Cost(linear, 2 * latent * width * wanted)
    ada = 6 * (width + 1) * width
    weights = 4 * width * width + 2 * width * hidden
    # Biases of queries, values, projection and the second layer; the first layer's; the sharpness of each head.
    block_parameters = weights + 4 * width + hidden + shape.heads
    # Read by the two norms and the two modulations; by the normalisation of queries and keys and the sharpness.
    wide = 4 * width + 3 * width
    # Inputs of qkv, projection and first layer; both gated results; both sides of the GELU.
    narrow = 5 * width + 2 * hidden
    # Queries, keys, values and the result; a 16 bit attention also keeps the map that its values are a view of.
    attended = 4 * width * precision.attention + (3 * width * 2 if precision.attention == 2 else 0)
    kept = tokens * (wide * WIDE + narrow * precision.operand + attended)
    adas = 1 if shape.shared_adaln else shape.depth
    blocks = Cost(
        shape.depth * (block_parameters + (6 * width if shape.shared_adaln else 0)) + adas * ada,
        shape.depth * (2 * weights * tokens + 4 * width * attention_pairs(lengths)) + adas * 12 * width * width,
        shape.depth * (tokens * width * WIDE if recompute else kept),
        2 * kept if recompute else kept,
    )
    head = Cost(
        (width + 1) * vocabulary + 2 * (width + 1) * width,
        2 * width * vocabulary * wanted + 4 * width * width,
        # The head runs in float32; logits and their logarithms, then as much again for their gradients.
        wanted * (3 * width + vocabulary) * WIDE,
        3 * wanted * vocabulary * WIDE,
    )
    return {"embeddings": embed, "blocks": blocks, "head": head}


# Trainings.


@dataclass(frozen=True)
class Piece:
    """A part of the model in one training."""

    name: str
    cost: Cost
    passes: int
    """1: forward only. 2: forward, and a backward pass to earlier parts. 3: trained."""


def pieces(
    config: ModelConfig,
    training: Training,
    side: int = 0,
    *,
    stages: int = 0,
    precision: Precision | None = None,
    recompute: bool = False,
) -> list[Piece]:
    """What one sample costs in each part of the model.

    Args:
        side: of the input photograph in pixels (0: the model's own).
        stages: train the transformer on the first stages only (0: all).
    """
    precision = precision or Precision()
    tokenizer = config.tokenizer
    auto, fusion = tokenizer.autoencoder, tokenizer.fusion
    ladder = tokenizer.ladder.for_input(side or tokenizer.ladder.input_side)
    stages = stages or ladder.num_stages
    # Where no gradient is wanted, tokenising runs in float32.
    exact = precision if training in ("autoencoder", "decoders", "fusion") else Precision()
    encoders = [encoder_cost(auto, s, exact) for s in ladder.image_sides]
    encode = total([encoders[-1], *(cost.again() for cost in encoders[:-1])])
    quantise = nearest_cost(tokenizer, ladder, stages) + scan_cost(tokenizer, ladder, stages)
    codebook = Cost(quantizer_parameters(tokenizer))
    decoders = total([decoder_cost(auto, canvas, precision) for canvas in ladder.canvases])
    fused = Cost()
    if fusion is not None:
        stages_fused = [fusion_cost(fusion, int(factor), ladder.input_side, precision) for factor in ladder.factors]
        fused = total([*stages_fused, input_features_cost(fusion, ladder.input_side, precision)])
    if training == "autoencoder":
        return [
            Piece("encoder", encode, 3),
            Piece("codebook", codebook, 1),
            Piece("decoders", decoders, 3),
            *([Piece("fusion", fused, 3)] if fusion else []),
        ]
    idle = [Piece("decoders", (decoders + fused).held(), 1)]
    if training in ("codebook", "vocabulary"):
        return [
            Piece("encoder", encode, 1),
            Piece("nearest codes", nearest_cost(tokenizer, ladder, stages), 1),
            Piece("codebook", codebook + scan_cost(tokenizer, ladder, stages), 3),
            *idle,
        ]
    if training == "decoders":
        return [
            Piece("encoder", encode, 1),
            Piece("codebook", codebook + quantise, 1),
            Piece("decoders", decoders, 3),
            *([Piece("fusion", fused, 3)] if fusion else []),
        ]
    if training == "fusion":
        run = total(list(transformer_costs(config, ladder, stages, precision).values()))
        return [
            Piece("encoder", encode, 1),
            Piece("codebook", codebook + scan_cost(tokenizer, ladder, stages), 1),
            Piece("transformer", run, 1),
            Piece("decoders", decoders, 3),
            *([Piece("fusion", fused, 3)] if fusion else []),
        ]
    parts = transformer_costs(config, ladder, stages, precision, recompute=recompute)
    # The photograph's first stages and all of the enlarged input's.
    photograph = total([cost.again() for cost in encoders[:stages]])
    scans = total([quantise, quantise, scan_cost(tokenizer, ladder, stages)])
    return [
        Piece("encoder", encode + photograph, 1),
        Piece("codebook", codebook + scans, 1),
        *idle,
        *(Piece(name, cost, 3) for name, cost in parts.items()),
    ]


def training_flops(parts: Sequence[Piece]) -> float:
    """FLOPs of forward and backward of what a gradient passes through."""
    return sum(part.passes * part.cost.flops for part in parts if part.passes > 1)


def preparation_flops(parts: Sequence[Piece]) -> float:
    """FLOPs of what only runs forward: tokenising, and whatever else is frozen and comes before."""
    return sum(part.cost.flops for part in parts if part.passes == 1)


def training_flops_per_sample(
    config: ModelConfig, training: Training = "transformer", side: int = 0, *, stages: int = 0
) -> float:
    """FLOPs of forward and backward for one sample: what model FLOPs utilisation counts.

    Recomputed and masked work is not in it, nor are tokenisation and degradation.
    """
    return training_flops(pieces(config, training, side, stages=stages))


def tokens_per_sample(config: ModelConfig, side: int = 0, *, stages: int = 0) -> tuple[int, int]:
    """Tokens of the prefix, and of all steps, for an input photograph of a side in pixels (0: the model's own)."""
    ladder = config.tokenizer.ladder
    lengths = segments(ladder.for_input(side or ladder.input_side), stages)
    return lengths[0], sum(lengths[1:])


def rates_of_sides(config: ModelConfig, sides: Sequence[int], *, stages: int = 0) -> tuple[float, float]:
    """Tokens and training FLOPs per sample of the nominal batch, where a transformer sees several sides in turn.

    A larger side than the smallest takes fewer samples, as many times fewer as its picture is larger.
    """
    shares = [(side, min(sides) ** 2 / side**2) for side in sides]
    tokens = sum(share * sum(tokens_per_sample(config, side, stages=stages)) for side, share in shares)
    flops = sum(share * training_flops_per_sample(config, side=side, stages=stages) for side, share in shares)
    return tokens / len(sides), flops / len(sides)


@dataclass(frozen=True)
class Plan:
    """A training's cost on given hardware, for one process unless said otherwise."""

    training: Training
    parts: list[Piece]
    """At the largest side."""
    tokens: tuple[int, int]
    """Of the prefix and of the steps, at the largest side."""
    batches: dict[int, int]
    """Samples at a time by side in pixels."""
    samples: float
    """Per optimiser step, all processes together."""
    steps: int
    photographs: int
    """In the training data (0: unknown)."""
    step_flops: float
    """Forward and backward of an optimiser step, all processes together."""
    step_preparation: float
    """FLOPs that only run forward, likewise."""
    seconds: float
    """Per optimiser step."""
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
    config: ModelConfig,
    training: Training,
    loop: LoopConfig,
    machine: PlanConfig | None = None,
    *,
    sides: Sequence[int] = (),
    stages: int = 0,
    photographs: int = 0,
) -> Plan:
    """Plan a training.

    Args:
        sides: of the input photograph in pixels, in turn (none: the model's own). Larger ones than the smallest take
            fewer samples, as transformer training does.
        photographs: in the training data, to tell the epochs (0: unknown).
    """
    machine = machine or PlanConfig()
    hardware = machine.hardware
    cpu = machine.device == "cpu"
    precision = Precision.of(bf16=loop.bf16, cpu=cpu)
    sides = tuple(sides) or (config.tokenizer.ladder.input_side,)
    batches = {side: max(1, loop.batch * min(sides) ** 2 // side**2) for side in sorted(set(sides))}
    costs = {
        side: pieces(
            config, training, side, stages=stages, precision=precision, recompute=loop.activation_checkpointing
        )
        for side in batches
    }
    rate = hardware.bf16 if loop.bf16 else hardware.fp32
    flops = preparation = seconds = samples = 0.0
    for side in sides:
        count = batches[side] * loop.grad_accum_steps / len(sides)
        forward_back, forward = training_flops(costs[side]), preparation_flops(costs[side])
        again = sum(p.cost.flops for p in costs[side] if p.name == "blocks" and loop.activation_checkpointing)
        samples += count * machine.processes
        flops += count * machine.processes * forward_back
        preparation += count * machine.processes * forward
        frozen = hardware.fp32 if training in ("transformer", "codebook", "vocabulary") else rate
        seconds += count * ((forward_back + again) / rate + forward / frozen) / (1e12 * machine.utilisation)
    memory = max(
        (_memory(costs[side], batches[side], training, loop, machine, cpu=cpu) for side in batches),
        key=lambda purposes: sum(purposes.values()),
    )
    largest = max(batches)
    return Plan(
        training=training,
        parts=costs[largest],
        tokens=tokens_per_sample(config, largest, stages=stages),
        batches=batches,
        samples=samples,
        steps=loop.steps,
        photographs=photographs,
        step_flops=flops,
        step_preparation=preparation,
        seconds=seconds,
        rate=rate,
        memory=memory,
        machine=machine,
        memory_gib=hardware.memory_gib,
    )


def _memory(
    parts: Sequence[Piece], batch: int, training: Training, loop: LoopConfig, machine: PlanConfig, *, cpu: bool
) -> dict[str, float]:
    """Bytes by purpose of one process, at the end of the forward pass of any step but the first."""
    trained = sum(p.cost.parameters for p in parts if p.passes == 3)
    passed = sum(p.cost.parameters for p in parts if p.passes > 1)
    resident = sum(p.cost.parameters for p in parts)
    # The tokenizer is averaged as a whole, a transformer without its tokenizer.
    averaged = trained if training == "transformer" else resident
    if training == "fusion":
        averaged -= sum(p.cost.parameters for p in parts if p.name == "transformer")
    joined = machine.processes > 1
    share = machine.processes if joined and loop.parallel == "fsdp" else 1
    kept = batch * sum(p.cost.kept for p in parts if p.passes > 1)
    working = batch * max(p.cost.working for p in parts if p.passes > 1)
    prepared = batch * max((p.cost.working for p in parts if p.passes == 1), default=0.0)
    memory = {
        "weights": WIDE * (trained / share + resident - trained),
        "16 bit copies of weights": 2.0 * passed if loop.bf16 else 0.0,
        "gradients": WIDE * trained / share,
        "optimiser": 2 * WIDE * trained / share,
        # Sharded weights have a sharded average beside the whole one that is saved.
        "average": WIDE * averaged * (1 if share == 1 else 1 + 1 / share),
        "exchange between processes": WIDE * trained if joined and share == 1 else 0.0,
        "activations": kept,
        # What comes first is done when the activations are at their fullest.
        "working space": max(working, prepared - kept),
        "framework": (0.4 if cpu else 1.0) * GIB,
    }
    return {name: size for name, size in memory.items() if size}


def show(plan: Plan) -> None:
    """Print a plan."""
    from rich.console import Console

    Console().print(render(plan))


def render(plan: Plan) -> RenderableType:
    """A plan as tables."""
    from rich.console import Group
    from rich.table import Table

    parts = Table(
        "part",
        "parameters",
        "FLOPs a sample",
        "passes",
        title=f"{plan.training} training",
        caption="without reading, degradation and perceptual networks",
    )
    passes = {1: "forward", 2: "forward and back", 3: "trained"}
    for part in plan.parts:
        done = passes[part.passes] if part.cost.flops else "held"
        parts.add_row(part.name, count(part.cost.parameters), count(part.cost.flops), done)
    parts.add_row("all", count(sum(p.cost.parameters for p in plan.parts)), "", "", style="bold")
    machine = plan.machine
    prefix, steps = plan.tokens
    at = ", ".join(f"{batch} of {side} px" for side, batch in plan.batches.items())
    run = f"{span(plan.seconds * plan.steps)} for {plan.steps} steps"
    if plan.photographs:
        run += f", {plan.steps * plan.samples / plan.photographs:.3g} epochs"
    rows = [
        ("samples at a time", at),
        ("samples a step", f"{plan.samples:g} on {machine.processes} x {machine.name}"),
        ("FLOPs a step", f"{count(plan.step_flops)} forward and backward, {count(plan.step_preparation)} before them"),
        ("time a step", f"{span(plan.seconds)} at {machine.utilisation:.0%} of {plan.rate:.3g} TFLOPS"),
        ("time of the run", run),
    ]
    if plan.training == "transformer":
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
    fixed = plan.peak - plan.memory.get("activations", 0.0) - plan.memory.get("working space", 0.0)
    if fixed > plan.memory_gib * GIB:
        return "the weights and their optimiser alone do not; use --parallel fsdp over more processes"
    return "use --activation-checkpointing, or a smaller --batch with a larger --grad-accum-steps"


def count(number: float) -> str:
    """1234567 -> 1.23 M."""
    for power, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g} {unit}"
    return f"{number:.3g}"


def span(seconds: float) -> str:
    """Seconds in the unit one would say."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s"
