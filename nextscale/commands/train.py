"""The `nextscale train` commands: plain settings, free of torch until they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nextscale.console import say
from nextscale.errors import OptionError
from nextscale.model.config import PRESETS, FusionConfig, ModelConfig, RestorerConfig, TokenizerConfig
from nextscale.model.config_io import read_difference
from nextscale.train.config import (
    Checked,
    CodebookConfig,
    CodesConfig,
    FusionTrainingConfig,
    LoopConfig,
    ReconstructionConfig,
    RestorationConfig,
)
from nextscale.train.hardware import PlanConfig

if TYPE_CHECKING:
    from nextscale.data.crops import Crops
    from nextscale.model.restorer import Restorer
    from nextscale.model.tokenizer import Tokenizer
    from nextscale.train.costs import Training
    from nextscale.train.stream import Samples
    from nextscale.train.validation import Validation


_ANCHOR = ("anchor_presets", "anchor_photographs", "anchor_share")
"""Options of the restorer's training that nothing but an anchor reads."""


@dataclass(frozen=True)
class LoopFlags(LoopConfig):
    """The optimization, the same for every training."""

    bf16: Annotated[
        bool,
        tyro.conf.arg(
            help="Compute in float32 throughout, instead of autocasting to bfloat16.",
            help_behavior_hint="(off)",
        ),
    ] = LoopConfig.bf16


DECIDING = (
    "batch", "grad_accum_steps", "lr", "warmup", "schedule", "final_lr", "weight_decay", "betas", "clip", "ema", "seed",
)  # fmt: skip
"""Of the loop's options those that a resumed run should share with its beginning; the others say how long, how fast and
what is reported."""


