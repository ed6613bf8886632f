"""A small convolutional autoencoder as encoder and decoder of the tokenizer.

The networks are TAESD's in the form of TAEF2 (madebyollin/taesd, taesd.py; MIT, Copyright (c) 2023 Ollin Boer Bohan),
and its published weights load. Their latents have 1/8 of the image's side; space-to-depth and a linear map turn them
into latents of 1/16, and back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.config import TaesdConfig


class TaesdBlock(nn.Module):
    """Three convolutions with a residual connection, B C h w -> B C h w.

    Args:
        channels: C.
        pooled: first add a branch with a group norm over the whole image, as the lowest level has it.
    """

    def __init__(self, channels: int, *, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.pool: nn.Sequential | None = None
        if pooled:
            inner = 4 * channels
            self.pool = nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False),
                nn.GroupNorm(4, inner),
                nn.ReLU(),
                nn.Conv2d(inner, channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    """3 tanh(x / 3): any values, smoothly into (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _blocks(config: TaesdConfig, *, pooled: bool = False) -> list[nn.Module]:
    return [TaesdBlock(config.channels, pooled=pooled) for _ in range(config.blocks)]


class TaesdEncoder(nn.Module):
    """Images B 3 H W in [-1, 1] -> B s^2*z h w, where z are TAESD's channels, s is space-to-depth and h = H / (8 s)."""

    linear = None

    def __init__(self, config: TaesdConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), TaesdBlock(width)]
        for level in range(config.levels):
            layers += [nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)]
            layers += _blocks(config, pooled=level == config.levels - 1)
        layers += [nn.Conv2d(width, config.inner_channels, 3, padding=1)]
        self.net = nn.Sequential(*layers)
        self.space_to_depth = config.space_to_depth

    def forward(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.net(images / 2 + 0.5), self.space_to_depth)


class TaesdDecoder(nn.Module):
    """Latents of a stage B C h w -> images B 3 16h 16w, about [-1, 1].

    Args:
        config: sizes.
        factor: side of the stage's image over the input's; `features` stops at the level with the input's resolution.
    """

    fusion = None

    def __init__(self, config: TaesdConfig, factor: float) -> None:
        super().__init__()
        width, s = config.channels, config.space_to_depth
        self.post_quant_conv = nn.Conv2d(config.latent_channels, s**2 * config.inner_channels, 1)
        layers: list[nn.Module] = [SoftClamp(), nn.Conv2d(config.inner_channels, width, 3, padding=1), nn.ReLU()]
        layers += _blocks(config, pooled=True)
        ends = [len(layers)]
        for level in range(config.levels):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += _blocks(config) if level < config.levels - 1 else [TaesdBlock(width)]
            ends.append(len(layers))
        layers += [nn.Conv2d(width, 3, 3, padding=1)]
        self.net = nn.Sequential(*layers)
        self.space_to_depth = s
        # Each doubling of the factor leaves one doubling of the side to the rest of the network.
        doublings = max(0, round(factor)).bit_length() - 1 if factor >= 1 else 0
        self.feature_channels = width
        """Channels of `features`."""
        self.split = ends[max(0, config.levels - doublings)]

    def forward(self, f: Tensor) -> Tensor:
        """Canvas f B C h w -> images B 3 16h 16w, not clamped."""
        return self.picture(*self.features(f))

    def features(self, f: Tensor) -> tuple[Tensor, None]:
        """Canvas f B C h w -> features B D h' w' at the input's resolution, or at that of the nearest level."""
        # The map is linear and float32: 16 bits would band smooth gradients.
        with torch.autocast(f.device.type, enabled=False):
            z = F.pixel_shuffle(self.post_quant_conv(f.float()), self.space_to_depth)
        out: Tensor = self.net[: self.split](z)
        return out, None

    def picture(self, h: Tensor, base: Tensor | None) -> Tensor:
        """The result of `features` -> images B 3 16h 16w, about [-1, 1], float32, not clamped."""
        del base
        out: Tensor = self.net[self.split :](h)
        return out.float() * 2 - 1
