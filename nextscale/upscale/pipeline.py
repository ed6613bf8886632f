"""Tokenizer, transformer, restorer and fusions on a device: one batch of tiles in, its restored stages out.

Knows nothing of pictures; `run.py` cuts them into tiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.device import exact_float32, fast_dtype, is_out_of_memory, pick_device
from nextscale.errors import NextScaleError, OptionError
from nextscale.model.config import FusionConfig, Ladder, ModelConfig
from nextscale.model.decoder import Decoder
from nextscale.model.fusion import Fusion
from nextscale.model.restorer import Restorer
from nextscale.model.sampler import sample, tile_noise
from nextscale.model.taesd import TaesdDecoder
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.model.transformer import Condition, Transformer, enlarge
from nextscale.upscale.color import adain_color, keep_flat, wavelet_color
from nextscale.upscale.options import ColorFix, UpscaleOptions
from nextscale.upscale.plan import WorkPlan, ladder_for, plan_for, reach_for


@dataclass(frozen=True)
class TileStage:
    """One stage of a batch of tiles."""

    factor: float
    images: Tensor
    """B 3 H H in [-1, 1], float32, colors matched to the input."""
    confidence: Tensor
    """B 1 H H in [0, 1]: mean probability of the stage's codes at each place."""
    codes: list[Codes]
    """Per tile, all steps so far, each 1 rho rho on the CPU; empty where the restorer worked alone."""
    expected_error: Tensor | None = None
    """B 1 H H in 8-bit levels, where the model has a fusion and it had its say."""


