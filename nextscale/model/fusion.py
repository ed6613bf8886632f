"""The fusion of decoder and restorer features: the image of a stage, and its expected error.

Everything happens at the input's resolution: the features of a stage's decoder are resized to it and give a scale and a
shift for the restorer's features (the controllable feature transformation of CodeFormer, Zhou et al. 2022). Residual
blocks, which start at zero, and a head, which starts as the restorer's, follow: an untrained fusion gives exactly the
restorer's image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.config import FusionConfig
from nextscale.model.layers import PlainBlock, zero_
from nextscale.model.restorer import add_residual


class Fusion(nn.Module):
    """One stage's fusion.

    Args:
        config: sizes.
        features: channels of the restorer's features.
        decoded: channels of the stage decoder's features.
        factor: output side over the input's.
    """

    def __init__(self, config: FusionConfig, features: int, decoded: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        width = config.channels
        self.codes = nn.Conv2d(decoded + 1, width, 3, padding=1)
        self.mix = nn.Conv2d(width + features, width, 3, padding=1)
        self.affine = nn.Conv2d(width, 2 * features, 3, padding=1)
        self.blocks = nn.ModuleList(PlainBlock(features) for _ in range(config.blocks))
        self.head = nn.Conv2d(features, 3 * factor**2, 3, padding=1)
        self.error_in = nn.Conv2d(features + 1, config.error_channels, 3, padding=1)
        self.error_out = nn.Conv2d(config.error_channels, factor**2, 3, padding=1)
        zero_(self.affine)
        for block in self.blocks:
            zero_(block.conv2)  # type: ignore[arg-type]
        with torch.no_grad():
            self.error_out.bias.fill_(-3.0)  # type: ignore[union-attr]

    def checkpoint_units(self) -> list[nn.Module]:
        """The blocks that activation checkpointing runs again, and that FSDP gathers one at a time."""
        return list(self.blocks)

    def forward(
        self, inputs: Tensor, features: Tensor, decoded: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Image and expected error of one stage.

        Args:
            inputs: the photographs B 3 h w in [-1, 1].
            features: the restorer's, B C h w.
            decoded: the stage decoder's features, B D h' w' of any size.
            probabilities: of the stage's codes under the transformer, B 1 h w in [0, 1].

        Returns:
            the image B 3 H W (H = factor h), about [-1, 1], float32, not clamped; and the expected absolute error of
            its pixels, mean over the colors, B 1 H W in the same units. The error's gradient stops at the features.
        """
        size = features.shape[-2:]
        if decoded.shape[-2:] != size:
            decoded = F.interpolate(decoded, size=size, mode="bilinear")
        # Centered, so that the plane says nothing on average.
        sure = (probabilities - 0.5).to(decoded)
        codes = F.relu(self.codes(torch.cat([decoded, sure], dim=1)))
        scale, shift = self.affine(F.relu(self.mix(torch.cat([codes, features], dim=1)))).chunk(2, dim=1)
        h = features + scale * features + shift
        for block in self.blocks:
            h = block(h)
        error = F.relu(self.error_in(torch.cat([h.detach(), sure], dim=1)))
        error = F.pixel_shuffle(self.error_out(error).float(), self.factor)
        return add_residual(inputs, self.head(h), self.factor), F.softplus(error)


def laplace_loss(picture: Tensor, target: Tensor, error: Tensor) -> Tensor:
    """Laplace negative log-likelihood of an image's errors (B 3 H W) given the expected ones (B 1 H W).

    No gradient reaches the image.
    """
    true = (picture.detach() - target).abs().mean(dim=1, keepdim=True)
    # An 8-bit level is the least that can be meant.
    expected = error.clamp(min=1 / 255)
    out: Tensor = (expected.log() + true / expected).mean()
    return out
