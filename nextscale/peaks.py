"""Seconds of an action on a device, and the peaks that the device reaches: what speeds are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Timer:
    """Seconds of an action, everything included that the device was given to do.

    cpu_time: count the processor's seconds instead of the clock's, for a CPU that others use meanwhile; those of all
        threads add up, so it means something with one thread only.
    """

    def __init__(self, device: torch.device, *, cpu_time: bool = False) -> None:
        self.device = device
        self._clock = time.process_time if cpu_time and device.type == "cpu" else time.perf_counter

    def now(self) -> float:
        """A moment at which the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return self._clock()

    def once(self, action: Callable[[], Any]) -> float:
        """Seconds of one run."""
        started = self.now()
        action()
        return self.now() - started

    def median(self, action: Callable[[], Any], runs: int) -> float:
        """The median of the runs after a first one, which loads kernels and allocates."""
        self.once(action)
        return statistics.median(self.once(action) for _ in range(runs))

    def best(self, action: Callable[[], Any], runs: int) -> float:
        """The least of the runs after a first one."""
        self.once(action)
        return min(self.once(action) for _ in range(runs))


def product_rate(side: int, dtype: torch.dtype, timer: Timer, runs: int = 10) -> float:
    """FLOPs a second of the product of two square matrices, the best of the runs."""
    generator = torch.Generator(timer.device).manual_seed(0)
    a, b = (torch.rand(side, side, device=timer.device, generator=generator).to(dtype) for _ in range(2))
    return 2 * side**3 / timer.best(lambda: a @ b, runs)


def copy_rate(size: int, timer: Timer, runs: int = 10) -> float:
    """Bytes a second that are read and written while `size` bytes are copied, the best of the runs.

    A size well above the processor's caches gives the memory's rate.
    """
    source = torch.ones(size, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    return 2 * size / timer.best(lambda: target.copy_(source), runs)
