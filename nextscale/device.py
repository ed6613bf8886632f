"""The device that a model runs on, its fastest type, its speed, and the errors of a full memory."""

from __future__ import annotations

import re
import statistics
import textwrap
import time
from collections.abc import Callable
from typing import Any

import torch

from nextscale.errors import OptionError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out."""
    signs = ("out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in signs)


def pick_device(name: str) -> torch.device:
    """The device of a name, see `named_device`.

    Raises:
        OptionError: the device is unknown or absent.
    """
    device = named_device(name)
    if name == "auto":
        return device
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = textwrap.shorten(str(error).splitlines()[0], 120, placeholder=" ...")
        raise OptionError(f"device {device} is not available here ({reason}); use auto or cpu") from None
    return device


def named_device(name: str) -> torch.device:
    """What a name stands for, be it here or not; auto: CUDA, then MPS, then the CPU. A number is that of a GPU, and -1
    the CPU, as other upscalers count them.

    Raises:
        OptionError: the device is unknown.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if re.fullmatch(r"-1|\d+", name):
        name = "cpu" if name == "-1" else f"cuda:{name}"
    try:
        return torch.device(name)
    except RuntimeError:
        raise OptionError(f"unknown device {name}; use auto, cpu, cuda, mps or a GPU's number") from None


def exact_float32() -> None:
    """Let convolutions on CUDA compute in float32 where they are to: cuDNN else drops 13 bits of the inputs (TF32)."""
    torch.backends.cudnn.allow_tf32 = False


def fast_dtype(device: torch.device) -> torch.dtype:
    """The fastest type that keeps quality: bfloat16 where the hardware has it, else float16 on a GPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.float16
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if has_bf16() else torch.float32


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
