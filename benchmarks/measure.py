"""Time and memory of each part of a real run, and the least time that its work could take on this machine.

A batch of tiles is watched through `NextScale.restore_tiles`, part by part; whole pictures run through `upscale`. The
work of a part is bounded by two peaks measured in the same run: its FLOPs over the rate of a large matrix product in
the dtype of each operation, and the bytes that its matrix products, convolutions and attentions read and write over the
rate of a large copy. The larger time is the limit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.peaks import Bound, PeakMemory, Peaks
from benchmarks.speed_options import SpeedOptions
from benchmarks.work import Counter, Work
from nextscale.device import Timer, is_out_of_memory, pick_device
from nextscale.errors import NextScaleError
from nextscale.model.checkpoint import CONFIG, SHIPPED, find_folder, read_config
from nextscale.model.config import PRESETS, Ladder, ModelConfig
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from nextscale.upscale.plan import plan_for

OnLine = Callable[[str], None]
RowT = TypeVar("RowT", "TilesRow", "PictureRow")
_MIB = 2**20


@dataclass(frozen=True)
class Part:
    """A part of the work on one batch of tiles."""

    name: str
    """encode, features, prefix_and_step_1, step_2 to step_K, decode_1 ..., color."""
    seconds: float
    peak_bytes: int
    work: Work
    limit_seconds: float = math.nan
    bound: Bound = "compute"

    @property
    def ratio(self) -> float:
        """Time over limit: 1 is as fast as the machine gets."""
        return self.seconds / self.limit_seconds if self.limit_seconds else math.inf


@dataclass(frozen=True)
class TilesRow:
    """One batch of tiles, from their pixels to all decoded factors of each; or why it was skipped."""

    batch: int
    parts: list[Part] = field(default_factory=list)
    runs: int = 0
    skipped: str = ""

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(part.seconds for part in self.parts)


@dataclass(frozen=True)
class PictureRow:
    """One square picture to all native factors; or why it was skipped."""

    size: int
    batch: int
    """Tiles at once, at most a row of the picture's."""
    tiles: int
    seconds: float = math.nan
    runs: int = 0
    peak_bytes: int = 0
    limit_seconds: float = math.nan
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds per part of the median run."""
    skipped: str = ""

    @property
    def ratio(self) -> float:
        """Time over limit."""
        return self.seconds / self.limit_seconds


@dataclass(frozen=True)
class ModelReport:
    """Everything about one model on one device."""

    model: str
    weights: Literal["trained", "random"]
    device: str
    threads: int
    parameters: int
    tile: int
    """Side of a tile in pixels."""
    dtype: str = ""
    load_seconds: float = math.nan
    load_peak_bytes: int = 0
    peaks: Peaks | None = None
    """None where the model itself was skipped."""
    tiles: list[TilesRow] = field(default_factory=list)
    pictures: list[PictureRow] = field(default_factory=list)
    skipped: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data, every part and picture with its ratio; null for what is not known."""
        plain = dataclasses.asdict(self)
        for row, content in zip(self.tiles, plain["tiles"], strict=True):
            content["seconds"] = row.seconds
            for part, values in zip(row.parts, content["parts"], strict=True):
                values["ratio"] = part.ratio
        for picture, content in zip(self.pictures, plain["pictures"], strict=True):
            content["ratio"] = picture.ratio
        known: dict[str, Any] = _finite(plain)
        return known


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure(name: str, device: str, options: SpeedOptions, on_line: OnLine = lambda _: None) -> ModelReport:
    """Time a model on a device.

    Args:
        name: a shipped model, a folder, a hub id, or a preset without shipped weights, which gets random ones.
        device: auto, or a torch device.
        on_line: told what was just done.

    Raises:
        ModelError, OptionError: no such model, no such device.
    """
    place = pick_device(device)
    random = name in PRESETS and not (SHIPPED / name / CONFIG).is_file()
    config = PRESETS[name]() if random else read_config(find_folder(name), "model", ModelConfig)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in NextScale.create(config).parameters())
    ladder = config.tokenizer.ladder
    report = ModelReport(
        model=name,
        weights="random" if random else "trained",
        device=_device_name(place),
        threads=torch.get_num_threads(),
        parameters=parameters,
        tile=ladder.input_side,
    )
    bench = _Bench(place, options, on_line)
    if reason := bench.too_much(memory=4.0 * parameters):
        return dataclasses.replace(report, skipped=reason)
    bench.memory.restart()
    started = bench.timer.now()
    if random:
        torch.manual_seed(0)
        model = NextScale.create(config).to(str(place), fp32=options.fp32)
    else:
        model = NextScale.from_pretrained(name, device=str(place), fp32=options.fp32)
    report = dataclasses.replace(
        report,
        dtype=str(model.dtype).removeprefix("torch."),
        load_seconds=bench.timer.now() - started,
        load_peak_bytes=bench.memory.bytes(),
    )
    on_line(f"{name}, {report.device}, {report.dtype}: loaded, {parameters / 1e6:.1f} million parameters")
    dtypes = list(dict.fromkeys([torch.float32, model.dtype]))
    before = Peaks.measure(bench.timer, dtypes)
    tiles, pictures = bench.run(model)
    peaks = before.best(Peaks.measure(bench.timer, dtypes))
    tiles = [dataclasses.replace(row, parts=[_bounded(part, peaks) for part in row.parts]) for row in tiles]
    pictures = [_bounded_picture(row, tiles, ladder, peaks) for row in pictures]
    return dataclasses.replace(report, peaks=peaks, tiles=tiles, pictures=pictures)


