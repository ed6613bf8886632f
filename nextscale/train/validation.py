"""Validation photographs of a training: fixed pairs, scores per stage, and a sheet to look at."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextscale.data.crops import Crops
from nextscale.evaluate.metrics.lpips import Lpips, MissingWeights
from nextscale.evaluate.metrics.psnr_ssim import psnr
from nextscale.model.layers import area_downsample
from nextscale.train.pairs import pairs


class Validation:
    """Fixed pairs that no training step sees: targets B 3 H H, inputs B 3 h h, both in [-1, 1], and classes B.

    Args:
        count: at most this many photographs.
        presets: names of degradations, drawn per photograph.
        clean: share of the inputs that are only reduced.
        factor: H / h.
    """

    def __init__(
        self,
        crops: Crops,
        count: int,
        presets: Sequence[str],
        clean: float,
        device: torch.device | None = None,
        *,
        factor: int,
    ) -> None:
        count = min(count, len(crops))
        self.targets, self.inputs, self.classes = pairs(crops, range(count), presets, clean, device, factor=factor)
        # LPIPS-alex judges and is never trained on.
        self.lpips: Lpips | None = None
        with contextlib.suppress(MissingWeights):
            self.lpips = Lpips("alex").to(device)

    @torch.no_grad()
    def scores(self, outputs: list[Tensor]) -> dict[str, float]:
        """Mean PSNR (Y) and, where its weights are at hand, LPIPS-alex of each stage's images B 3 h h in [-1, 1]."""
        numbers: dict[str, float] = {}
        for stage, output in enumerate(outputs):
            target = area_downsample(self.targets, output.shape[-1])
            numbers[f"psnr_{stage + 1}"] = float(psnr(output / 2 + 0.5, target / 2 + 0.5).mean())
            if self.lpips is not None:
                numbers[f"lpips_{stage + 1}"] = float(self.lpips(output, target).mean())
        return numbers

    def sheet(self, outputs: list[Tensor], rows: int = 6) -> Image.Image:
        """A picture with one row per photograph: input | each stage | truth, all at the truth's side."""
        side = self.targets.shape[-1]
        columns = [self.inputs, *outputs, self.targets]
        grown = [F.interpolate(c[:rows].float(), size=(side, side), mode="nearest") for c in columns]
        strip = torch.cat(grown, dim=3).permute(0, 2, 3, 1).flatten(0, 1)
        pixels: np.ndarray = ((strip / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return Image.fromarray(pixels)
