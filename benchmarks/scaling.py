"""Quality against training compute, over all runs: the table and the plot of docs/scaling.md.

    python -m benchmarks.scaling docs/scaling.json --out OUT --plot docs/scaling.png
    python -m reproduce report page docs/scaling.md --tables OUT

Scores, samples and compute are read from the file. The compute was counted when version 4 was the shipped model, as
`--plan` counts it: trained parts forward and backward, frozen ones forward, degradation and perceptual networks left
out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.bench import figure_class
from nextscale.console import run_program
from nextscale.errors import NextScaleError
from nextscale.evaluate.table import markdown_table
from nextscale.model.config import paper
from nextscale.train.costs import pieces, preparation_flops, training_flops

SETS = ("val", "RealSR")
# Paper section 4.1 as runs/paper.sh has it: 25,274 photographs for 200 epochs, and 25,000 iterations of 384.
PAPER = {"transformer": 25_274 * 200.0, "decoders": 25_000 * 384.0}


@dataclass(frozen=True)
class Settings:
    """What to draw."""

    runs: tyro.conf.Positional[Path]
    """JSON of trainings (kind, sides, samples, FLOPs) and models (trainings behind them, LPIPS-alex of x1, x2, x4)."""
    out: Path
    """Folder of the table: OUT/scaling/report.md."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None


@dataclass(frozen=True)
class Point:
    """A model and what it took."""

    name: str
    shipped: bool
    flops: float
    scores: dict[str, list[float]] = field(default_factory=dict)
    """By set: LPIPS-alex of x1, x2, x4; of x4 alone where it was measured as a change on some pictures."""


def points(runs: dict[str, Any]) -> list[Point]:
    """Every model of the file; a change is added to its parent's score at x4."""
    spent = {name: float(training["flops"]) for name, training in runs["trainings"].items()}
    found: dict[str, Point] = {}
    for model in runs["models"]:
        if "change" in model:
            parent = found[model["parent"]]
            scores = {name: [round(parent.scores[name][-1] + change, 4)] for name, change in model["change"].items()}
        else:
            scores = {name: model[name] for name in SETS}
        flops = sum(spent[name] for name in model["trained"])
        found[model["name"]] = Point(model["name"], model["shipped"], flops, scores)
    return list(found.values())


def paper_flops() -> float:
    """The paper's budget on the `paper` preset: its tokenizer's decoders and its transformer."""
    total = 0.0
    for training, samples in PAPER.items():
        parts = pieces(paper(), training, 0)  # type: ignore[arg-type]
        total += samples * (training_flops(parts) + preparation_flops(parts))
    return total


def report(rows: list[Point]) -> str:
    """The table, and the paper's budget beside it."""
    lines = [
        [
            row.name if row.shipped else f"{row.name} (not shipped)",
            f"{row.flops:.2e}",
            *(" / ".join(f"{score:.3f}" for score in row.scores[name]) for name in SETS),
        ]
        for row in rows
    ]
    table = markdown_table(["model", "training, FLOPs", "val", "RealSR"], lines)
    budget, last = paper_flops(), max(row.flops for row in rows)
    notes = (
        f"LPIPS-alex of x1 / x2 / x4; of x4 alone where a run was measured as a change on some of the pictures.\n\n"
        f"The paper's budget on the `paper` preset: {budget:.1e} FLOPs, {budget / last:,.0f} times the most above."
    )
    return "\n".join([table.rstrip(), "", notes]) + "\n"


def draw(rows: list[Point], file: Path) -> None:
    """One panel per set: x1, x2, x4 of the shipped models, and the runs that were not shipped."""
    figure = figure_class()(figsize=(11, 4.5), layout="constrained", dpi=110)
    for axes, name in zip(figure.subplots(1, len(SETS)), SETS, strict=True):
        shipped = [row for row in rows if row.shipped]
        flops = [row.flops for row in shipped]
        for place, factor in enumerate(("x1", "x2", "x4")):
            axes.plot(flops, [row.scores[name][place] for row in shipped], "o-", label=factor)
        others = [row for row in rows if not row.shipped]
        axes.plot(
            [r.flops for r in others], [r.scores[name][-1] for r in others], "x", color="black", label="x4, not shipped"
        )
        axes.set(xscale="log", yscale="log", xlabel="training, FLOPs", ylabel="LPIPS-alex", title=name)
        axes.set_ylim(0.05, 0.7)
        ticks = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.minorticks_off()
        axes.legend(loc="lower left", ncols=2)
    figure.savefig(file, format="png")


def main() -> int:
    """Write the table, and the plot where asked."""
    settings = tyro.cli(Settings, description=__doc__)
    try:
        rows = points(json.loads(settings.runs.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise NextScaleError(f"{settings.runs}: not the runs of docs/scaling.json ({error})") from None
    folder = settings.out / "scaling"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(report(rows), encoding="utf-8")
    if settings.plot is not None:
        draw(rows, settings.plot)
    return 0


if __name__ == "__main__":
    run_program(main)
