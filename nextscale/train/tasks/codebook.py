"""Trains the codebook: k-means of the residuals, then gradient steps on codebook and Phi."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.model.config import TaesdConfig
from nextscale.model.layers import area_downsample
from nextscale.model.quantizer import Scan
from nextscale.model.tokenizer import Tokenizer
from nextscale.train.config import CodebookConfig, LoopConfig
from nextscale.train.distributed import from_first, positions, rank, summed
from nextscale.train.log import Numbers


class CodebookTask:
    """Codebook and Phi against frozen latents: squared difference after each stage and, with less weight, each step.

    The ids carry no gradient. Codebook rows that were not chosen for a while become residuals of the last step.

    Args:
        tokenizer: its quantizer is trained in place; the rest is frozen.
        crops: photographs of the last stage's side.
        config: weights, size of the k-means.
    """

    def __init__(self, tokenizer: Tokenizer, crops: Crops, config: CodebookConfig) -> None:
        self.model = tokenizer
        self.crops = crops
        self.config = config
        self.ladder = tokenizer.ladder.for_input(config.side)
        tokenizer.requires_grad_(False)
        tokenizer.quantizer.requires_grad_(True)
        self.counts = torch.zeros(tokenizer.config.codebook_size, device=tokenizer.quant_conv.weight.device)
        """How often each codebook row was chosen since the last replacement."""
        self.residuals: list[list[Tensor]] = [[] for _ in self.ladder.sides]
        """Of this optimizer step: for each scale, the rows N C of its batches."""
        self.latents_of: dict[int, list[Tensor]] = {}
        """By the number of a crop (`kept_crops`)."""
        tokenizer.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        quantizer = self.model.quantizer
        return [
            {"params": list(quantizer.codebook.parameters()), "lr": config.lr, "weight_decay": 0.0},
            {"params": list(quantizer.phi.parameters()), "lr": config.lr * self.config.phi_lr, "weight_decay": 0.0},
        ]

    def latents(self, position: int, batch: int) -> list[Tensor]:
        """Latents of the crops at `batch` positions from one on: B Z h w per stage."""
        kept = self.config.kept_crops
        if not kept:
            return self._encoded(self.crops.batch(position, batch))
        numbers = [p % kept for p in range(position, position + batch)]
        for number in numbers:
            if number not in self.latents_of:
                self.latents_of[number] = self._encoded(self.crops.crop(number).transpose(2, 0, 1)[None])
        return [torch.cat(z) for z in zip(*(self.latents_of[number] for number in numbers), strict=True)]

    def _encoded(self, crops: NDArray[np.uint8]) -> list[Tensor]:
        """Latents of crops B 3 H H of uint8: B Z h w per stage."""
        targets = torch.from_numpy(crops).to(self.counts.device).float() / 127.5 - 1
        targets = targets.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
            return self.model.stage_latents(targets, ladder=self.ladder)

    @torch.no_grad()
    def start(self) -> None:
        """Set the codebook by k-means of all steps' residuals, and Phi to the identity.

        The residuals of a step are those of the codebook so far, which k-means finds anew after each step.
        """
        quantizer = self.model.quantizer
        for phi in quantizer.phi:
            nn.init.dirac_(phi.weight)  # type: ignore[arg-type]
            phi.bias.zero_()  # type: ignore[operator]
        generator = torch.Generator().manual_seed(self.crops.seed)
        if isinstance(self.model.config.autoencoder, TaesdConfig):
            self._fit_projection()
        latents = [
            torch.cat(z)
            for z in zip(*(self.latents(i, 8) for i in range(0, self.config.kmeans_images, 8)), strict=True)
        ]
        gathered: list[Tensor] = []
        scan = Scan(quantizer, self.ladder)
        for stage, latent in enumerate(latents):
            for _ in self.ladder.steps_of(stage):
                rows = scan.residual(latent).permute(0, 2, 3, 1).flatten(0, 2)
                gathered.append(rows[torch.randperm(len(rows), generator=generator)[:6000]])
                size = len(quantizer.codebook.weight)
                rows = _kmeans(torch.cat(gathered), size, self.config.kmeans_rounds, generator)
                quantizer.codebook.weight.copy_(rows)
                scan.push(quantizer.nearest(scan.residual(latent)))

    def _fit_projection(self) -> None:
        """Set the linear maps to latents and back to the principal components of the encoder's output."""
        photos = torch.from_numpy(self.crops.batch(0, min(32, self.config.kmeans_images))).to(self.counts.device)
        images = photos.float() / 127.5 - 1
        rows = torch.cat(
            [
                self.model.encoder(area_downsample(part, side)).float().permute(0, 2, 3, 1).flatten(0, 2)
                for side in self.ladder.image_sides
                for part in torch.split(images, 8)
            ]
        )
        mean = rows.mean(0)
        _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
        basis = vectors[:, -self.model.quant_conv.out_channels :].flip(1).T
        self.model.quant_conv.weight.copy_(basis[..., None, None])
        self.model.quant_conv.bias.copy_(-basis @ mean)  # type: ignore[union-attr]
        for decoder in self.model.decoders:
            decoder.post_quant_conv.weight.copy_(basis.T[..., None, None])  # type: ignore[union-attr, operator]
            decoder.post_quant_conv.bias.copy_(mean)  # type: ignore[union-attr, operator]

    def losses(self, step: int, batch: int) -> tuple[Tensor, Numbers]:
        quantizer = self.model.quantizer
        latents = self.latents(positions(step, batch).start, batch)
        scan = Scan(quantizer, self.ladder)
        total = latents[0].new_zeros(())
        numbers: dict[str, float | Tensor] = {}
        for stage, latent in enumerate(latents):
            for k in self.ladder.steps_of(stage):
                residual = scan.residual(latent)
                ids = quantizer.nearest(residual)
                scan.push(ids)
                assert scan.f is not None
                error = (scan.f - latent).square().mean()
                total = total + self.config.step_weight * error
                counts = torch.bincount(ids.flatten(), minlength=len(self.counts)).float()
                self.counts += counts
                share = counts / counts.sum()
                numbers[f"perplexity_{k + 1}"] = torch.special.entr(share).sum().exp()
                self.residuals[k].append(residual.detach().permute(0, 2, 3, 1).flatten(0, 2))
            total = total + error
            numbers[f"l2_{stage + 1}"] = error.detach()
        numbers["usage"] = (self.counts > 0).float().mean()
        return total, numbers

    @torch.no_grad()
    def after(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        residuals, self.residuals = self.residuals, [[] for _ in self.ladder.sides]
        every = self.config.revive_every
        if not every or (step + 1) % every:
            return {}
        rows = torch.cat([row for batches in residuals for row in batches])
        weight = self.model.quantizer.codebook.weight
        # The same rows in every process, or their codebooks would drift apart.
        dead = (summed(self.counts) < 1).nonzero().flatten()
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(rows), (len(dead),), generator=generator)
        weight[dead] = from_first(rows[chosen].contiguous())
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[weight][moment][dead] = 0
        self.counts.zero_()
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights: how often all processes, which must ask together, chose each
        row."""
        return {"used": summed(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the sums of all processes go on in the first one alone."""
        self.counts = torch.zeros_like(self.counts) if rank() else state["used"].to(self.counts)


def _kmeans(rows: Tensor, count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Centers of `count` clusters of rows N C, by Lloyd's algorithm; empty clusters restart at random rows."""
    if len(rows) < count:
        rows = rows.repeat(-(-count // len(rows)), 1)
    centers = rows[torch.randperm(len(rows), generator=generator)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centers).argmin(1) for part in torch.split(rows, 8192)])
        sums = torch.zeros_like(centers).index_add_(0, nearest, rows)
        counts = torch.bincount(nearest, minlength=count).float()
        empty = counts == 0
        centers = sums / counts.clamp(min=1)[:, None]
        centers[empty] = rows[torch.randint(len(rows), (int(empty.sum()),), generator=generator)]
    return centers
