"""`runs/distill_pairs.py`: pairs of degraded pictures and what a teacher makes of them, which a later run completes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nextscale.image import read
from nextscale.train.pairs import GivenPairs
from tests.conftest import script

ROOT = Path(__file__).parents[1]


@pytest.fixture
def distill_pairs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a teacher that repeats pixels: Real-ESRGAN's network is an extra."""
    module = script("distill_pairs", monkeypatch)

    class Teacher:
        def __init__(self, *, threads: int) -> None:
            self.threads = threads

        def enlarged(self, pixels: np.ndarray) -> np.ndarray:
            return pixels.repeat(4, 0).repeat(4, 1)

    monkeypatch.setattr(module, "RealEsrgan", Teacher)
    return module


def test_pairs_follow_from_the_seed_and_are_completed(distill_pairs: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    distill_pairs.main(str(ROOT / "examples"), out, 3, pages=str(ROOT / "examples"))
    files = sorted(out.rglob("*.png"))
    assert [str(file.relative_to(out)) for file in files] == [
        f"{f}/00000{i}.png" for f in ("HR", "LR") for i in range(3)
    ]
    before = {file: file.read_bytes() for file in files}
    (out / "HR" / "000001.png").unlink()
    kept = (out / "LR" / "000000.png").stat().st_mtime_ns
    distill_pairs.main(str(ROOT / "examples"), out, 3, pages=str(ROOT / "examples"))
    assert {file: file.read_bytes() for file in files} == before
    assert (out / "LR" / "000000.png").stat().st_mtime_ns == kept
    small, large = (read(out / folder / "000002.png").rgb for folder in ("LR", "HR"))
    assert np.array_equal(large, small.repeat(4, 0).repeat(4, 1))
    assert len(GivenPairs([str(out)], distill_pairs.SIDE, distill_pairs.FACTOR).found) == 3
