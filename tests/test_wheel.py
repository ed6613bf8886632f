"""The wheel carries the shipped model and the example photographs, and nothing of the tests and tools."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_all_that_a_user_needs(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(call, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("nextscale-*.whl")
    with zipfile.ZipFile(wheel) as file:
        sizes = {info.filename: info.file_size for info in file.infolist()}
    assert (
        sizes["nextscale/weights/tiny/model.safetensors"]
        == (ROOT / "nextscale/weights/tiny/model.safetensors").stat().st_size
    )
    for name in (
        "weights/tiny/config.json",
        "weights/tiny/model_card.md",
        "weights/tiny/card.json",
        "py.typed",
        "web/static/index.html",
        "web/static/page.js",
        "web/static/style.css",
        "web/static/icon.svg",
    ):
        assert f"nextscale/{name}" in sizes
    assert sum(name.startswith("nextscale/examples/") and name.endswith(".jpg") for name in sizes) == 5
    assert not [name for name in sizes if name.startswith(("tests", "reproduce", "benchmarks", "work", "docs"))]
    assert sum(sizes.values()) < 40e6
