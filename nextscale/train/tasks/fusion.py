"""Training the decoders and the fidelity dial on the codes that the transformer predicts."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.errors import OptionError
from nextscale.model.config import FusionConfig
from nextscale.model.layers import PlainBlock, zero_
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.model.transformer import Transformer
from nextscale.train.config import ReconstructionConfig
from nextscale.train.pairs import draws
from nextscale.train.tasks.reconstruction import ReconstructionTask
from nextscale.train.tasks.transformer import predict
from nextscale.train.teacher import Teacher, with_detail_of
from nextscale.train.validation import Validation


def with_fusion(tokenizer: Tokenizer, wanted: FusionConfig | None = None) -> Tokenizer:
    """The tokenizer with a fusion as wanted: untrained where it has none, with more blocks where it has fewer.

    Blocks that are added start as no contribution, so the pictures stay what they were.

    Raises:
        OptionError: the fusion has other widths, or more blocks than wanted.
    """
    own = tokenizer.config.fusion
    wanted = wanted or own or FusionConfig(refine=1)
    if own == wanted:
        return tokenizer
    grown = Tokenizer(dataclasses.replace(tokenizer.config, fusion=wanted))
    state, kept = grown.state_dict(), tokenizer.state_dict()
    if any(name not in state or state[name].shape != tensor.shape for name, tensor in kept.items()):
        raise OptionError(f"a trained fusion can only get more blocks; {own} cannot become {wanted}: change --config")
    grown.load_state_dict({**state, **kept})
    if own is not None:
        for name, module in grown.named_modules():
            if isinstance(module, PlainBlock) and f"{name}.conv2.weight" not in kept:
                zero_(module.conv2)
    return grown.eval()


class FusionTask(ReconstructionTask):
    """Decoders and their fusion trained on the codes that the frozen transformer itself predicts, for a share.

    The stream starts over after `cycle` samples and remembers their predictions, which cost as much as training.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: Transformer,
        crops: Crops,
        config: ReconstructionConfig,
        validation: Validation | None = None,
    ) -> None:
        super().__init__(tokenizer, crops, config, validation)
        if not config.decoders:
            tokenizer.requires_grad_(False)
            for part in (tokenizer.input_features, *(decoder.fusion for decoder in tokenizer.decoders)):
                assert isinstance(part, nn.Module)
                part.requires_grad_(True)
        self.transformer = transformer.eval().requires_grad_(False)
        self.remembered: dict[int, list[Tensor]] = {}
        self.teacher = Teacher(config.lessons) if config.taught else None

    def period(self, batch: int) -> int:
        return max(1, self.config.cycle // batch)

    def drawn_predictions(self, drawn: int, batch: int) -> Tensor:
        """Which samples are decoded from predicted codes, B; of validation, at positions before the stream, all."""
        share = 1.0 if drawn < 0 else self.config.predicted
        return torch.from_numpy(draws(self.crops.seed, 6, max(0, drawn), batch, 1)[:, 0] < share).to(self.device)

    def codes(
        self, model: Tokenizer, latents: list[Tensor], inputs: Tensor, classes: Tensor, first: int, drawn: int
    ) -> Codes:
        own = super().codes(model, latents, inputs, classes, first, drawn)
        places = range(first, first + len(inputs))
        use = self.drawn_predictions(drawn, len(inputs))
        missing = [i for i, place in enumerate(places) if use[i] and place not in self.remembered]
        if missing:
            made = predict(self.transformer, model, self.ladder, inputs[missing], classes[missing])
            for row, i in enumerate(missing):
                self.remembered[places[i]] = [ids[row].to(torch.int16) for ids in made.steps]
        steps = []
        for k, ids in enumerate(own.steps):
            rows = [self.remembered[place][k].to(ids) if use[i] else ids[i] for i, place in enumerate(places)]
            steps.append(torch.stack(rows))
        return Codes(steps, self.ladder)

    def wanted(self, photographs: Tensor, inputs: Tensor, drawn: int) -> list[Tensor]:
        """Likewise; from a stage on, a share of the samples with predicted codes has the teacher's fine detail."""
        wanted = super().wanted(photographs, inputs, drawn)
        if self.teacher is None:
            return wanted
        chance = draws(self.crops.seed, 8, drawn, len(inputs), 1)[:, 0]
        chosen = self.drawn_predictions(drawn, len(inputs)).cpu().numpy() & (chance < self.config.taught)
        rows = list(photographs)
        with torch.autocast(photographs.device.type, enabled=False):
            for i in chosen.nonzero()[0].tolist():
                lesson = self.teacher.picture(inputs[i]).to(photographs) / 127.5 - 1
                rows[i] = with_detail_of(rows[i][None], lesson[None], self.config.taught_sigma)[0]
        first = self.config.taught_from - 1
        return wanted[:first] + super().wanted(torch.stack(rows), inputs, drawn)[first:]
