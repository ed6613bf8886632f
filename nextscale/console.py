"""What the commands say: lines on stdout and stderr, whatever the names in them hold, and how far a long run is."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Protocol

from nextscale.errors import NextScaleError, OutputError

# Controls of terminals, line and paragraph separators, marks that turn the direction of writing, halves of characters.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text for one line of a terminal or a log: what could steer either is escaped, as in `two\\nlines.png`.

    Names of files are whatever somebody made them; the only place that makes them harmless is here.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(text: str) -> None:
    """One line on stdout, at once; what its encoding cannot hold is escaped.

    Raises:
        OutputError: it takes no more.
        BrokenPipeError: who read it has gone.
    """
    if sys.stdout is None:  # closed by whoever started the program, who wants no lines
        return
    encoding = sys.stdout.encoding or "utf-8"
    with to_output():
        sys.stdout.write(printable(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()


@contextmanager
def to_output() -> Iterator[None]:
    """Turn the errors of writing to stdout, such as a full disk behind it, into one line.

    Raises:
        OutputError: it takes no more.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_output()
        reason = error.strerror or type(error).__name__
        raise OutputError(f"the standard output takes no more ({reason}); send it elsewhere") from None


def silence_output() -> None:
    """Let stdout lead nowhere, so that Python does not try again to write what is left when it exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_row(row: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    say(json.dumps(row).replace("\x7f", "\\u007f"))  # the one control that JSON leaves as it is


def note(text: str) -> None:
    """One line on stderr that is no complaint: how far something is."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:  # a full disk behind it; there is no place left to say so
        return


def complain(text: str) -> None:
    """One line on stderr."""
    note("nextscale: " + text.strip())


def run_program(main: Callable[[], int]) -> NoReturn:
    """Exit with a script's status; an error that its user can mend is one line on stderr."""
    try:
        sys.exit(main())
    except NextScaleError as error:
        complain(str(error))
        sys.exit(1)


class Remaining:
    """How long the rest of a run takes, by what this process has done itself."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.fresh = 0

    def seconds(self, done: int, total: int, *, resumed: bool = False) -> float:
        """Seconds left after one more item.

        Args:
            resumed: the item was done by an earlier run, so its time tells nothing.
        """
        self.fresh += not resumed
        return (time.monotonic() - self.started) / max(1, self.fresh) * (total - done)


class Advance(Protocol):
    """Shows one more item of a run."""

    def __call__(self, done: int, total: int, detail: str, *, resumed: bool = False, due: bool = False) -> None:
        """Show it: on a bar always, else as a line where one is due, by the caller or by the clock.

        Args:
            detail: what to say beside the numbers.
            resumed: the item was done by an earlier run.
        """


@contextmanager
def counted(unit: str, line: Callable[[str], None], *, every: float = float("inf")) -> Iterator[Advance]:
    """Progress over items: a bar on stderr where that is a terminal, else plain lines.

    Args:
        unit: of what is counted, in the plural.
        line: writes a plain line.
        every: seconds after which a plain line is due.
    """
    remaining = Remaining()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}", markup=False))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            bar: Any = None

            def advance(done: int, total: int, detail: str, *, resumed: bool = False, due: bool = False) -> None:
                nonlocal bar
                del due
                bar = bars.add_task("", total=total) if bar is None else bar
                left = lasting(remaining.seconds(done, total, resumed=resumed))
                bars.update(bar, completed=done, description=f"{unit}  {printable(detail)}  about {left} left")

            yield advance
        return
    said = time.monotonic()

    def tell(done: int, total: int, detail: str, *, resumed: bool = False, due: bool = False) -> None:
        nonlocal said
        left = lasting(remaining.seconds(done, total, resumed=resumed))
        if due or time.monotonic() - said >= every:
            said = time.monotonic()
            line(f"{done}/{total} {unit}  {detail}  about {left} left")

    yield tell


def lasting(seconds: float) -> str:
    """A time span in the unit that people would use."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
