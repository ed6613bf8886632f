"""Saves and loads a run's state: a kill, a full disk or a damaged file costs at most the steps since the last save.

A run's folder holds the two newest: `state.pt` and `state.previous.pt`.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from nextscale.console import complain
from nextscale.errors import NextScaleError
from nextscale.files import write_atomic
from nextscale.model.config_io import renamed

NEWEST, PREVIOUS, DAMAGED = "state.pt", "state.previous.pt", "state.damaged.pt"


def exists(folder: Path) -> bool:
    """Whether a run in this folder would resume."""
    return (folder / NEWEST).exists() or (folder / PREVIOUS).exists()


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a state beside the newest one, then let it take that one's place, which becomes the previous.

    Raises:
        NextScaleError: it could not be written; the states before are as they were.
    """
    newest = folder / NEWEST

    def write(part: Path) -> None:
        with part.open("wb") as file:
            torch.save(state, file)

    try:
        write_atomic(newest, write, previous=folder / PREVIOUS)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise NextScaleError(f"{newest}: the checkpoint could not be written ({reason}); free some space") from None


def load(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The newest whole state and its file's name, or None where there is none.

    A damaged one is moved out of the way, so that the next save does not make it the previous.

    Raises:
        NextScaleError: no state can be read.
    """
    newest, previous = folder / NEWEST, folder / PREVIOUS
    if newest.exists():
        try:
            return read(newest), NEWEST
        except NextScaleError as error:
            if not previous.exists():
                raise
            state = read(previous)
            os.replace(newest, folder / DAMAGED)
            complain(f"{error}; resuming from {PREVIOUS} instead, the damaged one is now {DAMAGED}")
            return state, PREVIOUS
    return (read(previous), PREVIOUS) if previous.exists() else None


def read(path: Path) -> dict[str, Any]:
    """One state, with every tensor on the CPU.

    Raises:
        NextScaleError: the file is damaged or holds no training state.
    """
    try:
        # torch does not look at the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"damaged at {damaged}")
        needed = {"model", "average", "optimizer", "step"}
        state = renamed(torch.load(path, map_location="cpu", weights_only=True), needed)
        missing = needed - state.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return _in_todays_form(state)
    except Exception as error:
        raise misfit(path, error) from None


def _in_todays_form(state: dict[str, Any]) -> dict[str, Any]:
    """A state in today's form: older ones hold the critic's state in place of, or within, the task's, and old names."""
    task = state.get("task") or {}
    if "critics" in task:
        state |= {"critic": task, "task": {}}
    elif "critic" in task:
        state |= {"critic": task["critic"], "task": {k: v for k, v in task.items() if k != "critic"}}
    return state | {"critic": renamed(state.get("critic") or {}, {"optimizer"})}


def misfit(path: Path, error: Exception) -> NextScaleError:
    """The error for a state of another training."""
    # PyTorch says first which module, and then what is missing in it.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    reason = reason if len(reason) < 200 else f"{reason[:200]}..."
    remedy = "give the options that it began with, or move it away to start anew"
    return NextScaleError(f"{path}: not a state of this training ({reason}); {remedy}")
