"""Any picture in, restored pictures out: tiles -> condition -> codes -> decoders -> stitched outputs.

`NextScale.upscale` is the one path that the command line, the page and batches share.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from nextscale import image as images
from nextscale.device import fast_dtype, is_out_of_memory, pick_device
from nextscale.errors import ImageError, ModelError, NextScaleError, OptionError
from nextscale.image import Picture
from nextscale.model.checkpoint import (
    WEIGHTS,
    find_folder,
    half_precision,
    load_weights,
    read_config,
    read_kind,
    save_folder,
)
from nextscale.model.config import FusionConfig, Ladder, ModelConfig, RestorerConfig
from nextscale.model.decoder import Decoder
from nextscale.model.fusion import Fusion
from nextscale.model.restorer import Restorer
from nextscale.model.sampler import sample, tile_noise
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.model.transformer import CLEAN, DEGRADED, Condition, Transformer
from nextscale.upscale.card import CARD, FACTS, CardFacts, model_card
from nextscale.upscale.color import adain_color, wavelet_color
from nextscale.upscale.options import ColorFix, UpscaleOptions
from nextscale.upscale.tiles import Band, FloatArray, Plan, Tile, plan_tiles

Array = NDArray[Any]
DEFAULT_MODEL = "tiny"


@dataclass(frozen=True)
class Progress:
    """How far a picture is, for progress bars."""

    tiles_done: int
    tiles: int
    step: int
    """Steps done in the current batch of tiles."""
    steps: int
    passes_done: int = 0
    """Whole runs over the picture done before this one (alpha, cascades)."""
    passes: int = 1

    @property
    def share(self) -> float:
        """How much of the picture is done, above 0 to 1."""
        tiles = self.tiles_done + self.step / self.steps
        return (self.passes_done + tiles / self.tiles) / self.passes


@dataclass(frozen=True)
class Reveal:
    """A picture as it appears: one stage of one batch of tiles is ready."""

    factor: float
    picture: Picture
    """The canvas so far, without alpha; where tiles are yet to come it shows the input enlarged."""
    complete: bool
    """Whether this is the result at this factor, equal to that of `upscale` without `stream`."""
    confidence: NDArray[np.uint8] | None = None
    """Of a complete picture, where the options ask for it; as in `UpscaleResult`."""
    expected_error: NDArray[np.float32] | None = None
    """Likewise."""


@dataclass
class UpscaleResult:
    """What `upscale` returns."""

    images: dict[float, Picture]
    """Per factor; the largest is the one asked for."""
    confidence: dict[float, NDArray[np.uint8]] = field(default_factory=dict)
    """Per factor, H W, when asked for: 255 where the model was sure of every code, 0 where it guessed."""
    expected_error: dict[float, NDArray[np.float32]] = field(default_factory=dict)
    """Per factor, H W, when asked for and the model has a fusion: how far each pixel may be from the truth, as the
    expected absolute difference in 8-bit levels, mean over the colours."""
    codes: dict[tuple[int, int], Codes] = field(default_factory=dict)
    """Per tile (row, column) of the first pass over the colours: as `Tokenizer.decode` takes them."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds per part."""

    @property
    def maps(self) -> dict[float, NDArray[np.uint8]]:
        """What `--confidence` writes, per factor, H W: the expected error in 8-bit levels, else the confidence."""
        return {f: shown_map(c, self.expected_error.get(f)) for f, c in self.confidence.items()}

    @property
    def picture(self) -> Picture:
        """The result at the scale asked for."""
        return self.images[max(self.images)]

    @property
    def pil(self) -> Image.Image:
        """The result as a Pillow image (8 bit)."""
        return to_pil(self.picture)


