"""What all commands have in common: which numbers and names are refused in one line, and how signals stop them."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nextscale.commands.main import main, run_command
from nextscale.data.options import PackOptions
from nextscale.errors import OptionError, check_finite


@dataclass(frozen=True)
class Inner:
    """Options in a group."""

    rates: tuple[float, float] = (0.1, 0.2)
    """Several numbers."""


@dataclass(frozen=True)
class Outer:
    """A command."""

    most_mb: float = 1.0
    """A number."""
    inner: Inner = field(default_factory=Inner)

    def run(self) -> int:
        return 0


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_of_every_command_are_finite(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Outer, "outer", None, ["--most-mb", "2", "--inner.rates", "1", "2"]) == 0
    assert run_command(Outer, "outer", None, [f"--most-mb={number}"]) == 2
    assert capsys.readouterr().err == f"nextscale: most-mb must be a finite number, got {number}\n"
    assert run_command(Outer, "outer", None, ["--inner.rates", "1", number]) == 2
    assert capsys.readouterr().err == f"nextscale: rates must be a finite number, got {number}\n"


@pytest.mark.parametrize(
    "words",
    [
        "batch -i in -o out --cpus-per-worker nan",
        "serve --port 0 --max-mb inf",
        "serve --port 0 --keep-minutes nan",
        "data pack in out --shard-mb inf",
        "train restorer --data in --out out --plan --machine.tflops nan",
    ],
)
def test_numbers_that_bounds_let_pass_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    *_, option, number = words.split()
    name = option.removeprefix("--").split(".")[-1]
    assert capsys.readouterr().err == f"nextscale: {name} must be a finite number, got {number}\n"


def test_programs_are_held_to_it_as_well() -> None:
    check_finite(Outer())
    with pytest.raises(OptionError, match="most-mb must be a finite number"):
        check_finite(Outer(most_mb=math.inf))
    with pytest.raises(OptionError, match="min-detail must be a finite number"):
        PackOptions(min_detail=math.inf)


@pytest.mark.parametrize(
    ("words", "after"),
    [
        (["upscale", "", "-o", "out"], ""),
        (["upscale", "a.png", "", "-o", "out"], ""),
        (["upscale", "-o", "out", "-i", "a.png", ""], ""),
        (["upscale", "FILE://", "-o", "out"], ""),
        (["upscale", "a.png", "-o", ""], " after -o"),
        (["upscale", "a.png", "--output="], " after --output"),
        (["upscale", "-o", "out", "-i", ""], " after -i"),
        (["upscale", "a.png", "-o", "out", "--manifest", ""], " after --manifest"),
        (["batch", "-i", "", "-o", "out"], " after -i"),
        (["batch", "-i", "in", "-o="], " after -o"),
        (["degrade", "-i", "", "-o", "out"], " after -i"),
        (["degrade", "-i", "in", "-o", "out", "--recipes="], " after --recipes"),
        (["evaluate", "--bench", ""], " after --bench"),
        (["data", "pack", "", "out"], ""),
        (["data", "check", ""], ""),
        (["data", "pages", ""], ""),
        (["convert", "", "out", "--from", "var"], ""),
        (["train", "restorer", "--data", "", "--out", "out"], " after --data"),
        (["train", "restorer", "--data", "in", "--out", ""], " after --out"),
        (["train", "restorer", "--data", "in", "--out", "out", "--restoration.pages="], " after --restoration.pages"),
        (["serve", "--auth", ""], " after --auth"),
    ],
)
def test_an_empty_name_is_not_the_current_folder(
    words: list[str], after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"no picture")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nextscale: an empty name{after}; ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_empty_text_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = str(tmp_path / "gone.png")
    for suffix in (["--suffix", ""], ["--suffix="]):
        assert main(["upscale", gone, "-o", str(tmp_path), *suffix]) == 1
    assert "an empty name" not in capsys.readouterr().err


@dataclass(frozen=True)
class Signaled:
    """A command that is sent a signal."""

    number: int

    def run(self) -> int:
        os.kill(os.getpid(), self.number)
        time.sleep(10)
        return 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_stop_as_an_interrupt_does(name: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.SIG_DFL)
        assert run_command(Signaled, "signaled", None, ["--number", str(int(number))]) == status
        assert signal.getsignal(number) is signal.SIG_DFL
        assert capsys.readouterr().err == "nextscale: stopped\n"
        got: list[int] = []
        signal.signal(number, lambda number, _: got.append(number))  # whoever calls has one of its own
        assert run_command(Once, "once", None, ["--number", str(int(number))]) == 0
        assert got == [number]
    finally:
        signal.signal(number, before)


@dataclass(frozen=True)
class Once:
    """A command that goes on after a signal."""

    number: int

    def run(self) -> int:
        os.kill(os.getpid(), self.number)
        return 0


@dataclass(frozen=True)
class Failing:
    """A command under which the disk fails where nothing was expected to."""

    file: str = ""

    def run(self) -> int:
        if self.file:
            raise PermissionError(errno.EACCES, "Permission denied", self.file)
        raise OSError("the reader went away")


def test_a_system_that_fails_anywhere_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Failing, "failing", None, ["--file", "run/log.jsonl"]) == 1
    assert capsys.readouterr().err == "nextscale: run/log.jsonl: Permission denied\n"
    assert run_command(Failing, "failing", None, []) == 1
    assert capsys.readouterr().err == "nextscale: the reader went away\n"


def test_commands_run_outside_the_main_thread() -> None:
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(run_command(Outer, "outer", None, [])))
    thread.start()
    thread.join()
    assert got == [0]


@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("number", "status"), [(15, 143), (1, 129)])
def test_a_stopped_command_leaves_no_photograph(number: int, status: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    program = [sys.executable, "-m", "nextscale", "upscale", "-", "-o", "out.png"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"the beginning of a photograph")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("nextscale-*/0/stdin")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr.read() == b"nextscale: stopped\n"
    assert not list(tmp_path.iterdir())