class Pipeline:
    """The networks of a model, ready to restore tiles."""

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

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.tokenizer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in: the type of the transformer's weights."""
        return next(self.transformer.parameters()).dtype

    @property
    def modules(self) -> nn.ModuleDict:
        """All parts under their names in the checkpoint."""
        parts: dict[str, nn.Module] = {"tokenizer": self.tokenizer, "transformer": self.transformer}
        if self.restorer is not None and self.fusions is not None:
            parts |= {"restorer": self.restorer, "fusions": self.fusions}
        return nn.ModuleDict(parts)

    def to(self, device: str | torch.device = "auto", dtype: torch.dtype | None = None, *, fp32: bool = False) -> None:
        """Move to a device; the transformer's weights take the computing type, the quantizer stays in float32.

        Args:
            dtype: what to compute in (None: the fastest of the device, or float32 if `fp32`).
        """
        target = pick_device(str(device))
        if target.type == "cuda":
            exact_float32()
        dtype = torch.float32 if fp32 else dtype or fast_dtype(target)
        try:
            for part in (self.tokenizer, self.restorer, self.fusions):
                if part is not None:
                    part.to(target, torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.transformer.to(target, dtype)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise NextScaleError(
                f"out of memory for the model on {target}; close other programs, or use another --device"
            ) from None
        self.modules.requires_grad_(False)

    def check(self, options: UpscaleOptions) -> None:
        """Whether this model has what the options ask for.

        Raises:
            OptionError: naming the option.
        """
        if self.restorer is None and options.fast:
            raise OptionError("this model has no restorer to run alone; leave out --fast, or use another model")
        if options.denoise != UpscaleOptions.denoise and (self.restorer is None or not self.restorer.config.grain_rank):
            raise OptionError("this model has no denoise dial; leave out --denoise, or use another model")

    def without_idle_codes(self, options: UpscaleOptions) -> UpscaleOptions:
        """The options with `fast` where pictures and maps are the same without the codes: at fidelity 1, without a map
        of the expected error, by a model whose fusion only repeats the restorer's picture."""
        idle = options.fidelity == 1 and not options.confidence and self._repeats_restorer()
        return options.changed(fast=True) if idle else options

    def _repeats_restorer(self) -> bool:
        """Whether the fusions give the restorer's pictures: they read no codes, and their heads are the restorer's."""
        sizes = self.config.fusion
        if self.restorer is None or self.fusions is None or sizes is None or sizes.codes or sizes.blocks:
            return False
        for fusion, head in zip(self.fusions, self.restorer.heads, strict=True):
            assert isinstance(fusion, Fusion)
            if not all(map(torch.equal, fusion.head.parameters(), head.parameters())):
                return False
        return True

    def ladder_for(self, options: UpscaleOptions) -> Ladder:
        """The ladder for the tiles that the options ask for.

        Raises:
            OptionError: tile or tile-overlap do not fit the model.
        """
        return ladder_for(self.tokenizer.ladder, options)

    def plan(self, size: tuple[int, int], options: UpscaleOptions, *, alpha: bool = False) -> WorkPlan:
        """What a picture of a (width, height) takes.

        Args:
            alpha: it has a transparency that is not the same everywhere.

        Raises:
            OptionError: tile or tile-overlap do not fit the model.
        """
        reach = reach_for(self.config.restorer, options)
        return plan_for(self.tokenizer.ladder, size, options, alpha=alpha, reach=reach)

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
                # The codes follow from the features of the smallest factor, and from images that are encoded.
                for_codes = self.restorer.config.factors[: max(1, self.config.transformer.stem.encoded)]
                needed = wanted if options.fast else [*for_codes, *wanted]
                restored = self.restorer.features(inputs, options.denoise, needed)
            clock.tick("restorer")
        if options.fast:
            yield from self._fast_tiles(inputs, restored, options, wanted, clock)
            return
        condition = self.condition(inputs, label, ladder, restored)
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
                        stage.f, stage.stage, inputs=inputs, features=features, fidelity=float(options.fidelity)
                    )
                else:
                    decoded, error = self.fuse(stage.f, stage.stage, inputs, restored, probabilities, options.fidelity)
            clock.tick(f"decode_{stage.stage + 1}")
            matched = match_color(decoded.float(), inputs, self._color_fix(options)).clamp(-1, 1)
            matched = keep_flat(matched, inputs)
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
        restored: dict[int, Tensor],
        probabilities: list[Tensor],
        fidelity: float,
    ) -> tuple[Tensor, Tensor]:
        """A stage's images between the codes' own (fidelity 0) and the fusion's (1), and their expected error.

        Args:
            f: the stage's canvas B C h w.
            inputs: B 3 s s in [-1, 1].
            restored: the restorer's features of the inputs, of the stage's factor at least.
            probabilities: of the stage's codes, one map B rho rho per step.

        Returns:
            images B 3 H H, not clamped; the error of the fusion's in 8-bit levels, B 1 H H.
        """
        assert self.fusions is not None
        assert self.restorer is not None
        decoder = self.tokenizer.decoders[stage]
        assert isinstance(decoder, Decoder | TaesdDecoder)
        fusion = self.fusions[stage]
        decoded = base = None
        if fusion.reads_codes or fidelity < 1:
            decoded, base = decoder.features(f)
        factor = int(self.tokenizer.ladder.factors[stage])
        fused, error = fusion(
            self.restorer.base(restored, inputs, factor),
            restored[factor],
            decoded,
            mean_probability(probabilities, inputs),
        )
        fused = self.restorer.refined(fused, restored, factor)
        if decoded is not None and fidelity < 1:
            fused = torch.lerp(decoder.picture(decoded, base).float(), fused, fidelity)
        return fused, error * 127.5

    def _fast_tiles(
        self,
        inputs: Tensor,
        restored: dict[int, Tensor] | None,
        options: UpscaleOptions,
        wanted: list[float],
        clock: _Clock,
    ) -> Iterator[TileStage]:
        """The restorer's own images at each wanted factor: no codes."""
        assert self.restorer is not None
        assert restored is not None
        for factor in sorted(wanted):
            with self._autocast():
                drafted = self.restorer.draft(restored, inputs, int(factor))
            matched = keep_flat(match_color(drafted, inputs, self._color_fix(options)).clamp(-1, 1), inputs)
            clock.tick("draft")
            yield TileStage(factor, matched, matched.new_zeros(len(matched), 1, *matched.shape[-2:]), [])
            clock.restart()

    def condition(
        self, inputs: Tensor, label: int, ladder: Ladder | None = None, restored: dict[int, Tensor] | None = None
    ) -> Condition:
        """The transformer's condition for input tiles B 3 s s in [-1, 1].

        Args:
            label: 0 degraded, 1 clean.
            restored: the restorer's features of the tiles, where they are at hand.
        """
        ladder = ladder or self.tokenizer.ladder
        with self._autocast():
            latents = condition_latents(self.tokenizer, self.transformer, self.restorer, ladder, inputs, restored)
        return Condition(latents, torch.full((len(inputs),), label, device=inputs.device))

    def _color_fix(self, options: UpscaleOptions) -> ColorFix:
        """The restorer keeps the input's colors by itself; the codes alone do not."""
        if options.color_fix != "auto":
            return options.color_fix
        return "none" if self.restorer is not None and options.fidelity == 1 else "wavelet"

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


