"""What restoring costs: time and memory of each part of the real run, and the least time that its work could take.

One batch of tiles is watched through `NextScale.restore_tiles`, part by part; whole pictures run through `upscale`.
The work of a part is counted on the operations that torch really runs. It is bounded by two peaks measured in the same
run: its FLOPs over the rate of a large matrix product in the dtype of each operation, and the bytes that its matrix
products, convolutions and attentions read and write over the rate of a large copy. The larger time is the limit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nextscale.checkpoint import CONFIG, SHIPPED, find_folder, read_config
from nextscale.config import PRESETS, Ladder, ModelConfig
from nextscale.errors import NextScaleError
from nextscale.options import SpeedOptions, UpscaleOptions
from nextscale.peaks import Timer, copy_rate, product_rate
from nextscale.stitch import plan_tiles
from nextscale.train.plan import pieces
from nextscale.upscale import NextScale, is_out_of_memory, pick_device

Bound = Literal["compute", "memory"]
OnLine = Callable[[str], None]
RowT = TypeVar("RowT", "TilesRow", "PictureRow")
_MIB = 2**20


@dataclass(frozen=True)
class Count:
    """Work of a part."""

    flops: Mapping[str, float] = field(default_factory=dict)
    """Per dtype, of matrix products, convolutions and attentions; an addition or a multiplication is one."""
    least_bytes: float = 0.0
    """Read and written by those alone: what remains if everything else were fused with them."""
    moved_bytes: float = 0.0
    """Read and written by every operation as it runs, elementwise ones included."""

    def __add__(self, other: Count) -> Count:
        flops = {name: self.flops.get(name, 0.0) + other.flops.get(name, 0.0) for name in {**self.flops, **other.flops}}
        return Count(flops, self.least_bytes + other.least_bytes, self.moved_bytes + other.moved_bytes)

    def __mul__(self, times: float) -> Count:
        flops = {name: value * times for name, value in self.flops.items()}
        return Count(flops, self.least_bytes * times, self.moved_bytes * times)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs under it: weights and activations as often as operations read and write them."""

    _CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    """Torch's registry of FLOPs lacks it (2.13)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = Count()

    def take(self) -> Count:
        """The count so far; starts over."""
        count, self.count = self.count, Count()
        return count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        inputs = {tensor.untyped_storage().data_ptr() for tensor in read}
        if func._schema.is_mutable or not all(t.untyped_storage().data_ptr() in inputs for t in written):  # no view
            moved = sum(map(_bytes, [*read, *written]))
            flops = self._flops(func._overloadpacket, args, kwargs or {}, out)
            dtype = str(read[0].dtype).removeprefix("torch.") if read else ""
            self.count += Count({dtype: flops} if flops else {}, moved if flops else 0, moved)
        return out

    def _flops(self, packet: Any, args: Any, kwargs: Any, out: Any) -> float:
        if packet is self._CPU_ATTENTION:
            (query, key, value), (batch, heads) = args[:3], args[0].shape[:2]
            pairs = batch * heads * query.shape[2] * key.shape[2]
            return float(2 * pairs * (query.shape[3] + value.shape[3]))
        formula = flop_registry.get(packet)
        return float(formula(*args, **kwargs, out_val=out)) if formula else 0.0


def _bytes(tensor: Tensor) -> int:
    """What reading a tensor takes; an expanded one is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass(frozen=True)
