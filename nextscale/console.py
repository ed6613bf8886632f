"""What the commands say: a line on stdout or on stderr."""

from __future__ import annotations

import re
import sys


def say(text: str) -> None:
    """One line on stdout, at once; what its encoding cannot hold is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write("nextscale: " + re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip() + "\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """A time as one would say it: 0.4 seconds, 42 seconds, 3 minutes 20 seconds, 2 hours 5 minutes, 3 days 4 hours."""
    if seconds < 9.95:
        text = f"{seconds:.2g}"
        return f"{text} second" + "s" * (text != "1")
    whole = round(seconds)
    for length, name, part, smaller in _UNITS:
        if whole >= length:
            rest = whole % length // part
            return _count(whole // length, name) + (f" {_count(rest, smaller)}" if rest else "")
    return _count(whole, "second")


_UNITS = ((86400, "day", 3600, "hour"), (3600, "hour", 60, "minute"), (60, "minute", 1, "second"))


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + "s" * (number != 1)
