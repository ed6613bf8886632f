"""The `nextscale train` commands: plain settings, free of torch until they run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextscale.config import PRESETS
from nextscale.errors import OptionError
from nextscale.train.config import CodebookConfig, CodesConfig, LoopConfig, ReconstructionConfig

if TYPE_CHECKING:
    from nextscale.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class TrainTokenizer:
    """Train the tokenizer from scratch: autoencoder, then codebook, then decoders."""

    data: tuple[str, ...]
    """Folders, .tar shards or globs of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    phase: Literal["autoencoder", "codebook", "decoders"]
    start: Path | None = None
    """Result of the phase before: a tokenizer, or a whole model to train the decoders on its predicted codes."""
    preset: Literal["tiny", "paper"] = "tiny"
    """Configuration of a new tokenizer."""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)

    def run(self) -> int:
        import torch

        from nextscale.checkpoint import read_kind
        from nextscale.data import Crops
        from nextscale.tokenizer.model import Tokenizer
        from nextscale.train.loop import train
        from nextscale.train.tokenizer import CodebookTask, ReconstructionTask, start_linear
        from nextscale.train.transformer import PredictedReconstructionTask
        from nextscale.upscale import NextScale

        torch.manual_seed(self.loop.seed)
        model: NextScale | None = None
        if self.start is None:
            if self.phase != "autoencoder":
                raise OptionError(f"the {self.phase} phase needs --start with the result of the phase before")
            tokenizer = Tokenizer(PRESETS[self.preset]().tokenizer)
        elif read_kind(self.start) == "model":
            model = NextScale.from_pretrained(self.start, device="cpu", fp32=True)
            tokenizer = model.tokenizer
        else:
            tokenizer = Tokenizer.from_pretrained(self.start)
        side = self.codebook.side if self.phase == "codebook" else self.reconstruction.side
        crops = Crops(self.data, _crop_side(tokenizer, side), seed=self.loop.seed)
        if self.phase == "codebook":
            task = CodebookTask(tokenizer, crops, self.codebook)
            if not (self.out / "state.pt").exists():
                task.start()
            average = train(task, self.loop, self.out)
        else:
            if self.start is None and tokenizer.config.autoencoder.linear_path:
                start_linear(tokenizer, crops)
            config = self.reconstruction
            if self.phase == "autoencoder":
                config = dataclasses.replace(config, continuous=1.0)
            if model is None:
                average = train(ReconstructionTask(tokenizer, crops, config), self.loop, self.out)
            else:
                predicted = PredictedReconstructionTask(tokenizer, crops, config)
                predicted.attach(model.transformer)
                average = train(predicted, self.loop, self.out)
        assert isinstance(average, Tokenizer)
        if model is None:
            average.save_pretrained(self.out / "model")
        else:
            NextScale(model.config, average, model.transformer).save_pretrained(self.out / "model", half=False)
        return 0


@dataclass(frozen=True)
class TrainTransformer:
    """Train the transformer on a trained tokenizer's codes; the result is a whole model."""

    data: tuple[str, ...]
    """Folders, .tar shards or globs of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    tokenizer: Path
    """A trained tokenizer's folder."""
    start: Path | None = None
    """A converted transformer, or a model whose transformer to continue from."""
    preset: Literal["tiny", "paper"] = "tiny"
    """Configuration of a new transformer."""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    codes: CodesConfig = field(default_factory=CodesConfig)

    def run(self) -> int:
        import torch

        from nextscale.config import ModelConfig
        from nextscale.data import Crops
        from nextscale.tokenizer.model import Tokenizer
        from nextscale.train.loop import train
        from nextscale.train.transformer import CodesTask, start_from_codebook
        from nextscale.transformer.model import Transformer
        from nextscale.upscale import NextScale

        torch.manual_seed(self.loop.seed)
        tokenizer = Tokenizer.from_pretrained(self.tokenizer)
        if self.start is None:
            config = ModelConfig(tokenizer.config, PRESETS[self.preset]().transformer)
            model = NextScale.create(config)
            if config.transformer.aligned_conditioning:
                start_from_codebook(model.transformer, tokenizer)
        else:
            model = NextScale.assemble(self.tokenizer, self.start)
        transformer = model.transformer.train().requires_grad_(True)
        crops = {
            side: Crops(self.data, _crop_side(tokenizer, side), seed=self.loop.seed) for side in set(self.codes.sides)
        }
        average = train(CodesTask(transformer, tokenizer, crops, self.codes), self.loop, self.out)
        assert isinstance(average, Transformer)
        NextScale(model.config, tokenizer, average).save_pretrained(self.out / "model", half=False)
        return 0


def _crop_side(tokenizer: Tokenizer, side: int) -> int:
    return tokenizer.ladder.for_input(side).image_sides[-1]


Part = (
    Annotated[TrainTokenizer, tyro.conf.subcommand("tokenizer")]
    | Annotated[TrainTransformer, tyro.conf.subcommand("transformer")]
)


@dataclass(frozen=True)
class Train:
    """Train a model of your own."""

    part: Part
    """What to train."""

    def run(self) -> int:
        return self.part.run()
