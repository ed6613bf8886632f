"""The same numbers as the field's packages: compared where these import, and with values of theirs stored here.

LPIPS with `lpips`, SSIM with `pyiqa`, FID with `torch-fidelity` and `clean-fid`. All four need torchvision, which the
development environment does not have. Where they run, nothing is downloaded: both sides get the same weights, those of
NEXTSCALE_WEIGHTS for LPIPS and random ones for FID, since it is the arithmetic that is compared.
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
from nextscale.evaluate.metrics.psnr_ssim import luma, ssim
from nextscale.evaluate.options import ScoreOptions
from nextscale.evaluate.scores import score_folders
from tests.evaluate.conftest import photograph
from tests.evaluate.inception_shapes import random_state

# The packages compared with warn of what is no concern here.
pytestmark = pytest.mark.filterwarnings("ignore")

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"

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
    ours = Lpips(net)
    theirs = package("lpips").LPIPS(net=net, pnet_rand=True, verbose=False)
    # Its slices keep torchvision's layer numbers behind names of their own: slice1.0.weight is 0.weight.
    state = ours.features.state_dict()
    theirs.net.load_state_dict({name: state[name.split(".", 1)[1]] for name in theirs.net.state_dict()})
    a, b = (batch * 2 - 1 for batch in photographs())
    torch.testing.assert_close(ours(a, b), theirs(a, b).flatten(), atol=1e-6, rtol=1e-5)


def whole_luma(batch: Tensor) -> Tensor:
    """Gray pictures whose luma is a whole number at each pixel, so that pyiqa's rounding changes nothing."""
    return ((luma(batch.double()).round() - 16) / 219).expand(-1, 3, -1, -1)


def test_ssim_equals_pyiqas() -> None:
    """Away from pairs whose likeness is negative somewhere: there pyiqa clamps, and the definition does not."""
    theirs = package("pyiqa").create_metric("ssim", color_space="ycbcr", device="cpu")
    a, b = (whole_luma(batch) for batch in photographs())
    ours, others = ssim(a, b, channel="y"), theirs(a, b).flatten().double()
    torch.testing.assert_close(ours[:2], others[:2], atol=1e-4, rtol=0)
    assert float(others[2] - ours[2]) > 0.02


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Two folders of three pictures of the size that FID's network takes: the packages resize in different ways."""
    for folder, batch in zip(("a", "b"), photographs(), strict=True):
        (tmp_path / folder).mkdir()
        for number, image in enumerate(F.interpolate(batch, size=(299, 299), mode="bicubic").clamp(0, 1)):
            pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    return str(tmp_path / "a"), str(tmp_path / "b")


def ours_of(folders: tuple[str, str]) -> float:
    """Our FID of two folders."""
    first, second = map(Path, folders)
    found = score_folders(first, second, ScoreOptions(metrics=("fid",)), device="cpu").metrics["fid"].mean
    assert isinstance(found, float)
    return found


def test_fid_equals_torch_fidelitys(
    folders: tuple[str, str], random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fidelity = package("torch_fidelity")
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(random_weights))
    theirs = fidelity.calculate_metrics(
        input1=folders[0],
        input2=folders[1],
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        feature_extractor_weights_path=str(random_weights / INCEPTION),
    )
    assert ours_of(folders) == pytest.approx(theirs["frechet_inception_distance"], rel=5e-2)


def test_fid_equals_clean_fids(folders: tuple[str, str], random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its mode legacy_pytorch; its mode `clean` resizes otherwise and gives other numbers on purpose."""
    fid = package("cleanfid.fid")
    network = package("cleanfid.inception_pytorch")
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(random_weights))
    monkeypatch.setattr(network, "load_state_dict_from_url", lambda *_, **__: random_state())
    how = {"mode": "legacy_pytorch", "num_workers": 0, "device": torch.device("cpu"), "use_dataparallel": False}
    theirs = fid.compute_fid(*folders, verbose=False, **how)
    assert ours_of(folders) == pytest.approx(theirs, rel=1e-3)
