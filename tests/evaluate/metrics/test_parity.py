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
from torch import Tensor

from nextscale.evaluate.metrics.fid import Gaussian, Inception, frechet
from nextscale.evaluate.metrics.lpips import Lpips, LpipsNet
from nextscale.evaluate.metrics.psnr_ssim import luma, ssim
from tests.evaluate.conftest import photograph
from tests.evaluate.inception_shapes import random_state

# The packages compared with warn of what is no concern here.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

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
def pictures(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """6 x 3 x 299 x 299 of uint8, the size that FID's network takes: the packages resize in different ways."""
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(random_weights))
    images = F.interpolate(torch.cat(photographs()), size=(299, 299), mode="bicubic").clamp(0, 1)
    return (images * 255).round().byte()


def test_fids_features_equal_clean_fids(pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its mode legacy_pytorch; its mode `clean` resizes otherwise and gives other numbers on purpose."""
    features, network = package("cleanfid.features"), package("cleanfid.inception_pytorch")
    monkeypatch.setattr(network, "load_state_dict_from_url", lambda *_, **__: random_state())
    theirs = features.build_feature_extractor("legacy_pytorch", torch.device("cpu"), use_dataparallel=False)
    with torch.no_grad():
        torch.testing.assert_close(Inception()(pictures / 255), theirs(pictures.float()), atol=1e-4, rtol=1e-4)


def test_fids_features_equal_torch_fidelitys(pictures: Tensor, random_weights: Path) -> None:
    """At the same scale: it takes (x - 128) / 128 of 0 to 255, as TensorFlow's release did, ours and pytorch-fid
    from -1 to 1."""
    network = package("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    theirs = network("inception", ["2048"], feature_extractor_weights_path=str(random_weights / INCEPTION))
    same_scale = ((pictures.float() - 128) / 128 + 1) / 2
    torch.testing.assert_close(Inception()(same_scale), theirs(pictures)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [40, 400])
def test_fids_distance_equals_that_of_both_packages(count: int) -> None:
    """Of 64 features, for fewer and for more pictures than these: their time grows with the cube of the features."""
    rng = np.random.default_rng(0)
    sets = [rng.normal(mean, 1, (count, 64)) @ rng.normal(0, 1, (64, 64)) for mean in (0, 0.5)]
    ours = []
    for features in sets:
        ours.append(Gaussian())
        ours[-1].add(torch.from_numpy(features))
    found = frechet(*ours)
    means, covariances = [x.mean(0) for x in sets], [np.cov(x, rowvar=False) for x in sets]
    fidelity = package("torch_fidelity.metric_fid")
    statistics = [{"mu": m, "sigma": c} for m, c in zip(means, covariances, strict=True)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(theirs, rel=1e-5)
    clean = package("cleanfid.fid").frechet_distance(means[0], covariances[0], means[1], covariances[1])
    assert found == pytest.approx(clean, rel=1e-5)
