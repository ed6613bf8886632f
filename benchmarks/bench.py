"""Time and memory of every part and of whole pictures: tables, JSON and a plot. Free of torch until it runs.

python -m benchmarks.bench
python -m benchmarks.bench -n tiny paper --sizes 128 --batches 1 --json speed.json
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from benchmarks.speed_options import SpeedOptions
from nextscale import image as images
from nextscale.commands.evaluate import named
from nextscale.commands.main import run_command
from nextscale.console import say
from nextscale.errors import NextScaleError, OptionError
from nextscale.evaluate.options import Names
from nextscale.evaluate.table import dump, markdown_table
from nextscale.install import how_to_install

if TYPE_CHECKING:
    from benchmarks.measure import ModelReport, PictureRow

_MIB = 2**20


@dataclass(frozen=True)
class Bench:
    """Time and memory of every part and of whole pictures, beside the limit of this machine."""

    models: Annotated[Names, tyro.conf.arg(aliases=["-n"])] = ("tiny",)
    """Shipped models, folders, hub ids, or presets; a preset without shipped weights (paper) gets random ones."""
    devices: Names = ("auto",)
    """Some of auto, cpu, cuda, cuda:1, mps."""
    options: Annotated[SpeedOptions, tyro.conf.arg(name="")] = field(default_factory=SpeedOptions)
    threads: int = 0
    """CPU threads (0: torch's choice)."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write every number as JSON."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """Draw time and memory against size, and each part beside its limit."""

    def run(self) -> int:
        if not self.models or not self.devices:
            raise OptionError("bench needs at least one of --models and of --devices")
        if self.plot is not None:
            figure_class()
        for file in (self.json, self.plot):
            if file is not None:
                with named(file):
                    images.check_folder(file)
        import torch

        from benchmarks.measure import measure

        if self.threads:
            torch.set_num_threads(self.threads)
        reports = [measure(name, device, self.options, progress) for device in self.devices for name in self.models]
        if self.json is not None:
            content = {"torch": torch.__version__, "models": [report.as_json() for report in reports]}
            with named(self.json):
                images.write_bytes(self.json, dump(content).encode())
        if self.plot is not None:
            with named(self.plot):
                images.write_bytes(self.plot, draw(reports))
        for report in reports:
            for line in table(report):
                say(line)
        return 0 if any(not row.skipped for report in reports for row in report.tiles) else 1


def progress(text: str) -> None:
    """One line on stderr, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def table(report: ModelReport) -> Iterator[str]:
    """Lines of Markdown: the machine, each batch of tiles part by part, the pictures, what was skipped."""
    yield f"## {report.model} ({report.weights} weights) on {report.device}"
    yield ""
    loaded = f", {report.dtype}, loaded in {report.load_seconds:.2g} s" if report.dtype else ""
    yield (
        f"{report.parameters / 1e6:.1f} million parameters, {report.threads} CPU threads, tiles of {report.tile} px"
        f"{loaded}. Peak memory while loading {report.load_peak_bytes / _MIB:.0f} MiB."
    )
    if report.peaks is not None:
        rates = ", ".join(f"{rate / 1e12:.3g} TFLOPS in {name}" for name, rate in report.peaks.flops.items())
        yield f"Peaks of this run: matrix product {rates}; copy {report.peaks.bandwidth / 1e9:.3g} GB/s."
    if report.skipped:
        yield f"Skipped: {report.skipped}."
    for row in report.tiles:
        yield ""
        yield f"### Tiles, batch of {row.batch}"
        yield ""
        if row.skipped:
            yield f"Skipped: {row.skipped}."
            continue
        header = ["part", "s", "share", "peak MiB", "GFLOP", "GB least", "GB moved", "limit, s", "by", "time / limit"]
        lines = [
            [
                part.name.replace("_", " "),
                f"{part.seconds:.3g}",
                f"{part.seconds / row.seconds:.0%}",
                f"{part.peak_bytes / _MIB:.0f}",
                f"{part.work.all_flops / 1e9:.3g}",
                f"{part.work.least_bytes / 1e9:.3g}",
                f"{part.work.moved_bytes / 1e9:.3g}",
                f"{part.limit_seconds:.3g}",
                part.bound,
                f"{part.ratio:.3g}",
            ]
            for part in row.parts
        ]
        limit = sum(part.limit_seconds for part in row.parts)
        peak = max(part.peak_bytes for part in row.parts)
        sums = [
            sum(part.work.all_flops for part in row.parts),
            sum(part.work.least_bytes for part in row.parts),
            sum(part.work.moved_bytes for part in row.parts),
        ]
        whole = [*(f"{value / 1e9:.3g}" for value in sums), f"{limit:.3g}", "", f"{row.seconds / limit:.3g}"]
        lines.append(["all", f"{row.seconds:.3g}", "100%", f"{peak / _MIB:.0f}", *whole])
        yield from markdown_table(header, lines).splitlines()
    if report.pictures:
        yield ""
        yield "### Pictures, to every native factor"
        yield ""
        header = ["side, px", "batch", "tiles", "s", "runs", "peak MiB", "limit, s", "time / limit"]
        yield from markdown_table(header, [_picture_cells(row) for row in report.pictures]).splitlines()
    yield ""


def _picture_cells(row: PictureRow) -> list[str]:
    start = [str(row.size), str(row.batch), str(row.tiles)]
    if row.skipped:
        return [*start, f"skipped: {row.skipped}", "", "", "", ""]
    numbers = [f"{row.seconds:.3g}", str(row.runs), f"{row.peak_bytes / _MIB:.0f}"]
    return [*start, *numbers, f"{row.limit_seconds:.3g}", f"{row.ratio:.3g}"]


def figure_class() -> Any:
    """matplotlib's Figure.

    Raises:
        NextScaleError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NextScaleError(f"--plot needs matplotlib; {how_to_install('bench')}") from None
    return Figure


def draw(reports: Sequence[ModelReport]) -> bytes:
    """A PNG, one row of panels per model and device: time of a picture, its memory, parts of a batch of tiles."""
    figure = figure_class()(figsize=(16, 4.5 * len(reports)), layout="constrained", dpi=110)
    for report, (time, memory, parts) in zip(reports, figure.subplots(len(reports), 3, squeeze=False), strict=True):
        title = f"{report.model}, {report.device}, {report.dtype}"
        for axes in (time, memory):
            axes.set(xscale="log", xlabel="side of the input, px", title=title)
        time.set(yscale="log", ylabel="s a picture, all factors")
        memory.set(ylabel="peak memory, MiB")
        measured = [row for row in report.pictures if not row.skipped]
        for batch in dict.fromkeys(row.batch for row in measured):
            rows = [row for row in measured if row.batch == batch]
            sizes = [row.size for row in rows]
            (line,) = time.plot(sizes, [row.seconds for row in rows], "o-", label=f"batch of {batch}")
            time.plot(sizes, [row.limit_seconds for row in rows], "_:", color=line.get_color())
            memory.plot(sizes, [row.peak_bytes / _MIB for row in rows], "o-", label=f"batch of {batch}")
        if measured:
            time.plot([], [], "_:", color="black", label="limit")
            ticks = sorted({row.size for row in measured})
            for axes in (time, memory):
                axes.set_xticks(ticks, [str(tick) for tick in ticks])
                axes.xaxis.minorticks_off()
                axes.legend()
            memory.set_ylim(0, 1.1 * max(row.peak_bytes for row in measured) / _MIB)
        _draw_parts(parts, report)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_parts(axes: Any, report: ModelReport) -> None:
    """The parts of the smallest and the largest batch, a tile's share of each, beside their limits."""
    rows = [row for row in report.tiles if not row.skipped]
    axes.set(title="parts", ylabel="s a tile")
    if not rows:
        return
    names = [part.name for part in rows[0].parts]
    chosen = [*rows[:1], *rows[1:][-1:]]
    width = 0.8 / len(chosen)
    for number, row in enumerate(chosen):
        places = [place + number * width for place in range(len(names))]
        axes.bar(places, [part.seconds / row.batch for part in row.parts], width, label=f"batch of {row.batch}")
        limits = [part.limit_seconds / row.batch or math.nan for part in row.parts]
        axes.plot(places, limits, "k_", label="limit" if number == 0 else None)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=60, ha="right")
    axes.legend()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 0, 1 if nothing could be measured, or 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(Bench, "python -m benchmarks.bench", None, arguments)


if __name__ == "__main__":
    sys.exit(main())
