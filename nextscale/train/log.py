"""What a training records: rows in log.jsonl, the same rows for TensorBoard, and sheets of validation pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.console import complain
from nextscale.errors import NextScaleError
from nextscale.files import JsonLines, keep_json_lines, write_atomic
from nextscale.install import how_to_install

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Row = dict[str, Any]
Numbers = Mapping[str, "float | Tensor"]
"""What a batch has to log: numbers, and tensors of one number."""


@dataclass
class Tally:
    """Sums over the steps since the last row. They are saved, so that a resumed run logs the same rows."""

    steps: int = 0
    seconds: float = 0.0
    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, numbers: dict[str, float]) -> None:
        """The numbers of one batch."""
        for name, value in numbers.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Each number's mean over the batches that gave it."""
        return {name: total / self.counts[name] for name, total in self.totals.items()}

    @classmethod
    def merged(cls, tallies: list[Tally]) -> Tally:
        """One for all processes: their numbers together, the first one's clock."""
        out = cls(tallies[0].steps, tallies[0].seconds)
        for tally in tallies:
            for name, total in tally.totals.items():
                out.totals[name] = out.totals.get(name, 0.0) + total
                out.counts[name] = out.counts.get(name, 0) + tally.counts[name]
        return out


def rates(tally: Tally, samples: int, task: object, *, processes: int, peak_tflops: float) -> dict[str, float]:
    """Samples a second and, of tasks that know their cost, tokens a second and model FLOPs utilization.

    The utilization leaves out the time that the task reports as `seconds_...` (per process), in which it prepares
    data.

    Args:
        tally: of all processes.
        samples: seen by all processes since the last row.
    """
    out = {"samples_per_second": samples / tally.seconds}
    tokens, flops = (float(getattr(task, f"{name}_per_sample", 0)) for name in ("tokens", "flops"))
    if tokens:
        out["tokens_per_second"] = samples * tokens / tally.seconds
    if flops and peak_tflops:
        apart = sum(total for name, total in tally.totals.items() if name.startswith("seconds_")) / processes
        if apart < tally.seconds:
            out["mfu"] = samples * flops / (tally.seconds - apart) / (processes * peak_tflops * 1e12)
    return out


class Log:
    """Rows in `log.jsonl` up to a step; rows that a full disk refuses wait for the next one."""

    def __init__(self, path: Path, step: int) -> None:
        try:  # What a killed run wrote after the state that is resumed is cut off: those steps run, and tell, again.
            keep_json_lines(path, lambda row: isinstance(row.get("step"), int) and row["step"] <= step)
        except OSError as error:
            raise NextScaleError(f"{path}: cannot be rewound ({error}); free some space") from None
        self.path = path
        self.lines = JsonLines(path)

    def write(self, row: Row) -> None:
        """One more row."""
        try:
            self.lines.write(row)
        except OSError as error:
            complain(f"{self.path}: rows wait to be written ({error}); free some space")

    def close(self) -> None:
        self.lines.close()


class Board:
    """The same rows for TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise NextScaleError(f"--tensorboard needs tensorboard: {how_to_install('tensorboard')}") from None
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, row: Row) -> None:
        """One more row."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def write_sheet(folder: Path, step: int, sheet: Image) -> None:
    """`sheets/step-000100.png` below the run's folder; a full disk costs no more than the sheet."""
    path = folder / "sheets" / f"step-{step:06d}.png"
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, lambda part: sheet.save(part, format="PNG"))
    except OSError as error:
        complain(f"{path}: not written ({error}); the training goes on")
