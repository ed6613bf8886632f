"""The public sets: every recipe ends in a command that parses, and an absent set is told how to get."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import tyro

from nextscale.commands.main import Command, main
from nextscale.evaluate.sets import SETS


@pytest.mark.parametrize("name", SETS)
def test_the_commands_of_a_recipe_parse(name: str) -> None:
    commands = [line.strip() for line in SETS[name].recipe() if line.strip().startswith("nextscale ")]
    assert commands[-1].startswith(f"nextscale evaluate --bench {SETS[name].folder}")
    for command in commands:
        words = shlex.split(command.replace("(", "\\(").replace(")", "\\)"))[1:]
        tyro.cli(Command, args=words, config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff))


def test_all_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--sets"]) == 0
    out = capsys.readouterr().out
    assert all(f"{public.title}: {public.what}\n" in out for public in SETS.values())


@pytest.mark.parametrize("name", ["Set5", "realsr"])
def test_an_absent_set_is_told_how_to_get(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--bench", name]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nextscale: {name}: no such folder; this is how to get it\n{SETS[name.lower()].title}: ")
    assert not list(tmp_path.iterdir())
