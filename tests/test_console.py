"""One line is one line, whatever names are in it; progress as a bar or lines; scripts that end in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from nextscale.__main__ import main as command
from nextscale.commands.main import main
from nextscale.console import complain, counted, lasting, note, printable, run_program, say, say_row
from nextscale.errors import OptionError

ROOT = Path(__file__).parents[1]


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


# ---- names ----

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\r\n\x7f\x9b1m\u202egnp.exe\u2028b"
ESCAPED = r"a\x1b]0;owned\x07\x1b[2J\r\n\x7f\x9b1m\u202egnp.exe\u2028b"


def test_what_steers_a_terminal_is_escaped_and_the_rest_stays() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable("größe ☂ 日本 עברית [red] \\") == "größe ☂ 日本 עברית [red] \\"
    assert printable("a\udcff") == r"a\udcff"


def test_all_that_is_said_passes_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    for tell in (say, complain, note):
        tell(HOSTILE)
    said = capsys.readouterr()
    assert said.out == ESCAPED + "\n"
    assert said.err == f"nextscale: {ESCAPED}\n{ESCAPED}\n"


def test_rows_stay_json(capsys: pytest.CaptureFixture[str]) -> None:
    say_row({"input": HOSTILE})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"input": HOSTILE}
    assert printable(line) == line


def test_a_mistake_in_the_arguments_does_not_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["upscale", "a.png", "-o", "b.png", "--\x1b[2Jcolor", "\x1b]0;owned\x07"])
    assert stop.value.code == 2
    said = capfd.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\x07" not in said.out + said.err
    assert r"\x1b" in said.err


def test_nothing_else_writes_to_the_terminal() -> None:
    """There is one place where names are made harmless, so nothing may go past it."""
    package = Path(sys.modules["nextscale"].__file__ or "").parent
    writers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in ("stdout.write(", "stderr.write(", " print("))
    }
    assert writers == {"console.py"}


@pytest.mark.parametrize(
    ("seconds", "words"), [(40.4, "40 s"), (150, "2.5 min"), (1500, "25 min"), (11_000, "3.1 h"), (2e6, "23 days")]
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", ["version", "evaluate --sets", "upscale -i a.png -o - --fast"])
def test_a_full_or_closed_standard_output_is_one_line(words: str, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "nextscale", *words.split()]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(program, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "nextscale: the standard output takes no more (No space left on device); send it elsewhere\n"
    )
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *program], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    if words.startswith("upscale"):
        assert (closed.returncode, closed.stderr) == (
            1,
            b"nextscale: the standard output is closed; name a file with -o\n",
        )
    else:
        assert (closed.returncode, closed.stderr) == (0, b"")


def test_an_interrupt_while_the_command_is_imported_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "nextscale.commands.main":
                raise KeyboardInterrupt

    known = sys.modules.pop("nextscale.commands.main", None)
    sys.meta_path.insert(0, Interrupting())
    try:
        assert command() == 130
    finally:
        del sys.meta_path[0]
        if known is not None:
            sys.modules["nextscale.commands.main"] = known
    assert capsys.readouterr().err == "nextscale: stopped\n"
