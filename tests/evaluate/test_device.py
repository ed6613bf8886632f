"""Every metric works where its images are, and gives there what it gives on the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nextscale.evaluate.metrics.fid import Gaussian, Inception, frechet
from nextscale.evaluate.metrics.lpips import Lpips
from nextscale.evaluate.metrics.niqe import Niqe
from nextscale.evaluate.metrics.psnr_ssim import psnr, ssim
from tests.evaluate.conftest import photograph

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def pair() -> tuple[Tensor, Tensor]:
    """Two crops of a photograph, and the same with noise."""
    photo = photograph("astronaut.png")
    target = torch.cat([photo[..., :200, :300], photo[..., 100:300, 200:500]])
    noise = 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return (target + noise).clamp(0, 1), target


def test_psnr_ssim_and_niqe(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(random_weights))
    pred, target = pair()
    niqe = Niqe()
    for here, there in (
        (psnr(pred, target), psnr(pred.cuda(), target.cuda())),
        (ssim(pred, target), ssim(pred.cuda(), target.cuda())),
        (niqe(pred), niqe(pred.cuda())),
    ):
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("weights")
def test_lpips() -> None:
    a, b = (image * 2 - 1 for image in pair())
    lpips = Lpips("alex")
    here = lpips(a, b)
    there = lpips.cuda()(a.cuda(), b.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=5e-3, atol=1e-4)


def test_fid(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(random_weights))
    inception = Inception()
    distances = []
    for device in ("cpu", "cuda"):
        inception.to(device)
        sets = []
        for images in pair():
            sets.append(Gaussian())
            sets[-1].add(inception(images.to(device)))
            assert sets[-1].covariance.device.type == device
        distances.append(frechet(*sets))
    assert distances[1] == pytest.approx(distances[0], rel=1e-2)
