"""The machine that a training is planned for. Torch-free until a CPU is measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from nextscale.errors import OptionError

Device = Literal["a100-40", "a100-80", "h100", "h200", "l40s", "rtx3090", "rtx4090", "cpu"]
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
        """The device's name in a plan."""
        return "given device" if self.tflops else self.device

    @property
    def hardware(self) -> Hardware:
        """The device that these settings name; a CPU is measured."""
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
