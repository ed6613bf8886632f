"""What the codes of pairs hold, and how well they are predicted, by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.errors import ImageError, OptionError
from nextscale.evaluate.datasets import Pair
from nextscale.evaluate.scores import OnPicture, read_pixels, to_tensor
from nextscale.evaluate.table import markdown_table
from nextscale.model.config import Ladder, SamplingOptions
from nextscale.model.quantizer import Scan
from nextscale.model.sampler import sample, tile_noise
from nextscale.model.tokenizer import Codes
from nextscale.model.transformer import enlarge
from nextscale.upscale.nextscale import NextScale


@dataclasses.dataclass
class StepNumbers:
    """Sums over pictures for one step, and the numbers that follow from them."""

    counts: Tensor
    """How often the photographs have each code, V."""
    predicted: float = 0.0
    """Predicted codes that equal the photograph's."""
    fitting: float = 0.0
    """Predicted codes that equal what the photograph's code would be after the codes predicted so far."""
    restored: float = 0.0
    """Predicted codes that equal what the code of the restored picture would be then, where there is a restorer."""
    enlarged: float = 0.0
    """Codes of the enlarged input that equal the photograph's."""
    probability: float = 0.0
    """Of the predicted codes, under the transformer."""
    nats: float = 0.0
    """-log p of the photograph's codes under the transformer, given the photograph's earlier ones."""

    @property
    def tokens(self) -> float:
        """All tokens of the step."""
        return float(self.counts.sum())

    @property
    def usage(self) -> float:
        """Share of the codebook that occurs."""
        return float((self.counts > 0).float().mean())

    @property
    def entropy(self) -> float:
        """Of the codes' frequencies, in bits per token."""
        p = self.counts[self.counts > 0].double() / self.counts.sum()
        return float(-(p * p.log2()).sum())


@torch.no_grad()
def study_codes(
    model: NextScale, found: Sequence[Pair], *, limit: int = 0, on_picture: OnPicture | None = None
) -> list[StepNumbers]:
    """Tokenize pairs and predict their codes (the likeliest at each step).

    Args:
        model: any; its own tile size is used.
        found: pairs whose inputs are one tile, and whose photographs have the side of the last stage.
        limit: only the first ones (0: all).

    Returns:
        The numbers of each step.

    Raises:
        ImageError: a picture has another size.
        OptionError: there are no pairs.
    """
    tokenizer, ladder = model.tokenizer, model.tokenizer.ladder
    size = tokenizer.quantizer.codebook.num_embeddings
    steps = [StepNumbers(torch.zeros(size, dtype=torch.long)) for _ in ladder.sides]
    chosen = list(found)[: limit or None]
    if not chosen:
        raise OptionError("no pairs")
    for number, pair in enumerate(chosen, 1):
        inputs, truth = (to_tensor(read_pixels(path)).float().to(model.device) * 2 - 1 for path in (pair.lr, pair.hr))
        for path, picture, side in ((pair.lr, inputs, ladder.input_side), (pair.hr, truth, ladder.image_sides[-1])):
            if picture.shape[-2:] != (side, side):
                raise ImageError(f"{path}: codes are compared on pictures of {side} x {side} px")
        latents = tokenizer.stage_latents(truth)
        own = tokenizer.quantize(latents)
        enlarged = tokenizer.encode(enlarge(inputs, truth.shape[-1]))
        condition = model.pipeline.condition(inputs, 0)
        *_, last = sample(
            model.transformer, tokenizer.quantizer, ladder, condition, SamplingOptions(), noise=tile_noise(0, [(0, 0)])
        )
        fitting = restored = _fitting(model, latents, last.codes)
        if model.restorer is not None:
            drafts = [tokenizer.latents(draft.clamp(-1, 1)) for draft in model.restorer(inputs)]
            restored = _fitting(model, drafts, last.codes)
        log_p = model.transformer(condition, tokenizer.step_inputs(own)).float().log_softmax(-1)
        ends = [sum(side**2 for side in ladder.sides[: k + 1]) for k in range(len(steps))]
        for k, row in enumerate(steps):
            ids = own.steps[k].cpu()
            row.counts += torch.bincount(ids.flatten(), minlength=size)
            row.predicted += float((last.codes.steps[k].cpu() == ids).sum())
            row.fitting += float((last.codes.steps[k] == fitting[k]).sum())
            row.restored += float((last.codes.steps[k] == restored[k]).sum())
            row.enlarged += float((enlarged.steps[k].cpu() == ids).sum())
            row.probability += float(last.probabilities[k].sum())
            of_step = log_p[:, ends[k] - ids.numel() : ends[k]]
            row.nats -= float(of_step.gather(-1, own.steps[k].flatten(1)[..., None]).sum())
        if on_picture is not None:
            on_picture(number, len(chosen), pair.name, False)
    return steps


def _fitting(model: NextScale, latents: list[Tensor], codes: Codes) -> list[Tensor]:
    """The photograph's code at each step, after the given codes of the steps before."""
    quantizer = model.tokenizer.quantizer
    scan = Scan(quantizer, codes.ladder)
    fitting = []
    for stage, latent in enumerate(latents):
        for k in codes.ladder.steps_of(stage):
            fitting.append(quantizer.nearest(scan.residual(latent)))
            scan.push(codes.steps[k])
    return fitting


def codes_markdown(steps: Sequence[StepNumbers], ladder: Ladder, pictures: int, bench: str) -> str:
    """One line per step."""
    header = [
        "step", "side", "codes used", "perplexity", "predicted = photograph's", "enlarged input's = photograph's",
        "predicted = target on its canvas", "predicted = restored", "mean probability", "-log2 p a token",
    ]  # fmt: skip
    lines = []
    for k, (side, row) in enumerate(zip(ladder.sides, steps, strict=True), 1):
        lines.append(
            [
                str(k), str(side), f"{row.usage:.0%}", f"{2**row.entropy:.0f}", f"{row.predicted / row.tokens:.3f}",
                f"{row.enlarged / row.tokens:.3f}", f"{row.fitting / row.tokens:.3f}",
                f"{row.restored / row.tokens:.3f}", f"{row.probability / row.tokens:.3f}",
                f"{row.nats / math.log(2) / row.tokens:.2f}",
            ]
        )  # fmt: skip
    tokens = sum(side**2 for side in ladder.sides)
    size = len(steps[0].counts)
    plain = tokens * math.log2(size) / 1000
    frequent = sum(row.tokens * row.entropy for row in steps) / pictures / 1000
    left = sum(row.nats for row in steps) / math.log(2) / pictures / 1000
    note = (
        f"{pictures} pictures of {bench}, the likeliest code at each step. A picture is {tokens} tokens of {size} "
        f"codes: {plain:.1f} kbit plainly, {frequent:.1f} by each step's frequencies on this set, {left:.1f} under the "
        "transformer, which sees the input. Target on its canvas: the photograph's code after the codes predicted so "
        "far; restored: that of the restorer's picture (of the photograph, without a restorer)."
    )
    return f"{markdown_table(header, lines)}\n{note}\n"
