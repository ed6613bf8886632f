"""PSNR and SSIM agree with two independent libraries on noise and on photographs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from nextscale.evaluate.metrics.psnr_ssim import Channel, psnr, ssim


def photographs() -> tuple[Tensor, Tensor]:
    """Two photographs of one size, and the same through a quarter of the resolution: B x 3 x H x W in [0, 1]."""
    files = [Path(skimage.data.__file__).with_name(name) for name in ("chelsea.png", "coffee.png")]
    crops = [Image.open(file).crop((120, 60, 312, 204)) for file in files]
    blurred = [
        crop.resize((48, 36), Image.Resampling.BOX).resize(crop.size, Image.Resampling.BICUBIC) for crop in crops
    ]

    def batch(images: list[Image.Image]) -> Tensor:
        return torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255

    return batch(blurred), batch(crops)


def noise() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 40, 31, generator=generator), torch.rand(3, 3, 40, 31, generator=generator)


PAIRS = {"photographs": photographs, "noise": noise}


def planes(image_CHW: Tensor, channel: Channel) -> np.ndarray:
    """H x W x C in float64, range 255: scikit-image's own luma, or RGB."""
    image = image_CHW.permute(1, 2, 0).double().numpy()
    return rgb2ycbcr(image)[..., :1] if channel == "y" else image * 255


@pytest.mark.parametrize("channel", ["y", "rgb"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("border", [0, 4])
def test_agrees_with_scikit_image(pair: str, channel: Channel, border: int) -> None:
    pred, target = PAIRS[pair]()
    inside = slice(border, -border or None)
    for x, y, measured_psnr, measured_ssim in zip(
        pred,
        target,
        psnr(pred, target, channel=channel, border=border),
        ssim(pred, target, channel=channel, border=border),
        strict=True,
    ):
        a, b = planes(x, channel)[inside, inside], planes(y, channel)[inside, inside]
        expected_ssim = structural_similarity(  # type: ignore[no-untyped-call]
            a, b, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        expected_psnr = peak_signal_noise_ratio(a, b, data_range=255)  # type: ignore[no-untyped-call]
        assert measured_psnr.item() == pytest.approx(expected_psnr, abs=1e-9)
        assert measured_ssim.item() == pytest.approx(expected_ssim, abs=1e-9)


@pytest.mark.integration
@pytest.mark.parametrize("channel", ["y", "rgb"])
@pytest.mark.parametrize("pair", PAIRS)
def test_agrees_with_torchmetrics(pair: str, channel: Channel) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
    from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim

    pred, target = PAIRS[pair]()
    a, b = (
        torch.stack([torch.from_numpy(planes(image, channel)) for image in batch]).permute(0, 3, 1, 2)
        for batch in (pred, target)
    )
    expected_psnr = torchmetrics_psnr(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3))
    # It averages over reflected borders too; the papers' protocol keeps the positions where the window fits.
    _, ssim_map = torchmetrics_ssim(a, b, sigma=1.5, data_range=255.0, reduction="none", return_full_image=True)
    expected_ssim = ssim_map[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(psnr(pred, target, channel=channel), expected_psnr, rtol=0, atol=1e-5)
    torch.testing.assert_close(ssim(pred, target, channel=channel), expected_ssim, rtol=0, atol=1e-6)


def test_equal_images_are_perfect() -> None:
    _, image = photographs()
    assert psnr(image, image).tolist() == [math.inf, math.inf]
    assert ssim(image, image).tolist() == pytest.approx([1, 1])


def test_results_are_float64_whatever_comes_in() -> None:
    pred, target = photographs()
    assert psnr(pred.half(), target.half()).dtype == torch.float64
    assert ssim(pred.half(), target.half()).dtype == torch.float64


def test_known_error_gives_known_psnr() -> None:
    gray = torch.full((1, 3, 16, 16), 0.5)
    step = 10 / 255
    assert psnr(gray, gray + step, channel="rgb").item() == pytest.approx(20 * math.log10(25.5), abs=1e-4)
    assert psnr(gray, gray + step, channel="y").item() == pytest.approx(20 * math.log10(25.5 * 255 / 219), abs=1e-4)


def test_border_equals_cropping() -> None:
    pred, target = photographs()
    inner = (..., slice(5, -5), slice(5, -5))
    for metric in (psnr, ssim):
        assert torch.equal(metric(pred, target, border=5), metric(pred[inner], target[inner]))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(11, 40), width=st.integers(11, 40), batch=st.integers(1, 3))
def test_any_size_batched_equals_one_by_one(height: int, width: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)
    pred, target = torch.rand(2, batch, 3, height, width, generator=generator)
    for metric in (psnr, ssim):
        alone = torch.cat([metric(pred[i : i + 1], target[i : i + 1]) for i in range(batch)])
        torch.testing.assert_close(metric(pred, target), alone, rtol=1e-12, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused() -> None:
    image = torch.zeros(1, 3, 20, 20)
    with pytest.raises(ValueError, match="alike"):
        psnr(image, image[..., :-1])
    with pytest.raises(ValueError, match="alike"):
        psnr(image[:, :1], image[:, :1])
    with pytest.raises(ValueError, match="border 10"):
        psnr(image, image, border=10)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(image, image, border=5)
    with pytest.raises(ValueError, match="channel"):
        psnr(image, image, channel="Y")  # type: ignore[arg-type]