def _bounded(part: Part, peaks: Peaks) -> Part:
    seconds, bound = peaks.limit(part.work.flops, part.work.least_bytes)
    return dataclasses.replace(part, limit_seconds=seconds, bound=bound)


def _bounded_picture(row: PictureRow, tiles: Sequence[TilesRow], ladder: Ladder, peaks: Peaks) -> PictureRow:
    """The limit of a picture: of all its batches of tiles, part by part."""
    if row.skipped:
        return row
    seconds = 0.0
    for batch in batches(row.size, row.batch, ladder):
        seconds += sum(peaks.limit(work.flops, work.least_bytes)[0] for work in _work(batch, tiles))
    return dataclasses.replace(row, limit_seconds=seconds)


def _work(batch: int, tiles: Sequence[TilesRow]) -> list[Work]:
    """Work of each part on a batch: what is the same for any batch (weights), and what grows with it."""
    measured = {row.batch: [part.work for part in row.parts] for row in tiles if not row.skipped}
    low, high = min(measured), max(measured)
    share = (batch - low) / (high - low) if high > low else 0.0
    return [a * (1 - share) + b * share for a, b in zip(measured[low], measured[high], strict=True)]


def batches(size: int, batch: int, ladder: Ladder) -> list[int]:
    """The batches of tiles that a square picture is cut into; a batch never holds tiles of two rows."""
    plan = plan_for(ladder, (size, size), UpscaleOptions()).passes[0].tiles
    whole, rest = divmod(len(plan.lefts), batch)
    return ([batch] * whole + [rest] * (rest > 0)) * len(plan.tops)


