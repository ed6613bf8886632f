"""`runs/outlines_gpu.py`: Real-ESRGAN's file in torch, and the critic that sees the input."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nextscale.errors import NextScaleError
from tests.conftest import script


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script("outlines_gpu", monkeypatch)


def test_a_file_of_ncnn_becomes_the_network(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small enough for a test; the file's layout does not depend on the sizes.
    monkeypatch.setattr(recipe.RealEsrganNet.__init__, "__defaults__", (2, 8, 4))
    torch.manual_seed(0)
    net = recipe.RealEsrganNet()
    file = b""
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        conv.weight.data = conv.weight.data.half().float()
        weight = conv.weight.detach().half().numpy().tobytes()
        assert conv.bias is not None
        file += (
            struct.pack("<I", 0x01306B47) + weight + b"\0" * (-len(weight) % 4) + conv.bias.detach().numpy().tobytes()
        )
    (tmp_path / "net.bin").write_bytes(file)
    inputs = torch.rand(1, 3, 8, 6)
    made = recipe.real_esrgan(tmp_path / "net.bin")(inputs)
    assert made.shape == (1, 3, 32, 24)
    torch.testing.assert_close(made, net(inputs))
    (tmp_path / "net.bin").write_bytes(file + b"rest")
    with pytest.raises(NextScaleError, match=r"net\.bin"):
        recipe.real_esrgan(tmp_path / "net.bin")


def test_the_critics_pull_is_as_strong_as_its_accuracy_says(recipe: Any) -> None:
    torch.manual_seed(0)
    critic = recipe.SeesInput(width=8)
    pictures, targets, enlarged = torch.rand(3, 2, 3, 32, 32)
    pictures.requires_grad_()
    for accuracy, strength in ((0.4, 0.0), (0.75, 0.5), (1.0, 1.0)):
        critic.accuracy = accuracy
        (slope,) = torch.autograd.grad(critic.judge(pictures, targets, enlarged), pictures)
        assert float(slope.norm()) == pytest.approx(strength / pictures.numel() ** 0.5, rel=1e-3)


def test_the_critic_learns_which_are_targets(recipe: Any) -> None:
    torch.manual_seed(0)
    critic = recipe.SeesInput(lr=2e-3, width=8)
    targets = torch.rand(2, 3, 32, 32)
    for _ in range(150):
        critic.judge(torch.zeros_like(targets), targets, targets)
    assert critic.accuracy > 0.9
