"""The residual recurrence of hierarchical tokenization (paper section 3, Algorithm 1), written once.

Tokenizing, decoding a prefix, the transformer's teacher-forced inputs and the sampler's next input all drive one
`Scan`. It always runs in float32, autocast off: the ids decide everything that follows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.config import Ladder
from nextscale.model.layers import area_downsample


class Quantizer(nn.Module):
    """One codebook and the shared convolutions Phi (FoundationVision/VAR, models/quant.py).

    Args:
        codebook_size: rows of the codebook, V.
        channels: of a row and of the latents, C.
        num_phi: how many convolutions the steps share.
    """

    RATIO = 0.5
    """Share of the convolution in Phi."""

    def __init__(self, codebook_size: int, channels: int, num_phi: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook_size, channels)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_phi))

    def nearest(self, residual: Tensor) -> Tensor:
        """Residual B C h w -> ids B h w, int64, of the codebook rows nearest to its vectors."""
        with _exact(residual):
            rows = self.codebook.weight.float()
            flat = residual.float().permute(0, 2, 3, 1).reshape(-1, residual.shape[1])
            distances = (rows * rows).sum(1) - 2 * flat @ rows.T
        return distances.argmin(1).view(residual.shape[0], *residual.shape[2:])

    def lift(self, vectors: Tensor, phi: int, side: int) -> Tensor:
        """A step's vectors B C rho rho -> B C side side: bicubic enlargement, then Phi(h) = h/2 + conv(h)/2."""
        h = vectors if vectors.shape[-1] == side else F.interpolate(vectors, size=(side, side), mode="bicubic")
        out: Tensor = (1 - self.RATIO) * h + self.RATIO * self.phi[phi](h)
        return out


class Scan:
    """The canvas f while the codes of one step after another are added to it.

    f is the sum over the pushed steps k of Phi_k(up(R_k)) on the canvas of the current stage, where R_k are the
    codebook rows of the step's ids. When a stage begins, f is rebuilt on its larger canvas from all earlier codes, as
    decoding at that stage does. Gradients reach codebook and Phi.
    """

    def __init__(self, quantizer: Quantizer, ladder: Ladder) -> None:
        self.quantizer = quantizer
        self.ladder = ladder
        self.step = 0
        """The step to be pushed next."""
        self.stage = 0
        """The stage whose canvas f lies on."""
        self.f: Tensor | None = None
        """B C h w, float32; None before the first step."""
        self._vectors: list[Tensor] = []

    def _enter(self) -> None:
        stage = self.ladder.stage_of(self.step)
        if stage != self.stage:
            side = self.ladder.canvases[stage]
            self.stage = stage
            self.f = torch.stack([self._lift(k, side) for k in range(self.step)]).sum(0)

    def _lift(self, step: int, side: int) -> Tensor:
        return self.quantizer.lift(self._vectors[step], self.ladder.phi[step], side)

    def input(self) -> Tensor:
        """The transformer's input map of the next step, B C rho rho: f area-downsampled. The first step has none."""
        assert self.step, "the first step has no input map"
        with _exact(self._vectors[0]):
            self._enter()
            assert self.f is not None
            return area_downsample(self.f, self.ladder.sides[self.step])

    def residual(self, latent: Tensor) -> Tensor:
        """What the next step encodes, B C rho rho: its stage's latent B C h w minus f, area-downsampled."""
        with _exact(latent):
            self._enter()
            rest = latent.float() if self.f is None else latent.float() - self.f
            return area_downsample(rest, self.ladder.sides[self.step])

    def push(self, ids: Tensor) -> None:
        """Add the next step's codes (B rho rho, int64) to the canvas."""
        with _exact(ids):
            self._enter()
            vectors = self.quantizer.codebook(ids).float()
            self._vectors.append(vectors.permute(0, 3, 1, 2).contiguous())
            added = self._lift(self.step, self.ladder.canvases[self.stage])
            self.f = added if self.f is None else self.f + added
            self.step += 1


def _exact(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)
