"""The stem: the restorer's features of a photograph -> the transformer's condition on every stage's canvas.

A small encoder in place of the tokenizer's, which need not run where a photograph is restored: it reads what the
restorer knows already, at the input's resolution, and halves it down to each canvas.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.config import Ladder, StemConfig
from nextscale.model.layers import PlainBlock, area_downsample


class Stem(nn.Module):
    """Features B C h w -> one map per stage, B D c c with c the stage's canvas.

    The first channels of D are trained towards the latents of the photograph; the others are free.

    Args:
        config: sizes.
        ladder: of the model; others for the same patch are told at each call.
    """

    def __init__(self, config: StemConfig, ladder: Ladder) -> None:
        super().__init__()
        # How often the input's side halves before it would fall below the canvas.
        self.depths = [max(0, (ladder.input_side // canvas).bit_length() - 1) for canvas in ladder.canvases]
        width = config.channels
        self.enter = nn.Conv2d(config.features, width, 1)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU(), PlainBlock(width))
            for _ in range(max(self.depths))
        )
        self.leave = nn.ModuleList(nn.Conv2d(width, config.out_channels, 1) for _ in ladder.canvases)

    def forward(self, features: Tensor, ladder: Ladder) -> list[Tensor]:
        """The condition of each stage, the last one's canvas last.

        Args:
            features: B C s s, s the ladder's input side.
            ladder: the model's, or the same for another side.
        """
        levels = [F.relu(self.enter(features))]
        for level in self.levels:
            levels.append(level(levels[-1]))
        return [
            leave(area_downsample(levels[depth], canvas)).float()
            for leave, depth, canvas in zip(self.leave, self.depths, ladder.canvases, strict=True)
        ]
