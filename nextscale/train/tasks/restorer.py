"""Trains the restorer by itself, against photographs at every factor."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.restorer import Restorer
from nextscale.train.config import LoopConfig, RestorationConfig, anchor_inputs
from nextscale.train.log import Numbers
from nextscale.train.loop import decay_groups
from nextscale.train.stream import Samples, Stream
from nextscale.train.terms import Chances, Terms, chances, window_of
from nextscale.train.validation import Validation


class RestorerTask:
    """The restorer against photographs at every factor; samples differ in how much noise is to go (`denoise`).

    Args:
        restorer: trained in place; where the largest factor has layers of its own, these and its head alone.
        samples: of its training.
        config: weights of the terms.
        validation: photographs for `validation_pictures`.
        anchored: whose pictures the anchor keeps (default: those of the restorer as it is now).

    Raises:
        OptionError: the restorer has more factors than the config has weights.
    """

    def __init__(
        self,
        restorer: Restorer,
        samples: Samples,
        config: RestorationConfig,
        validation: Validation | None = None,
        anchored: Restorer | None = None,
    ) -> None:
        self.model: nn.Module = restorer
        self.restorer = restorer
        self.config = config
        self.validation = validation
        self.device = next(restorer.parameters()).device
        self.stream = Stream(samples, self.device)
        self.grad_accum_steps = 1
        self.terms = Terms(config, restorer.config.factors, self.device, samples.photographs.seed)
        self.adversary = self.terms.adversary
        factors = restorer.config.factors
        self.factors = factors if restorer.largest is None else factors[-1:]
        self.anchored = copy.deepcopy(anchored or restorer).requires_grad_(False) if config.anchor else None
        """The restorer whose pictures of photographs are kept (`anchor`)."""
        self.held = Stream(samples.of_presets(config.anchor_presets), self.device) if config.anchor else None
        """Inputs of cameras, which the anchor sees beside photographs."""
        restorer.requires_grad_(restorer.largest is None)
        for own in (restorer.largest, restorer.deeper, restorer.cleaning, restorer.heads[-1], restorer.refinement):
            if own is not None:
                own.requires_grad_(True)
        for network in (restorer, self.anchored):
            if network is not None:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        self.grad_accum_steps = config.grad_accum_steps
        return decay_groups(self.model.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, Numbers]:
        samples = self.stream.batch(step, batch)
        optimizer_step = step // self.grad_accum_steps
        inputs = samples.inputs.contiguous(memory_format=torch.channels_last)
        denoise = samples.denoise if bool((samples.denoise < 1).any()) else 1.0
        features = self.restorer.features(inputs, denoise, self.factors)
        total = inputs.new_zeros(())
        numbers: dict[str, float | Tensor] = {}
        every = self.restorer.config.factors
        for factor in self.factors:
            number = every.index(factor)
            # The perceptual networks cost as much as the restorer: the smaller factors take turns.
            if number < len(every) - 1 and optimizer_step % (len(every) - 1) != number:
                continue
            picture = self.restorer.draft(features, inputs, factor)
            target = samples.target_at(picture.shape[-1])
            loss, logged = self.terms.loss(
                number, picture, target, samples.smooth > 0, optimizer_step, given=samples.given > 0
            )
            total = total + loss
            numbers |= logged
        if self.held is not None:
            chance = chances(self.stream.samples.photographs.seed, len(every), optimizer_step)
            count = anchor_inputs(batch, self.config.anchor_share)
            undamaged = int(count * self.config.anchor_photographs)
            held = [windows(samples.targets[:undamaged], inputs.shape[-1], chance)]
            if undamaged < count:
                held.insert(0, self.held.batch(step, count - undamaged).inputs)
            moved = self._moved(torch.cat(held))
            total = total + self.config.anchor * moved
            numbers["anchor"] = moved.detach()
        numbers["loss"] = total.detach()
        return total, numbers

    def _moved(self, inputs: Tensor) -> Tensor:
        """How far the largest factor's pictures of inputs B 3 h h are from the anchor's: pixels and their
        differences."""
        assert self.anchored is not None
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        factor = self.factors[-1:]
        made = self.restorer.draft(self.restorer.features(inputs, factors=factor), inputs, *factor)
        with torch.no_grad():
            before = self.anchored.draft(self.anchored.features(inputs, factors=factor), inputs, *factor)
        apart = made.float() - before.float()
        steps = [(apart[..., 1:] - apart[..., :-1]), (apart[..., 1:, :] - apart[..., :-1, :])]
        return apart.abs().mean() + 1.5 * torch.stack([step.abs().mean() for step in steps]).sum()

    @torch.no_grad()
    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        """The validation photographs restored by the averaged restorer, per factor: B 3 H H in [-1, 1]."""
        assert self.validation is not None
        inputs = self.validation.inputs.contiguous(memory_format=torch.channels_last)
        parts = [average(part) for part in torch.split(inputs, 4)]
        return [torch.cat(pictures).clamp(-1, 1) for pictures in zip(*parts, strict=True)]


def windows(photographs: Tensor, side: int, chance: Chances) -> Tensor:
    """Photographs B 3 H H as inputs B 3 side side: a part of each, half of the time at half the size."""
    return window_of(F.avg_pool2d(photographs, 2) if chance[2] < 0.5 else photographs, chance, side)
