"""What is published: the wheel holds the shipped model and the example photographs, and none of the tests and tools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import environments, release

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
        "weights/tiny/README.md",
        "weights/tiny/card.json",
        "py.typed",
        "web/static/index.html",
        "web/static/page.js",
        "web/static/style.css",
        "web/static/icon.svg",
    ):
        assert f"nextscale/{name}" in sizes
    # The shipped weights come from others', whose license asks for its text beside them.
    notice = next(size for name, size in sizes.items() if name.endswith(".dist-info/licenses/NOTICE"))
    assert notice == (ROOT / "NOTICE").stat().st_size
    assert sum(name.startswith("nextscale/examples/") and name.endswith(".jpg") for name in sizes) == 5
    assert not [name for name in sizes if name.startswith(("tests", "reproduce", "benchmarks", "work", "docs"))]
    assert sum(sizes.values()) < 40e6


@pytest.mark.slow
def test_a_wheel_installs_by_itself_and_restores_a_picture(tmp_path: Path) -> None:
    """As pipx does it: an environment for the command alone; torch is that of the tests, which is large."""
    call = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(call, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("nextscale-*.whl")
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=300)
    environments.borrow_torch(environment)
    call = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(call, check=True, capture_output=True, timeout=600)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = str(environment / "bin/nextscale")
    for words in (["doctor"], ["upscale", str(ROOT / "examples/camera.jpg"), "-o", "c.png", "-s", "1", "--fast"]):
        subprocess.run([command, *words], check=True, cwd=tmp_path, env=clean, timeout=300)
    assert (tmp_path / "c.png").is_file()


def test_links_become_absolute() -> None:
    text = "[a](docs/a.md) ![b](docs/b.png) [c](https://c.org/d) [e](#f)"
    assert release.absolute(text, "https://h/o") == (
        "[a](https://h/o/blob/main/docs/a.md) ![b](https://h/o/raw/main/docs/b.png) [c](https://c.org/d) [e](#f)"
    )
    whole = release.absolute((ROOT / "README.md").read_text(encoding="utf-8"), "https://h/o")
    assert not [link for link in re.findall(r"\]\(([^)]+)\)", whole) if not link.startswith(("https://", "#"))]


def test_the_addresses_go_into_the_metadata() -> None:
    text = release.with_urls((ROOT / "pyproject.toml").read_text(encoding="utf-8"), "https://h/o")
    assert re.search(r'^\[project\.urls\]\nHomepage = "https://h/o"\n', text, re.M)


def test_versions_that_differ_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nextscale").mkdir()
    (tmp_path / "nextscale/__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0\n")
    assert release.problems(tmp_path) == []
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (not released yet)\n")
    assert release.problems(tmp_path) == []
    assert "give the day" in release.problems(tmp_path, tag=True)[0]
    (tmp_path / "CITATION.cff").write_text("version: 1.1.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.3.0 (not released yet)\n")
    first, second = release.problems(tmp_path)
    assert "CITATION.cff" in first
    assert "CHANGELOG.md must be 1.2.0" in second


def test_this_checkout_has_one_version() -> None:
    assert release.problems(ROOT) == []


def test_oldest_versions_are_the_lower_bounds() -> None:
    assert environments.oldest(["torch>=2.6", "huggingface_hub>=0.30,<3"]) == [
        "torch==2.6.*",
        "huggingface_hub==0.30.*",
    ]
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in environments.core()]
    assert names == ["torch", "numpy", "pillow", "safetensors", "huggingface_hub", "tyro", "rich"]
    assert len(environments.oldest(environments.core())) == len(names)


@pytest.mark.slow
def test_wheel_and_source_pass_twine(tmp_path: Path) -> None:
    pytest.importorskip("twine", reason="checking a release needs pip install -e '.[release]'")
    pytest.importorskip("build")
    made = release.build(ROOT, "https://example.org/nextscale", tmp_path)
    assert [path.suffix for path in made] == [".whl", ".gz"]
    with zipfile.ZipFile(made[0]) as file:
        (name,) = [name for name in file.namelist() if name.endswith("METADATA")]
        metadata = file.read(name).decode()
    assert "Project-URL: Homepage, https://example.org/nextscale" in metadata
    assert "](docs/" not in metadata


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()


def test_the_container_is_pinned_and_watched() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("RUN pip install")]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    for line in text.splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])
    (check,) = re.findall(r'^HEALTHCHECK .*CMD \["python3", "-c", "(.+)"\]$', text.replace("\\\n", " "), re.M)
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = check.replace("7860", str(server.server_address[1]))
        assert here != check
        assert subprocess.run([sys.executable, "-c", here], capture_output=True).returncode == 0
        server.shutdown()
    assert subprocess.run([sys.executable, "-c", here], capture_output=True).returncode != 0
