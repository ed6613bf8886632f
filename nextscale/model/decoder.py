"""Decodes the canvas of a stage to an image; in version 4 models a dial blends it with the degraded input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import ModelError
from nextscale.model.config import AutoencoderConfig, DecoderFusionConfig
from nextscale.model.layers import PlainBlock, UpLevel, group_norm, middle, zero_


class InputFeatures(nn.Module):
    """Features of the degraded input at its own resolution, computed once for all decoders."""

    def __init__(self, config: DecoderFusionConfig) -> None:
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
    """Fuses the decoded image with features of the input (CodeFormer's CFT, Zhou et al. 2022), in version 4 models.

    At the input's resolution the decoded image gives a scale and a shift for the input's features. From the result
    come a blend of decoded image and enlarged input, and a correction. Nothing is normalized, which would erase the
    contrast that the scales set. A convolution follows each doubling, or a grid would remain. The blend starts at one
    half: training that started at the enlarged input alone left the codes unused.
    """

    def __init__(self, config: DecoderFusionConfig, factor: int) -> None:
        super().__init__()
        channels = config.channels
        self.factor = factor
        self.codes = nn.Conv2d(3 * factor**2, channels, 3, padding=1)
        self.mix = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.affine = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.blocks = nn.ModuleList(PlainBlock(channels) for _ in range(config.stage_blocks))
        self.up = nn.ModuleList()
        self.growth: list[int] = []
        while factor > 1:
            double = 2 if factor % 2 == 0 else factor
            self.up.append(nn.Conv2d(channels, (config.channels // 2) * double**2, 3, padding=1))
            self.growth.append(double)
            channels, factor = config.channels // 2, factor // double
        self.refine = nn.ModuleList(PlainBlock(channels) for _ in range(config.refine if self.factor > 1 else 0))
        for block in self.refine:
            zero_(block.conv2)  # type: ignore[arg-type]
        self.conv_out = nn.Conv2d(channels, 4, 3, padding=1)
        zero_(self.conv_out)

    def forward(self, picture: Tensor, inputs: Tensor, features: Tensor) -> Tensor:
        """Decoded image B 3 sH sW, input B 3 H W and its features B C H W -> image B 3 sH sW."""
        codes = F.relu(self.codes(F.pixel_unshuffle(picture, self.factor)))
        scale, shift = self.affine(F.relu(self.mix(torch.cat([codes, features], dim=1)))).chunk(2, dim=1)
        h = features + scale * features + shift
        for block in self.blocks:
            h = block(h)
        for conv, growth in zip(self.up, self.growth, strict=True):
            h = F.relu(F.pixel_shuffle(conv(h), growth))
        for block in self.refine:
            h = block(h)
        correction, blend = self.conv_out(h).float().split((3, 1), dim=1)
        enlarged = F.interpolate(inputs, size=picture.shape[-2:], mode="bicubic")
        out: Tensor = torch.lerp(picture.float(), enlarged.float(), blend.sigmoid()) + correction
        return out


class Decoder(nn.Module):
    """VAR's decoder, one per stage.

    With a linear path, the network sees the codes' linear reconstruction pixel by pixel and corrects it. With a fusion
    config, the image is a linear blend of the decoded image (fidelity 0) and the fused one (1).
    """

    def __init__(self, config: AutoencoderConfig, fusion: DecoderFusionConfig | None, factor: float) -> None:
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
        if fusion is not None:
            if factor < 1 or factor != int(factor):
                raise ModelError(f"fusion needs whole factors of at least 1, a stage of this ladder has {factor:g}")
            self.fusion = Fusion(fusion, int(factor))

    @property
    def feature_channels(self) -> int:
        """Channels of `features`."""
        return self.conv_out.in_channels

    def forward(
        self,
        f: Tensor,
        *,
        inputs: Tensor | None = None,
        features: Tensor | None = None,
        fidelity: Tensor | None = None,
    ) -> Tensor:
        """Canvas f B C h w -> images B 3 16h 16w, about [-1, 1], not clamped.

        With `fidelity` (B 1 1 1, in [0, 1]) also the input photographs `inputs` B 3 H W and their `features`.
        """
        out = self.picture(*self.features(f))
        if self.fusion is None or fidelity is None or inputs is None or features is None:
            return out
        faithful: Tensor = self.fusion(out, inputs, features)
        return out + fidelity * (faithful - out)

    def features(self, f: Tensor) -> tuple[Tensor, Tensor | None]:
        """Canvas f B C h w -> what the last layer reads, B D h' w', and the linear path's image B 3 16h 16w."""
        # In float32 whatever the network runs in: 16 bits would band smooth gradients.
        with torch.autocast(f.device.type, enabled=False):
            f = self.post_quant_conv(f.float())
            base: Tensor | None = None if self.linear is None else self.linear(f)
        h = self.conv_in(f)
        for block in self.mid.values():
            h = block(h)
        for level in reversed(range(len(self.up))):
            if level == 0 and self.detail is not None and base is not None:
                h = h + self.detail(F.pixel_unshuffle(base, self.patch))
            h = self.up[level](h)
        return h, base

    def picture(self, h: Tensor, base: Tensor | None) -> Tensor:
        """What `features` gives -> images B 3 16h 16w, not clamped."""
        out: Tensor = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)
        return out if base is None else out + base
