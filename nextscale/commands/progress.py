"""How far a command is: bars on stderr where that is a terminal, else a plain line now and then."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nextscale.console import lasting, printable, say
from nextscale.errors import OptionError

if TYPE_CHECKING:
    from nextscale.upscale.run import Progress


class ProgressLines:
    """Progress without a terminal: a plain line now and then while a picture takes long."""

    EVERY = 10.0
    """Seconds between two lines."""
    LONG = 60.0
    """Seconds from which a picture is announced."""

    def __init__(self, *, quiet: bool, silent: bool = False) -> None:
        """
        Args:
            quiet: no lines in between.
            silent: no line that announces a long picture, either.
        """
        self.quiet = quiet
        self.silent = silent

    def announcer(self, source: Path, work: str) -> Callable[[Progress], None]:
        """What says a long picture's size, tiles and time as soon as its first tiles tell how fast the model is.

        Args:
            work: sizes and tiles in words.
        """
        first: tuple[float, float] | None = None
        done = self.silent

        def on_progress(progress: Progress) -> None:
            nonlocal first, done
            if done:
                return
            if first is None:
                first = time.monotonic(), progress.share
            elif progress.tiles_done or progress.passes_done:
                done = True
                seconds = (time.monotonic() - first[0]) / (progress.share - first[1])
                if seconds >= self.LONG:
                    say(f"{source}: {work}, about {lasting(seconds)}")

        return on_progress

    @contextmanager
    def picture(self, source: Path, work: str) -> Iterator[Callable[[Progress], None]]:
        """What to call after every step of a picture; see `announcer`."""
        started = said = time.monotonic()
        announce = self.announcer(source, work)

        def on_progress(progress: Progress) -> None:
            nonlocal said
            announce(progress)
            now = time.monotonic()
            if not self.quiet and now - said >= self.EVERY:
                said = now
                share = progress.share
                left = (now - started) * (1 - share) / share
                say(f"{source}: {share:.0%}, {position(progress)}, about {lasting(left)} left")

        yield on_progress


class ProgressBars(ProgressLines):
    """Files, tiles and steps with an ETA on a terminal."""

    def __init__(self, files: int, bars: Any) -> None:
        super().__init__(quiet=True)
        self.bars = bars
        self.files = bars.add_task("pictures", total=files, visible=files > 1, detail="")

    @contextmanager
    def picture(self, source: Path, work: str) -> Iterator[Callable[[Progress], None]]:
        current = self.bars.add_task(printable(source.name), total=1.0, detail="")
        announce = self.announcer(source, work)

        def on_progress(progress: Progress) -> None:
            announce(progress)
            self.bars.update(current, completed=progress.share, detail=position(progress))

        try:
            yield on_progress
        finally:
            self.bars.remove_task(current)
            self.bars.advance(self.files)


def position(progress: Progress) -> str:
    """Where in a picture the work is."""
    parts = [f"tile {progress.tiles_done + 1}/{progress.tiles}", f"step {progress.step}/{progress.steps}"]
    return " ".join([f"pass {progress.passes_done + 1}/{progress.passes}"] * (progress.passes > 1) + parts)


@contextmanager
def progress(files: int, *, quiet: bool) -> Iterator[ProgressLines]:
    """Bars on stderr where that is a terminal, else lines on stdout, or nothing if quiet."""
    if quiet or not sys.stderr.isatty():
        yield ProgressLines(quiet=quiet, silent=quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        yield ProgressBars(files, bars)


class ProgressEvents:
    """Lines of JSON for the program that called: on a file descriptor, beside whatever else is shown.

    {"event": "progress", "input", "share", "pass", "passes", "tile", "tiles", "step", "steps"} after every step, and
    {"event": "done" or "failed", ...} with the row of --json at the end of each picture.
    """

    def __init__(self, descriptor: int) -> None:
        """
        Raises:
            OptionError: nothing that can be written is open there.
        """
        try:
            self.stream: IO[bytes] | None = os.fdopen(os.dup(descriptor), "wb", buffering=0)
            self.stream.write(b"")
        except OSError as error:
            raise OptionError(f"--progress-fd {descriptor}: {error.strerror}; open it for writing first") from None
        self.lock = threading.Lock()

    def step(self, name: str, progress: Progress) -> None:
        """After a step of a picture."""
        place = {"pass": progress.passes_done + 1, "passes": progress.passes}
        place |= {"tile": progress.tiles_done + 1, "tiles": progress.tiles}
        place |= {"step": progress.step, "steps": progress.steps}
        self.write({"event": "progress", "input": name, "share": round(progress.share, 4), **place})

    def end(self, row: dict[str, Any]) -> None:
        """After a picture."""
        self.write({"event": "failed" if "error" in row else "done", **row})

    def write(self, event: dict[str, Any]) -> None:
        """One line, whole; once nobody reads any more, none."""
        with self.lock:
            if self.stream is not None:
                try:
                    self.stream.write(json.dumps(event).encode() + b"\n")
                except OSError:
                    self.close()

    def close(self) -> None:
        """Close this copy of the descriptor."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None
