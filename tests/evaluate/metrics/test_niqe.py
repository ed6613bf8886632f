"""NIQE gives BasicSR's numbers, and those of a slow version written out block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import gamma
from torch import Tensor

from nextscale.errors import NextScaleError
from nextscale.evaluate.metrics.niqe import Niqe
from nextscale.evaluate.weights import MissingWeights
from tests.evaluate.conftest import photograph

FILE = "niqe_pris_params.npz"


@pytest.fixture
def niqe(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Niqe:
    """The measure with parameters that belong to no photographs."""
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(random_weights))
    return Niqe()


def texture(height: int, width: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Smoothed noise in 8-bit steps, B x 3 x H x W in [0, 1]."""
    noise = np.random.RandomState(seed).rand(batch, 3, height, width)
    smooth = ndimage.gaussian_filter(noise, sigma=(0, 0, 1, 1))
    return torch.from_numpy(np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)) / 255)


# --- a slow version ---------------------------------------------------------------------------------------------------


def slow_niqe(image_CHW: Tensor, parameters: Path, border: int) -> float:
    """One image by the definition: scipy's filter and gamma, MATLAB's kernel, a search over all shapes."""
    with np.load(parameters) as file:
        mean, covariance, window = file["mu_pris_param"][0], file["cov_pris_param"], file["gaussian_window"]
    image = image_CHW.numpy().transpose(1, 2, 0) * 255
    image = image[border : image.shape[0] - border, border : image.shape[1] - border]
    luma = np.round(16 + (65.481 * image[..., 0] + 128.553 * image[..., 1] + 24.966 * image[..., 2]) / 255)
    rows, columns = luma.shape[0] // 96, luma.shape[1] // 96
    luma = luma[: rows * 96, : columns * 96]
    sizes = []
    for side in (96, 48):
        around = ndimage.convolve(luma, window, mode="nearest")
        deviation = np.sqrt(np.abs(ndimage.convolve(luma**2, window, mode="nearest") - around**2))
        normal = (luma - around) / (deviation + 1)
        blocks = [
            normal[top : top + side, left : left + side]
            for left in range(0, columns * side, side)
            for top in range(0, rows * side, side)
        ]
        sizes.append(np.array([slow_features(block) for block in blocks]))
        luma = slow_half(slow_half(luma).T).T
    features = np.concatenate(sizes, axis=1)
    apart = mean - features.mean(axis=0)
    return float(np.sqrt(apart @ np.linalg.inv((covariance + np.cov(features, rowvar=False)) / 2) @ apart))


def slow_features(block: np.ndarray) -> list[float]:
    shape, left, right = slow_fit(block)
    features = [shape, (left + right) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        moved = np.roll(np.roll(block, down, axis=0), across, axis=1)
        shape, left, right = slow_fit(block * moved)
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return features


def slow_fit(values: np.ndarray) -> tuple[float, float, float]:
    left = np.sqrt(np.mean(values[values < 0] ** 2))
    right = np.sqrt(np.mean(values[values > 0] ** 2))
    ratio = left / right
    moments = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    moments *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes = np.arange(0.2, 10.001, 0.001)
    shape = shapes[np.argmin(np.abs(gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes)) - moments))]
    spread = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * spread, right * spread


