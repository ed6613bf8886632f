"""The public sets: every recipe ends in a command that parses, and an absent set is told how to get."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import tyro

from nextscale.commands.main import Command, main
from nextscale.evaluate.sets import SETS


@pytest.mark.parametrize("name", SETS)
def test_the_commands_of_a_recipe_parse(name: str) -> None:
    commands = [line.strip() for line in SETS[name].recipe() if line.strip().startswith("nextscale ")]
    assert shlex.split(commands[-1])[:4] == ["nextscale", "evaluate", "--bench", SETS[name].folder]
    for command in commands:
        words = shlex.split(command)[1:]
        tyro.cli(Command, args=words, config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff))


@pytest.mark.parametrize("name", SETS)
def test_a_recipe_is_what_a_shell_takes(name: str) -> None:
    """A folder such as RealSR(V3) is quoted."""
    for line in SETS[name].recipe()[1:]:
        if line.strip().startswith(("nextscale", "curl", "mkdir", "rm")):
            subprocess.run(["bash", "-n", "-c", line], check=True, capture_output=True)


def test_the_odd_numbers_are_what_is_kept(tmp_path: Path) -> None:
    (command,) = [line for line in SETS["realsr50"].steps if line.startswith("rm ")]
    folders = [tmp_path / "RealSRVal_crop128" / name for name in ("test_HR", "test_LR")]
    for folder in folders:
        folder.mkdir(parents=True)
        for camera in ("Canon", "Nikon"):
            for number in range(1, 51):
                (folder / f"{camera}_{number:03}_LR4.png").touch()
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    for folder in folders:
        assert sorted(int(file.name[6:9]) for file in folder.glob("Nikon*")) == list(range(1, 51, 2))
        assert len(list(folder.iterdir())) == 50


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
