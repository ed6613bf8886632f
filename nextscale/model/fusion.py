"""Fuses a stage's decoder features with the restorer's features into the stage's image and its expected error.

The fusion works at the input's resolution. Where it reads the codes, it resizes the features of the stage's decoder to
it and computes from them a scale and a shift for the restorer's features (the controllable feature transformation of
CodeFormer, Zhou et al. 2022). Residual blocks and a head follow. The blocks start at zero and the head starts as the
restorer's, so an untrained fusion gives exactly the restorer's image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.config import FusionConfig
from nextscale.model.layers import PlainBlock, zero_
from nextscale.model.restorer import add_residual


class Fusion(nn.Module):
    """The fusion of one stage.

    Args:
        config: widths and depth.
        features: channels of the restorer's features.
        decoded: channels of the stage decoder's features.
        factor: output side over the input's.
    """

    def __init__(self, config: FusionConfig, features: int, decoded: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.reads_codes = config.codes
        if config.codes:
            width = config.channels
            self.codes = nn.Conv2d(decoded + 1, width, 3, padding=1)
            self.mix = nn.Conv2d(width + features, width, 3, padding=1)
            self.affine = nn.Conv2d(width, 2 * features, 3, padding=1)
            zero_(self.affine)
        self.blocks = nn.ModuleList(PlainBlock(features) for _ in range(config.blocks))
        self.head = nn.Conv2d(features, 3 * factor**2, 3, padding=1)
        self.error_in = nn.Conv2d(features + 1, config.error_channels, 3, padding=1)
        self.error_out = nn.Conv2d(config.error_channels, factor**2, 3, padding=1)
        for block in self.blocks:
            zero_(block.conv2)  # type: ignore[arg-type]
        with torch.no_grad():
            self.error_out.bias.fill_(-3.0)  # type: ignore[union-attr]

    def checkpoint_units(self) -> list[nn.Module]:
        """The blocks that activation checkpointing runs again, and that FSDP gathers one at a time."""
        return list(self.blocks)

    def forward(
        self, inputs: Tensor, features: Tensor, decoded: Tensor | None, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Image and expected error of one stage.

        Args:
            inputs: B 3 h w in [-1, 1], the restorer's `base` for this factor.
            features: the restorer's, B C h w.
            decoded: the stage decoder's features, B D h' w' of any size; None where the fusion does not read them.
            probabilities: of the stage's codes under the transformer, B 1 h w in [0, 1].

        Returns:
            The image B 3 H W with H = factor * h, about [-1, 1], float32, not clamped; and the expected absolute error
            of its pixels, the mean over the channels, B 1 H W in the same units. The error's gradient does not reach
            the features.
        """
        # Centered, so that the plane is zero on average.
        certainty = (probabilities - 0.5).to(features)
        h = features
        if self.reads_codes:
            assert decoded is not None
            size = features.shape[-2:]
            if decoded.shape[-2:] != size:
                decoded = F.interpolate(decoded, size=size, mode="bilinear")
            codes = F.relu(self.codes(torch.cat([decoded, certainty], dim=1)))
            scale, shift = self.affine(F.relu(self.mix(torch.cat([codes, features], dim=1)))).chunk(2, dim=1)
            h = features + scale * features + shift
        for block in self.blocks:
            h = block(h)
        error = F.relu(self.error_in(torch.cat([h.detach(), certainty], dim=1)))
        error = F.pixel_shuffle(self.error_out(error).float(), self.factor)
        return add_residual(inputs, self.head(h), self.factor), F.softplus(error)


def keep_expected_error(before: nn.ModuleList, fusions: nn.ModuleList) -> None:
    """Let new fusions expect the errors that those before them did, where their sizes are the same.

    What is hard in a photograph is hard for another restorer too, so a training goes on from there.
    """
    for old, new in zip(before, fusions, strict=True):
        assert isinstance(old, Fusion)
        assert isinstance(new, Fusion)
        for ours, theirs in ((new.error_in, old.error_in), (new.error_out, old.error_out)):
            if ours.weight.shape != theirs.weight.shape:
                return
            ours.load_state_dict(theirs.state_dict())


def laplace_loss(picture: Tensor, target: Tensor, error: Tensor) -> Tensor:
    """Negative log-likelihood of an image's errors under Laplace distributions of the expected size.

    Args:
        picture: B 3 H W; no gradient reaches it.
        target: B 3 H W.
        error: the expected absolute error, B 1 H W, in the units of the pictures.

    Returns:
        The mean over all pixels, without the constant.
    """
    true_error = (picture.detach() - target).abs().mean(dim=1, keepdim=True)
    # Errors below one 8-bit level cannot be seen.
    expected = error.clamp(min=1 / 255)
    out: Tensor = (expected.log() + true_error / expected).mean()
    return out
