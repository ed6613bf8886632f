"""The script that tries a folder of files counts their kinds, and finds faults."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import hostile
from nextscale import image

pytestmark = pytest.mark.integration


def test_kinds_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = image.Picture(np.zeros((8, 9, 3), np.uint8))
    image.write(tmp_path / "deep" / "a.png", picture)
    image.write(tmp_path / "b.jpg", picture)
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "new\nline.txt").write_text("text")
    assert hostile.main(tmp_path, write=True) == 0
    said = capsys.readouterr().out.splitlines()
    assert "     1  read: PNG 8 bit" in said
    assert "     1  read: JPEG 8 bit" in said
    assert any(line.startswith("     1  refused: the file is truncated") for line in said)
    assert said[-1].startswith("4 files: 2 read, 2 refused; slowest")


FAULTY = """
import os, sys, time
for line in sys.stdin:
    if "crash" in line:
        os.kill(os.getpid(), 9)
    if "late" in line:
        time.sleep(60)
    if "noisy" in line:
        print("libpng warning", file=sys.stderr, flush=True)
    kind = "traceback" if "bad" in line else "read"
    print('{"kind": "%s", "detail": "x", "seconds": 0, "mebibytes": 1}' % kind, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_faults_are_found_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1 fine", "2 crash", "3 late", "4 noisy", "5 bad", "6 fine"):
        (tmp_path / name).touch()
    monkeypatch.setattr(hostile, "command", lambda **_: [sys.executable, "-c", FAULTY])
    found = list(hostile.outcomes(sorted(tmp_path.iterdir()), seconds=5, write=False))
    assert [outcome.kind for outcome in found] == ["read", "crashed", "late", "noisy", "traceback", "read"]
    assert [outcome.is_fault for outcome in found] == [False, True, True, True, True, False]
