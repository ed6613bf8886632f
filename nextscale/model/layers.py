"""Convolution, residual and attention blocks shared by the encoder and the decoders.

Layers and parameter names are those of VAR's autoencoder (FoundationVision/VAR, models/basic_vae.py), so that its
checkpoints load as they are. Shapes: B batch, C channels, h w side in latents or features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """VAR's 32 groups, or the most that divide a narrower width."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalized 3x3 convolutions around a shortcut. B C h w -> B C' h w."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = self.nin_shortcut(x) + h
        return out


class PlainBlock(nn.Module):
    """Residual block without normalization, which would erase the contrast that a fidelity branch must keep."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions. B C h w -> B C h w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return x + out


class Downsample(nn.Module):
    """Halve the side: zeros to the right and below, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double the side: nearest neighbor, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where asked. B C h w -> B width h w."""

    def __init__(self, channels_in: int, width: int, blocks: int, *, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(channels_in if i == 0 else width, width) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(width) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class DownLevel(Level):
    """A level of the encoder; all but the lowest halve the side at their end."""

    def __init__(self, channels_in: int, width: int, blocks: int, *, attention: bool, lowest: bool) -> None:
        super().__init__(channels_in, width, blocks, attention=attention and lowest)
        self.downsample = None if lowest else Downsample(width)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(Level):
    """A level of a decoder; all but the highest double the side at their end."""

    def __init__(self, channels_in: int, width: int, blocks: int, *, attention: bool, highest: bool) -> None:
        super().__init__(channels_in, width, blocks, attention=attention)
        self.upsample = None if highest else Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)


def middle(channels: int, attention: bool) -> nn.ModuleDict:
    """The blocks at the lowest level, under VAR's names."""
    blocks: dict[str, nn.Module] = {"block_1": ResBlock(channels, channels)}
    if attention:
        blocks["attn_1"] = AttentionBlock(channels)
    blocks["block_2"] = ResBlock(channels, channels)
    return nn.ModuleDict(blocks)


def area_downsample(x: Tensor, side: int) -> Tensor:
    """Mean over equal areas (adaptive where the sides do not divide). B C h w -> B C side side."""
    return x if x.shape[-2:] == (side, side) else F.interpolate(x, size=(side, side), mode="area")


def zero_(module: nn.Module) -> None:
    """Set a layer's parameters to zero, so that it starts as no contribution."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