@dataclass(frozen=True)
class SourcesConfig(Checked):
    """How training photographs are read."""

    max_damaged: float = 0.01
    """Share of the photographs that may be damaged before the run stops; a damaged one is replaced by another."""
    shard_cache: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder for shards fetched from addresses (`~/.cache/nextscale/shards`)."""


@dataclass(frozen=True)
class ValidationConfig(Checked):
    """Photographs that are never trained on: PSNR and LPIPS per stage in the log, and a sheet to look at."""

    data: tuple[str, ...] = ()
    """Folders, .tar shards or globs of validation photographs."""
    count: int = 8
    """How many of them."""

    def load(self, tokenizer: Tokenizer, side: int, presets: tuple[str, ...], clean: float) -> Validation | None:
        """The pairs, for inputs of a side in pixels; none where no data is named."""
        from nextscale.data.crops import Crops
        from nextscale.train.distributed import device
        from nextscale.train.pairs import whole_factor
        from nextscale.train.validation import Validation

        if not self.data:
            return None
        crops = Crops(self.data, _crop_side(tokenizer, side), seed=0)
        return Validation(crops, self.count, presets, clean, device(), factor=whole_factor(tokenizer.ladder))


@dataclass(frozen=True)
class TrainTokenizer:
    """Train the tokenizer: autoencoder, codebook, decoders; decoders, finetune-codebook fine-tune a converted one."""

    data: tuple[str, ...]
    """Folders, .tar shards, globs or addresses of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    phase: Literal["autoencoder", "codebook", "decoders", "finetune-codebook"]
    start: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Tokenizer to go on from: the result of the phase before, a converted checkpoint, or a whole model."""
    preset: Annotated[Literal["tiny", "paper"] | None, tyro.conf.arg(metavar="{tiny,paper}")] = None
    """Configuration of a new tokenizer (tiny)."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON of what differs in the configuration, as in {"tokenizer": {"ladder": {"stage_ends": [10]}}}: anything in a
    new tokenizer's, the ladder alone in that of --start."""
    sources: tyro.conf.OmitArgPrefixes[SourcesConfig] = field(default_factory=SourcesConfig)
    loop: tyro.conf.OmitArgPrefixes[LoopFlags] = field(default_factory=LoopFlags)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    plan: bool = False
    """Print parameters, tokens, FLOPs, memory and time on a machine, and train nothing."""
    machine: PlanConfig = field(default_factory=PlanConfig)

    def run(self) -> int:
        import torch

        from nextscale.model.tokenizer import Tokenizer, tokenizer_config
        from nextscale.train import checkpoint as state
        from nextscale.train.distributed import device, end, rank
        from nextscale.train.loop import train
        from nextscale.train.tasks.codebook import CodebookTask
        from nextscale.train.tasks.reconstruction import ReconstructionTask, start_linear

        quantizing = self.phase in ("codebook", "finetune-codebook")
        self._refuse_options_without_effect()
        if self.plan:
            side = self.codebook.side if quantizing else self.reconstruction.side
            trained = _preset(self.preset).tokenizer if self.start is None else tokenizer_config(self.start)
            wanted = read_difference(ModelConfig(trained), self.config)
            if self.start is not None:
                _check_ladder_alone(trained, wanted.tokenizer, self.start)
            _show(self, wanted, self.phase, (side,))
            return 0
        torch.manual_seed(self.loop.seed)
        if self.start is not None:
            tokenizer = Tokenizer.from_pretrained(self.start)
            wanted = read_difference(ModelConfig(tokenizer.config), self.config)
            tokenizer = _on_ladder(tokenizer, wanted.tokenizer, self.start)
        elif self.phase == "autoencoder":
            tokenizer = Tokenizer(read_difference(ModelConfig(_preset(self.preset).tokenizer), self.config).tokenizer)
        else:
            raise OptionError(f"the {self.phase} phase needs --start with the result of the phase before")
        tokenizer.to(device())
        config = self.reconstruction
        side = self.codebook.side if quantizing else config.side
        crops = _crops(self, tokenizer, side)
        task: CodebookTask | ReconstructionTask
        if quantizing:
            task = CodebookTask(tokenizer, crops, self.codebook)
            if self.phase == "codebook" and not state.exists(self.out):
                task.start()
        else:
            if self.start is None and tokenizer.config.autoencoder.linear_path:
                start_linear(tokenizer, crops)
            if self.phase == "autoencoder":
                config = dataclasses.replace(config, unquantized_prob=1.0)
            validation = self.validation.load(tokenizer, side, ("bilinear",), 1.0)
            task = ReconstructionTask(tokenizer, crops, config, validation)
        average = train(task, self.loop, self.out, _deciding(self))
        assert isinstance(average, Tokenizer)
        if rank() == 0:
            average.save_pretrained(self.out / "model")
            say(f"written: {self.out / 'model'}")
        return end(0)

    def _refuse_options_without_effect(self) -> None:
        where = f"--phase {self.phase}"
        if self.start is not None and self.preset is not None:
            raise OptionError("--preset has no effect beside --start, which brings its own configuration")
        if self.phase in ("codebook", "finetune-codebook"):
            _refuse_changed("reconstruction", self.reconstruction, where)
            _refuse_changed("validation", self.validation, where)
            _refuse_changed("", self.loop, where, ("validate_every", "sheet_every"))
            _refuse_sharding(self.loop, where)
            if self.phase == "finetune-codebook":
                _refuse_changed("codebook", self.codebook, where, ("kmeans_images", "kmeans_rounds"))
        else:
            _refuse_changed("codebook", self.codebook, where)
            if self.phase == "autoencoder":
                _refuse_changed("reconstruction", self.reconstruction, where, ("unquantized_prob", "codebook"))
        _refuse_idle(self)


