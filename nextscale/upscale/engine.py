"""Many pictures at once: while one is on the model, others are read and written; on a GPU their tiles share batches."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from nextscale.device import is_out_of_memory
from nextscale.image import Picture
from nextscale.model.config import Ladder
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from nextscale.upscale.pipeline import Pipeline, TileStage
from nextscale.upscale.run import Progress, Run, UpscaleResult, plan_of

Item = TypeVar("Item")
Row = TypeVar("Row")
Work = Callable[["Engine", "Place", Item], Row]
SHARED_TILES = 16
"""Tiles of different pictures in one batch on a GPU."""
ROOM = 300_000_000
"""Pixels of results in memory at once; a larger picture is restored when no other is there."""


class StoppedError(Exception):
    """The user ended the run."""


class Engine:
    """One model for the threads that each see to one picture."""

    def __init__(self, model: NextScale, *, share: bool | None = None) -> None:
        """
        Args:
            share: put tiles of different pictures into one batch (None: on a GPU, where it is faster; on a CPU a batch
                takes as long as its tiles one by one, and single pictures keep their exact bytes).
        """
        share = model.device.type != "cpu" if share is None else share
        self.model = model
        self.shared = SharedBatches(model.pipeline) if share else None
        self.workers = 8 if share else 3
        self.turn = threading.Lock()
        self.stopped = threading.Event()
        self.room = threading.Condition()
        self.used = 0

    def upscale(
        self, picture: Picture, options: UpscaleOptions, on_progress: Callable[[Progress], None] | None = None
    ) -> UpscaleResult:
        """As `NextScale.upscale`, but there are codes in the result only where a picture or a map shows them; waits for
        its turn, and for memory that the other pictures hold.

        Raises:
            StoppedError: the run was ended meanwhile.
        """
        options = self.model.pipeline.without_idle_codes(options)
        pixels = plan_of(self.model.pipeline, picture, options).pixels

        def step(progress: Progress) -> None:
            if self.stopped.is_set():
                raise StoppedError
            if on_progress is not None:
                on_progress(progress)

        with self.room:
            self.room.wait_for(lambda: self.used == 0 or self.used + pixels <= ROOM)
            self.used += pixels
        try:
            if self.shared is not None:
                return Run(self.model.pipeline, picture, options, step, self.shared.restore_tiles).result()
            with self.turn:
                return self.model.upscale(picture, options, on_progress=step)
        finally:
            with self.room:
                self.used -= pixels
                self.room.notify_all()

    def close(self) -> None:
        """End the thread of shared batches."""
        if self.shared is not None:
            self.shared.close()


class Place:
    """A picture's place in the order: what must happen in it waits here for those before."""

    def __init__(self, before: Place | None) -> None:
        self.before = before
        self.passed = threading.Event()

    def wait(self) -> None:
        """Return when all pictures before have passed."""
        if self.before is not None:
            self.before.passed.wait()
            self.before = None

    def leave(self) -> None:
        """Let the next one pass, in order."""
        self.wait()
        self.passed.set()


def run_all(engine: Engine, items: Iterable[Item], work: Work[Item, Row]) -> Iterator[Row]:
    """Work on the items in threads, a few at a time; rows come in the order of the items.

    `work` calls `Place.wait` before what must happen in order. When the iterator is closed, or a thread raises, no
    further item is begun and those begun stop at their next step.
    """
    waiting: deque[Future[Row]] = deque()
    last: Place | None = None

    def one(item: Item, place: Place) -> Row:
        try:
            return work(engine, place, item)
        finally:
            place.leave()

    with ThreadPoolExecutor(engine.workers, thread_name_prefix="picture") as pool:
        try:
            for item in items:
                last = Place(last)
                waiting.append(pool.submit(one, item, last))
                if len(waiting) >= engine.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            engine.stopped.set()
            for future in waiting:
                future.cancel()
            raise


