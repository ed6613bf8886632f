"""Memory of an action on a device, and the rates that the device reaches: what speeds are compared with."""

from __future__ import annotations

import contextlib
import ctypes
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from nextscale.device import Timer, product_rate

Bound = Literal["compute", "memory"]
_MIB = 2**20


def copy_rate(size: int, timer: Timer, runs: int = 10) -> float:
    """Bytes a second that are read and written while `size` bytes are copied, the best of the runs.

    A size well above the processor's caches gives the memory's rate.
    """
    source = torch.ones(size, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    return 2 * size / timer.best(lambda: target.copy_(source), runs)


@dataclass(frozen=True)
class Peaks:
    """Rates that a device reaches on the simplest work."""

    flops: dict[str, float]
    """FLOPs a second of a large matrix product, per dtype."""
    bandwidth: float
    """Bytes a second, read and written, of a large copy."""

    def limit(self, flops: Mapping[str, float], moved: float) -> tuple[float, Bound]:
        """The least seconds for FLOPs per dtype and bytes moved meanwhile, and which of the two takes so long."""
        compute = sum(count / self.flops[dtype] for dtype, count in flops.items())
        memory = moved / self.bandwidth
        return max(compute, memory), "compute" if compute >= memory else "memory"

    @staticmethod
    def measure(timer: Timer, dtypes: Sequence[torch.dtype]) -> Peaks:
        """Large products and a large copy, a second or two on most devices."""
        side, size = (2048, 256 * _MIB) if timer.device.type == "cpu" else (8192, 1024 * _MIB)
        rates = {str(dtype).removeprefix("torch."): product_rate(side, dtype, timer, runs=5) for dtype in dtypes}
        return Peaks(rates, copy_rate(size, timer, runs=5))

    def best(self, other: Peaks) -> Peaks:
        """The larger of each: a machine that others use, or that heats up, is not the same at the end."""
        flops = {dtype: max(rate, other.flops[dtype]) for dtype, rate in self.flops.items()}
        return Peaks(flops, max(self.bandwidth, other.bandwidth))


class PeakMemory:
    """The most memory in use since a moment: what torch allocated on CUDA, else of the whole process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def restart(self) -> None:
        """From now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):  # Linux only; elsewhere the peak of the whole run is given
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """The peak."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with contextlib.suppress(OSError):
            return _kib("/proc/self/status", "VmHWM") * 1024
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024

    def now(self) -> int:
        """In use at present; the peak starts over."""
        if self.device.type == "cpu":
            with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed until it is told
                ctypes.CDLL(None).malloc_trim(0)
        self.restart()
        return self.bytes()

    def free(self) -> float:
        """Bytes that could still be had; infinite where the system does not say."""
        if self.device.type == "cuda":
            held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + held
        with contextlib.suppress(OSError):
            return _kib("/proc/meminfo", "MemAvailable") * 1024
        return math.inf


def _kib(file: str, key: str) -> int:
    """A number of a file in /proc."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise OSError(f"{file} has no {key}")