def shown_map(confidence: NDArray[np.uint8], expected_error: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """The expected error in whole 8-bit levels; of a model without one, the confidence."""
    return confidence if expected_error is None else np.rint(expected_error.clip(0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class TileStage:
    """One stage of a batch of tiles."""

    factor: float
    images: Tensor
    """B 3 H H in [-1, 1], float32, colours matched to the input."""
    confidence: Tensor
    """B 1 H H in [0, 1]: mean probability of the stage's codes at each place."""
    codes: list[Codes]
    """Per tile, all steps so far, each 1 rho rho on the CPU; empty where the restorer worked alone."""
    expected_error: Tensor | None = None
    """B 1 H H in 8-bit levels, where the model has a fusion and it had its say."""


class NextScale:
    """A tokenizer, a transformer and, in newer models, a restorer and a fusion: ready to restore pictures."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        transformer: Transformer,
        restorer: Restorer | None = None,
        fusions: nn.ModuleList | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer.eval()
        self.transformer = transformer.eval()
        self.restorer = None if restorer is None else restorer.eval()
        self.fusions = None if fusions is None else fusions.eval()
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.facts = CardFacts()
        """What the model card says of its training; as loaded."""

    @classmethod
    def create(cls, config: ModelConfig) -> NextScale:
        """A model with fresh random weights."""
        part = config.tokenizer
        transformer = Transformer(config.transformer, part.ladder, part.codebook_size, part.autoencoder.latent_channels)
        tokenizer = Tokenizer(part)
        if config.restorer is None or config.fusion is None:
            return cls(config, tokenizer, transformer)
        restorer = Restorer(config.restorer)
        return cls(config, tokenizer, transformer, restorer, make_fusions(config.fusion, restorer, tokenizer))

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_MODEL, *, device: str = "auto", fp32: bool = False
    ) -> NextScale:
        """Load a model.

        Args:
            name: a shipped model's name, a folder, or a hub id.
            device: auto (CUDA, then MPS, then CPU), or a torch device.
            fp32: compute in float32 even where 16 bit is faster.

        Raises:
            ModelError: in one line, what is wrong with the folder.
            OptionError: the device is not there.
        """
        folder = find_folder(name)
        model = cls.create(read_config(folder, "model", ModelConfig))
        load_weights(folder / WEIGHTS, model.modules)
        if (folder / FACTS).is_file():
            model.facts = CardFacts.parse((folder / FACTS).read_text(encoding="utf-8"), str(folder / FACTS))
        return model.to(device, fp32=fp32)

    @classmethod
    def assemble(cls, tokenizer: str | Path, transformer: str | Path) -> NextScale:
        """A model of two folders: a tokenizer, and a converted transformer or the one of another whole model.

        Raises:
            ModelError: one of them is damaged, or they do not fit each other.
        """
        first, second = find_folder(tokenizer), find_folder(transformer)
        part = Tokenizer.from_pretrained(first)
        kind = "transformer" if read_kind(second) == "transformer" else "model"
        config = read_config(second, kind, ModelConfig)
        if (config.tokenizer.ladder, config.tokenizer.codebook_size) != (part.ladder, part.config.codebook_size):
            raise ModelError(f"{second}: its ladder or vocabulary is not that of the tokenizer {first}")
        if kind == "model":
            return cls(
                ModelConfig(part.config, config.transformer),
                part,
                cls.from_pretrained(second, device="cpu", fp32=True).transformer,
            )
        model = cls.create(ModelConfig(part.config, config.transformer))
        load_weights(second / WEIGHTS, model.transformer)
        return cls(model.config, part, model.transformer)

    def save_pretrained(self, folder: str | Path, *, half: bool = True, facts: CardFacts | None = None) -> Path:
        """Write config.json, weights in 16 bit (the quantiser stays in 32) unless `half` is off, and the model card.

        Args:
            facts: what the card says of training, licences and metrics (None: what it said when this model was loaded).
        """
        state = self.modules.state_dict()
        facts = facts or self.facts
        texts = {FACTS: facts.dump(), CARD: model_card(facts, self._shape())}
        return save_folder(folder, "model", self.config, half_precision(state) if half else state, texts)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | None = None,
        half: bool = True,
        facts: CardFacts | None = None,
    ) -> str:
        """Save the model to a hub (HF_ENDPOINT names another than huggingface.co); returns the commit's address.

        Args:
            repo: owner/name; made if it is not there.

        Raises:
            ModelError: the hub cannot be reached or refuses.
        """
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, half=half, facts=facts)
            shutil.copy(Path(folder, CARD), Path(folder, "README.md"))  # the name that hubs show
            try:
                api = HfApi(token=token)
                api.create_repo(repo, private=private, exist_ok=True)
                commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A nextscale model")
            except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
                why = " ".join(str(error).split())
                raise ModelError(f"{repo}: the hub did not take it ({why}); check name, network and token") from None
        return str(commit.commit_url)

    def _shape(self) -> dict[str, Any]:
        """What the card says of the model itself."""
        millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in self.modules.items()}
        ladder = self.tokenizer.ladder
        return {
            "parameters": ", ".join(f"{name} {count:.1f} million" for name, count in millions.items()),
            "factors": ", ".join(f"x{factor:g}" for factor in ladder.factors),
            "tiles": f"{ladder.input_side} px a side; pictures of any size are cut into them",
            "steps": f"{ladder.num_steps}, with {sum(side * side for side in ladder.sides)} tokens",
            "codes": str(self.config.tokenizer.codebook_size),
        }

    @property
    def modules(self) -> nn.ModuleDict:
        """All parts under their names in the checkpoint."""
        parts: dict[str, nn.Module] = {"tokenizer": self.tokenizer, "transformer": self.transformer}
        if self.restorer is not None and self.fusions is not None:
            parts |= {"restorer": self.restorer, "fusions": self.fusions}
        return nn.ModuleDict(parts)

    def to(self, device: str = "auto", *, fp32: bool = False) -> NextScale:
        """Move to a device; the transformer's weights take the computing type, the quantiser stays in float32."""
        self.device = pick_device(device)
        self.dtype = torch.float32 if fp32 else fast_dtype(self.device)
        try:
            for part in (self.tokenizer, self.restorer, self.fusions):
                if part is not None:
                    part.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.transformer.to(self.device, self.dtype)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise NextScaleError(
                f"out of memory for the model on {self.device}; close other programs, or use another --device"
            ) from None
        self.modules.requires_grad_(False)
        return self

    @overload
    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[False] = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> UpscaleResult: ...

    @overload
    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[True],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Reveal]: ...

    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> UpscaleResult | Iterator[Reveal]:
        """Restore and enlarge a picture of any size.

        Args:
            image: a `Picture`, a path, a Pillow image, a numpy array (H W or H W C) or a tensor (C H W or 1 C H W),
                uint8, uint16 or float in [0, 1]; floats are rounded to 8 bits.
            options: see `UpscaleOptions`.
            stream: return an iterator that yields x1, x2, x4 (every native factor up to the scale) as their stages
                finish, batch of tiles by batch of tiles.
            on_progress: called after every step.

        Raises:
            OptionError: the options do not fit the model.
            ImageError: the image is none.
            NextScaleError: out of memory even with one tile at a time, or for the result itself.
        """
        options = options or UpscaleOptions()
        if stream:
            options = dataclasses.replace(options, all_factors=True)
        run = _Run(self, as_picture(image), options, on_progress)
        return run.reveal() if stream else run.result()

    def check(self, options: UpscaleOptions) -> None:
        """Whether this model has what the options ask for.

        Raises:
            OptionError: naming the option.
        """
        if self.restorer is None and options.fast:
            raise OptionError("this model has no restorer to run alone; leave out --fast, or use another model")
        if options.denoise != UpscaleOptions.denoise and (self.restorer is None or not self.restorer.config.denoise):
            raise OptionError("this model has no denoise dial; leave out --denoise, or use another model")

    def ladder_for(self, options: UpscaleOptions) -> Ladder:
        """The ladder for the tiles that the options ask for.

        Raises:
            OptionError: tile or tile-overlap do not fit the model.
        """
        own = self.tokenizer.ladder
        ladder = own.for_input(options.tile or own.input_side)
        plan_tiles(1, 1, tile=ladder.input_side, overlap=options.tile_overlap)
        return ladder

    @torch.no_grad()
    def restore_tiles(
        self,
        inputs: Tensor,
        keys: list[tuple[int, int]],
        label: int,
        options: UpscaleOptions,
        wanted: list[float],
        *,
        ladder: Ladder | None = None,
        on_step: Callable[[int], None] | None = None,
        timings: dict[str, float] | None = None,
    ) -> Iterator[TileStage]:
        """Restore a batch of tiles; yields each wanted factor as its stage is complete.

        Args:
            inputs: B 3 s s in [-1, 1], s the ladder's input side.
            keys: (row, column) of each tile, which key its noise.
            label: 0 degraded, 1 clean.
            wanted: native factors; later stages than the largest are not run, others not decoded.
            ladder: for tiles of another side (the model's own).
            timings: seconds per part are added here.
        """
        ladder = ladder or self.tokenizer.ladder
        clock = _Clock(self.device, timings if timings is not None else {})
        inputs = inputs.to(self.device, torch.float32)
        restored = None
        if self.restorer is not None:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            with self._autocast():
                restored = self.restorer.features(inputs, options.denoise)
            clock.tick("restorer")
        if options.fast:
            yield from self._fast_tiles(inputs, restored, options, wanted, clock)
            return
        condition = self.condition(inputs, label, ladder)
        clock.tick("encode")
        with self._autocast():
            features = None
            if self.tokenizer.input_features is not None and options.fidelity > 0:
                features = self.tokenizer.input_features(inputs)
                clock.tick("features")
        drawn = sample(
            self.transformer,
            self.tokenizer.quantizer,
            ladder,
            condition,
            options.sampling,
            noise=tile_noise(options.seed, keys),
            stages=ladder.factors.index(max(wanted)) + 1,
            on_step=on_step,
        )
        for stage in drawn:
            clock.tick(f"codes_{stage.stage + 1}")
            factor = ladder.factors[stage.stage]
            if factor not in wanted:
                continue
            side = ladder.image_sides[stage.stage]
            probabilities = [stage.probabilities[k] for k in ladder.steps_of(stage.stage)]
            error = None
            with self._autocast():
                if restored is None:
                    decoded = self.tokenizer.decode_canvas(
                        stage.f, stage.stage, inputs=inputs, features=features, weight=float(options.fidelity)
                    )
                else:
                    decoded, error = self.fuse(stage.f, stage.stage, inputs, restored, probabilities, options.fidelity)
            clock.tick(f"decode_{stage.stage + 1}")
            matched = match_color(decoded.float(), inputs, options.color_fix).clamp(-1, 1)
            enlarged = [F.interpolate(p[:, None], size=(side, side), mode="bilinear") for p in probabilities]
            steps = [ids.cpu() for ids in stage.codes.steps]
            codes = [Codes([ids[i : i + 1] for ids in steps], ladder) for i in range(len(inputs))]
            clock.tick("color")
            yield TileStage(factor, matched, torch.stack(enlarged).mean(0), codes, error)
            clock.restart()

    def fuse(
        self,
        f: Tensor,
        stage: int,
        inputs: Tensor,
        restored: Tensor,
        probabilities: list[Tensor],
        fidelity: float,
    ) -> tuple[Tensor, Tensor]:
        """A stage's images between the codes' own (fidelity 0) and the fusion's (1), and their expected error.

        Args:
            f: the stage's canvas B C h w.
            inputs: B 3 s s in [-1, 1].
            restored: the restorer's features of the inputs.
            probabilities: of the stage's codes, one map B rho rho per step.

        Returns:
            images B 3 H H, not clamped; the error of the fusion's in 8-bit levels, B 1 H H.
        """
        assert self.fusions is not None
        decoder = self.tokenizer.decoders[stage]
        assert isinstance(decoder, Decoder)
        decoded, base = decoder.features(f)
        fused, error = self.fusions[stage](inputs, restored, decoded, mean_probability(probabilities, inputs))
        if fidelity < 1:
            fused = torch.lerp(decoder.picture(decoded, base).float(), fused, fidelity)
        return fused, error * 127.5

    def _fast_tiles(
        self, inputs: Tensor, restored: Tensor | None, options: UpscaleOptions, wanted: list[float], clock: _Clock
    ) -> Iterator[TileStage]:
        """The restorer's own images at each wanted factor: no codes."""
        assert self.restorer is not None
        assert restored is not None
        for factor in sorted(wanted):
            with self._autocast():
                drafted = self.restorer.draft(restored, inputs, int(factor))
            matched = match_color(drafted, inputs, options.color_fix).clamp(-1, 1)
            clock.tick("draft")
            yield TileStage(factor, matched, matched.new_zeros(len(matched), 1, *matched.shape[-2:]), [])
            clock.restart()

    def condition(self, inputs: Tensor, label: int, ladder: Ladder | None = None) -> Condition:
        """The transformer's condition for input tiles B 3 s s in [-1, 1]."""
        ladder = ladder or self.tokenizer.ladder
        side = ladder.image_sides[-1]
        enlarged = F.interpolate(inputs, size=(side, side), mode="bilinear").contiguous(
            memory_format=torch.channels_last
        )
        with self._autocast():
            if self.config.transformer.aligned_conditioning:
                latents = self.tokenizer.stage_latents(enlarged, ladder=ladder)
            else:
                latents = [self.tokenizer.latents(enlarged)]
        return Condition(latents, torch.full((len(inputs),), label, device=inputs.device))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class _Clock:
    """Adds up the seconds of each part."""

    def __init__(self, device: torch.device, totals: dict[str, float]) -> None:
        self.device = device
        self.totals = totals
        self.last = time.perf_counter()

    def restart(self) -> None:
        """The time since the last tick was somebody else's."""
        self.last = time.perf_counter()

    def tick(self, part: str) -> None:
        """Everything since the last tick was this part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.totals[part] = self.totals.get(part, 0.0) + now - self.last
        self.last = now


def with_restorer(model: NextScale, folder: Path) -> NextScale:
    """A model with the restorer of a folder and an untrained fusion, which gives what the restorer gives.

    The dial of a version-4 tokenizer is left out.

    Raises:
        ModelError: the folder holds no restorer, or one of other factors.
    """
    restorer = Restorer(read_config(folder, "restorer", RestorerConfig))
    load_weights(folder / WEIGHTS, restorer)
    part = dataclasses.replace(model.config.tokenizer, fusion=None)
    tokenizer = Tokenizer(part)
    state = model.tokenizer.state_dict()
    tokenizer.load_state_dict({name: state[name] for name in tokenizer.state_dict()})
    fusion = model.config.fusion or FusionConfig()
    config = ModelConfig(part, model.config.transformer, restorer.config, fusion)
    fusions = make_fusions(fusion, restorer, tokenizer)
    return NextScale(config, tokenizer, model.transformer, restorer, fusions)


def make_fusions(config: FusionConfig, restorer: Restorer, tokenizer: Tokenizer) -> nn.ModuleList:
    """A fusion per stage; untrained, each gives what the restorer gives."""
    fusions = nn.ModuleList()
    for stage, factor in enumerate(restorer.config.factors):
        decoder = tokenizer.decoders[stage]
        assert isinstance(decoder, Decoder)
        fusion = Fusion(config, restorer.config.channels, decoder.conv_out.in_channels, factor)
        fusion.head.load_state_dict(restorer.heads[stage].state_dict())
        fusions.append(fusion)
    return fusions


def mean_probability(probabilities: list[Tensor], inputs: Tensor) -> Tensor:
    """The mean of probability maps B rho rho, each enlarged to the inputs' size: B 1 s s."""
    maps = [F.interpolate(p[:, None].float(), size=inputs.shape[-2:], mode="bilinear") for p in probabilities]
    return torch.stack(maps).mean(0)


def match_color(decoded: Tensor, inputs: Tensor, how: ColorFix) -> Tensor:
    """Decoded tiles B 3 H H with the colours of the inputs B 3 s s."""
    if how == "none":
        return decoded
    source = F.interpolate(inputs, size=decoded.shape[-2:], mode="bicubic")
    return wavelet_color(decoded, source) if how == "wavelet" else adain_color(decoded, source)


class _Run:
    """One call of `upscale`: passes over the alpha, over the colours, and again over the result beyond x4."""

    def __init__(
        self,
        model: NextScale,
        picture: Picture,
        options: UpscaleOptions,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.model = model
        self.picture = picture
        self.options = options
        model.check(options)
        self.on_progress = on_progress
        self.ladder = model.ladder_for(options)
        self.factors = cascade(options.scale, self.ladder.factors)
        self.alpha_pass = picture.alpha is not None and int(np.ptp(picture.alpha)) > 0
        self.passes = len(self.factors) + self.alpha_pass
        self.passes_done = 0
        self.batch = options.tile_batch
        self.alphas: dict[float, Array] = {}
        self.out = UpscaleResult({})

    def result(self) -> UpscaleResult:
        """Run all passes at once."""
        started = time.perf_counter()
        for _ in self.reveal(stream=False):
            pass
        self.out.timings["total"] = time.perf_counter() - started
        return self.out

    def reveal(self, *, stream: bool = True) -> Iterator[Reveal]:
        """Run all passes; when streaming, yields whatever is new."""
        try:
            yield from self._reveal(stream)
        except MemoryError:
            width, height = output_size(self.picture.size, self.options.scale)
            raise NextScaleError(
                f"out of memory for {width} x {height} pixels; use a smaller --scale, or close other programs"
            ) from None

    def _reveal(self, stream: bool) -> Iterator[Reveal]:
        options, picture, out = self.options, self.picture, self.out
        self._check_memory()
        asked = options.factors(self.ladder.factors)
        wanted = [f for f in self.ladder.factors if f in asked or f == self.factors[0]]
        self.alphas = self._restore_alpha(wanted)
        native, whole = 1.0, picture
        for index, factor in enumerate(self.factors):
            # A later pass runs on the model's own result, which is no longer degraded.
            label = CLEAN if index or options.input == "clean" else DEGRADED
            parts = wanted if index == 0 else [factor]
            for tiles, stage, output in self._pass(whole.rgb, whole.alpha, parts, label, options.confidence, stream):
                if index == 0 and stage.codes:
                    out.codes.update({(t.row, t.column): c for t, c in zip(tiles, stage.codes, strict=True)})
                total = native * stage.factor
                if output.complete:
                    self._keep(total, output, native if index else None)
                if stream and not output.complete:
                    yield Reveal(total, dataclasses.replace(picture, rgb=output.pixels.copy(), alpha=None), False)
                elif stream and total in asked:
                    yield self._reveal_of(total)
            native *= factor
            whole = out.images[native]
        if options.scale != native:
            self._resize(native)
            yield self._reveal_of(options.scale)
        out.images = {f: out.images[f] for f in asked}
        out.confidence = {f: out.confidence[f] for f in asked if f in out.confidence}
        out.expected_error = {f: out.expected_error[f] for f in asked if f in out.expected_error}

    def _reveal_of(self, factor: float) -> Reveal:
        out = self.out
        return Reveal(factor, out.images[factor], True, out.confidence.get(factor), out.expected_error.get(factor))

    def _check_memory(self) -> None:
        """Fail now rather than after the first pass where the largest output can never be held."""
        width, height = output_size(self.picture.size, math.prod(self.factors))
        try:
            np.empty((height, width, self.picture.rgb.shape[2]), self.picture.rgb.dtype)
        except ValueError as error:  # more bytes than an address can name
            raise MemoryError from error

    def _keep(self, factor: float, output: _Output, earlier: float | None) -> None:
        """Take over a complete output; `earlier` is the factor of the result that its pass started from."""
        size = output_size(self.picture.size, factor)
        alpha = self.alphas.get(factor)
        if self.alphas and alpha is None:
            alpha = images.resize(self.alphas[max(self.alphas)], size)
        self.out.images[factor] = dataclasses.replace(self.picture, rgb=output.pixels, alpha=alpha)
        if output.confidence is not None:
            if earlier is not None:  # as sure as the least sure of the passes
                before = images.resize(self.out.confidence[earlier], size, filter="bilinear")
                np.minimum(output.confidence, before, out=output.confidence)
            self.out.confidence[factor] = output.confidence
        if output.expected_error is not None:
            if earlier is not None:  # the errors of the passes add up at most
                output.expected_error += _resize_plane(self.out.expected_error[earlier], size)
            self.out.expected_error[factor] = output.expected_error

    def _resize(self, native: float) -> None:
        """From the native factor to exactly the scale asked for."""
        out, scale = self.out, self.options.scale
        size = output_size(self.picture.size, scale)
        whole = out.images[native]
        alpha = None if whole.alpha is None else images.resize(whole.alpha, size, filter="lanczos")
        out.images[scale] = dataclasses.replace(
            whole, rgb=images.resize(whole.rgb, size, filter="lanczos"), alpha=alpha
        )
        if native in out.confidence:
            out.confidence[scale] = images.resize(out.confidence[native], size, filter="bilinear")
        if native in out.expected_error:
            out.expected_error[scale] = _resize_plane(out.expected_error[native], size)

    def _restore_alpha(self, wanted: list[float]) -> dict[float, Array]:
        """Alpha per factor, restored apart as a grey picture; what is fully clear or opaque stays so."""
        alpha = self.picture.alpha
        if alpha is None:
            return {}
        plain = {f: images.resize(alpha, output_size(self.picture.size, f)) for f in wanted}
        if self.alpha_pass:
            for _, stage, output in self._pass(alpha[..., None], None, wanted, CLEAN, False, False):
                if output.complete:
                    values = plain[stage.factor]
                    partial = (values > 0) & (values < np.iinfo(values.dtype).max)
                    np.copyto(values, output.pixels[..., 0], where=partial)
        return plain

    def _pass(
        self,
        pixels: Array,
        alpha: Array | None,
        wanted: list[float],
        label: int,
        confidence: bool,
        preview: bool,
    ) -> Iterator[tuple[list[Tile], TileStage, _Output]]:
        """One run over all tiles of H W C pixels: yields an output whenever tiles were added to it.

        Where alpha (H W) is 0, each tile takes the colours of what is visible nearby.
        """
        padded = _pad(pixels, self.ladder.input_side)
        padded_alpha = None if alpha is None else _pad(alpha, self.ladder.input_side)
        plan = plan_tiles(*padded.shape[:2], tile=self.ladder.input_side, overlap=self.options.tile_overlap)
        planes = ["confidence"] * (confidence and not self.options.fast)
        planes += ["expected_error"] * (bool(planes) and self.model.fusions is not None)
        outputs = {f: _Output(plan, f, pixels, planes, preview=preview) for f in wanted}
        for tiles, stage in self._restore(padded, padded_alpha, plan, wanted, label):
            started = time.perf_counter()
            added = outputs[stage.factor].add(tiles, stage)
            self.out.timings["stitch"] = self.out.timings.get("stitch", 0.0) + time.perf_counter() - started
            if added:
                yield tiles, stage, outputs[stage.factor]
        self.passes_done += 1

    def _restore(
        self, padded: Array, alpha: Array | None, plan: Plan, wanted: list[float], label: int
    ) -> Iterator[tuple[list[Tile], TileStage]]:
        """The tiles of a plan in order, batch by batch, stage by stage.

        When memory runs out, the batch is run again in smaller ones and its early stages come twice.
        """
        side = plan.tile
        total, done = len(plan.tops) * len(plan.lefts), 0
        steps = self.ladder.stage_ends[self.ladder.factors.index(max(wanted))]

        def on_step(step: int) -> None:
            if self.on_progress is not None:
                self.on_progress(Progress(done, total, step + 1, steps, self.passes_done, self.passes))

        for row in plan.rows:
            while row:
                tiles = row[: self.batch]
                places = [np.s_[t.top : t.top + side, t.left : t.left + side] for t in tiles]
                cut = [padded[p] if alpha is None else images.bleed(padded[p], alpha[p]) for p in places]
                inputs = torch.from_numpy(images.to_float(np.stack(cut))).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
                keys = [(t.row, t.column) for t in tiles]
                exhausted = False
                try:
                    for stage in self.model.restore_tiles(
                        inputs,
                        keys,
                        label,
                        self.options,
                        wanted,
                        ladder=self.ladder,
                        on_step=on_step,
                        timings=self.out.timings,
                    ):
                        yield tiles, stage
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    exhausted = True
                if exhausted:  # outside `except`: the error holds on to all tensors of the failed attempt
                    self._shrink(len(tiles))
                else:
                    row = row[len(tiles) :]
                    done += len(tiles)

    def _shrink(self, failed: int) -> None:
        """Halve the batch of tiles that did not fit, for good."""
        if failed == 1:
            raise NextScaleError("out of memory with a single tile; use a smaller --tile, or close other programs")
        self.batch = failed // 2
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


class _Output:
    """One factor's result at its own bit depth, filled band by band."""

    def __init__(self, plan: Plan, factor: float, source: Array, planes: list[str], *, preview: bool) -> None:
        height, width, channels = source.shape
        size = output_size((width, height), factor)
        shape = (size[1], size[0], channels)
        self.pixels: Array = images.resize(source, size) if preview else np.empty(shape, source.dtype)
        self.planes = planes
        self.confidence = np.empty(shape[:2], np.uint8) if "confidence" in planes else None
        self.expected_error = np.empty(shape[:2], np.float32) if "expected_error" in planes else None
        self.preview = preview
        self.band = Band(plan, int(factor), channels + len(planes), self._take)
        self.tiles = len(plan.tops) * len(plan.lefts)
        self.added = 0

    @property
    def complete(self) -> bool:
        """Whether all tiles are in."""
        return self.added == self.tiles

    def add(self, tiles: list[Tile], stage: TileStage) -> bool:
        """Blend in the next tiles; False where they were in already (they come twice when memory runs out)."""
        before = self.added
        colours = stage.images.mean(1, keepdim=True) if self.pixels.shape[2] == 1 else stage.images
        parts = [colours, *(getattr(stage, name) for name in self.planes)]
        for tile, values in zip(tiles, torch.cat(parts, dim=1).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            if tile.row * len(self.band.plan.lefts) + tile.column == self.added:
                if self.preview:
                    self._paste(tile, values)
                self.band.add(tile, values)
                self.added += 1
        return self.added > before

    def _paste(self, tile: Tile, values: FloatArray) -> None:
        """Show a tile unblended; the band's finished rows take its place."""
        top, left = tile.top * self.band.factor, tile.left * self.band.factor
        place = self.pixels[top : top + len(values), left : left + len(values)]
        height, width, channels = place.shape
        place[:] = images.from_float(values[:height, :width, :channels], place.dtype)

    def _take(self, top: int, rows: FloatArray) -> None:
        height, width, channels = self.pixels.shape
        rows = rows[: max(0, height - top), :width]
        place = slice(top, top + len(rows))
        self.pixels[place] = images.from_float(rows[..., :channels], self.pixels.dtype)
        if self.confidence is not None:
            self.confidence[place] = np.rint(rows[..., channels] * 255)
        if self.expected_error is not None:
            self.expected_error[place] = rows[..., channels + 1]


def cascade(scale: float, factors: tuple[float, ...]) -> list[float]:
    """The native factor of each pass that together reach a scale (or exceed it, for an exact resize)."""
    top = max(factors)
    passes = []
    while scale > top > 1:
        passes.append(top)
        scale /= top
    return [*passes, min((f for f in factors if f >= scale), default=top)]


def output_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) times a scale, halves rounded up, at least one pixel."""
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return width, height


def _resize_plane(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A plane H W at another (width, height)."""
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))


def _pad(pixels: Array, side: int) -> Array:
    """Mirror a picture (H W or H W C) smaller than a tile to the right and below."""
    short = [(0, max(0, side - length)) for length in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, short, mode="symmetric") if np.any(short) else pixels


def as_picture(image: Any) -> Picture:
    """A `Picture` of a path, a Pillow image, an array or a tensor.

    Raises:
        ImageError: it is none of these, or its shape, type or values are not a picture's.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return images.read(image)
    if isinstance(image, Image.Image):
        return images.from_pil(image)
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
        if pixels.ndim != 3:
            raise ImageError(f"a picture tensor is C H W or 1 C H W, got {tuple(image.shape)}")
        pixels = pixels.float() if pixels.is_floating_point() else pixels
        return _from_array(pixels.permute(1, 2, 0).numpy())
    if isinstance(image, np.ndarray):
        return _from_array(image[..., None] if image.ndim == 2 else image)
    raise ImageError(f"not a picture: {type(image).__name__}; give a path, a Pillow image, an array or a tensor")


def _from_array(array: Array) -> Picture:
    """H W C: grey, grey and alpha, RGB, or RGB and alpha."""
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or not array.size:
        raise ImageError(f"a picture has a height, a width and 1 to 4 channels, got {array.shape}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -0.25 and high <= 1.25):  # some overshoot is usual after a resize; NaN is not
            raise ImageError(f"float pixels must lie in [0, 1], got {low:g} to {high:g}")
        array = images.from_float(array * 2 - 1, np.uint8)
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"pixels must be uint8, uint16 or float, got {array.dtype}")
    colours = 3 if array.shape[2] >= 3 else 1
    alpha = np.ascontiguousarray(array[..., colours]) if array.shape[2] > colours else None
    return Picture(np.ascontiguousarray(array[..., :colours]), alpha, format="array")


def to_pil(picture: Picture) -> Image.Image:
    """A picture as a Pillow image of 8 bits: L, LA, RGB or RGBA, with its ICC profile and EXIF in `info`."""
    whole = picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha])
    if picture.bits == 16:
        whole = ((whole.astype(np.uint32) + 128) // 257).astype(np.uint8)
    out = Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)
    out.info |= {key: value for key, value in (("icc_profile", picture.icc), ("exif", picture.exif)) if value}
    return out