class Peaks:
    """Rates that a device reaches on the simplest work."""

    flops: dict[str, float]
    """FLOPs a second of a large matrix product, per dtype."""
    bandwidth: float
    """Bytes a second, read and written, of a large copy."""

    def limit(self, count: Count) -> tuple[float, Bound]:
        """The least seconds that some work could take, and what bounds it."""
        compute = sum(work / self.flops[name] for name, work in count.flops.items())
        memory = count.least_bytes / self.bandwidth
        return max(compute, memory), "compute" if compute >= memory else "memory"

    @staticmethod
    def measure(timer: Timer, dtypes: Sequence[torch.dtype]) -> Peaks:
        """Large products and a large copy, a second or two on most devices."""
        large = timer.device.type != "cpu"
        side, size = (8192, 1024 * _MIB) if large else (2048, 256 * _MIB)
        rates = {str(dtype).removeprefix("torch."): product_rate(side, dtype, timer, runs=5) for dtype in dtypes}
        return Peaks(rates, copy_rate(size, timer, runs=5))

    def best(self, other: Peaks) -> Peaks:
        """The larger of each: a machine that others use, or that heats up, is not the same at the end."""
        flops = {name: max(rate, other.flops[name]) for name, rate in self.flops.items()}
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
        """In use at present."""
        self.restart()
        return self.bytes()

    def free(self) -> float:
        """Bytes that could still be had."""
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


@dataclass(frozen=True)
class Part:
    """A part of the work on one batch of tiles."""

    name: str
    """encode, features, step_1 (which the prefix runs with) to step_K, decode_1 ..., color."""
    seconds: float
    peak_bytes: int
    work: Count
    limit_seconds: float
    bound: Bound

    @property
    def ratio(self) -> float:
        """Time over limit: 1 is as fast as the machine gets."""
        return self.seconds / self.limit_seconds if self.limit_seconds else math.inf


