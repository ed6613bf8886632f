"""Speed of transformer training beside a large matrix product of the same run, and what feeds it.

    python benchmarks/training.py [--preset paper] [--batch 8] [--compile] > training.json

Measured on a GPU where there is one, else on the CPU by the same code: the peak of a large bfloat16 matrix product; the
training step (forward, backward, clipping, AdamW) in tokens a second and in TFLOPS of unmasked model FLOPs
(`nextscale.train.plan`), whose ratio to that peak should be at least 0.40 on a GPU; and, in images a second,
degradation and tokenization beside the training. The table goes to stderr, one JSON object to stdout. Weights and
pictures are random. Of a preset with a restorer its codes alone are measured, conditioned on the enlarged input.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nextscale.console import run_program
from nextscale.data.degrade import PRESETS as DEGRADATIONS
from nextscale.data.degrade import degrade, sample_recipes
from nextscale.device import Timer, product_rate
from nextscale.model.config import PRESETS, ModelConfig
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.model.transformer import Condition, Transformer, enlarge
from nextscale.train.config import LoopConfig
from nextscale.train.costs import pieces, preparation_flops, tokens_per_sample, training_flops_per_sample
from nextscale.train.loop import checkpoint_units, checkpointed, decay_groups
from nextscale.train.plan import count

TARGET = 0.40
"""Share of the peak that a GPU should reach."""


@dataclass(frozen=True)
class Settings:
    """What to time."""

    preset: Literal["paper", "tiny"] = "paper"
    batch: int = 1
    """Samples of a training step."""
    side: int = 0
    """Side in pixels of the input photographs (0: the model's own)."""
    runs: int = 3
    """Timed repetitions, after one that is not; the median counts."""
    product: int = 0
    """Side of the matrix product (0: 8192 on a GPU, 2048 on a CPU)."""
    degradation: str = "x4plus"
    compile: bool = False
    """Compile the transformer's blocks and head."""
    recompute: bool = False
    """Activation checkpointing; what it computes twice is counted once."""
    fp32: bool = False
    """Without autocast to bfloat16."""
    device: str = "auto"
    threads: int = 0
    """CPU threads (0: all)."""
    cpu_time: bool = False
    """Count the processor's seconds, not the clock's: for a CPU that others use meanwhile, with one thread."""


class Step:
    """One optimization step of the transformer on codes at hand."""

    def __init__(self, config: ModelConfig, codes: Codes, maps: list[Tensor], condition: Condition, settings: Settings):
        tokenizer = config.tokenizer
        loop = LoopConfig()
        self.device = condition.latent.device
        self.transformer = Transformer(
            config.transformer, tokenizer.ladder, tokenizer.codebook_size, tokenizer.autoencoder.latent_channels
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.transformer.named_parameters(), loop.lr, loop.weight_decay), betas=loop.betas, fused=True
        )
        self.clip = loop.clip
        self.bf16 = not settings.fp32
        self.maps, self.condition = maps, condition
        self.wanted = torch.cat([ids.flatten(1) for ids in codes.steps], dim=1)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            tokens = [self.transformer.start(self.condition)]
            tokens += [self.transformer.embed(m, k) for k, m in enumerate(self.maps, start=1)]
            logits = self.transformer.logits(tokens, self.condition)
        F.cross_entropy(logits.flatten(0, 1), self.wanted.flatten()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), self.clip)
        self.optimizer.step()


@torch.no_grad()
def tokenize(tokenizer: Tokenizer, targets: Tensor, inputs: Tensor, side: int) -> tuple[Codes, list[Tensor], Condition]:
    """What transformer training tokenizes: the photograph, and its enlarged input for prefix and preference."""
    ladder = tokenizer.ladder.for_input(side)
    codes = tokenizer.encode(targets, ladder=ladder)
    latents = tokenizer.stage_latents(enlarge(inputs, targets.shape[-1]), ladder=ladder)
    tokenizer.quantize(latents, ladder=ladder)
    maps = tokenizer.step_inputs(codes)
    return codes, maps, Condition(latents, torch.zeros(len(targets), dtype=torch.long, device=targets.device))


