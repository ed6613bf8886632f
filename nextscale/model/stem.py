"""The stem: the restorer's features of a photograph -> the transformer's condition on every stage's canvas.

It stands for the tokenizer's encoder, which at x4 is nearly as much work as all the rest: convolutions bring what the
restorer knows to the resolution of the encoder's last level, and a copy of that level goes on from there. At x1 the
encoder itself is cheap, and its latents can take the place of the stem's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import ModelError
from nextscale.model.config import Ladder, StemConfig
from nextscale.model.layers import PlainBlock, area_downsample
from nextscale.model.taesd import TaesdBlock, TaesdEncoder


class Stem(nn.Module):
    """Features B C s s and the images they were made of -> one map per stage, B D c c with c the stage's canvas.

    The restorer's heads add to the image, so its features leave out the colors: without the image the latents, and with
    them the codes, get a tint (LOG.md).

    The first channels of D stand for the latents of the stage's image; the others are free.

    Args:
        config: sizes.
        ladder: of the model; others for the same patch are told at each call.
        latent_channels: of the tokenizer, at most D.
    """

    LEVEL_SIDE = 4
    """Side of what the last level reads, over the canvas: a convolution halves it, and so does space-to-depth."""

    def __init__(self, config: StemConfig, ladder: Ladder, latent_channels: int) -> None:
        super().__init__()
        width = config.channels
        sides = [self.LEVEL_SIDE * canvas for canvas in ladder.canvases]
        # How often the input's side halves before it would fall below what the last level reads.
        self.depths = [max(0, (ladder.input_side // side).bit_length() - 1) for side in sides]
        self.enter = nn.Conv2d(config.features + 3, width, 3, padding=1)
        self.block = PlainBlock(width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU(), PlainBlock(width))
            for _ in range(max(self.depths))
        )
        self.leave = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in sides)
        self.level = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False),
            *(TaesdBlock(width, pooled=True) for _ in range(config.blocks)),
            nn.Conv2d(width, config.inner_channels, 3, padding=1),
        )
        self.latent = nn.Conv2d(4 * config.inner_channels, latent_channels, 1)
        free = config.out_channels - latent_channels
        self.free = nn.ModuleList(nn.Conv2d(width, free, 1) for _ in sides) if free else None

    def forward(self, features: Tensor, images: Tensor, ladder: Ladder, encoded: Sequence[Tensor] = ()) -> list[Tensor]:
        """The condition of each stage, float32, the last one's canvas last.

        Args:
            features: B C s s, s the ladder's input side.
            images: B 3 s s in [-1, 1].
            ladder: the model's, or the same for another side.
            encoded: latents B Z c c of the first stages' restored images, where they are known.
        """
        entering = torch.cat([features, images.to(features.dtype)], dim=1)
        levels = [self.block(F.relu(self.enter(entering)))]
        for down in self.down:
            levels.append(down(levels[-1]))
        maps = []
        for stage, (leave, depth, canvas) in enumerate(zip(self.leave, self.depths, ladder.canvases, strict=True)):
            side = self.LEVEL_SIDE * canvas
            h = levels[depth]
            if h.shape[-1] < side:
                h = F.interpolate(h, size=(side, side), mode="nearest")
            h = area_downsample(h, side)
            if stage < len(encoded):
                z = encoded[stage]
            else:
                z = self.latent(F.pixel_unshuffle(self.level(F.relu(leave(h))), 2))
            if self.free is not None:
                z = torch.cat([z, self.free[stage](area_downsample(h, canvas))], dim=1)
            maps.append(z.float())
        return maps

    @torch.no_grad()
    def start_from(self, encoder: TaesdEncoder, quant_conv: nn.Conv2d) -> None:
        """Take the last level from a tokenizer's encoder.

        Raises:
            ModelError: its sizes are others.
        """
        layers = len(self.level)
        try:
            self.level.load_state_dict(
                {
                    f"{int(name.split('.')[0]) - len(encoder.net) + layers}.{name.partition('.')[2]}": tensor
                    for name, tensor in encoder.net.state_dict().items()
                    if int(name.split(".")[0]) >= len(encoder.net) - layers
                }
            )
            self.latent.load_state_dict(quant_conv.state_dict())
        except RuntimeError:
            raise ModelError(
                "the stem's sizes are not those of the tokenizer's encoder; change transformer.stem in the config"
            ) from None
