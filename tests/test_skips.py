"""CI fails on a skip that `tests/allowed_skips.txt` does not list, and the list has no dead entries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import LIST, allowed_skips, shared

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest
from tests.skips import shared

def test_runs():
    pass

def test_needs_data():
    shared("NO_SUCH_VARIABLE", "no such folder")

@pytest.mark.skip(reason="not today")
def test_is_marked():
    pass

@pytest.mark.xfail(strict=True)
def test_is_known_to_fail():
    assert False
"""


def outcome(folder: Path, listed: str, ci: str) -> tuple[int, str]:
    """Exit status and output of pytest on two files, in a folder with this list of allowed skips."""
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / LIST).write_text(listed, encoding="utf-8")
    (folder / "tests" / "test_some.py").write_text(TESTS, encoding="utf-8")
    skipped = "import pytest\npytest.importorskip('no_such_package')\n"
    (folder / "tests" / "test_whole_file.py").write_text(skipped, encoding="utf-8")
    call = [sys.executable, "-m", "pytest", "-rs", "-p", "tests.skips", "-p", "no:cacheprovider", "--rootdir", "."]
    environment = {
        "PYTHONPATH": str(ROOT),
        "NEXTSCALE_CI": ci,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    call += [
        "--import-mode",
        "importlib",
        "--continue-on-collection-errors",
        "tests/test_some.py",
        "tests/test_whole_file.py",
    ]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_skip_that_is_not_listed_fails_in_ci_alone(tmp_path: Path) -> None:
    listed = "tests/test_some.py::test_is_marked  it is an example\n"
    status, said = outcome(tmp_path, listed, ci="0")
    assert status == 0, said
    assert "set NO_SUCH_VARIABLE" in said
    status, said = outcome(tmp_path, listed, ci="1")
    assert status != 0
    assert "tests/test_some.py::test_needs_data may not be skipped in CI" in said
    assert "tests/test_whole_file.py may not be skipped in CI" in said
    assert "test_is_marked may not" not in said
    assert "test_is_known_to_fail may not" not in said


def test_listed_skips_pass_in_ci(tmp_path: Path) -> None:
    status, said = outcome(tmp_path, "# all\ntests/test_some.py::*  a file\ntests/test_whole*  another\n", ci="1")
    assert status == 0, said
    assert "1 passed, 3 skipped, 1 xfailed" in said


def test_an_entry_without_a_reason_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("tests/test_files.py\n", encoding="utf-8")
    with pytest.raises(ValueError, match="gives no reason"):
        allowed_skips(tmp_path / "list")


def test_a_folder_that_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTSCALE_BENCH", str(tmp_path))
    assert shared("NEXTSCALE_BENCH", "bench") == tmp_path
    with pytest.raises(pytest.skip.Exception, match=r"RealSR is not here: set NEXTSCALE_BENCH"):
        shared("NEXTSCALE_BENCH", "bench", "RealSR")


@pytest.mark.parametrize("pattern", allowed_skips(ROOT / LIST))
def test_every_entry_names_a_test(pattern: str) -> None:
    file, _, name = pattern.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name.removesuffix('*')}\w*\(" if name != "*" else "skip|shared|weights", source, re.M)
