"""LPIPS gives its published values, VGG19 its mean activations, and missing weights an error instead of a number."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextscale.errors import NextScaleError
from nextscale.evaluate.metrics.lpips import Lpips, LpipsNet, Vgg19Features
from nextscale.evaluate.metrics.psnr_ssim import psnr, ssim
from nextscale.evaluate.weights import MissingWeights
from tests.evaluate.conftest import photograph
from tests.skips import shared


def astronaut() -> Tensor:
    """One photograph, 1 x 3 x 128 x 160 in [0, 1]."""
    return photograph("astronaut.png")[..., :128, 140:300]


def pair(batch: int = 2, side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    a, b = torch.rand(2, batch, 3, side, side, generator=generator) * 2 - 1
    return a, b


# --- published values -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("weights")
def test_squeeze_gives_the_documented_value() -> None:
    torch.manual_seed(123)
    a, b = torch.rand(10, 3, 100, 100) * 2 - 1, torch.rand(10, 3, 100, 100) * 2 - 1
    assert Lpips("squeeze")(a, b).mean().item() == pytest.approx(0.1008, abs=5e-5)


# data set, factor, (PSNR-Y, SSIM-Y, LPIPS-alex) of Pillow's bicubic over the first four pairs, and over all of them.
BICUBIC = [
    ("RealSR", 4, (26.4677, 0.7980, 0.4182), (26.51, 0.7518, 0.4524)),
    ("val", 1, (29.2977, 0.8021, 0.2783), (29.94, 0.8126, 0.2256)),
    ("val", 2, (25.8662, 0.6580, 0.6235), (27.11, 0.6850, 0.5334)),
    ("val", 4, (24.1468, 0.5900, 0.7602), (25.43, 0.6157, 0.7532)),
]


def bicubic_row(dataset: str, factor: int, num_pairs: int | None) -> list[float]:
    """Mean PSNR-Y, SSIM-Y and LPIPS-alex of the LR enlarged by Pillow, against HR area-averaged to that size."""

    def read(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    def batch(images: list[Image.Image]) -> Tensor:
        return torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255

    root = shared("NEXTSCALE_BENCH", "bench", dataset)
    lr = [read(path) for path in sorted((root / "LR").iterdir())[:num_pairs]]
    hr = [read(path) for path in sorted((root / "HR").iterdir())[:num_pairs]]
    pred = batch(
        [image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC) for image in lr]
    )
    target = F.avg_pool2d(batch(hr), 4 // factor)
    lpips = Lpips("alex")
    distance = torch.cat([lpips(a[None], b[None]) for a, b in zip(pred * 2 - 1, target * 2 - 1, strict=True)])
    return [metric.mean().item() for metric in (psnr(pred, target), ssim(pred, target), distance)]


@pytest.mark.integration
@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("dataset", "factor", "row", "_"), BICUBIC)
def test_bicubic_on_four_pairs(dataset: str, factor: int, row: tuple[float, ...], _: object) -> None:
    assert bicubic_row(dataset, factor, 4) == pytest.approx(row, abs=6e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("dataset", "factor", "_", "row"), BICUBIC)
def test_bicubic_on_all_pairs(dataset: str, factor: int, _: object, row: tuple[float, ...]) -> None:
    decibel, similarity, distance = bicubic_row(dataset, factor, None)
    assert decibel == pytest.approx(row[0], abs=0.01)
    assert (similarity, distance) == pytest.approx(row[1:], abs=3e-4)


# --- LPIPS against another implementation -----------------------------------------------------------------------------


def vgg16_tensors() -> dict[str, Tensor]:
    """Random tensors under the names and in the shapes of the official file, with its classifier's first bias."""
    generator = torch.Generator().manual_seed(7)
    convs = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    convs |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
    state = {"classifier.0.bias": torch.zeros(4096)}
    for number, (width, out) in convs.items():
        state[f"features.{number}.weight"] = torch.randn(out, width, 3, 3, generator=generator) / (4.5 * width) ** 0.5
        state[f"features.{number}.bias"] = torch.zeros(out)
    return {name: tensor.half() for name, tensor in state.items()}


