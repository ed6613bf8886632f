"""The examples of docs/web.md run as they stand, and its limits are the server's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextscale import image as images
from nextscale.commands.serve import Serve
from nextscale.upscale.nextscale import NextScale
from nextscale.web.limits import Limits
from nextscale.web.views import FORMATS
from tests.server import Local, local

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(model: NextScale, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with local(model, tmp_path_factory.mktemp("served")) as server:
        yield server


def blocks(language: str) -> list[str]:
    """Examples in a language that call the server."""
    found = re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)
    return [code for code in found if "http://127.0.0.1:7860" in code]


def run(server: Local, folder: Path, call: list[str], code: str) -> str:
    shutil.copy(ROOT / "examples" / "rocket.jpg", folder / "photo.jpg")
    code = code.replace("http://127.0.0.1:7860", server.url)
    done = subprocess.run([*call, code], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: images.read(path).size for path in folder.iterdir()}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_curl(server: Local, tmp_path: Path) -> None:
    short, long = blocks("bash")
    run(server, tmp_path, ["bash", "-ec"], short)
    width, height = sizes(tmp_path)["photo.jpg"]
    assert sizes(tmp_path)["photo_x4.png"] == (4 * width, 4 * height)
    events = run(server, tmp_path, ["bash", "-ec"], long)
    assert "event: done" in events
    assert sizes(tmp_path)["photo_x2.jpg"] == (2 * width, 2 * height)
    assert sizes(tmp_path)["photo_error.png"] == (4 * width, 4 * height)


@pytest.mark.parametrize(
    ("language", "call"),
    [("python", [sys.executable, "-W", "error", "-c"]), ("js", ["node", "--input-type=module", "-e"])],
)
def test_five_lines(server: Local, tmp_path: Path, language: str, call: list[str]) -> None:
    if shutil.which(call[0]) is None:
        pytest.skip(f"no {call[0]} on this machine")
    (code,) = blocks(language)
    assert len([line for line in code.splitlines() if line]) == 5
    run(server, tmp_path, call, code)
    assert sizes(tmp_path)["photo_x4.png"][0] == 4 * sizes(tmp_path)["photo.jpg"][0]


def test_every_format_of_a_result_is_named() -> None:
    assert "The answer is a PNG" in TEXT
    assert all(f"`format={name}`" in TEXT for name in FORMATS if name != "png")


def test_the_limits_are_those_that_the_page_names() -> None:
    limits, command = Limits(), Serve()
    assert f"--max-mb {command.max_mb:g}`, `--max-pixels {command.max_pixels}`" in TEXT
    assert f"--max-result-pixels {command.max_result_pixels}`" in TEXT
    assert f"--max-tiles {command.max_tiles:g}`" in TEXT
    assert f"--waiting {command.waiting}`, `--per-client {command.per_client}`" in TEXT
    assert f"--keep-minutes {command.keep_minutes:g}`" in TEXT
    assert (command.max_mb * 1e6, command.max_pixels) == (limits.upload_bytes, limits.pixels)
    assert (command.max_result_pixels, command.max_tiles) == (limits.result_pixels, limits.work)
    assert (command.waiting, command.per_client) == (limits.waiting, limits.per_client)
    assert f"during {limits.gone_seconds:g} seconds" in TEXT
    assert f"{limits.stall_seconds:g} seconds without a byte" in TEXT
