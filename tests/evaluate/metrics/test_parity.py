"""The same numbers as the field's packages: compared where these import, and with values of theirs stored here.

LPIPS with `lpips`, SSIM with `pyiqa`, FID with `torch-fidelity`. All three need torchvision, which the development
environment does not have.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextscale.evaluate.metrics.lpips import Lpips, LpipsNet
from nextscale.evaluate.metrics.psnr_ssim import ssim
from nextscale.evaluate.options import ScoreOptions
from nextscale.evaluate.scores import score_folders
from tests.evaluate.conftest import photograph

STORED: dict[LpipsNet, list[float]] = {
    "alex": [0.429534, 0.156463, 0.653926],
    "squeeze": [0.363894, 0.183607, 0.561834],
}
"""Of lpips 0.1.4 for `photographs`, with the official backbones."""


def package(name: str) -> ModuleType:
    """An installed package; skips the test where it is absent or does not load."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # one that is installed without torchvision fails in many ways
        pytest.skip(f"{name} does not import here: {error}")


def photographs() -> tuple[Tensor, Tensor]:
    """Three pairs, 3 x 3 x 96 x 96 in [0, 1]: blurred, reduced and enlarged again, and another photograph."""
    astronaut = photograph("astronaut.png")[..., :96, 160:256]
    coffee = photograph("coffee.png")[..., 100:196, 200:296]
    small = F.interpolate(F.avg_pool2d(coffee, 4), scale_factor=4.0, mode="bicubic").clamp(0, 1)
    truth = torch.cat([astronaut, coffee, coffee])
    return torch.cat([F.avg_pool2d(astronaut, 5, 1, 2), small, astronaut]), truth


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("net", STORED)
def test_lpips_gives_the_stored_values_of_its_package(net: LpipsNet) -> None:
    a, b = (batch * 2 - 1 for batch in photographs())
    assert Lpips(net)(a, b).tolist() == pytest.approx(STORED[net], abs=2e-6)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("net", STORED)
def test_lpips_equals_its_package(net: LpipsNet) -> None:
    theirs = package("lpips").LPIPS(net=net, verbose=False)
    a, b = (batch * 2 - 1 for batch in photographs())
    torch.testing.assert_close(Lpips(net)(a, b), theirs(a, b).flatten(), atol=1e-6, rtol=1e-5)


def test_ssim_equals_pyiqas() -> None:
    """Away from pairs whose likeness is negative somewhere: there pyiqa clamps, and the definition does not."""
    theirs = package("pyiqa").create_metric("ssim", color_space="yiq", device="cpu")
    a, b = (batch[:2].double() for batch in photographs())
    torch.testing.assert_close(ssim(a, b, channel="y"), theirs(a, b).flatten().double(), atol=2e-3, rtol=0)


@pytest.mark.usefixtures("weights")
def test_fid_equals_torch_fidelitys(tmp_path: Path) -> None:
    fidelity = package("torch_fidelity")
    for folder, batch in zip(("a", "b"), photographs(), strict=True):
        (tmp_path / folder).mkdir()
        for number, image in enumerate(batch):
            pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    ours = score_folders(tmp_path / "a", tmp_path / "b", ScoreOptions(metrics=("fid",)), device="cpu").metrics["fid"]
    if ours.unavailable:
        pytest.skip(ours.unavailable)
    theirs = fidelity.calculate_metrics(input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), fid=True, cuda=False)
    assert ours.mean == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
