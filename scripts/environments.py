"""The unit tests where nothing but the core is installed: fresh environments, with the newest and the oldest packages.

    python scripts/environments.py                        # every Python here from 3.10 to 3.14
    python scripts/environments.py --newest python3.12    # one Python, newest packages only
    python scripts/environments.py --borrow-torch --newest python3    # torch of the calling environment: no download

The oldest packages are tried on the first Python alone: they came before the newer ones, and have no wheels for them.
An environment lies in a temporary folder and is removed at the end. Set PIP_INDEX_URL or PIP_EXTRA_INDEX_URL to take
torch from its CPU index: https://download.pytorch.org/whl/cpu.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ["python3.10", "python3.11", "python3.12", "python3.13", "python3.14"]
TOOLS = ["pytest>=8", "hypothesis>=6.100"]
TESTS = [
    "tests/model/test_checkpoint.py",
    "tests/model/test_config.py",
    "tests/upscale/test_card.py",
    "tests/upscale/test_describe.py",
    "tests/upscale/test_hub.py",
    "tests/upscale/test_tiles.py",
    "tests/commands/test_doctor.py",
    "tests/commands/test_streams.py",
    "tests/test_comfyui.py",
    "tests/test_console.py",
    "tests/test_files.py",
]
"""What a user of the core runs: folders and hubs of models, pictures, the command line."""


def core() -> list[str]:
    """The requirements of the package without extras."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.M | re.S)
    return re.findall(r'"([^"]+)"', block)


def oldest(requirements: list[str]) -> list[str]:
    """The same at their lower bounds: torch>=2.6 -> torch==2.6.*"""
    pinned = []
    for requirement in requirements:
        found = re.fullmatch(r"([\w-]+)>=([\d.]+)(,<[\d.]+)?", requirement)
        if found is None:
            raise SystemExit(f"{requirement}: a core requirement must have a lower bound")
        pinned.append(f"{found[1]}=={found[2]}.*")
    return pinned


def borrow_torch(environment: Path) -> None:
    """Link torch of the environment that runs this into another of the same Python, as if it were installed there."""
    (target,) = environment.glob("lib/python*/site-packages")
    distribution = importlib.metadata.distribution("torch")
    tops = {Path(str(file)).parts[0] for file in distribution.files or []} - {"..", "bin"}
    source = Path(str(distribution.locate_file("")))
    for name in tops:
        (target / name).symlink_to((source / name).resolve())


def run(python: str, packages: list[str], borrow: bool) -> bool:
    """Whether the tests pass in a fresh environment."""
    with tempfile.TemporaryDirectory(prefix="nextscale-core-") as folder:
        environment = Path(folder, "venv")
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
        if borrow:
            borrow_torch(environment)
        inside = str(environment / "bin" / "python")
        install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *packages, *TOOLS], check=True)
        subprocess.run([*install, "--no-deps", str(ROOT)], check=True)
        # A file that is there may use an extra in some tests, which skip; httpx, aiohttp and Gradio must be absent.
        check = "import importlib.util as u; bad = [n for n in ('httpx', 'aiohttp', 'gradio') if u.find_spec(n)]"
        subprocess.run([inside, "-c", f"{check}; assert not bad, bad"], check="httpx" not in _brought(inside))
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        tests = [inside, "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(tests, cwd=ROOT, env=clean).returncode == 0


def _brought(python: str) -> str:
    """What the hub's library itself requires: its older versions use requests, those of 1.x httpx."""
    code = "import importlib.metadata as m; print(*(m.requires('huggingface_hub') or []))"
    lines = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return " ".join(line for line in lines.split() if re.match(r"httpx\b(?!2)", line))


def main() -> int:
    """Run the tests in every environment; 1 if they fail in one, or if there was none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", default=PYTHONS)
    parser.add_argument("--newest", action="store_true", help="leave out the oldest packages")
    parser.add_argument("--oldest", action="store_true", help="leave out the newest packages")
    parser.add_argument("--borrow-torch", action="store_true", help="take torch from the environment that runs this")
    arguments = parser.parse_args()
    here = [python for python in arguments.pythons if shutil.which(python)]
    wanted = [] if arguments.newest else [(python, "oldest", oldest(core())) for python in here[:1]]
    wanted += [] if arguments.oldest else [(python, "newest", core()) for python in here]
    results = {}
    for python, kind, packages in wanted:
        try:
            results[python, kind] = run(python, packages, arguments.borrow_torch)
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"{error}\n")
            results[python, kind] = False
    for (python, kind), passed in results.items():
        sys.stdout.write(f"{python}, {kind} packages: {'passed' if passed else 'FAILED'}\n")
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
