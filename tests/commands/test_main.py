"""What all commands have in common: numbers that are none are refused in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