def assert_agrees_with_oracle(net: LpipsNet, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as oracle

    ours = Lpips(net)
    # Its backbone comes from a library that is not here; its taps, normalization and heads are its own.
    monkeypatch.setattr(oracle, "_get_tv_model_features", lambda *_: ours.features)
    theirs = oracle._LPIPS(net=net)
    photo = astronaut() * 2 - 1
    for a, b in (pair(), (photo, F.avg_pool2d(photo, 5, stride=1, padding=2))):
        torch.testing.assert_close(ours(a, b), theirs(a, b).flatten(), rtol=1e-5, atol=1e-7)


@pytest.mark.integration
@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_agrees_with_torchmetrics(net: LpipsNet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_agrees_with_oracle(net, monkeypatch)


@pytest.mark.integration
def test_vgg_reads_the_official_file_from_the_hub_cache(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_weights.mkdir()
    file = no_weights / "vgg16-397923af.pth"
    tensors = vgg16_tensors()
    torch.save(tensors, file)
    try:
        assert_agrees_with_oracle("vgg", monkeypatch)
        torch.testing.assert_close(Lpips("vgg").features[28].weight, tensors["features.28.weight"].float())
    finally:
        file.unlink()


@pytest.mark.usefixtures("weights")
def test_batch_equals_one_by_one_and_order_does_not_matter() -> None:
    lpips = Lpips("alex")
    a, b = pair(3)
    alone = torch.cat([lpips(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(lpips(a, b), alone)
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert torch.equal(lpips(a, a), torch.zeros(3))


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_images_get_gradients_and_weights_do_not(net: LpipsNet) -> None:
    lpips = Lpips(net)
    a, b = pair()
    a[0] = b[0] = -1.0
    a.requires_grad_()
    lpips(a, b).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert a.grad[1].abs().max() > 0
    assert not lpips.training
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


# --- VGG19 ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("weights")
def test_vgg19_activations_are_normalized() -> None:
    image = astronaut()
    activations = Vgg19Features()(image)
    assert [tuple(x.shape[1:]) for x in activations] == [
        (64, 128, 160),
        (64, 128, 160),
        (128, 64, 80),
        (128, 64, 80),
        (256, 32, 40),
    ]
    for activation in activations:
        assert 0.4 < activation.mean().item() < 1.6
        assert activation.min() >= 0


@pytest.mark.usefixtures("weights")
def test_vgg19_gives_the_layers_asked_for() -> None:
    image = astronaut()
    every = Vgg19Features()(image)
    some = Vgg19Features(["conv2_2", "conv1_1"])(image)
    assert len(some) == 2
    assert torch.equal(some[0], every[0])
    assert torch.equal(some[1], every[3])
    with pytest.raises(ValueError, match="conv4_1"):
        Vgg19Features(["conv4_1"])


@pytest.mark.usefixtures("weights")
def test_vgg19_is_frozen_yet_differentiable() -> None:
    vgg = Vgg19Features(["conv3_1"])
    image = astronaut().requires_grad_()
    vgg(image)[0].square().mean().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


# --- weights that are missing or damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "file"),
    [
        ("alex", "alexnet-owt-7be5be79.pth"),
        ("squeeze", "squeezenet1_1-b8a52dc0.pth"),
        ("vgg", "vgg16-397923af.pth"),
    ],
)
def test_a_missing_backbone_is_named_with_its_remedy(net: LpipsNet, file: str, no_weights: Path) -> None:
    with pytest.raises(MissingWeights, match=f"https://download.pytorch.org/models/{file}") as error:
        Lpips(net)
    assert "NEXTSCALE_WEIGHTS" in str(error.value)
    assert str(no_weights) in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, NextScaleError)


def test_missing_heads_are_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alexnet_features.pth").symlink_to(weights / "alexnet_features.pth")
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingWeights, match=r"lin/alex\.pth"):
        Lpips("alex")


def test_heads_are_found_in_an_installed_package(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair()
    expected = Lpips("squeeze")(a, b)
    (tmp_path / "squeezenet1_1-b8a52dc0.pth").symlink_to(weights / "squeezenet1_1_features.pth")
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(tmp_path))
    assert torch.equal(Lpips("squeeze")(a, b), expected)


@pytest.mark.usefixtures("no_weights")
def test_missing_vgg19_is_named() -> None:
    with pytest.raises(MissingWeights, match=r"vgg19_normalised_relu3_1\.pth"):
        Vgg19Features()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02c__builtin__\neval\n."])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alexnet_features.pth").write_bytes(content)
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match=r"alexnet_features\.pth"):
        Lpips("alex")


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet_features.pth")
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="remove or replace"):
        Lpips("alex")


def test_without_vgg19_the_options_that_do_without_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.evaluate.metrics.lpips.first_file", lambda _: None)
    with pytest.raises(MissingWeights, match=r"--restoration\.feature 0 .*--reconstruction\.feature 0"):
        Vgg19Features()
