"""The `nextscale doctor` command: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass, field

from nextscale import __version__
from nextscale.console import say
from nextscale.errors import NextScaleError
from nextscale.install import extras, how_to_install, missing

CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
CUDA_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"
INTERNAL = ("dev", "release")
"""Extras that only developers of nextscale miss."""


@dataclass
class Report:
    """What was found."""

    facts: dict[str, str] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    """Per extra: installed, or the command that brings it."""
    advice: list[str] = field(default_factory=list)
    """What would make it faster or smaller, with the command."""
    problems: list[str] = field(default_factory=list)
    """What keeps it from restoring pictures, with the command."""


@dataclass(frozen=True)
class Doctor:
    """Print device, torch build, memory, extras and what is missing, with the command that mends it."""

    json: bool = False
    """Print one JSON object instead."""

    def run(self) -> int:
        report = examine()
        if self.json:
            say(json.dumps(vars(report)))
        else:
            for line in lines(report):
                say(line)
        return 1 if report.problems else 0


def examine() -> Report:
    """Look at everything; finds problems rather than raising them."""
    report = Report()
    report.facts["nextscale"] = f"{__version__} on Python {platform.python_version()}, {platform.platform(terse=True)}"
    total, free = memory()
    if total:
        report.facts["memory"] = f"{_gigabytes(total)}" + (f", {_gigabytes(free)} of it free" if free else "")
    _torch(report)
    _model(report)
    for name, packages in extras().items():
        if name not in INTERNAL:
            lacking = missing(packages)
            report.extras[name] = f"{how_to_install(name)}  (lacks {', '.join(lacking)})" if lacking else "installed"
    if not report.extras:
        report.advice.append("nextscale runs from its folder without being installed; install it there: pip install .")
    return report


def lines(report: Report) -> list[str]:
    """The report as it is printed."""
    width = max(map(len, [*report.facts, *(f"extra {name}" for name in report.extras)]))
    shown = [f"{name:{width}}  {value}" for name, value in report.facts.items()]
    shown += [f"{'extra ' + name:{width}}  {value}" for name, value in report.extras.items()]
    shown += [f"advice: {line}" for line in report.advice]
    shown += [f"problem: {line}" for line in report.problems]
    return [*shown, f"nextscale {'cannot' if report.problems else 'can'} restore pictures here"]


def memory() -> tuple[int, int]:
    """Bytes of the machine's memory, and of what is free of it; 0 where the system does not tell."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not all of it
        return 0, 0


def _torch(report: Report) -> None:
    try:
        import torch

        from nextscale.device import fast_dtype, pick_device
    except (ImportError, OSError) as error:  # a wheel of another system ends in OSError
        report.problems.append(f"torch does not load ({_one_line(error)}): {CPU_TORCH}")
        return
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    elif getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    else:
        build = "CPU"
    report.facts["torch"] = f"{torch.__version__}, built for {build}, {torch.get_num_threads()} threads"
    device = pick_device("auto")
    kind = str(fast_dtype(device)).removeprefix("torch.")
    report.facts["device"] = f"{device}, computes in {kind}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        report.facts["device"] = f"{device}: {name}, {_gigabytes(total)}, {_gigabytes(free)} free, computes in {kind}"
    elif build == "CPU" and shutil.which("nvidia-smi"):
        report.advice.append(f"there is an NVIDIA driver, but this torch is built for the CPU: {CUDA_TORCH}")
    elif build != "CPU":
        report.advice.append(
            f"this torch is built for {build}, but sees no GPU: install or update the driver; without a GPU, "
            f"this one is gigabytes smaller: {CPU_TORCH.replace('install', 'install --force-reinstall', 1)}"
        )


def _model(report: Report) -> None:
    if "torch" not in report.facts:
        return
    from nextscale.model.checkpoint import WEIGHTS, find_folder, read_config
    from nextscale.model.config import ModelConfig

    try:
        folder = find_folder("tiny")
        read_config(folder, "model", ModelConfig)
        size = (folder / WEIGHTS).stat().st_size
        report.facts["model"] = f"tiny, {size / 1e6:.0f} MB, with the package"
    except (NextScaleError, OSError) as error:
        report.problems.append(f"the shipped model is damaged ({_one_line(error)}): install nextscale again")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