class _Bench:
    """The rows of one model on one device, smallest first; what ran says what the next would take."""

    def __init__(self, device: torch.device, options: SpeedOptions, on_line: OnLine) -> None:
        self.options, self.on_line = options, on_line
        self.timer = Timer(device)
        self.memory = PeakMemory(device)
        self.seconds = 0.0
        """Of one tile."""
        self.growth = 0.0
        """Bytes of one tile."""

    def run(self, model: NextScale) -> tuple[list[TilesRow], list[PictureRow]]:
        """Batches of tiles, then pictures."""
        ladder = model.tokenizer.ladder
        tiles = []
        # The work at two batches tells that at any other; one tile is measured whatever is asked for.
        for batch in sorted({1, *self.options.batches}):
            row = self._guarded(TilesRow(batch), lambda row: self._tiles(model, row), batch, batch * self.growth)
            self.on_line(f"tiles, batch of {batch}: {row.skipped or f'{row.seconds:.3g} s'}")
            tiles.append(row)
        pictures = []
        for size in sorted(set(self.options.sizes)) if not tiles[0].skipped else []:
            longest = max(batches(size, max(self.options.batches), ladder))
            for batch in sorted({min(batch, longest) for batch in self.options.batches}):
                count = sum(batches(size, batch, ladder))
                # The results, and one band of tiles of each in float32.
                values = 3 * sum(factor * factor for factor in ladder.factors)
                memory = batch * self.growth + values * size * (size + 4 * ladder.input_side)
                picture = self._guarded(
                    PictureRow(size, batch, count), lambda row: self._picture(model, row), count, memory
                )
                done = picture.skipped or f"{picture.seconds:.3g} s, {picture.peak_bytes / _MIB:.0f} MiB"
                self.on_line(f"{size} px, batch of {batch}: {done}")
                pictures.append(picture)
        return tiles, pictures

    def too_much(self, *, memory: float, seconds: float = 0.0) -> str:
        """Why something should not be run, if so."""
        free, limit = self.memory.free(), 60 * self.options.max_minutes
        if memory > free:
            return f"needs about {memory / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        if seconds > limit:
            return f"takes about {seconds / 60:.2g} min a run, more than --max-minutes {self.options.max_minutes:g}"
        return ""

    def _guarded(self, row: RowT, measure: Callable[[RowT], RowT], tiles: int, memory: float) -> RowT:
        """A row measured, or with the reason why not."""
        skipped = self.too_much(memory=memory, seconds=tiles * self.seconds)
        if not skipped:
            try:
                return measure(row)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                skipped = "out of memory"
            except NextScaleError as error:  # as `upscale` says it
                skipped = str(error)
        return dataclasses.replace(row, skipped=skipped)

    def _repeated(self, action: Callable[[], Any]) -> Iterator[Any]:
        """The timed runs: at least one, no more than the minutes allow."""
        started = time.monotonic()
        for run in range(self.options.runs):
            spent = time.monotonic() - started
            if run and spent / run * (run + 1) > 60 * self.options.max_minutes:
                return
            yield action()

    def _tiles(self, model: NextScale, row: TilesRow) -> TilesRow:
        side = model.tokenizer.ladder.input_side
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(row.batch, 3, side, side, generator=generator) * 2 - 1
        before = self.memory.now()
        with Counter() as counter:  # also the run that loads kernels and allocates
            counted = self._watch(model, inputs, counter)
        self.growth = max(max(counted.peaks.values()) - before, 0) / row.batch
        watched = list(self._repeated(lambda: self._watch(model, inputs)))
        parts = [
            Part(
                name,
                statistics.median(run.seconds[name] for run in watched),
                max(run.peaks[name] for run in watched),
                work,
            )
            for name, work in counted.work.items()
        ]
        done = dataclasses.replace(row, parts=parts, runs=len(watched))
        self.seconds = done.seconds / row.batch
        return done

    def _watch(self, model: NextScale, inputs: Tensor, counter: Counter | None = None) -> _Watch:
        """One run over a batch of tiles, part by part."""
        factors = list(model.tokenizer.ladder.factors)
        keys = [(0, column) for column in range(len(inputs))]
        watch = _Watch(self.timer, self.memory, counter)
        for _ in model.restore_tiles(inputs, keys, 0, UpscaleOptions(), factors, on_step=watch.on_step, timings=watch):
            pass
        return watch

    def _picture(self, model: NextScale, row: PictureRow) -> PictureRow:
        pixels = np.random.default_rng(0).integers(0, 256, (row.size, row.size, 3), np.uint8)
        options = UpscaleOptions(all_factors=True, tile_batch=row.batch)

        def run() -> tuple[float, dict[str, float]]:
            timings: dict[str, float] = {}
            seconds = self.timer.once(lambda: timings.update(model.upscale(pixels, options).timings))
            return seconds, timings

        self.memory.now()
        runs = sorted(self._repeated(run), key=lambda one: one[0])
        seconds, timings = runs[(len(runs) - 1) // 2]
        peak = self.memory.bytes()
        return dataclasses.replace(row, seconds=seconds, runs=len(runs), peak_bytes=peak, timings=timings)


class _Watch(dict[str, float]):
    """The timings that `restore_tiles` adds to: every entry, and every step, is the end of a part."""

    def __init__(self, timer: Timer, memory: PeakMemory, counter: Counter | None) -> None:
        super().__init__()
        self.timer, self.memory, self.counter = timer, memory, counter
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.work: dict[str, Work] = {}
        self._restart()

    def __setitem__(self, part: str, seconds: float) -> None:
        super().__setitem__(part, seconds)
        if not part.startswith("codes_"):  # nothing happens between a stage's last step and its end
            self._end(part)

    def on_step(self, step: int) -> None:
        """A step is done; the prefix runs with the first."""
        self._end(f"step_{step + 1}" if step else "prefix_and_step_1")

    def _restart(self) -> None:
        self.memory.restart()
        self.last = self.timer.now()

    def _end(self, part: str) -> None:
        seconds = self.timer.now() - self.last
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.peaks[part] = max(self.peaks.get(part, 0), self.memory.bytes())
        if self.counter is not None:
            self.work[part] = self.work.get(part, Work()) + self.counter.take()
        self._restart()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "cpu"