def condition_latents(
    tokenizer: Tokenizer,
    transformer: Transformer,
    restorer: Restorer | None,
    ladder: Ladder,
    inputs: Tensor,
    restored: dict[int, Tensor] | None = None,
) -> list[Tensor]:
    """What the codes of input photographs are conditioned on: B Z h w per stage, or of the last stage alone.

    Args:
        ladder: of the inputs' side.
        inputs: B 3 s s in [-1, 1].
        restored: the restorer's features of them, where they are at hand.
    """
    if transformer.stem is not None:
        assert restorer is not None
        factors = restorer.config.factors
        known = factors[: transformer.config.stem.encoded]
        if restored is None:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            restored = restorer.features(inputs, factors=known or factors[:1])
        encoded = restored_latents(tokenizer, restorer, restored, inputs, known)
        out: list[Tensor] = transformer.stem(restored[factors[0]], inputs, ladder, encoded)
        return out
    enlarged = enlarge(inputs, ladder.image_sides[-1]).contiguous(memory_format=torch.channels_last)
    if transformer.config.aligned_conditioning:
        return tokenizer.stage_latents(enlarged, ladder=ladder)
    return [tokenizer.latents(enlarged)]


def restored_latents(
    tokenizer: Tokenizer, restorer: Restorer, restored: dict[int, Tensor], inputs: Tensor, factors: Sequence[int]
) -> list[Tensor]:
    """Latents B Z c c of the restored images at some factors.

    Args:
        restored: the restorer's features of the inputs, of these factors at least.
        inputs: B 3 s s in [-1, 1].
    """
    drafts = [restorer.draft(restored, inputs, factor) for factor in factors]
    return [tokenizer.latents(draft.clamp(-1, 1)) for draft in drafts]


def make_fusions(config: FusionConfig, restorer: Restorer, tokenizer: Tokenizer) -> nn.ModuleList:
    """A fusion per stage; untrained, each gives what the restorer gives."""
    fusions = nn.ModuleList()
    for stage, factor in enumerate(restorer.config.factors):
        decoder = tokenizer.decoders[stage]
        assert isinstance(decoder, Decoder | TaesdDecoder)
        fusion = Fusion(config, restorer.config.channels, decoder.feature_channels, factor)
        fusion.head.load_state_dict(restorer.heads[stage].state_dict())
        fusions.append(fusion)
    return fusions


def mean_probability(probabilities: list[Tensor], inputs: Tensor) -> Tensor:
    """The mean of probability maps B rho rho, each enlarged to the inputs' size: B 1 s s."""
    maps = [F.interpolate(p[:, None].float(), size=inputs.shape[-2:], mode="bilinear") for p in probabilities]
    return torch.stack(maps).mean(0)


def match_color(decoded: Tensor, inputs: Tensor, how: ColorFix) -> Tensor:
    """Decoded tiles B 3 H H with the colors of the inputs B 3 s s."""
    if how == "none":
        return decoded
    source = F.interpolate(inputs, size=decoded.shape[-2:], mode="bicubic")
    return wavelet_color(decoded, source) if how == "wavelet" else adain_color(decoded, source)