@dataclass(eq=False)
class _Request:
    """Tiles of one picture, and where their stages go."""

    inputs: Tensor
    keys: list[tuple[int, int]]
    kind: tuple[Any, ...]
    """What tiles of one batch must have in common."""
    on_step: Callable[[int], None] | None
    answers: queue.SimpleQueue[TileStage | BaseException | None] = field(default_factory=queue.SimpleQueue)
    timings: dict[str, float] = field(default_factory=dict)
    failed: bool = False

    def step(self, step: int) -> None:
        """Tell the picture's progress; its own error concerns no other."""
        if self.on_step is not None and not self.failed:
            try:
                self.on_step(step)
            except BaseException as error:
                self.failed = True
                self.answers.put(error)


class SharedBatches:
    """A pipeline that many threads use at once: what waits at the same time and is of one kind runs as one batch."""

    def __init__(self, pipeline: Pipeline, most: int = SHARED_TILES) -> None:
        self.pipeline = pipeline
        self.most = most
        self.waiting: deque[_Request] = deque()
        self.news = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """End its thread once nothing waits."""
        with self.news:
            self.closed = True
            self.news.notify_all()
        self.thread.join()

    def restore_tiles(
        self,
        inputs: Tensor,
        keys: list[tuple[int, int]],
        label: int,
        options: UpscaleOptions,
        wanted: list[float],
        *,
        ladder: Ladder | None = None,
        on_step: Callable[[int], None] | None = None,
        timings: dict[str, float] | None = None,
    ) -> Iterator[TileStage]:
        """As `Pipeline.restore_tiles`, perhaps together with other pictures' tiles."""
        request = _Request(inputs, keys, (label, options, tuple(wanted), ladder), on_step)
        with self.news:
            self.waiting.append(request)
            self.news.notify_all()
        while (item := request.answers.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
        for part, seconds in request.timings.items():
            if timings is not None:
                timings[part] = timings.get(part, 0.0) + seconds

    def _serve(self) -> None:
        while True:
            with self.news:
                self.news.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting:
                    return
                group = self._next()
            self._run(group)

    def _next(self) -> list[_Request]:
        """The request that waits longest, and those that fit beside it."""
        group = [self.waiting.popleft()]
        tiles = len(group[0].inputs)
        for other in list(self.waiting):
            if other.kind == group[0].kind and tiles + len(other.inputs) <= self.most:
                self.waiting.remove(other)
                group.append(other)
                tiles += len(other.inputs)
        return group

    def _run(self, group: list[_Request]) -> None:
        label, options, wanted, ladder = group[0].kind
        sizes = [len(request.inputs) for request in group]
        timings: dict[str, float] = {}

        def on_step(step: int) -> None:
            for request in group:
                request.step(step)
            if all(request.failed for request in group):
                raise StoppedError

        try:
            stages = self.pipeline.restore_tiles(
                torch.cat([request.inputs for request in group]),
                [key for request in group for key in request.keys],
                label,
                options,
                list(wanted),
                ladder=ladder,
                on_step=on_step,
                timings=timings,
            )
            for stage in stages:
                first = 0
                for request, size in zip(group, sizes, strict=True):
                    part = slice(first, first + size)
                    first += size
                    if not request.failed:
                        error = None if stage.expected_error is None else stage.expected_error[part]
                        cut = (stage.images[part], stage.confidence[part], stage.codes[part], error)
                        request.answers.put(TileStage(stage.factor, *cut))
        except BaseException as error:
            if len(group) > 1 and isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
                # Again, in smaller batches; a single request that does not fit halves its own.
                self.most = max(1, sum(sizes) // 2)
                with self.news:
                    self.waiting.extendleft(request for request in reversed(group) if not request.failed)
                return
            for request in group:
                if not request.failed:
                    request.answers.put(error)
            return
        for request, size in zip(group, sizes, strict=True):
            request.timings = {part: seconds * size / sum(sizes) for part, seconds in timings.items()}
            if not request.failed:
                request.answers.put(None)
