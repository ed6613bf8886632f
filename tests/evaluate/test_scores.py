"""Scores of pairs and of folders: exact on 8-bit values, honest where there is no number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import ImageError
from nextscale.evaluate import scores
from nextscale.evaluate.metrics.psnr_ssim import psnr, ssim
from nextscale.evaluate.options import ScoreOptions
from nextscale.evaluate.scores import Scorer, area_mean, fid, read_pixels, score_folders, to_tensor
from nextscale.evaluate.weights import MissingWeights

EXACT = ScoreOptions(metrics=("psnr", "ssim"))


def noise(seed: int, size: tuple[int, int] = (20, 16)) -> np.ndarray:
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two pairs of noise, and one pair of equal pictures of another size."""
    for i in range(2):
        save(tmp_path / "p" / f"{i}_x4.png", noise(i))
        save(tmp_path / "t" / f"{i}.png", noise(10 + i))
    for path in ("p/e_x4.png", "t/e.png"):
        save(tmp_path / path, noise(5, (30, 12)))
    return tmp_path / "p", tmp_path / "t"


def refuse(*_: Any, **__: Any) -> None:
    raise MissingWeights("no weights here: fetch them")


def test_folders_give_the_metrics_of_their_8_bit_pictures(folders: tuple[Path, Path]) -> None:
    options = ScoreOptions(metrics=("psnr", "ssim"), channel="rgb", border=2)
    result = score_folders(*folders, options, device="cpu")
    assert [row["name"] for row in result.images] == ["0", "1", "e"]
    for i in range(2):
        pair = to_tensor(noise(i)), to_tensor(noise(10 + i))
        assert result.images[i]["psnr"] == psnr(*pair, channel="rgb", border=2).item()
        assert result.images[i]["ssim"] == ssim(*pair, channel="rgb", border=2).item()
    assert result.images[2]["psnr"] == math.inf
    summary = result.metrics["psnr"]
    assert summary.mean == pytest.approx(np.mean([row["psnr"] for row in result.images[:2]]))
    assert (summary.count, summary.infinite) == (3, 1)


def test_progress_names_every_picture(folders: tuple[Path, Path]) -> None:
    told: list[tuple[int, int, str, bool]] = []
    score_folders(*folders, EXACT, device="cpu", on_picture=lambda *now: told.append(now))
    assert told == [(1, 3, "0", False), (2, 3, "1", False), (3, 3, "e", False)]


def test_a_metric_without_weights_is_unavailable_and_the_others_are_not(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Lpips", "Niqe", "Inception"):
        monkeypatch.setattr(scores, name, refuse)
    result = score_folders(*folders, ScoreOptions(metrics=("psnr", "lpips", "fid", "niqe")), device="cpu")
    assert result.metrics["psnr"].mean
    for name in ("lpips", "fid", "niqe"):
        assert result.metrics[name].as_json() == {"unavailable": "no weights here: fetch them"}
        assert name not in result.images[0]


def test_networks_on_cuda_compute_in_whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(scores, "pick_device", torch.device)
    Scorer(EXACT, device="cpu")
    assert torch.backends.cudnn.allow_tf32
    Scorer(EXACT, device="cuda")
    assert not torch.backends.cudnn.allow_tf32


def test_nothing_is_loaded_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Lpips", "Niqe", "Inception"):
        monkeypatch.setattr(scores, name, refuse)
    scorer = Scorer(EXACT, device="cpu")
    assert scorer.unavailable == {}
    assert scorer.names == ("psnr", "ssim")


def test_a_picture_too_small_for_a_metric_has_no_number_there() -> None:
    small = to_tensor(noise(0, (10, 40)))
    assert math.isnan(Scorer(EXACT, device="cpu").score(small, small)["ssim"])
    bordered = Scorer(ScoreOptions(metrics=("psnr",), border=5), device="cpu")
    with pytest.raises(ImageError, match="a border of 5 leaves nothing of 10 x 40"):
        bordered.score(small, small)


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ImageError, match="20 x 16 cannot be compared with one of 16 x 20"):
        Scorer(EXACT, device="cpu").score(to_tensor(noise(0)), to_tensor(noise(0, (16, 20))))


def test_fid_is_that_of_the_features_and_says_what_it_is_worth() -> None:
    draw = np.random.default_rng(0)
    ours = list(draw.normal(0, 1, (40, 3)).astype(np.float32))
    moved = [vector + np.array([3, 4, 0], np.float32) for vector in ours]
    summary = fid(ours, moved)
    assert summary.mean == pytest.approx(25, rel=1e-4)
    assert summary.ci95 is None
    assert "of 40 pictures" in summary.note
    assert "no interval" in summary.note
    assert "two pictures" in fid(ours[:1], moved[:1]).unavailable


def test_fid_of_folders_compares_their_features(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Means(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            assert image.dtype == torch.float32
            return image.mean(dim=(2, 3))

    monkeypatch.setattr(scores, "Inception", lambda **_: Means())
    result = score_folders(*folders, ScoreOptions(metrics=("fid",)), device="cpu")
    vectors = [
        [to_tensor(read_pixels(path)).mean(dim=(2, 3))[0].float().numpy() for path in sorted(folder.iterdir())]
        for folder in folders
    ]
    assert result.metrics["fid"].mean == pytest.approx(fid(*vectors).mean, rel=1e-4)
    assert result.images == [{"name": "0"}, {"name": "1"}, {"name": "e"}]


def test_gray_and_transparent_pictures_are_compared_as_rgb(tmp_path: Path) -> None:
    save(tmp_path / "gray.png", noise(0)[..., 0])
    assert read_pixels(tmp_path / "gray.png").shape == (16, 20, 3)
    save(tmp_path / "clear.png", np.zeros((4, 4, 4), np.uint8))
    assert read_pixels(tmp_path / "clear.png").min() == 255
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"bad\.png: "):
        read_pixels(tmp_path / "bad.png")


def test_the_area_mean_is_exact_for_any_size() -> None:
    pixels = noise(3, (24, 8))
    small = area_mean(to_tensor(pixels), 4)
    blocks = pixels.reshape(2, 4, 6, 4, 3).astype(np.float64).mean(axis=(1, 3)) / 255
    assert small[0].permute(1, 2, 0).numpy() == pytest.approx(blocks, abs=1e-14)
    assert area_mean(small, 1) is small