@dataclass(frozen=True)
class TrainFusion:
    """Train what a whole model makes of its codes: the fusion with the restorer, or the decoders; the rest stays."""

    data: tuple[str, ...]
    """Folders, .tar shards, globs or addresses of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    start: Path
    """The whole model, as `train transformer` or an earlier run leaves it."""
    part: Literal["fusion", "decoders"] = "fusion"
    """What is trained: the fusion and the error it expects, or the decoders for codes alone (fidelity 0), which know
    no denoise dial. A fusion reads the decoders: train it after them."""
    restorer: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The restorer, as `train restorer` leaves it: the model gets it, and a fusion that starts as nothing but
    for the error that the one before expects (default: the model's own)."""
    loop: tyro.conf.OmitArgPrefixes[LoopFlags] = field(default_factory=LoopFlags)
    restoration: FusionTrainingConfig = field(default_factory=FusionTrainingConfig)
    sources: tyro.conf.OmitArgPrefixes[SourcesConfig] = field(default_factory=SourcesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    plan: bool = False
    """Print parameters, FLOPs, memory and time on a machine, and train nothing."""
    machine: PlanConfig = field(default_factory=PlanConfig)

    def run(self) -> int:
        import torch

        from nextscale.model.checkpoint import find_folder, read_config
        from nextscale.model.fusion import keep_expected_error
        from nextscale.train.adversarial import CRITIC, load_critic, save_critic
        from nextscale.train.distributed import device, end, rank
        from nextscale.train.loop import train
        from nextscale.train.pairs import whole_factor
        from nextscale.train.tasks.fusion import FusionTask
        from nextscale.upscale.nextscale import NextScale, read_restorer, restorer_config, with_restorer

        settings = self._settings()
        if self.plan:
            config = read_config(find_folder(self.start), "model", ModelConfig)
            if self.restorer is not None:
                part = dataclasses.replace(config.tokenizer, fusion=None)
                sizes = restorer_config(self.restorer)
                config = ModelConfig(part, config.transformer, sizes, config.fusion or FusionConfig())
            if config.restorer is None and self.part == "fusion":
                raise OptionError(f"{self.start}: has no restorer; name one with --restorer")
            trained: Training = "fusion" if self.part == "fusion" else "predicted decoders"
            _show(self, config, trained, (self.restoration.side,))
            return 0
        torch.manual_seed(self.loop.seed)
        model = NextScale.from_pretrained(self.start, device="cpu", fp32=True)
        if self.restorer is not None:
            fusion, before = model.config.fusion, model.pipeline.fusions
            model = with_restorer(model.tokenizer, model.transformer, read_restorer(self.restorer), fusion)
            if before is not None and model.pipeline.fusions is not None:
                keep_expected_error(before, model.pipeline.fusions)
        if model.restorer is None and self.part == "fusion":
            raise OptionError(f"{self.start}: has no restorer; name one with --restorer")
        model.to(str(device()), fp32=True)
        factor = whole_factor(model.tokenizer.ladder)
        samples, validation = _samples(self, settings, factor), _validation(self, factor)
        task = FusionTask(model, samples, settings, validation, part=self.part)
        load_critic(task.adversary, (self.restorer or self.start) / CRITIC)
        average = train(task, self.loop, self.out, _deciding(self))
        if rank() == 0:
            task.model.load_state_dict(average.state_dict())
            model.save_pretrained(self.out / "model", half=False)
            save_critic(task.adversary, self.out / "model" / CRITIC)
            say(f"written: {self.out / 'model'}")
        return end(0)

    def _settings(self) -> FusionTrainingConfig:
        _refuse_idle(self)
        _refuse_sharding(self.loop, "train fusion")
        _refuse_changed("restoration", self.restoration, "train fusion", ("anchor", *_ANCHOR))
        if self.part == "fusion":
            return self.restoration
        _refuse_changed("restoration", self.restoration, "--part decoders", ("grain", "error"))
        return dataclasses.replace(self.restoration, grain=0.0)


@dataclass(frozen=True)
class TrainTransformer:
    """Train the transformer on a trained tokenizer's codes; the result is a whole model."""

    data: tuple[str, ...]
    """Folders, .tar shards, globs or addresses of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    tokenizer: Path
    """A trained tokenizer, by itself or in a whole model: a folder, a shipped name, or a hub id."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A converted transformer, or a model whose transformer to continue from."""
    restorer: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The restorer on whose features the codes are conditioned, by itself or in a whole model (default: that of
    --start; without any, the condition is the latents of the enlarged input)."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder where samples are kept once they are degraded and encoded: a later epoch, or another transformer on the
    same photographs, reads them."""
    preset: Annotated[Literal["tiny", "paper"] | None, tyro.conf.arg(metavar="{tiny,paper}")] = None
    """Configuration of a new transformer (tiny)."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON of what differs in the configuration, as in {"transformer": {"aligned_conditioning": false}}: anything of a
    new transformer, and the ladder on which the tokenizer is read."""
    sources: tyro.conf.OmitArgPrefixes[SourcesConfig] = field(default_factory=SourcesConfig)
    loop: tyro.conf.OmitArgPrefixes[LoopFlags] = field(default_factory=LoopFlags)
    codes: CodesConfig = field(default_factory=CodesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    plan: bool = False
    """Print parameters, tokens, FLOPs, memory and time on a machine, and train nothing."""
    machine: PlanConfig = field(default_factory=PlanConfig)

    def run(self) -> int:
        import torch

        from nextscale.model.taesd import TaesdEncoder
        from nextscale.model.tokenizer import Tokenizer
        from nextscale.model.transformer import Transformer
        from nextscale.train.costs import rates_of_sides
        from nextscale.train.distributed import device, end, rank
        from nextscale.train.loop import train
        from nextscale.train.tasks.transformer import CodesTask, start_from_codebook
        from nextscale.upscale.nextscale import NextScale, read_restorer, with_restorer

        config = self.configuration()
        self._refuse_options_without_effect(config)
        if self.plan:
            _show(self, config, "transformer", self.codes.sides, stages=self.codes.stages)
            return 0
        torch.manual_seed(self.loop.seed)
        tokenizer = Tokenizer.from_pretrained(self.tokenizer)
        restorer = None if self.restorer is None else read_restorer(self.restorer)
        if self.start is None:
            tokenizer = _on_ladder(tokenizer, config.tokenizer, self.tokenizer)
            model = NextScale.create(config)
            if config.transformer.aligned_conditioning:
                start_from_codebook(model.transformer, tokenizer)
            stem = model.transformer.stem
            if stem is not None and isinstance(tokenizer.encoder, TaesdEncoder):
                stem.start_from(tokenizer.encoder, tokenizer.quant_conv)
        else:
            model = NextScale.assemble(self.tokenizer, self.start)
            restorer = restorer or model.restorer
        if config.transformer.condition != "restorer":
            restorer = None
        tokenizer.to(device())
        transformer = model.transformer.to(device()).train().requires_grad_(True)
        crops = {side: _crops(self, tokenizer, side) for side in set(self.codes.sides)}
        validation = self.validation.load(tokenizer, max(self.codes.sides), self.codes.presets, self.codes.clean)
        task = CodesTask(transformer, tokenizer, crops, self.codes, validation, restorer=restorer, cache=self.cache)
        rates = rates_of_sides(model.config, self.codes.sides, stages=self.codes.stages)
        task.tokens_per_sample, task.flops_per_sample = rates
        average = train(task, self.loop, self.out, _deciding(self))
        assert isinstance(average, Transformer)
        if rank() == 0:
            if restorer is None:
                whole_model = NextScale(model.config, tokenizer, average)
            else:
                whole_model = with_restorer(tokenizer, average, restorer, model.config.fusion)
            whole_model.save_pretrained(self.out / "model", half=False)
            say(f"written: {self.out / 'model'}")
        return end(0)

    def configuration(self) -> ModelConfig:
        """The model that the training begins with, from the folders' configurations alone; a plan is of the same one.

        Raises:
            ModelError: the parts do not fit each other.
            OptionError: --config changes what is trained already.
        """
        from nextscale.model.checkpoint import find_folder, read_config, read_kind
        from nextscale.model.tokenizer import tokenizer_config
        from nextscale.upscale.nextscale import restorer_config

        part = tokenizer_config(self.tokenizer)
        restorer = None if self.restorer is None else restorer_config(self.restorer)
        fusion = None if restorer is None else FusionConfig()
        if self.start is None:
            new = _preset(self.preset)
            new = new.codes_alone() if restorer is None else new
            base = ModelConfig(part, new.transformer, restorer, new.fusion or fusion)
            config = read_difference(base, self.config)
            _check_ladder_alone(part, config.tokenizer, self.tokenizer)
            return config
        folder = find_folder(self.start)
        kind = "transformer" if read_kind(folder) == "transformer" else "model"
        start = read_config(folder, kind, ModelConfig)
        if start.transformer.condition != "restorer":
            return ModelConfig(part, start.transformer)
        part = dataclasses.replace(part, fusion=None)
        return ModelConfig(part, start.transformer, restorer or start.restorer, start.fusion or fusion)

    def _refuse_options_without_effect(self, config: ModelConfig) -> None:
        if self.codes.latent_steps:
            _refuse_sharding(self.loop, "--codes.latent-steps")
        if self.start is not None and self.config is not None:
            raise OptionError("--config is for a new transformer, and --start brings its own configuration")
        if self.start is not None and self.preset is not None:
            raise OptionError("--preset has no effect beside --start, which brings its own configuration")
        if config.transformer.condition != "restorer":
            where = 'a transformer without {"condition": "restorer"}'
            _refuse_changed("codes", self.codes, where, ("latent", "latent_steps", "target"))
            if self.restorer is not None:
                raise OptionError(f"--restorer has no effect in {where}; leave it out")
        _refuse_idle(self)


def _refuse_idle(command: TrainTokenizer | TrainTransformer | TrainRestorer | TrainFusion) -> None:
    """Refuse options that have no effect without another one.

    Raises:
        OptionError: naming the first, and the other one.
    """
    if not command.plan:
        _refuse_changed("machine", command.machine, "a training without --plan")
    if not command.validation.data:
        where = "a training without --validation.data"
        _refuse_changed("validation", command.validation, where)
        _refuse_changed("", command.loop, where, ("validate_every", "sheet_every"))


def _refuse_sharding(loop: LoopConfig, where: str) -> None:
    """Refuse fsdp where a training reads or writes weights as whole tensors.

    Raises:
        OptionError: it is asked for.
    """
    if loop.parallel == "fsdp":
        raise OptionError(f"{where} needs whole weights in every process; leave out --parallel fsdp")


def _deciding(command: TrainTokenizer | TrainTransformer | TrainRestorer | TrainFusion) -> dict[str, Any]:
    """The options, by their names on the command line, that decide what a training makes in so many steps."""
    found: dict[str, Any] = {}
    for option in dataclasses.fields(command):
        value = getattr(command, option.name)
        if option.name in ("out", "plan", "machine", "sources", "validation"):
            continue
        if option.name == "loop":
            found |= {name: getattr(value, name) for name in DECIDING}
        elif dataclasses.is_dataclass(value):
            found |= {f"{option.name}.{part.name}": getattr(value, part.name) for part in dataclasses.fields(value)}
        else:
            found[option.name] = value
    return {name.replace("_", "-"): value for name, value in found.items()}


def _preset(name: str | None) -> ModelConfig:
    return PRESETS[name or "tiny"]()


def _refuse_changed(option: str, config: Any, where: str, names: Sequence[str] = ()) -> None:
    """Refuse options of a group that differ from their defaults.

    Args:
        option: the group's name on the command line (none where its options stand by themselves).
        names: the ones without effect (all).

    Raises:
        OptionError: naming the first.
    """
    plain = type(config)()
    for name in names or [f.name for f in dataclasses.fields(config)]:
        if getattr(config, name) != getattr(plain, name):
            words = f"--{option}.{name}" if option else f"--{name}"
            raise OptionError(f"{words.replace('_', '-')} has no effect in {where}; leave it out")


def _show(
    command: TrainTokenizer | TrainTransformer | TrainRestorer | TrainFusion,
    config: ModelConfig | RestorerConfig,
    training: Training,
    sides: tuple[int, ...],
    *,
    stages: int = 0,
    anchored: float | None = None,
) -> None:
    from nextscale.data.crops import find_sources
    from nextscale.train.plan import plan, show

    photographs = len(find_sources(command.data, command.sources.shard_cache))
    loop, machine = command.loop, command.machine
    show(plan(config, training, loop, machine, sides=sides, stages=stages, photographs=photographs, anchored=anchored))


def _crops(command: TrainTokenizer | TrainTransformer, tokenizer: Tokenizer, side: int) -> Crops:
    """The training stream of crops for inputs of a side; ranks are counted in the positions that the tasks ask for."""
    from nextscale.data.crops import Crops

    sources = command.sources
    return Crops(
        command.data,
        _crop_side(tokenizer, side),
        seed=command.loop.seed,
        max_damaged=sources.max_damaged,
        cache=sources.shard_cache,
    )


def _on_ladder(tokenizer: Tokenizer, wanted: TokenizerConfig, where: Path) -> Tokenizer:
    """A trained tokenizer as --config wants it.

    Raises:
        OptionError: the two differ in more than the ladder, or the ladder has stages for which there is no dial.
    """
    _check_ladder_alone(tokenizer.config, wanted, where)
    return tokenizer if wanted == tokenizer.config else tokenizer.with_ladder(wanted.ladder)


def _check_ladder_alone(trained: TokenizerConfig, wanted: TokenizerConfig, where: Path) -> None:
    """Raise the error of `_on_ladder`; a plan has no weights to put on another ladder."""
    if wanted not in (trained, trained.with_ladder(wanted.ladder)):
        raise OptionError(f"--config: {where} is trained already; only its ladder can change, to some of its stages")


def _crop_side(tokenizer: Tokenizer, side: int) -> int:
    return tokenizer.ladder.for_input(side).image_sides[-1]


@dataclass(frozen=True)
class TrainRestorer:
    """Train the restorer by itself."""

    data: tuple[str, ...]
    """Folders, .tar shards, globs or addresses of photographs."""
    out: Path
    """Folder of the run: state, log, and the result in `model/`."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A restorer, by itself (as `convert --part restorer` or an earlier run leaves it) or in a whole model; its critic
    goes on where it has one."""
    anchored: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """With --restoration.anchor: the restorer whose pictures are kept (default: the one that is started from)."""
    largest_convs: int = 0
    """Last convolutions that the largest factor gets for itself; those that it had not begin as the body's (0: none are
    added). Of a restorer that has such convolutions only these and the largest factor's head are trained."""
    largest_blocks: int = 0
    """Residual blocks that the largest factor is to have after its own convolutions; new ones begin as nothing (0: as
    the restorer is)."""
    precleaned: float = 0.0
    """Share of the picture at factor 1 that the largest factor with convolutions of its own is to go on from (0: as the
    restorer is)."""
    refined_channels: int = 0
    """Channels of new layers that refine the largest factor's picture at its own resolution (0: as the restorer is)."""
    refined_blocks: int = RestorerConfig.refined_blocks
    """Residual blocks among these layers."""
    loop: tyro.conf.OmitArgPrefixes[LoopFlags] = field(default_factory=LoopFlags)
    restoration: RestorationConfig = field(default_factory=RestorationConfig)
    sources: tyro.conf.OmitArgPrefixes[SourcesConfig] = field(default_factory=SourcesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    plan: bool = False
    """Print parameters, FLOPs, memory and time on a machine, and train nothing."""
    machine: PlanConfig = field(default_factory=PlanConfig)

    def run(self) -> int:
        import torch

        from nextscale.model.checkpoint import find_folder, save_folder
        from nextscale.train.adversarial import CRITIC, load_critic, save_critic
        from nextscale.train.distributed import device, end, rank
        from nextscale.train.loop import train
        from nextscale.train.tasks.restorer import RestorerTask

        _refuse_idle(self)
        if not self.restoration.anchor:
            where = "a training without --restoration.anchor"
            _refuse_changed("restoration", self.restoration, where, _ANCHOR)
            if self.anchored is not None:
                raise OptionError(f"--anchored has no effect in {where}; leave it out")
        if not self.refined_channels and self.refined_blocks != RestorerConfig.refined_blocks:
            raise OptionError("--refined-blocks has no effect without --refined-channels; leave it out")
        if self.plan:
            anchored = self.restoration.anchor_share if self.restoration.anchor else None
            _show(self, self._restorers()[0].config, "restorer", (self.restoration.side,), anchored=anchored)
            return 0
        torch.manual_seed(self.loop.seed)
        restorer, before = (network.to(device()) for network in self._restorers())
        config = self.restoration
        samples = _samples(self, config, max(restorer.config.factors))
        validation = _validation(self, max(restorer.config.factors))
        task = RestorerTask(restorer, samples, config, validation, before)
        if self.start is not None:
            load_critic(task.adversary, find_folder(self.start) / CRITIC)
        average = train(task, self.loop, self.out, _deciding(self))
        if rank() == 0:
            save_folder(self.out / "model", "restorer", restorer.config, average.state_dict())
            save_critic(task.adversary, self.out / "model" / CRITIC)
            say(f"written: {self.out / 'model'}")
        return end(0)

    def _restorers(self) -> tuple[Restorer, Restorer]:
        """The restorer to train, with all that is new in it, and the one whose pictures an anchor keeps."""
        from nextscale.model.restorer import (
            Restorer,
            with_more_blocks,
            with_own_layers,
            with_precleaning,
            with_refinement,
        )
        from nextscale.upscale.nextscale import read_restorer

        restorer = Restorer(RestorerConfig()) if self.start is None else read_restorer(self.start)
        if self.largest_convs:
            restorer = with_own_layers(restorer, self.largest_convs)
        if self.largest_blocks:
            restorer = with_more_blocks(restorer, self.largest_blocks)
        # Pre-cleaning changes all pictures at once: an anchor holds those from before.
        before = restorer if self.anchored is None else read_restorer(self.anchored)
        if self.precleaned:
            restorer = with_precleaning(restorer, self.precleaned)
        if self.refined_channels:
            restorer = with_refinement(restorer, self.refined_channels, self.refined_blocks)
        return restorer, before


def _samples(command: TrainRestorer | TrainFusion, config: RestorationConfig, factor: int) -> Samples:
    from nextscale.data.crops import Crops
    from nextscale.train.stream import Samples

    sources = command.sources

    def crops(patterns: tuple[str, ...]) -> Crops | None:
        if not patterns:
            return None
        seed = command.loop.seed
        return Crops(
            patterns, factor * config.side, seed=seed, max_damaged=sources.max_damaged, cache=sources.shard_cache
        )

    photographs = crops(command.data)
    assert photographs is not None
    return Samples(photographs, crops(config.faces), crops(config.pages), config, prints=crops(config.prints))


def _validation(command: TrainRestorer | TrainFusion, factor: int) -> Validation | None:
    from nextscale.data.crops import Crops
    from nextscale.train.distributed import device
    from nextscale.train.validation import Validation

    wanted, config = command.validation, command.restoration
    if not wanted.data:
        return None
    crops = Crops(wanted.data, 128 * factor, seed=0)
    presets = ("stablesr", "camera", "compressed", "noisy", "x4plus")
    return Validation(crops, wanted.count, presets, config.clean, device(), factor=factor)


Part = (
    Annotated[TrainRestorer, tyro.conf.subcommand("restorer")]
    | Annotated[TrainTokenizer, tyro.conf.subcommand("tokenizer")]
    | Annotated[TrainTransformer, tyro.conf.subcommand("transformer")]
    | Annotated[TrainFusion, tyro.conf.subcommand("fusion")]
)


@dataclass(frozen=True)
class Train:
    """Train a model of your own."""

    part: Annotated[Part, tyro.conf.arg(name="")]
    """What to train."""

    def run(self) -> int:
        from nextscale.device import exact_float32

        exact_float32()  # before anything is encoded: what is quantized is to be that of float32
        return self.part.run()
