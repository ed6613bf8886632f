"""The queue: one model, jobs that share it fairly, and what they leave on the disk.

A job is a photograph and its options. Each client has at most one job at work; those of several clients take turns, a
batch of tiles at a time, and the one that had the least time goes next. So a small photograph overtakes a large one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from nextscale import image as images
from nextscale.errors import ImageError, NextScaleError
from nextscale.files import write_atomic
from nextscale.image import Picture
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions, output_size
from nextscale.upscale.run import Progress, Reveal, shown_map
from nextscale.web import views
from nextscale.web.limits import Limits, RefusedError, planned_work

State = Literal["waiting", "running", "done", "stopped", "failed"]
PREVIEW_SECONDS: Final = 1.0
KEPT_JOBS: Final = 1000
"""Ended jobs that are remembered, whatever their size."""
log = logging.getLogger("nextscale.web")


class CancelledError(Exception):
    """Nobody wants this job any more."""


@dataclass
class Result:
    """One factor of a job."""

    width: int
    height: int
    formats: list[views.Format]
    complete: bool = False
    stored: bool = False
    """Whether it can be fetched: complete, or the part that a stopped job left."""
    preview: int = 0
    """The number of its newest preview."""
    bytes: int = 0
    """Of its PNG."""
    view: views.View | None = None
    mean_error: float | None = None
    has_overlay: bool = False


@dataclass(eq=False)
class Job:
    """A photograph on its way."""

    client: str
    stem: str
    """Of the client's file name, for the results' names; never on the disk."""
    folder: Path
    options: UpscaleOptions
    size: tuple[int, int]
    work: float
    pixels: int
    """Of the largest picture that is held on the way, which may be larger than the result."""
    wants_view: bool
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = "waiting"
    error: str | None = None
    is_ours: bool = False
    """Whether it failed for a reason that other options or another photograph do not change."""
    place: int | None = None
    share: float = 0.0
    seconds_left: float | None = None
    original: views.View | None = None
    results: dict[str, Result] = field(default_factory=dict)
    previews: dict[str, bytes] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)
    ended: float | None = None
    bytes: int = 0
    # Of the thread that works on it:
    stopping: bool = False
    failure: str | None = None
    """Why a result could not be stored; set by the saver while the model may still be at it."""
    steps: Iterator[Reveal] | None = None
    began: float = 0.0
    used: float = 0.0
    spent: float = 0.0
    last: dict[str, Picture] = field(default_factory=dict)
    previewed: float = 0.0
    watchers: set[Callable[[], None]] = field(default_factory=set)

    def changed(self) -> None:
        """Tell those who watch."""
        for tell in list(self.watchers):
            tell()

    @property
    def has_ended(self) -> bool:
        return self.ended is not None

    def key(self, factor: float) -> str:
        """The name of a factor's result; what the model makes on its way to an odd factor counts as that one."""
        known = f"x{factor:g}"
        return known if known in self.results else f"x{self.options.scale:g}"

    def file_name(self, key: str, suffix: str) -> str:
        """What a client's copy of a result is called."""
        part = "" if self.results[key].complete else "_partial"
        return f"{self.stem}_{key}{part}.{suffix}"

    def describe(self) -> dict[str, Any]:
        """The job as clients see it."""
        width, height = self.size
        return {
            "id": self.id,
            "state": self.state,
            "place": self.place if self.state == "waiting" else None,
            "share": round(self.share, 4),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "error": self.error,
            "scale": self.options.scale,
            "input": {
                "width": width,
                "height": height,
                "view": self.original and asdict(self.original),
            },
            "results": {key: self._describe(key, result) for key, result in self.results.items()},
        }

    def _describe(self, key: str, result: Result) -> dict[str, Any]:
        here = f"/api/jobs/{self.id}/{key}"
        return asdict(result) | {"url": f"{here}.png" if result.stored else None}


def stem_of(name: str) -> str:
    """What of a client's file name may be part of another file's name: no path, no control characters, not long."""
    last = re.split(r"[/\\]", name)[-1]
    stem = re.sub(r'[\x00-\x1f\x7f-\x9f"*:<>?|\u200e\u200f\u202a-\u202e\u2066-\u2069]', "", last).rpartition(".")[0]
    return stem.strip(". ")[:80] or "photograph"