@dataclass(frozen=True)
class TilesRow:
    """One batch of tiles, from their pixels to three decoded ones each; or why it was skipped."""

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
    dtype: str
    threads: int
    clock: Literal["wall", "processor"]
    parameters: int
    tile: int
    """Side of a tile in pixels."""
    peaks: Peaks | None
    """None where the model itself was skipped."""
    tiles: list[TilesRow] = field(default_factory=list)
    pictures: list[PictureRow] = field(default_factory=list)
    skipped: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data; every part with its ratio."""
        plain = dataclasses.asdict(self)
        for row, content in zip(self.tiles, plain["tiles"], strict=True):
            content["seconds"] = row.seconds
            for part, values in zip(row.parts, content["parts"], strict=True):
                values["ratio"] = None if math.isinf(part.ratio) else part.ratio
        for picture, content in zip(self.pictures, plain["pictures"], strict=True):
            content["ratio"] = picture.ratio
            content |= {key: None for key, value in content.items() if isinstance(value, float) and math.isnan(value)}
        return plain


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
    bench = _Bench(place, options, on_line)
    parts = pieces(config, "fusion")
    parameters = sum(part.cost.parameters for part in parts)
    report = ModelReport(
        name,
        "random" if random else "trained",
        torch.cuda.get_device_name(place)
        if place.type == "cuda"
        else _cpu_name()
        if place.type == "cpu"
        else place.type,
        "",
        torch.get_num_threads(),
        "processor" if options.cpu_time and place.type == "cpu" else "wall",
        parameters,
        config.tokenizer.ladder.input_side,
        None,
    )
    if reason := bench.too_much(memory=4.0 * parameters, seconds=0.0):
        return dataclasses.replace(report, skipped=reason)
    if random:
        torch.manual_seed(0)
        model = NextScale.create(config).to(str(place), fp32=options.fp32)
    else:
        model = NextScale.from_pretrained(name, device=str(place), fp32=options.fp32)
    report = dataclasses.replace(report, dtype=str(model.dtype).removeprefix("torch."))
    on_line(f"{name}, {report.device}, {report.dtype}: loaded, {parameters / 1e6:.1f} million parameters")
    dtypes = list(dict.fromkeys([torch.float32, model.dtype]))
    before = Peaks.measure(bench.timer, dtypes)
    least = sum(part.cost.flops for part in parts) / max(before.flops.values())
    if reason := bench.too_much(memory=0.0, seconds=least):
        return dataclasses.replace(report, peaks=before, skipped=reason)
    tiles, pictures = bench.run(model)
    peaks = before.best(Peaks.measure(bench.timer, dtypes))
    for rates in (f"{rate / 1e12:.3g} TFLOPS {name}" for name, rate in peaks.flops.items()):
        on_line(f"peak {rates}")
    on_line(f"peak {peaks.bandwidth / 1e9:.3g} GB/s copied")
    tiles = [dataclasses.replace(row, parts=[_bounded(part, peaks) for part in row.parts]) for row in tiles]
    ladder = config.tokenizer.ladder
    limited = [_limited(row, tiles, ladder, peaks) for row in pictures]
    return dataclasses.replace(report, peaks=peaks, tiles=tiles, pictures=limited)


def _bounded(part: Part, peaks: Peaks) -> Part:
    seconds, bound = peaks.limit(part.work)
    return dataclasses.replace(part, limit_seconds=seconds, bound=bound)


def _limited(row: PictureRow, tiles: Sequence[TilesRow], ladder: Ladder, peaks: Peaks) -> PictureRow:
    """The limit of a picture: of all its batches of tiles, part by part."""
    if row.skipped:
        return row
    seconds = 0.0
    for batch in _batches(row.size, row.batch, ladder):
        seconds += sum(peaks.limit(work)[0] for work in _work(batch, tiles).values())
    return dataclasses.replace(row, limit_seconds=seconds)


def _work(batch: int, tiles: Sequence[TilesRow]) -> dict[str, Count]:
    """Work of each part on a batch: what is the same for any batch (weights), and what grows with it."""
    measured = {row.batch: {part.name: part.work for part in row.parts} for row in tiles if not row.skipped}
    if batch in measured:
        return measured[batch]
    low, high = min(measured), max(measured)
    share = (batch - low) / (high - low) if high > low else 0.0
    return {name: work * (1 - share) + measured[high][name] * share for name, work in measured[low].items()}


def _batches(size: int, batch: int, ladder: Ladder) -> list[int]:
    """The batches of tiles that a square picture is cut into; a batch never holds tiles of two rows."""
    side = ladder.input_side
    plan = plan_tiles(max(size, side), max(size, side), tile=side, overlap=UpscaleOptions().tile_overlap)
    row, rows = len(plan.lefts), len(plan.tops)
    whole, rest = divmod(row, batch)
    return ([batch] * whole + [rest] * (rest > 0)) * rows


class _Bench:
    """The rows of one model on one device, smallest first; what ran says what the next would take."""

    def __init__(self, device: torch.device, options: SpeedOptions, on_line: OnLine) -> None:
        self.options, self.on_line = options, on_line
        self.timer = Timer(device, cpu_time=options.cpu_time)
        self.memory = PeakMemory(device)
        self.wall = 0.0
        """Clock seconds of one tile."""
        self.growth = 0.0
        """Bytes of one tile."""

    def run(self, model: NextScale) -> tuple[list[TilesRow], list[PictureRow]]:
        """Batches of tiles, then pictures."""
        ladder = model.tokenizer.ladder
        # The work at two batches tells that at any other; one tile is measured whatever is asked for.
        tiles = []
        for batch in sorted({1, *self.options.batches}):
            tiles.append(
                self._guarded(TilesRow(batch), lambda row: self._tiles(model, row), batch, batch * self.growth)
            )
            self.on_line(f"{batch} tiles: {tiles[-1].skipped or f'{tiles[-1].seconds:.3g} s'}")
        pictures = []
        for size in sorted(set(self.options.sizes)):
            for batch in sorted(set(self.options.batches)):
                parts = _batches(size, batch, ladder)
                row = PictureRow(size, batch, sum(parts))
                missing = next((one.skipped for one in tiles if one.batch == batch), "")
                if max(parts) < batch:
                    skipped = f"as a smaller batch: a row of the picture has {max(parts)} tile{'s' * (max(parts) > 1)}"
                    row = dataclasses.replace(row, skipped=skipped)
                elif missing:
                    row = dataclasses.replace(row, skipped=f"its batch of tiles was skipped: {missing}")
                else:
                    # The results, and one band of tiles of each in float32.
                    values = 3 * sum(factor * factor for factor in ladder.factors)
                    memory = batch * self.growth + values * size * (size + 4 * ladder.input_side)
                    row = self._guarded(row, lambda row: self._picture(model, row), row.tiles, memory)
                pictures.append(row)
                done = row.skipped or f"{row.seconds:.3g} s, {row.peak_bytes / _MIB:.0f} MiB"
                self.on_line(f"{size} px, {batch} tiles at once: {done}")
        return tiles, pictures

    def too_much(self, *, memory: float, seconds: float) -> str:
        """Why something should not be run, if so."""
        free, limit = self.memory.free(), 60 * self.options.max_minutes
        if memory > free:
            return f"needs about {memory / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        if seconds > limit:
            return f"takes about {seconds / 60:.0f} min a run, more than --max-minutes {self.options.max_minutes:g}"
        return ""

    def _guarded(self, row: RowT, measure: Callable[[RowT], RowT], tiles: int, memory: float) -> RowT:
        """A row measured, or with the reason why not."""
        skipped = self.too_much(memory=memory, seconds=tiles * self.wall)
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
        before, started = self.memory.now(), time.monotonic()
        with Counter() as counter:  # also the run that loads kernels and allocates
            counted = self._watch(model, inputs, counter)
        grown = max(counted.peaks.values()) - before
        watched = list(self._repeated(lambda: self._watch(model, inputs)))
        self.wall = (time.monotonic() - started) / (1 + len(watched)) / row.batch
        self.growth = max(grown, 0) / row.batch
        parts = [
            Part(
                name,
                statistics.median(run.seconds[name] for run in watched),
                max(run.peaks[name] for run in watched),
                work,
                math.nan,
                "compute",
            )
            for name, work in counted.counts.items()
        ]
        return dataclasses.replace(row, parts=parts, runs=len(watched))

    def _watch(self, model: NextScale, inputs: Tensor, counter: Counter | None = None) -> _Watch:
        """One run over a batch of tiles, part by part."""
        factors = list(model.tokenizer.ladder.factors)
        keys = [(0, column) for column in range(len(inputs))]
        watch = _Watch(self.timer, self.memory, counter)
        for _ in model.restore_tiles(
            inputs, keys, 0, UpscaleOptions(all_factors=True), factors, on_step=watch.on_step, timings=watch
        ):
            pass
        return watch

    def _picture(self, model: NextScale, row: PictureRow) -> PictureRow:
        pixels = np.random.default_rng(0).integers(0, 256, (row.size, row.size, 3), np.uint8)
        options = UpscaleOptions(all_factors=True, tile_batch=row.batch)

        def run() -> tuple[float, dict[str, float]]:
            timings: dict[str, float] = {}
            seconds = self.timer.once(lambda: timings.update(model.upscale(pixels, options).timings))
            return seconds, timings

        self.memory.restart()
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
        self.counts: dict[str, Count] = {}
        self._restart()

    def __setitem__(self, part: str, seconds: float) -> None:
        super().__setitem__(part, seconds)
        if not part.startswith("codes_"):  # nothing happens between a stage's last step and its end
            self._end(part)

    def on_step(self, step: int) -> None:
        """A step is done."""
        self._end(f"step_{step + 1}")

    def _restart(self) -> None:
        self.memory.restart()
        self.last = self.timer.now()

    def _end(self, part: str) -> None:
        seconds = self.timer.now() - self.last
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.peaks[part] = max(self.peaks.get(part, 0), self.memory.bytes())
        if self.counter is not None:
            self.counts[part] = self.counts.get(part, Count()) + self.counter.take()
        self._restart()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "cpu"
