"""Tests that cannot run here: skipped by name, and in CI only where `tests/allowed_skips.txt` says so.

A test that needs data beside the checkout asks `shared` for its folder. Under NEXTSCALE_CI=1 a skip that the list does
not name is a failure, so that CI never becomes green by running less.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).parents[2] / "shared"
LIST = Path("tests") / "allowed_skips.txt"
"""Below pytest's root. Each line: a test's id, in which * stands for anything, two spaces, and the reason."""


def shared(variable: str, default: str, file: str = "") -> Path:
    """A folder that an environment variable names, else the one of this name in `../shared`, or a file in it.

    Where it is not there the test is skipped; pytest's summary names what was looked for and the remedy.
    """
    path = Path(os.environ.get(variable) or SHARED / default) / file
    if not path.exists():
        pytest.skip(f"{path} is not here: set {variable} to the folder that has it")
    return path


def allowed_skips(path: Path) -> dict[str, str]:
    """The listed patterns of test ids, with their reasons.

    Raises:
        ValueError: a line has no reason.
    """
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition("  ")
            if not reason.strip():
                raise ValueError(f"{path}: {line!r} gives no reason (two spaces after the test's id, then why)")
            found[pattern] = reason.strip()
    return found


def _refuse(report: Any, config: pytest.Config) -> None:
    """Turn a report of a skip into a failure where skips are refused and the list does not name it."""
    if os.environ.get("NEXTSCALE_CI") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    if not any(fnmatchcase(report.nodeid, pattern) for pattern in allowed_skips(config.rootpath / LIST)):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped in CI ({reason}); {LIST} lists what may"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Every phase of every test."""
    outcome: Any = yield
    _refuse(outcome.get_result(), item.config)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Whole files that are skipped as they are read."""
    outcome: Any = yield
    _refuse(outcome.get_result(), collector.config)
