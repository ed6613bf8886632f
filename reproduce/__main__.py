"""`python -m reproduce report ...`: the paper's tables and figures with models of nextscale."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nextscale.commands.main import run_command
from nextscale.console import complain, say
from reproduce.report import Report

USAGE = "usage: python -m reproduce report PART ...; see python -m reproduce report --help"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 if anything failed, or 2 for wrong usage."""
    verb, *arguments = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if verb == "report":
        return run_command(Report, "python -m reproduce report", None, arguments)
    if verb in ("-h", "--help"):
        say(USAGE)
        return 0
    complain(USAGE)
    return 2


if __name__ == "__main__":
    sys.exit(main())
