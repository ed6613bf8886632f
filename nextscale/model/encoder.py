"""Image -> latent."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.config import AutoencoderConfig
from nextscale.model.layers import DownLevel, group_norm, middle, zero_


class Encoder(nn.Module):
    """VAR's encoder; with `linear_path`, a residual correction of a linear patch projection.

    A linear projection (whose best start is the principal components of the patches) already reconstructs at 26 dB, so
    the network begins with its last layer at zero and learns only what a linear map cannot carry.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.channels
        for level, width in enumerate(widths):
            lowest = level == len(widths) - 1
            self.down.append(DownLevel(channels, width, config.blocks, attention=config.attention, lowest=lowest))
            channels = width
        self.mid = middle(channels, config.attention)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)
        self.linear: nn.Conv2d | None = None
        if config.linear_path:
            side = config.reduction
            self.linear = nn.Conv2d(3, config.latent_channels, side, stride=side)
            zero_(self.conv_out)

    def forward(self, images: Tensor) -> Tensor:
        """Images B 3 H W in [-1, 1] -> features B C H/16 W/16."""
        h = self.conv_in(F.pixel_unshuffle(images, self.patch))
        for level in self.down:
            h = level(h)
        for block in self.mid.values():
            h = block(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out if self.linear is None else out + self.linear(images)
