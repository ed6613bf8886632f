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
