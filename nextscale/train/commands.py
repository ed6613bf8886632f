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
    from nextscale.train.validation import Validation


@dataclass(frozen=True)
class ValidationConfig:
    """Photographs that are never trained on: PSNR and LPIPS per stage in the log, and a sheet to look at."""

    data: tuple[str, ...] = ()
    """Folders, .tar shards or globs of validation photographs."""
    count: int = 8
    """How many of them."""

    def load(self, tokenizer: Tokenizer, side: int, preset: str, clean: float) -> Validation | None:
        from nextscale.data import Crops
        from nextscale.train.validation import Validation

        if not self.data:
            return None
        return Validation(Crops(self.data, _crop_side(tokenizer, side), seed=0), self.count, preset, clean)


@dataclass(frozen=True)
class TrainTokenizer:
    """Train the tokenizer: autoencoder, codebook, decoders from scratch; decoders, vocabulary to fine-tune one."""

    data: tuple[str, ...]
    """Folders, .tar shards or globs of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    phase: Literal["autoencoder", "codebook", "decoders", "vocabulary"]
    start: Path | None = None
    """Tokenizer to go on from: the result of the phase before, or a converted checkpoint."""
    preset: Literal["tiny", "paper"] = "tiny"
    """Configuration of a new tokenizer."""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def run(self) -> int:
        import torch

        from nextscale.data import Crops
        from nextscale.tokenizer.model import Tokenizer
        from nextscale.train import state
        from nextscale.train.loop import train
        from nextscale.train.tokenizer import CodebookTask, ReconstructionTask, start_linear

        torch.manual_seed(self.loop.seed)
        if self.start is not None:
            tokenizer = Tokenizer.from_pretrained(self.start)
        elif self.phase == "autoencoder":
            tokenizer = Tokenizer(PRESETS[self.preset]().tokenizer)
        else:
            raise OptionError(f"the {self.phase} phase needs --start with the result of the phase before")
        config = self.reconstruction
        quantising = self.phase in ("codebook", "vocabulary")
        side = self.codebook.side if quantising else config.side
        crops = Crops(self.data, _crop_side(tokenizer, side), seed=self.loop.seed)
        task: CodebookTask | ReconstructionTask
        if quantising:
            task = CodebookTask(tokenizer, crops, self.codebook)
            if self.phase == "codebook" and not state.exists(self.out):
                task.start()
        else:
            if self.start is None and tokenizer.config.autoencoder.linear_path:
                start_linear(tokenizer, crops)
            if self.phase == "autoencoder":
                config = dataclasses.replace(config, continuous=1.0)
            validation = self.validation.load(tokenizer, side, config.preset, config.clean)
            task = ReconstructionTask(tokenizer, crops, config, validation)
        average = train(task, self.loop, self.out)
        assert isinstance(average, Tokenizer)
        average.save_pretrained(self.out / "model")
        return 0


@dataclass(frozen=True)
class TrainFusion:
    """Train a whole model's decoders and its fidelity dial on the codes that its frozen transformer predicts."""

    data: tuple[str, ...]
    """Folders, .tar shards or globs of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    start: Path
    """The whole model, as `train transformer` leaves it."""
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    reconstruction: ReconstructionConfig = field(default_factory=lambda: ReconstructionConfig(continuous=0.0))
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def run(self) -> int:
        import torch

        from nextscale.data import Crops
        from nextscale.tokenizer.model import Tokenizer
        from nextscale.train.loop import train
        from nextscale.train.transformer import FusionTask
        from nextscale.upscale import NextScale

        torch.manual_seed(self.loop.seed)
        config = self.reconstruction
        model = NextScale.from_pretrained(self.start, device="cpu", fp32=True)
        crops = Crops(self.data, _crop_side(model.tokenizer, config.side), seed=self.loop.seed)
        validation = self.validation.load(model.tokenizer, config.side, config.preset, config.clean)
        task = FusionTask(model.tokenizer, model.transformer, crops, config, validation)
        average = train(task, self.loop, self.out)
        assert isinstance(average, Tokenizer)
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
    validation: ValidationConfig = field(default_factory=ValidationConfig)

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
        validation = self.validation.load(tokenizer, max(self.codes.sides), self.codes.preset, self.codes.clean)
        average = train(CodesTask(transformer, tokenizer, crops, self.codes, validation), self.loop, self.out)
        assert isinstance(average, Transformer)
        NextScale(model.config, tokenizer, average).save_pretrained(self.out / "model", half=False)
        return 0


def _crop_side(tokenizer: Tokenizer, side: int) -> int:
    return tokenizer.ladder.for_input(side).image_sides[-1]


Part = (
    Annotated[TrainTokenizer, tyro.conf.subcommand("tokenizer")]
    | Annotated[TrainTransformer, tyro.conf.subcommand("transformer")]
    | Annotated[TrainFusion, tyro.conf.subcommand("fusion")]
)


@dataclass(frozen=True)
class Train:
    """Train a model of your own."""

    part: Part
    """What to train."""

    def run(self) -> int:
        return self.part.run()