class Jobs:
    """All jobs of a server, and the threads that do them."""

    def __init__(self, model: NextScale, folder: Path, limits: Limits) -> None:
        self.model, self.folder, self.limits = model, folder, limits
        self.ladder = model.tokenizer.ladder
        self.has_error = model.pipeline.fusions is not None
        self.jobs: dict[str, Job] = {}
        self.waiting: list[Job] = []
        self.active: list[Job] = []
        self.reserved: dict[str, int] = {}
        self.seconds_per_work: float | None = None
        self.closing = False
        self.changed = threading.Condition()
        self.reader = ThreadPoolExecutor(1, "read")
        self.saver = ThreadPoolExecutor(1, "save")
        self.worker = threading.Thread(target=self._run, name="model", daemon=True)
        self.janitor = threading.Thread(target=self._tidy, name="janitor", daemon=True)
        self.worker.start()
        self.janitor.start()

    # -- for the server ------------------------------------------------------------------------------------------------

    @contextmanager
    def reserve(self, client: str) -> Iterator[None]:
        """A place in the queue while a photograph is coming in.

        Raises:
            RefusedError: the queue is full, or this client has its share of it.
        """
        with self.changed:
            self._check_room(client)
            self.reserved[client] = self.reserved.get(client, 0) + 1
        try:
            yield
        finally:
            with self.changed:
                self.reserved[client] -= 1
                if not self.reserved[client]:
                    del self.reserved[client]

    def _check_room(self, client: str) -> None:
        limits, coming = self.limits, self.reserved.get(client, 0)
        if coming >= limits.uploads:
            raise RefusedError(
                429, f"{limits.uploads} uploads at once are the limit; wait until one is through", retry=5
            )
        own = sum(job.client == client for job in (*self.waiting, *self.active))
        if own + coming >= limits.per_client:
            raise RefusedError(
                429, f"{limits.per_client} photographs at once are the limit; wait until one is done", retry=15
            )
        if len(self.waiting) + sum(self.reserved.values()) >= limits.waiting:
            raise RefusedError(
                503, f"the queue is full ({limits.waiting} are waiting); try again in a minute", retry=60
            )

    async def add(self, client: str, name: str, folder: Path, options: UpscaleOptions, *, wants_view: bool) -> Job:
        """Queue the photograph FOLDER/input, which now belongs to the job.

        Raises:
            NextScaleError: it cannot be read, is too large, or the options do not fit the model.
        """
        self.model.check(options)
        work = asyncio.get_running_loop().run_in_executor
        job = await work(self.reader, self._read_first, client, name, folder, options, wants_view)
        with self.changed:
            self.jobs[job.id] = job
            self.waiting.append(job)
            self._count_places()
            self.changed.notify_all()
        return job

    def plan(self, size: tuple[int, int], options: UpscaleOptions, *, has_alpha: bool = False) -> tuple[float, int]:
        """How much work a picture would be, and the pixels of the largest picture that it would hold.

        Raises:
            NextScaleError: it is over a limit, or the options do not fit the model.
        """
        self.model.check(options)
        self.limits.check_size(size, max(1.0, options.scale))
        plan = self.model.pipeline.plan(size, options, alpha=has_alpha)
        self.limits.check_held(plan.pixels, options.scale, self.ladder.factors)
        work = planned_work(plan, options, self.ladder)
        self.limits.check_work(work)
        return work, plan.pixels

    def stop(self, job: Job) -> None:
        """End a job at its next step; it keeps what it has."""
        with self.changed:
            job.stopping = True
            self.changed.notify_all()

    def remove(self, job: Job) -> None:
        """Forget an ended job, and its files."""
        self.jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    @contextmanager
    def watch(self, job: Job, tell: Callable[[], None]) -> Iterator[None]:
        """Be told of every change of a job, which is wanted as long as somebody watches."""
        job.watchers.add(tell)
        try:
            yield
        finally:
            job.seen = time.monotonic()
            job.watchers.discard(tell)

    async def file(self, job: Job, key: str, suffix: views.Format) -> Path:
        """The file of a stored result, converted if need be.

        Raises:
            RefusedError: the format cannot hold it.
        """
        path = job.folder / f"{key}.{suffix}"
        if not path.exists():
            await asyncio.get_running_loop().run_in_executor(self.saver, self._convert, job, key, suffix)
        return path

    def end(self) -> None:
        """Take no more work, stop what there is at its next step, and wake those who watch it."""
        with self.changed:
            self.closing = True
            jobs = [*self.waiting, *self.active]
            for job in jobs:
                job.stopping = True
            self.changed.notify_all()
        for job in jobs:
            job.changed()

    def close(self) -> None:
        """End all work and the threads; the files stay for their owner to remove."""
        self.end()
        self.worker.join(30)
        self.reader.shutdown(cancel_futures=True)
        self.saver.shutdown(cancel_futures=True)

    # -- reading and saving, each in a thread of its own ---------------------------------------------------------------

    def _read_first(self, client: str, name: str, folder: Path, options: UpscaleOptions, wants_view: bool) -> Job:
        picture = self._read(folder)
        varies = picture.alpha is not None and int(np.ptp(picture.alpha)) > 0
        work, pixels = self.plan(picture.size, options, has_alpha=varies)
        job = Job(client, stem_of(name), folder, options, picture.size, work, pixels, wants_view)
        formats = views.formats_of(picture)
        for factor in options.factors(self.ladder.factors):
            size = output_size(picture.size, factor)
            shape = Picture(np.broadcast_to(np.uint8(0), (size[1], size[0], 1)), icc=None)
            fits = [suffix for suffix in views.formats_of(shape) if suffix in formats]
            job.results[f"x{factor:g}"] = Result(*size, fits)
        if wants_view:
            job.original = views.write_view(folder / "original", picture)
        return job

    def _read(self, folder: Path) -> Picture:
        try:
            return images.decode_bytes((folder / "input").read_bytes(), max_pixels=self.limits.pixels)
        except ImageError as error:
            raise RefusedError(413 if "over the limit" in str(error) else 415, str(error)) from None

    def _save(self, job: Job, key: str, reveal: Reveal) -> None:
        """Write a complete result, or the part that a stopped job has."""
        result = job.results[key]
        result.bytes = (job.folder / f"{key}.png").write_bytes(images.encode_bytes(reveal.picture, ".png"))
        if reveal.confidence is not None:
            values = shown_map(reveal.confidence, reveal.expected_error)
            (job.folder / f"{key}-map.png").write_bytes(images.encode_bytes(Picture(values[..., None]), ".png"))
            if reveal.expected_error is not None:
                result.mean_error = round(float(reveal.expected_error.mean(dtype=np.float64)), 2)
            if job.wants_view:
                painted = views.overlay(values, reveal.factor, is_error=reveal.expected_error is not None)
                (job.folder / f"{key}-overlay.png").write_bytes(painted)
                result.has_overlay = True
        if job.wants_view:
            result.view = views.write_view(job.folder / key, reveal.picture)
        result.complete, result.stored = reveal.complete, True
        job.previews.pop(key, None)
        job.changed()

    def _convert(self, job: Job, key: str, suffix: views.Format) -> None:
        path = job.folder / f"{key}.{suffix}"
        if not path.exists() and job.id in self.jobs:
            # Whole or not at all: another request may look for it meanwhile.
            write_atomic(path, views.convert(job.folder / f"{key}.png", suffix))

    def _end(self, job: Job, state: State, error: str | None = None) -> None:
        """The last thing that happens to a job; after its files are written, and off the model."""
        if job.failure is not None:
            state, error, job.is_ours = "failed", job.failure, True
        job.bytes = sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file())
        job.last.clear()
        job.previews.clear()
        job.steps = None
        job.state, job.error, job.seconds_left = state, error, None
        if state == "done":
            job.share = 1.0
        job.ended = time.monotonic()
        job.changed()
        if job.id not in self.jobs:  # removed meanwhile
            shutil.rmtree(job.folder, ignore_errors=True)

    def _guarded(self, job: Job, save: Callable[[], None]) -> Future[None]:
        """Let the saver do something. Where that fails, the job stops, and fails once the model has let go of it."""

        def work() -> None:
            try:
                save()
            except Exception as error:
                log.exception("a result could not be stored")
                what = "the server's disk is full" if isinstance(error, OSError) else "an internal error"
                job.failure = job.failure or f"the result could not be stored ({what}); try again later"
                self.stop(job)

        return self.saver.submit(work)

    # -- the model's thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._measure()
        while (job := self._next()) is not None:
            self._advance(job)

    def _measure(self) -> None:
        """The speed of this machine, for estimates before the first job is done."""
        side = self.ladder.input_side
        picture = Picture(np.zeros((side, side, 3), np.uint8))
        options = UpscaleOptions(scale=max(self.ladder.factors))
        try:
            for _ in range(2):  # the first run allocates
                with self.changed:
                    if self.waiting or self.closing:
                        return
                started = time.monotonic()
                self.model.upscale(picture, options)
            self.seconds_per_work = time.monotonic() - started
        except NextScaleError as error:
            log.warning("the speed of the model could not be measured (%s)", error)

    def _next(self) -> Job | None:
        """The job whose turn it is; waits for one. None when the server closes."""
        with self.changed:
            while True:
                for job in [job for job in self.waiting if job.stopping]:
                    self.waiting.remove(job)
                    self._end(job, "stopped")
                    self._count_places()
                if self.closing and not self.active:
                    return None
                for job in self._in_order():
                    if self._may_begin(job):
                        self._begin(job)
                if self.active:
                    return min(self.active, key=lambda job: job.used)
                self.changed.wait()

    def _in_order(self) -> list[Job]:
        """The waiting jobs as they will begin: every client's first, then every client's second ..."""
        before: dict[str, int] = {job.client: 1 for job in self.active}
        ranks = []
        for job in self.waiting:
            ranks.append(before.get(job.client, 0))
            before[job.client] = ranks[-1] + 1
        return [job for _, job in sorted(zip(ranks, self.waiting, strict=True), key=lambda pair: pair[0])]

    def _count_places(self) -> None:
        for place, job in enumerate(self._in_order(), start=1):
            if job.place != place:
                job.place = place
                job.changed()

    def _may_begin(self, job: Job) -> bool:
        if not self.active:
            return True
        pixels = sum(other.pixels for other in (*self.active, job))
        alone = all(other.client != job.client for other in self.active)
        return alone and len(self.active) < self.limits.active and pixels <= self.limits.result_pixels

    def _begin(self, job: Job) -> None:
        self.waiting.remove(job)
        job.used = min((other.used for other in self.active), default=0.0)
        job.state, job.began = "running", time.monotonic()
        if self.seconds_per_work is not None:
            job.seconds_left = job.work * self.seconds_per_work * (len(self.active) + 1)
        self.active.append(job)
        self._count_places()
        job.changed()

    def _advance(self, job: Job) -> None:
        """One batch of tiles of a job."""
        started = time.monotonic()
        try:
            if job.steps is None:
                job.steps = self._start(job)
            self._check(job)
            reveal = next(job.steps, None)
            if reveal is not None:
                self._take(job, reveal)
        except CancelledError:
            self._drop(job)
            self._keep_parts(job)
            return
        except Exception as error:
            self._drop(job)
            known = isinstance(error, NextScaleError)
            if not known:
                log.exception("a job failed")
            text = str(error) if known else f"internal error ({type(error).__name__}); try other options"
            job.is_ours = not known
            self._guarded(job, lambda: self._end(job, "failed", text))
            return
        finally:
            seconds = time.monotonic() - started
            job.used += seconds
            job.spent += seconds
        if reveal is None:
            self._drop(job)
            rate = job.spent / job.work
            self.seconds_per_work = rate if self.seconds_per_work is None else 0.7 * self.seconds_per_work + 0.3 * rate
            job.share = 1.0
            job.changed()
            self._guarded(job, lambda: self._end(job, "done"))

    def _start(self, job: Job) -> Iterator[Reveal]:
        def on_progress(progress: Progress) -> None:
            self._check(job)
            self._progress(job, progress.share)

        return self.model.upscale(self._read(job.folder), job.options, stream=True, on_progress=on_progress)

    def _progress(self, job: Job, share: float) -> None:
        job.share = min(0.999, max(job.share, share))
        job.seconds_left = (time.monotonic() - job.began) * (1 - job.share) / job.share
        job.changed()

    def _check(self, job: Job) -> None:
        if job.stopping:
            raise CancelledError

    def _take(self, job: Job, reveal: Reveal) -> None:
        key = job.key(reveal.factor)
        result = job.results[key]
        if reveal.complete and key == f"x{reveal.factor:g}":
            job.last.pop(key, None)
            self._guarded(job, lambda: self._save(job, key, reveal))
            return
        if (reveal.picture.size[0], reveal.picture.size[1]) == (result.width, result.height):
            job.last[key] = reveal.picture
        now = time.monotonic()
        if job.wants_view and now - job.previewed >= PREVIEW_SECONDS and not result.complete:
            job.previews[key] = views.preview(reveal.picture)
            result.preview += 1
            if key == f"x{job.options.scale:g}":  # the smaller ones have had their turn in this batch
                job.previewed = now
            job.changed()

    def _drop(self, job: Job) -> None:
        """Off the model; what is left to do is saving."""
        with self.changed:
            self.active.remove(job)
            job.steps = None
            self._count_places()

    def _keep_parts(self, job: Job) -> None:
        parts = {} if job.failure is not None else dict(job.last)
        for key, picture in parts.items():
            reveal = Reveal(float(key[1:]), picture, complete=False)
            self._guarded(job, lambda key=key, reveal=reveal: self._save(job, key, reveal))  # type: ignore[misc]
        self._guarded(job, lambda: self._end(job, "stopped"))

    # -- the janitor's thread ------------------------------------------------------------------------------------------

    def _tidy(self) -> None:
        while not self.closing:
            time.sleep(0.5)
            self.tidy(time.monotonic())

    def tidy(self, now: float) -> None:
        """End the jobs that nobody watches; remove what is too old or too much."""
        limits = self.limits
        for job in list(self.jobs.values()):
            if not job.has_ended and not job.watchers and now - job.seen > limits.gone_seconds and not job.stopping:
                self.stop(job)
        ended = sorted((j for j in list(self.jobs.values()) if j.ended is not None), key=lambda j: j.ended or 0.0)
        kept = sum(job.bytes for job in ended)
        for index, job in enumerate(ended):
            too_many = kept > limits.keep_bytes or len(ended) - index > KEPT_JOBS
            if too_many or now - (job.ended or now) > limits.keep_seconds:
                kept -= job.bytes
                self.remove(job)