def slow_half(image: np.ndarray) -> np.ndarray:
    """Rows halved: every weight from Keys' cubic over twice its width, the mirror's pixels added to those they show."""
    height = len(image)
    matrix = np.zeros((height // 2, height))
    for out in range(height // 2):
        for source in range(2 * out - 6, 2 * out + 8):
            x = abs(source - (2 * out + 0.5)) / 2
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            weight = near if x <= 1 else far if x <= 2 else 0
            shown = -1 - source if source < 0 else 2 * height - 1 - source if source >= height else source
            matrix[out, shown] += weight / 2
    halved: np.ndarray = matrix @ image
    return halved


@pytest.mark.parametrize(("height", "width", "border"), [(96, 192, 0), (205, 290, 0), (201, 300, 4)])
def test_agrees_with_the_slow_version(niqe: Niqe, random_weights: Path, height: int, width: int, border: int) -> None:
    image = texture(height, width)
    expected = slow_niqe(image[0], random_weights / FILE, border)
    # Where single precision moves a block to the next shape in the table, the distance moves by about a thousandth.
    assert niqe(image, border=border).item() == pytest.approx(expected, rel=1e-3)


# --- published and measured values ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("name", "border", "expected", "tolerance"),
    [
        ("coffee.png", 0, 4.1152416, 1e-5),
        ("coffee.png", 4, 4.0794060, 1e-5),
        ("chelsea.png", 0, 2.6255244, 1e-5),
        ("chelsea.png", 4, 2.6893133, 1e-5),
        # Here its single precision takes a neighboring shape for a few blocks.
        ("astronaut.png", 0, 3.0649477, 6e-4),
        ("rocket.jpg", 0, 6.9691550, 6e-4),
    ],
)
def test_gives_the_numbers_of_basicsr(name: str, border: int, expected: float, tolerance: float) -> None:
    """Expected: calculate_niqe of BasicSR 1.4.2 on the same 8-bit pixels."""
    assert Niqe()(photograph(name), border=border).item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.usefixtures("weights")
def test_a_blurred_or_noisy_photograph_is_further_off() -> None:
    photo = photograph("chelsea.png")
    blurred = torch.nn.functional.avg_pool2d(photo, 5, stride=1, padding=2)
    noisy = photo + 0.1 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    clean, soft, rough = Niqe()(torch.cat([photo, blurred, noisy.clamp(0, 1)])).tolist()
    assert soft > clean + 1
    assert rough > clean + 1


# --- batches, borders, odd pictures -----------------------------------------------------------------------------------


def test_batch_equals_one_by_one(niqe: Niqe) -> None:
    images = texture(200, 203, batch=3)
    together = niqe(images)
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, torch.cat([niqe(image[None]) for image in images]), rtol=1e-9, atol=0)
    assert len(set(together.tolist())) == 3


def test_border_equals_cropping(niqe: Niqe) -> None:
    image = texture(210, 215)
    assert torch.equal(niqe(image, border=7), niqe(image[..., 7:-7, 7:-7]))


def test_what_does_not_fill_a_block_does_not_count(niqe: Niqe) -> None:
    image = texture(192, 200)
    assert torch.equal(niqe(image), niqe(image[..., :192]))


@pytest.mark.parametrize(("height", "width", "border"), [(95, 500, 0), (191, 191, 0), (96, 192, 1), (8, 8, 10)])
def test_a_picture_too_small_for_two_blocks_is_one_clear_line(niqe: Niqe, height: int, width: int, border: int) -> None:
    with pytest.raises(NextScaleError, match=f"{width} x {height}") as error:
        niqe(torch.rand(1, 3, height, width), border=border)
    assert "\n" not in str(error.value)


def test_wrong_shapes_are_refused(niqe: Niqe) -> None:
    for wrong in (torch.rand(1, 1, 200, 200), torch.rand(3, 200, 200)):
        with pytest.raises(ValueError, match="B x 3 x H x W"):
            niqe(wrong)


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_a_blank_picture_has_no_number(niqe: Niqe, level: float) -> None:
    images = torch.cat([torch.full((1, 3, 192, 288), level), texture(192, 288).float()])
    blank, textured = niqe(images).tolist()
    assert np.isnan(blank)
    assert textured > 0


def test_a_flat_block_among_textured_ones_leaves_a_number(niqe: Niqe) -> None:
    image = texture(192, 384)
    # With its surroundings, so that nothing of the texture is seen in the flat blocks' edges.
    image[..., :, :200] = 0.3
    assert niqe(image).isfinite().all()
    assert not torch.equal(niqe(image), niqe(image[..., 192:]))


# --- its parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_weights")
def test_missing_parameters_are_named_with_their_remedy() -> None:
    with pytest.raises(MissingWeights, match=r"niqe_pris_params\.npz.*NEXTSCALE_WEIGHTS") as error:
        Niqe()
    assert "\n" not in str(error.value)


def test_damaged_parameters_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(tmp_path))
    (tmp_path / FILE).write_bytes(b"not an archive")
    with pytest.raises(MissingWeights, match=FILE):
        Niqe()
    np.savez(tmp_path / FILE, mu_pris_param=np.zeros((1, 36)))
    with pytest.raises(MissingWeights, match="remove or replace"):
        Niqe()
    np.savez(
        tmp_path / FILE, mu_pris_param=np.zeros(36), cov_pris_param=np.eye(35), gaussian_window=np.full((7, 7), 1 / 49)
    )
    with pytest.raises(MissingWeights, match="remove or replace"):
        Niqe()
