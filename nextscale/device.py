"""The device that a model runs on, its fastest type, and the errors of a full memory."""

from __future__ import annotations

import torch

from nextscale.errors import OptionError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out."""
    signs = ("out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in signs)


def pick_device(name: str) -> torch.device:
    """auto: CUDA, then MPS, then the CPU.

    Raises:
        OptionError: the device is unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"unknown device {name}; use auto, cpu, cuda or mps") from None
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device {name} is not available here ({reason}); use auto or cpu") from None
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """The fastest type that keeps quality: bfloat16 where the hardware has it, else float16 on a GPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.float16
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if has_bf16() else torch.float32
