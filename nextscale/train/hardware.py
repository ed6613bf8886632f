"""The machine that a training is planned for. Torch-free until a CPU is measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from nextscale.errors import OptionError

Device = Literal["this", "a100-40", "a100-80", "h100", "h200", "l40s", "rtx3090", "rtx4090", "cpu"]
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

    device: Device = "this"
    """One process's device: this measures the machine that plans, its GPU if it has one; cpu its processor."""
    processes: int = 1
    """How many of them train together."""
    tflops: float = 0.0
    """Peak of another device, in 10^12 bfloat16 operations a second (0: the named one's)."""
    memory_gib: float = 0.0
    """Memory of another device (0: the named one's)."""
    utilization: float = 0.4
    """Share of the peak that the training is expected to reach."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.tflops < 0 or self.memory_gib < 0 or not 0 < self.utilization <= 1:
            raise OptionError("a plan needs processes of at least 1, a utilization in (0, 1] and no negative number")

    @property
    def name(self) -> str:
        """What to call the device."""
        if self.tflops:
            return "given device"
        return "device of this machine" if self.device == "this" else self.device

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on a processor."""
        if self.device != "this":
            return self.device == "cpu"
        import torch

        return not (self.tflops or torch.cuda.is_available())

    @property
    def hardware(self) -> Hardware:
        """What these settings name; measures the CPU where that is asked for."""
        if self.device in HARDWARE:
            found = HARDWARE[self.device]
        else:
            found = this_cpu() if self.device == "cpu" else this_machine()
        if self.tflops:
            found = replace(found, bf16=self.tflops, fp32=self.tflops / 2)
        return replace(found, memory_gib=self.memory_gib) if self.memory_gib else found


def this_machine() -> Hardware:
    """The GPU that a training here would run on, by matrix products; without one, the CPU."""
    import torch

    from nextscale.device import Timer, product_rate

    if not torch.cuda.is_available():
        return this_cpu()
    device = torch.device("cuda")
    timer = Timer(device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32, as in the data sheets above
    try:
        bf16, fp32 = (1e-12 * product_rate(4096, dtype, timer) for dtype in (torch.bfloat16, torch.float32))
    finally:
        torch.set_float32_matmul_precision(before)
    return Hardware(bf16, fp32, torch.cuda.get_device_properties(device).total_memory / GIB)


def this_cpu(side: int = 1024) -> Hardware:
    """This machine's CPU, by matrix products with the threads that torch would use."""
    import torch

    from nextscale.device import Timer, product_rate

    timer = Timer(torch.device("cpu"))
    bf16, fp32 = (1e-12 * product_rate(side, dtype, timer, runs=4) for dtype in (torch.bfloat16, torch.float32))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Hardware(bf16, fp32, memory)
