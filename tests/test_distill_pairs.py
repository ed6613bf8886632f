"""`runs/distill_pairs.py`: pairs of degraded pictures and what a teacher makes of them, which a later run completes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from nextscale.errors import OptionError
from nextscale.image import read
from nextscale.model.checkpoint import save_folder
from nextscale.model.config import RestorerConfig
from nextscale.model.restorer import Restorer
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
    assert len(GivenPairs([str(out)], 48, distill_pairs.FACTOR).found) == 3


def test_a_restorer_can_be_the_teacher(distill_pairs: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    restorer = Restorer(RestorerConfig(channels=4, convs=2, factors=(1, 2, 4)))
    save_folder(tmp_path / "teacher", "restorer", restorer.config, restorer.state_dict())
    out, pages = tmp_path / "pairs", str(ROOT / "examples")
    options = {"pages": pages, "pages_share": 1.0, "presets": ("scan",), "clean": 0.0}
    distill_pairs.main(pages, out, 2, teacher=str(tmp_path / "teacher"), side=32, **options)
    small, large = (read(out / folder / "000001.png").rgb for folder in ("LR", "HR"))
    assert small.shape == (32, 32, 3)
    image = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = restorer(image)[-1]
    assert np.abs(large / 127.5 - 1 - expected[0].clamp(-1, 1).permute(1, 2, 0).numpy()).max() < 1.01 / 255


def test_the_truth_can_be_the_teacher(distill_pairs: ModuleType, tmp_path: Path) -> None:
    options = {"presets": ("scan",), "clean": 1.0, "side": 32}
    distill_pairs.main(str(ROOT / "examples"), tmp_path, 2, teacher="truth", **options)
    small, large = (read(tmp_path / folder / "000001.png").rgb.astype(float) for folder in ("LR", "HR"))
    assert large.shape == (128, 128, 3)
    # A clean input is the photograph reduced; nothing that enlarges it has its detail.
    reduced = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(reduced - small).mean() < 6
    assert np.abs(large - small.repeat(4, 0).repeat(4, 1)).mean() > 2 * np.abs(reduced - small).mean()


def test_a_share_of_the_pairs_is_gray(distill_pairs: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    restorer = Restorer(RestorerConfig(channels=4, convs=2, factors=(1, 2, 4)))
    save_folder(tmp_path / "teacher", "restorer", restorer.config, restorer.state_dict())
    pairs = {}
    for gray in (0.0, 0.5, 1.0):
        out = tmp_path / str(gray)
        distill_pairs.main(str(ROOT / "examples"), out, 12, teacher=str(tmp_path / "teacher"), gray=gray, side=32)
        pairs[gray] = [[read(out / f / f"{i:06d}.png").rgb.tobytes() for f in ("LR", "HR")] for i in range(12)]
    assert all(
        np.ptp(np.frombuffer(p, np.uint8).reshape(-1, 3), axis=1).max() == 0 for pair in pairs[1.0] for p in pair
    )
    made_gray = [pair == pairs[1.0][i] and pair != pairs[0.0][i] for i, pair in enumerate(pairs[0.5])]
    assert all(gray or pair == pairs[0.0][i] for i, (gray, pair) in enumerate(zip(made_gray, pairs[0.5], strict=True)))
    assert 0 < sum(made_gray) < 12


def test_a_teacher_of_another_factor_is_refused(distill_pairs: ModuleType, tmp_path: Path) -> None:
    restorer = Restorer(RestorerConfig(channels=4, convs=2, factors=(1, 2)))
    save_folder(tmp_path / "teacher", "restorer", restorer.config, restorer.state_dict())
    with pytest.raises(OptionError, match=r"largest factor is 2; name a restorer of x4"):
        distill_pairs.main(str(ROOT / "examples"), tmp_path / "pairs", 1, teacher=str(tmp_path / "teacher"))


def test_what_is_far_from_the_photograph_is_left_out(
    distill_pairs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Apart(torch.nn.Module):
        """In place of LPIPS, whose weights need not be there: the mean absolute difference."""

        def __init__(self, network: str) -> None:
            super().__init__()
            assert network == "alex"

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return (first - second).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(distill_pairs, "Lpips", Apart)
    photographs, options = str(ROOT / "examples"), {"presets": ("scan",), "clean": 0.0, "side": 32, "gray": 0.5}
    distill_pairs.main(photographs, tmp_path / "all", 8, **options)
    distill_pairs.main(photographs, tmp_path / "truth", 8, teacher="truth", **options)
    apart = {}
    for file in sorted((tmp_path / "all" / "HR").iterdir()):
        made, true = (read(tmp_path / folder / "HR" / file.name).rgb.astype(float) for folder in ("all", "truth"))
        apart[file.name] = float(np.abs(made - true).mean()) / 127.5
    middle = sum(sorted(apart.values())[3:5]) / 2
    distill_pairs.main(photographs, tmp_path / "near", 8, farthest=middle, **options)
    kept = sorted((tmp_path / "near" / "HR").iterdir())
    assert [file.name for file in kept] == [name for name, value in apart.items() if value <= middle]
    assert len(kept) == len(list((tmp_path / "near" / "LR").iterdir())) == 4
    assert all(file.read_bytes() == (tmp_path / "all" / "HR" / file.name).read_bytes() for file in kept)
    with pytest.raises(OptionError, match="farthest must be 0"):
        distill_pairs.main(photographs, tmp_path / "none", 1, farthest=-1.0)


def test_inputs_with_less_noise_than_asked_for_are_left_out(distill_pairs: ModuleType, tmp_path: Path) -> None:
    stripes = np.full((64, 64, 3), 90.0)
    stripes[:, ::9] = 180
    for sigma in (4.0, 12.0):
        noisy = stripes + np.random.default_rng(0).normal(0, sigma, (64, 64, 1))
        assert distill_pairs.noise_of(noisy.round().astype(np.uint8)) == pytest.approx(sigma, rel=0.3)
    photographs, options = str(ROOT / "examples"), {"presets": ("noisy",), "clean": 0.0, "side": 32}
    distill_pairs.main(photographs, tmp_path / "all", 8, **options)
    found = {f.name: distill_pairs.noise_of(read(f).rgb) for f in sorted((tmp_path / "all" / "LR").iterdir())}
    middle = sum(sorted(found.values())[3:5]) / 2
    distill_pairs.main(photographs, tmp_path / "noisy", 8, noise=middle, **options)
    kept = sorted((tmp_path / "noisy" / "HR").iterdir())
    assert [file.name for file in kept] == [name for name, value in found.items() if value >= middle]
    assert len(kept) == 4
    with pytest.raises(OptionError, match="noise must be in"):
        distill_pairs.main(photographs, tmp_path / "none", 1, noise=-1.0)


def test_outlines_of_ink_are_made_steeper_where_they_are(distill_pairs: ModuleType) -> None:
    ramp = np.array([220, 220, 220, 170, 120, 70, 20, 20, 20, 70, 120, 170, 220, 220, 220])
    page = np.full((64, 64, 3), 220, np.uint8)
    page[:, 20:35] = ramp[:, None]
    steep = distill_pairs.with_steep_ink(page, 1.7).astype(int)
    row = steep[32, :, 0]
    # Steeper by about that much, in about the same place; paper is as it was.
    assert row[23] - row[25] == pytest.approx(1.7 * 100, rel=0.15)
    assert row[24] == pytest.approx(120, abs=15)
    assert (row[:20] == 220).all()
    assert (row[26:29] <= 30).all()
    assert row.max() <= 221
    # Bright ink, and ink that is hardly there.
    for other in (255 - page, np.where(page < 220, 200, 220).astype(np.uint8)):
        assert np.array_equal(distill_pairs.with_steep_ink(other, 1.7), other)


def test_dark_ink_on_paper_is_made_black_and_nothing_else(distill_pairs: ModuleType) -> None:
    page = np.full((40, 40, 3), 220, np.uint8)
    page[10:12, 5:35] = 50
    black = distill_pairs.with_black_ink(page)
    assert black[10, 10, 0] == distill_pairs.INK * 255 // (255 - 44)
    assert 210 < black[0, 0, 0] < 220
    for level, paper in ((80, 220), (50, 140), (4, 220)):  # pale ink, dark paper, black ink
        other = np.full((40, 40, 3), paper, np.uint8)
        other[10:12, 5:35] = level
        assert np.array_equal(distill_pairs.with_black_ink(other), other)
