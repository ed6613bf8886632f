"""Every command in the documentation is one that the program knows; the quick start's are run; links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from benchmarks.bench import Bench
from nextscale.commands.main import Command, main
from nextscale.install import PUBLISHED
from reproduce.report import Report

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


PROGRAMS: dict[str, Any] = {
    "nextscale": Command,
    "python -m reproduce report": Report,
    "python -m benchmarks.bench": Bench,
}


def commands(page: Path, program: str = "nextscale") -> list[list[str]]:
    """The arguments of every call of a program in shell blocks and indented lines, without comments."""
    called = program.split()
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page, "(?:bash|sh)") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line for line in text.splitlines() if line.startswith(f"    {program} ")]
    found = []
    for line in lines:
        words = shlex.split(re.sub(r"\[[^]]*\]", "", line), comments=True)  # [what may be left out]
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words[: len(called)] == called:
            found.append(words[len(called) :])
    return found


def test_the_pages_hold_commands() -> None:
    counts = {program: sum(len(commands(page, program)) for page in PAGES) for program in PROGRAMS}
    assert counts["nextscale"] > 25
    assert counts["python -m reproduce report"] > 5
    assert counts["python -m benchmarks.bench"] > 2


@pytest.mark.parametrize("program", PROGRAMS)
@each_page
def test_every_command_parses(page: Path, program: str) -> None:
    for words in commands(page, program):
        if "..." in words:  # a command of which a part is shown
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
                tyro.cli(
                    PROGRAMS[program],
                    args=words,
                    config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
                )
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"{program} {' '.join(words)}\n{errors.getvalue()}")


@pytest.mark.integration
def test_the_quick_start_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for words in commands(ROOT / "docs" / "quickstart.md"):
        if words[0] == "upscale":
            assert main(words) == 0
            ran += 1
    assert ran == 3
    made = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.*"))
    assert {"chelsea_x4.png", "chelsea_x1.jpg", "chelsea_x4_confidence.png", "all/coffee_x2.jpg"} <= set(made)
    (code,) = blocks(ROOT / "docs" / "quickstart.md", "python")
    call = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 255
    assert Path("chelsea_x2.png").is_file()


def test_the_descriptor_for_spandrel_restores_a_picture() -> None:
    try:
        importlib.import_module("spandrel")
    except Exception as error:  # it needs torchvision, and fails in many ways where that does not fit
        pytest.skip(f"spandrel does not import here: {error}")
    (code,) = [code for code in blocks(ROOT / "docs" / "integrate.md", "python") if "spandrel" in code]
    names: dict[str, Any] = {}
    exec(code, names)
    made = names["descriptor"]("tiny")
    assert (made.scale, made.architecture.name, made.tiling.name) == (4, "nextscale", "INTERNAL")
    image = torch.rand(1, 3, 20, 32, generator=torch.Generator().manual_seed(0))
    large = made(image)
    assert large.shape == (1, 3, 80, 128)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 4).mean(), image.mean(), atol=0.05, rtol=0)


@pytest.mark.slow
def test_the_other_short_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for words in commands(ROOT / "docs" / "options.md"):
        assert main(words) == 0, words


def test_the_reference_is_that_of_the_docstrings() -> None:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert made == module.page(), "run python docs/make_api.py"


@each_page
def test_nothing_is_installed_from_where_it_is_not(page: Path) -> None:
    if not PUBLISHED:
        assert not re.search(
            r"(pipx? install|pip install -U) '?nextscale|nextscale\[", page.read_text(encoding="utf-8")
        )


@each_page
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
