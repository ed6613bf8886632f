"""DISTS agrees with another implementation, and missing weights are an error with the remedy instead of a number."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nextscale.evaluate.metrics import dists as module
from nextscale.evaluate.metrics.dists import Dists
from nextscale.evaluate.metrics.lpips import _vgg16
from nextscale.evaluate.weights import MissingWeights
from tests.evaluate.conftest import photograph


@pytest.fixture
def vgg(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """VGG16 with random weights that keep the size of activations, in place of the official half gigabyte."""
    torch.manual_seed(3)
    features = _vgg16()
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    monkeypatch.setattr(module, "backbone", lambda *_, **__: features)
    return features


@pytest.mark.integration
def test_agrees_with_torchmetrics(vgg: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import dists as oracle

    # Its backbone comes from a library that is not here; its pools, channels' weights and formula are its own.
    monkeypatch.setattr(oracle, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(oracle, "vgg16", lambda **_: SimpleNamespace(features=vgg), raising=False)
    monkeypatch.setattr(oracle, "VGG16_Weights", SimpleNamespace(DEFAULT=None), raising=False)
    theirs, ours = oracle.DISTSNetwork(), Dists()
    photo = photograph("astronaut.png")[..., :96, 140:240]
    pairs = torch.cat([photo, photo]), torch.cat([F.avg_pool2d(photo, 5, 1, 2), photo.flip(-1)])
    torch.testing.assert_close(ours(*pairs), theirs(*pairs), rtol=1e-4, atol=1e-5)
    assert bool((ours(*pairs) > 0.001).all())


@pytest.mark.usefixtures("vgg")
def test_equal_pictures_are_at_no_distance_and_order_does_not_matter() -> None:
    ours = Dists()
    a, b = torch.rand(2, 2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(a, a), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(a, b), ours(b, a))
    torch.testing.assert_close(ours(a, b)[1:], ours(a[1:], b[1:]))


@pytest.mark.usefixtures("vgg")
def test_the_users_file_comes_first_and_a_damaged_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(tmp_path))
    torch.save({"alpha": torch.ones(1475), "beta": torch.zeros(1475)}, tmp_path / "dists.pt")
    assert Dists().texture.sum().item() == pytest.approx(1, abs=1e-4)
    torch.save({"alpha": torch.ones(3), "beta": torch.zeros(3)}, tmp_path / "dists.pt")
    with pytest.raises(MissingWeights, match=r"dists\.pt does not hold the weights"):
        Dists()


def test_without_weights_there_is_no_number(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeights, match=r"vgg16-397923af\.pth are not here: --download") as caught:
        Dists()
    assert str(no_weights) in str(caught.value)
    monkeypatch.setattr(module, "_shipped", list)
    with pytest.raises(MissingWeights, match="DISTS needs the weights of its channels: run `pip install torchmetrics`"):
        Dists()
    assert "torchvision" not in sys.modules
