"""Progress as a bar or lines, and scripts that end in one line."""

from __future__ import annotations

import io
import sys

import pytest

from nextscale.console import counted, lasting, run_program
from nextscale.errors import OptionError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_when_they_are_due() -> None:
    lines: list[str] = []
    with counted("steps", lines.append) as advance:
        advance(1, 4, "a")
        advance(2, 4, "b", due=True)
    assert [line.split("  about")[0] for line in lines] == ["2/4 steps  b"]
    with counted("steps", lines.append, every=0) as advance:
        advance(1, 4, "c")
    assert lines[-1].startswith("1/4 steps  c  about ")


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with counted("pictures", pytest.fail) as advance:
        advance(1, 2, "[bold]a.png")
    assert "1/2 pictures  [bold]a.png" in terminal.getvalue()


def test_a_script_ends_with_its_status_or_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise OptionError("--runs 0: must be at least 1")

    with pytest.raises(SystemExit) as stop:
        run_program(lambda: 3)
    assert stop.value.code == 3
    with pytest.raises(SystemExit) as stop:
        run_program(fails)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "nextscale: --runs 0: must be at least 1\n"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (0.44, "0.44 seconds"),
        (9.96, "10 seconds"),
        (59.6, "1 minute"),
        (61, "1 minute 1 second"),
        (200, "3 minutes 20 seconds"),
        (3600, "1 hour"),
        (7530, "2 hours 5 minutes"),
        (277200, "3 days 5 hours"),
    ],
)
def test_times_are_said_in_words(seconds: float, said: str) -> None:
    assert lasting(seconds) == said
