"""Latent at a stage -> image at that stage's factor, with an optional dial towards the degraded input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config import AutoencoderConfig, FusionConfig
from nextscale.tokenizer.layers import PlainBlock, UpLevel, group_norm, middle, zero_


class InputFeatures(nn.Module):
    """Features of the degraded input at its own resolution, computed once for all decoders."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.blocks = nn.ModuleList(PlainBlock(config.channels) for _ in range(config.blocks))

    def forward(self, inputs: Tensor) -> Tensor:
        """Input photographs B 3 H W in [-1, 1] -> features B C H W."""
        stem: Tensor = self.conv_in(inputs)
        h = stem
        for block in self.blocks:
            h = block(h)
        out: Tensor = h + stem
        return out


class Fusion(nn.Module):
    """Controllable feature transformation (CodeFormer, Zhou et al. 2022): features += w (scale * features + shift).

    Beside it goes a direct residual on the image: the decoder's group norms divide every picture by its own contrast,
    so that fine detail of the right strength cannot pass through them.
    """

    def __init__(self, channels: int, config: FusionConfig, stride: int, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.align = nn.Conv2d(config.channels, channels, stride, stride=stride)
        self.mix = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.affine = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.direct = nn.Conv2d(2 * channels, 3 * pixels**2, 3, padding=1)
        zero_(self.affine)
        zero_(self.direct)

    def forward(self, h: Tensor, features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed h, and the direct residual B 3 H W of the image."""
        aligned = self.align(features)
        mixed = F.silu(self.mix(torch.cat([h, aligned], dim=1)))
        scale, shift = self.affine(mixed).chunk(2, dim=1)
        direct = F.pixel_shuffle(self.direct(torch.cat([aligned, mixed], dim=1)), self.pixels)
        return h + weight * (scale * h + shift), weight * direct


class Decoder(nn.Module):
    """VAR's decoder, one per stage.

    With a linear path, the network sees the codes' linear reconstruction pixel by pixel and corrects it. With a fusion
    config, input features enter at the level nearest the input's resolution; with both, the image that is corrected
    slides from the linear reconstruction (w = 0) to the enlarged input (w = 1), so that the dial moves monotonically.
    """

    def __init__(self, config: AutoencoderConfig, fusion: FusionConfig | None, factor: float) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.patch = config.patch
        self.reduction = config.reduction
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 3, padding=1)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], config.attention)
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            lowest = level == len(widths) - 1
            above = width if lowest else widths[level + 1]
            attention = config.attention and lowest
            self.up.append(UpLevel(above, width, config.blocks + 1, attention=attention, highest=level == 0))
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)
        self.linear: nn.ConvTranspose2d | None = None
        self.detail: nn.Conv2d | None = None
        if config.linear_path:
            self.linear = nn.ConvTranspose2d(config.latent_channels, 3, self.reduction, stride=self.reduction)
            self.detail = nn.Conv2d(3 * config.patch**2, widths[min(1, len(widths) - 1)], 3, padding=1)
            zero_(self.detail)
            zero_(self.conv_out)
            with torch.no_grad():
                nn.init.dirac_(self.post_quant_conv.weight)
                self.post_quant_conv.bias.zero_()  # type: ignore[union-attr]
        self.fusion: Fusion | None = None
        self.fusion_level = 0
        if fusion is not None:
            # The level whose features are as fine as the input's pixels, or the finest below that.
            strides = [config.patch * 2**level / factor for level in range(len(widths))]
            self.fusion_level = next((i for i, s in enumerate(strides) if s >= 1), len(widths) - 1)
            entering = widths[min(self.fusion_level + 1, len(widths) - 1)]
            pixels = config.patch * 2**self.fusion_level
            self.fusion = Fusion(entering, fusion, max(1, round(strides[self.fusion_level])), pixels)

    def forward(
        self, f: Tensor, *, inputs: Tensor | None = None, features: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """Canvas f B C h w -> images B 3 16h 16w, not clamped.

        With `weight` (B 1 1 1, in [0, 1]) also the input photographs `inputs` B 3 H W and their `features`.
        """
        # In float32 whatever the network runs in: 16 bits would band smooth gradients.
        with torch.autocast(f.device.type, enabled=False):
            f = self.post_quant_conv(f.float())
            base: Tensor | None = None if self.linear is None else self.linear(f)
        direct: Tensor | None = None
        h = self.conv_in(f)
        for block in self.mid.values():
            h = block(h)
        for level in reversed(range(len(self.up))):
            if level == 0 and self.detail is not None and base is not None:
                h = h + self.detail(F.pixel_unshuffle(base, self.patch))
            if self.fusion is not None and level == self.fusion_level and weight is not None and features is not None:
                h, direct = self.fusion(h, features, weight)
            h = self.up[level](h)
        out: Tensor = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)
        if direct is not None:
            out = out + direct
        if base is None:
            return out
        if weight is not None and inputs is not None:
            enlarged = F.interpolate(inputs, size=base.shape[-2:], mode="bicubic")
            base = base + weight * (enlarged - base)
        return out + base