def measure(settings: Settings) -> dict[str, Any]:
    """All numbers of one run."""
    torch.manual_seed(0)
    config = PRESETS[settings.preset]().codes_alone()
    ladder = config.tokenizer.ladder
    side, batch = settings.side or ladder.input_side, settings.batch
    name = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    timer = Timer(device, cpu_time=settings.cpu_time)
    product = settings.product or (8192 if device.type == "cuda" else 2048)
    before = product_rate(product, torch.bfloat16, timer)

    pixels = ladder.for_input(side).image_sides[-1]
    targets = torch.rand(batch, 3, pixels, pixels, device=device)
    recipes = sample_recipes(DEGRADATIONS[settings.degradation], batch, random.Random(0))
    degrading = timer.median(lambda: degrade(targets, recipes), settings.runs)
    inputs = degrade(targets, recipes) * 2 - 1

    tokenizer = Tokenizer(config.tokenizer).to(device).eval().requires_grad_(False)
    tokenizing = timer.median(lambda: tokenize(tokenizer, targets * 2 - 1, inputs, side), settings.runs)
    step = Step(config, *tokenize(tokenizer, targets * 2 - 1, inputs, side), settings)
    with ExitStack() as stack:
        if settings.recompute:
            stack.enter_context(checkpointed(checkpoint_units(step.transformer)))
        if settings.compile:
            step.transformer.stack.compile()
        training = timer.median(step, settings.runs)
    # A machine that others use, or that heats up, is not the same at the end.
    peak = 1e-12 * max(before, product_rate(product, torch.bfloat16, timer))

    flops = training_flops_per_sample(config, side=side)
    tokens = sum(tokens_per_sample(config, side))
    achieved = 1e-12 * flops * batch / training
    parts = {"degradation": degrading, "tokenization": tokenizing, "training": training}
    return {
        "preset": settings.preset,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": "float32" if settings.fp32 else "bfloat16",
        "compiled": settings.compile,
        "recompute": settings.recompute,
        "clock": "processor" if settings.cpu_time else "wall",
        "batch": batch,
        "input_side": side,
        "tokens_per_sample": tokens,
        "flops_per_sample": flops,
        "tokenization_flops_per_sample": preparation_flops(pieces(config, "transformer", side)),
        "matrix_product_tflops": round(peak, 4),
        "matrix_product_side": product,
        "step_seconds": round(training, 4),
        "tokens_per_second": round(tokens * batch / training, 1),
        "training_tflops": round(achieved, 4),
        "training_over_matrix_product": round(achieved / peak, 3),
        "target": TARGET if device.type == "cuda" else None,
        "images_per_second": {name: round(batch / seconds, 4) for name, seconds in parts.items()},
        "bottleneck": max(parts, key=lambda name: parts[name]),
        "share_of_time": {name: round(seconds / sum(parts.values()), 3) for name, seconds in parts.items()},
        "peak_memory_mib": round(_peak_bytes(device) / 2**20),
    }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_table(report: dict[str, Any]) -> Table:
    """The report for people."""
    title = f"{report['preset']}, batch {report['batch']} of {report['input_side']} px, {report['device']}"
    table = Table("", "", title=title, show_header=False)
    table.add_row("matrix product", f"{report['matrix_product_tflops']:.4g} TFLOPS")
    table.add_row(
        "training step", f"{report['step_seconds']:.3g} s for {count(report['flops_per_sample'])} FLOPs a sample"
    )
    table.add_row("tokens a second", f"{report['tokens_per_second']:.4g}")
    wanted = f" (wanted: {report['target']:.2f})" if report["target"] else ""
    ratio = (
        f"{report['training_tflops']:.4g} TFLOPS, {report['training_over_matrix_product']:.2f} of the product{wanted}"
    )
    table.add_row("achieved", ratio)
    for name, speed in report["images_per_second"].items():
        mark = ", the bottleneck" if name == report["bottleneck"] else ""
        table.add_row(name, f"{speed:.3g} images/s, {report['share_of_time'][name]:.0%} of the time in turn{mark}")
    return table


def main() -> int:
    """Table on stderr, JSON on stdout."""
    settings = tyro.cli(Settings, config=(tyro.conf.FlagCreatePairsOff,), description=__doc__)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    report = measure(settings)
    Console(stderr=True).print(as_table(report))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
