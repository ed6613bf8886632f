"""Trains what turns codes into pictures, on the photograph's own codes and on those that the transformer predicts.

That is the decoders, for codes alone, or the fusions of codes with the restorer's features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

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
from nextscale.train.terms import Terms, chances
from nextscale.train.validation import Validation
from nextscale.upscale.nextscale import NextScale, mean_probability

Window = tuple[slice, slice]
WHOLE: Window = (slice(None), slice(None))
MARGIN = 8
"""Input pixels by which a decoded window is larger than what the perceptual terms see of it."""


class FusionTask:
    """The fusions of a whole model, or its decoders, against photographs at every factor; all else is frozen.

    The samples repeat after `cycle` of them, and their predicted codes are kept: predicting them costs as much as the
    training.

    Args:
        model: a whole model, of which one part is trained in place; with restorer and fusions if these are the part.
        samples: of the training.
        config: weights of the terms, and where the codes come from.
        validation: photographs for `validation_pictures`.
        part: what is trained.

    Raises:
        OptionError: the model has more factors than the config has weights.
    """

    def __init__(
        self,
        model: NextScale,
        samples: Samples,
        config: FusionTrainingConfig,
        validation: Validation | None = None,
        *,
        part: Literal["fusion", "decoders"] = "fusion",
    ) -> None:
        self.whole_model = model
        self.part = part
        trained = model.fusions if part == "fusion" else model.tokenizer.decoders
        assert trained is not None
        self.model: nn.Module = trained
        self.config = config
        self.validation = validation
        model.requires_grad_(False)
        trained.requires_grad_(True)
        self.device = model.device
        self.ladder = model.tokenizer.ladder.for_input(config.side)
        self.stream = Stream(samples, self.device)
        self.grad_accum_steps = 1
        self.terms = Terms(config, self.ladder.factors, self.device, samples.photographs.seed)
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
        # The codes of the photographs and of the transformer are those of float32.
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            codes, probabilities = self._codes(
                samples.targets, inputs, samples.clean, positions(place, batch), use_predicted
            )
            canvases = tokenizer.canvases(codes)
        denoise = samples.denoise if bool((samples.denoise < 1).any()) else 1.0
        total = inputs.new_zeros(())
        numbers: dict[str, float | Tensor] = {"predicted": float(use_predicted.mean())}
        made = self._pictures(self.model, inputs, denoise, canvases, probabilities, optimizer_step)
        for stage, (picture, error, (rows, columns)) in enumerate(made):
            target = samples.target_at(self.ladder.image_sides[stage])[..., rows, columns]
            loss, logged = self.terms.loss(
                stage, picture, target, samples.smooth > 0, optimizer_step, given=samples.given > 0
            )
            total = total + loss
            numbers |= logged
            if error is not None:
                error_loss = laplace_loss(picture, target, error)
                total = total + config.error * error_loss
                numbers[f"error_{stage + 1}"] = error_loss.detach()
        numbers["loss"] = total.detach()
        return total, numbers

    def _pictures(
        self,
        trained: nn.Module,
        inputs: Tensor,
        denoise: Tensor | float,
        canvases: Sequence[Tensor],
        probabilities: Sequence[Tensor],
        step: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None, Window]]:
        """Per stage, the trained part's pictures B 3 H H, and the error they expect where the part is the fusions.

        Decoding is most of a decoder's training and its terms look at windows: at a step, larger pictures are decoded
        only around one. The last value says where it is.

        Args:
            trained: the part, or its average.
            inputs: B 3 h h in [-1, 1].
            denoise: of the inputs, B in [0, 1].
            canvases: of all stages, B C h w.
            probabilities: of each code, B rho rho per step.
            step: which draws the windows; without it the pictures are whole.
        """
        decoders = self.whole_model.tokenizer.decoders
        if self.part == "decoders":
            for stage, (decoder, f) in enumerate(zip(trained.children(), canvases, strict=True)):
                h, base = decoder.features(f)  # type: ignore[operator]
                factor = int(self.ladder.factors[stage])
                window = WHOLE
                if step is not None and base is None and h.shape[-1] == inputs.shape[-1]:
                    size = min(h.shape[-1], self.config.window // factor + MARGIN)
                    # Other numbers than those which place the terms' windows within this one.
                    chance = chances(self.stream.samples.photographs.seed, self.ladder.num_stages + stage, step)
                    top, left = (int(draw * (h.shape[-1] - size + 1)) for draw in chance[:2])
                    h = h[..., top : top + size, left : left + size]
                    rows, columns = (slice(factor * at, factor * (at + size)) for at in (top, left))
                    window = (rows, columns)
                yield decoder.picture(h, base), None, window  # type: ignore[operator]
            return
        restorer = self.whole_model.restorer
        assert restorer is not None
        with torch.no_grad():
            restored = restorer.features(inputs, denoise)
        for stage, (fusion, f) in enumerate(zip(trained.children(), canvases, strict=True)):
            maps = [probabilities[k] for k in self.ladder.steps_of(stage)]
            decoded = None
            if fusion.reads_codes:
                with torch.no_grad():
                    decoded, _ = decoders[stage].features(f)  # type: ignore[operator]
            factor = int(self.ladder.factors[stage])
            with torch.no_grad():
                base = restorer.base(restored, inputs, factor)
            picture, error = fusion(base, restored[factor], decoded, mean_probability(maps, inputs))
            yield restorer.refined(picture, restored, factor), error, WHOLE

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
        remembered = state["remembered"].items()  # on the CPU, as every saved state is read
        self.predicted = {place: [row.to(self.device) for row in rows] for place, rows in remembered}

    @torch.no_grad()
    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        """The validation photographs restored by the averaged part from predicted codes, at each stage."""
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
            stages = list(
                sample(whole.transformer, whole.tokenizer.quantizer, ladder, condition, SamplingOptions(), noise=noise)
            )
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            pictures = self._pictures(average, inputs, 1.0, [stage.f for stage in stages], stages[-1].probabilities)
            made.append([picture.clamp(-1, 1) for picture, *_ in pictures])
        return [torch.cat(parts) for parts in zip(*made, strict=True)]
