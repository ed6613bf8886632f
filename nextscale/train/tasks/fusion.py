"""Trains the fusions on the frozen restorer's features and on codes: the photograph's own or predicted ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nextscale.model.config import SamplingOptions
from nextscale.model.fusion import laplace_loss
from nextscale.model.sampler import sample, tile_noise
from nextscale.model.tokenizer import Codes
from nextscale.train.config import FusionTrainingConfig, LoopConfig
from nextscale.train.distributed import positions, world
from nextscale.train.log import Numbers
from nextscale.train.loop import decay_groups
from nextscale.train.pairs import draws
from nextscale.train.stream import Samples, Stream
from nextscale.train.terms import Terms
from nextscale.train.validation import Validation
from nextscale.upscale.nextscale import NextScale, mean_probability


class FusionTask:
    """The fusions of a whole model against photographs at every factor; all else is frozen.

    The samples repeat after `cycle` of them, and their predicted codes are kept: predicting them costs as much as the
    training.

    Args:
        model: a whole model with restorer and fusions, which are trained in place.
        samples: of the training.
        config: weights of the terms, and where the codes come from.
        validation: photographs for `validation_pictures`.

    Raises:
        OptionError: the model has more factors than the config has weights.
    """

    def __init__(
        self, model: NextScale, samples: Samples, config: FusionTrainingConfig, validation: Validation | None = None
    ) -> None:
        assert model.fusions is not None
        assert model.restorer is not None
        self.whole_model = model
        self.restorer = model.restorer
        self.model: nn.Module = model.fusions
        self.config = config
        self.validation = validation
        model.requires_grad_(False)
        model.fusions.requires_grad_(True)
        self.device = model.device
        self.ladder = model.tokenizer.ladder.for_input(config.side)
        self.stream = Stream(samples, self.device)
        self.grad_accum_steps = 1
        self.terms = Terms(config, self.ladder.num_stages, self.device, samples.photographs.seed)
        self.adversary = self.terms.adversary
        self.predicted: dict[int, list[Tensor]] = {}
        """Per position: the predicted ids of all steps in a row, int16, and the probability of each, float16."""

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        self.grad_accum_steps = config.grad_accum_steps
        return decay_groups(self.model.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, Numbers]:
        config, tokenizer = self.config, self.whole_model.tokenizer
        seed = self.stream.samples.photographs.seed
        place = step % max(1, config.cycle // (batch * world()))
        samples = self.stream.batch(place, batch)
        inputs = samples.inputs.contiguous(memory_format=torch.channels_last)
        optimizer_step, first = step // self.grad_accum_steps, positions(step, batch).start
        share = config.predicted
        if optimizer_step < config.predicted_after:
            share *= optimizer_step / config.predicted_after
        use_predicted = draws(seed, 6, first, batch, 1)[:, 0] < share
        with torch.no_grad():
            restored = self.restorer.features(inputs, samples.denoise if bool((samples.denoise < 1).any()) else 1.0)
            # The codes of the photographs and of the transformer are those of float32.
            with torch.autocast(inputs.device.type, enabled=False):
                codes, probabilities = self._codes(
                    samples.targets, inputs, samples.clean, positions(place, batch), use_predicted
                )
            canvases = tokenizer.canvases(codes)
        total = inputs.new_zeros(())
        numbers: dict[str, float | Tensor] = {"predicted": float(use_predicted.mean())}
        for stage, f in enumerate(canvases):
            maps = [probabilities[k] for k in self.ladder.steps_of(stage)]
            with torch.no_grad():
                decoded, _ = tokenizer.decoders[stage].features(f)  # type: ignore[operator]
            picture, error = self.model[stage](inputs, restored, decoded, mean_probability(maps, inputs))  # type: ignore[index]
            target = samples.target_at(picture.shape[-1])
            loss, logged = self.terms.loss(stage, picture, target, samples.smooth > 0, optimizer_step)
            error_loss = laplace_loss(picture, target, error)
            total = total + loss + config.error * error_loss
            numbers |= logged | {f"error_{stage + 1}": error_loss.detach()}
        numbers["loss"] = total.detach()
        return total, numbers

    def _codes(
        self, targets: Tensor, inputs: Tensor, clean: Tensor, places: range, use_predicted: np.ndarray
    ) -> tuple[Codes, list[Tensor]]:
        """Per sample, its predicted codes where `use_predicted` is true, else those of its target.

        Returns:
            the codes, and per step the probability of each, B rho rho. The targets' codes were not predicted; they get
            one half everywhere.
        """
        whole, ladder = self.whole_model, self.ladder
        missing = [i for i, place in enumerate(places) if use_predicted[i] and place not in self.predicted]
        if missing:
            condition = whole.pipeline.condition(inputs[missing], 0, ladder)
            condition.classes.copy_(clean[missing].long())
            noise = tile_noise(0, [(0, 0)] * len(missing))
            *_, last = sample(
                whole.transformer, whole.tokenizer.quantizer, ladder, condition, SamplingOptions(), noise=noise
            )
            ids = torch.cat([step.flatten(1) for step in last.codes.steps], dim=1).short()
            probabilities = torch.cat([step.flatten(1) for step in last.probabilities], dim=1).half()
            for row, i in enumerate(missing):
                self.predicted[places[i]] = [ids[row].clone(), probabilities[row].clone()]
        rows = {i: self.predicted[places[i]] for i in np.flatnonzero(use_predicted).tolist()}
        own = np.flatnonzero(~use_predicted).tolist()
        if own:
            encoded = whole.tokenizer.encode(targets[own], ladder=ladder)
            ids = torch.cat([step.flatten(1) for step in encoded.steps], dim=1).short()
            rows |= {i: [row, torch.full_like(row, 0.5, dtype=torch.float16)] for i, row in zip(own, ids, strict=True)}
        ids, probabilities = (torch.stack(part) for part in zip(*(rows[i] for i in range(len(places))), strict=True))

        def split(part: Tensor) -> list[Tensor]:
            sides = ladder.sides
            steps = torch.split(part, [side * side for side in sides], dim=1)
            return [step.view(-1, side, side) for step, side in zip(steps, sides, strict=True)]

        return Codes(split(ids.long()), ladder), split(probabilities.float())

    def state_dict(self) -> dict[str, Any]:
        """The predicted codes, which take long to compute."""
        return {"remembered": self.predicted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the predicted codes of a saved state."""
        self.predicted = dict(state["remembered"])

    @torch.no_grad()
    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        """The validation photographs restored by the averaged fusions from predicted codes, at each stage."""
        assert self.validation is not None
        whole = self.whole_model
        made = []
        for inputs, classes in zip(
            torch.split(self.validation.inputs, 4), torch.split(self.validation.classes, 4), strict=True
        ):
            ladder = whole.tokenizer.ladder.for_input(inputs.shape[-1])
            condition = whole.pipeline.condition(inputs, 0, ladder)
            condition.classes.copy_(classes)
            noise = tile_noise(0, [(0, 0)] * len(inputs))
            restored = self.restorer.features(inputs.contiguous(memory_format=torch.channels_last))
            pictures = []
            for stage in sample(
                whole.transformer, whole.tokenizer.quantizer, ladder, condition, SamplingOptions(), noise=noise
            ):
                decoded, _ = whole.tokenizer.decoders[stage.stage].features(stage.f)  # type: ignore[operator]
                confidence = mean_probability([stage.probabilities[k] for k in ladder.steps_of(stage.stage)], inputs)
                pictures.append(average[stage.stage](inputs, restored, decoded, confidence)[0].clamp(-1, 1))  # type: ignore[index]
            made.append(pictures)
        return [torch.cat(parts) for parts in zip(*made, strict=True)]
