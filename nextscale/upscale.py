"""Any picture in, restored pictures out: tiles -> condition -> codes -> decoders -> stitched outputs.

`NextScale.upscale` is the one path that the command line, the page and batches share.
"""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from nextscale import image as images
from nextscale.checkpoint import WEIGHTS, find_folder, half_precision, load_weights, read_config, read_kind, save_folder
from nextscale.config import Ladder, ModelConfig
from nextscale.errors import ImageError, ModelError, NextScaleError, OptionError
from nextscale.image import Picture
from nextscale.options import ColorFix, UpscaleOptions
from nextscale.sample import sample, tile_noise
from nextscale.stitch import Band, FloatArray, Plan, Tile, adain_color, plan_tiles, wavelet_color
from nextscale.tokenizer.model import Codes, Tokenizer
from nextscale.transformer.model import CLEAN, DEGRADED, Condition, Transformer

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
    """Whole runs done before this one (alpha, cascades)."""
    passes: int = 1


@dataclass(frozen=True)
class Reveal:
    """A picture as it appears: one stage of one batch of tiles is ready."""

    factor: float
    picture: Picture
    """The canvas so far; tiles yet to come show the input enlarged."""
    complete: bool
    """Whether all tiles of this factor are in."""


@dataclass
class UpscaleResult:
    """What `upscale` returns."""

    images: dict[float, Picture]
    """Per factor; the largest is the one asked for."""
    confidence: dict[float, NDArray[np.uint8]] = field(default_factory=dict)
    """Per factor, H W: 255 where the model was sure of every code, 0 where it guessed."""
    codes: dict[tuple[int, int], Codes] = field(default_factory=dict)
    """Per tile (row, column) of the colour picture's first pass."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds per part."""

    @property
    def picture(self) -> Picture:
        """The result at the scale asked for."""
        return self.images[max(self.images)]

    @property
    def pil(self) -> Image.Image:
        """The result as a Pillow image (8 bit)."""
        return to_pil(self.picture)


@dataclass(frozen=True)
class TileStage:
    """One stage of a batch of tiles."""

    factor: float
    images: Tensor
    """B 3 H H in [-1, 1], float32, colours matched to the input."""
    confidence: Tensor
    """B 1 H H in [0, 1]: mean probability of the stage's codes at each place."""
    codes: list[Codes]
    """Per tile, all steps so far."""


class NextScale:
    """A tokenizer and a transformer, ready to restore pictures."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, transformer: Transformer) -> None:
        self.config = config
        self.tokenizer = tokenizer.eval()
        self.transformer = transformer.eval()
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @classmethod
    def create(cls, config: ModelConfig) -> NextScale:
        """A model with fresh random weights."""
        part = config.tokenizer
        transformer = Transformer(config.transformer, part.ladder, part.vocabulary, part.autoencoder.latent_channels)
        return cls(config, Tokenizer(part), transformer)

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
        if (config.tokenizer.ladder, config.tokenizer.vocabulary) != (part.ladder, part.config.vocabulary):
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

    def save_pretrained(self, folder: str | Path, *, half: bool = True) -> Path:
        """Write config.json and model.safetensors, in 16 bit (the quantiser stays in 32) unless `half` is off."""
        state = self.modules.state_dict()
        return save_folder(folder, "model", self.config, half_precision(state) if half else state)

    @property
    def modules(self) -> nn.ModuleDict:
        """Both parts under their names in the checkpoint."""
        return nn.ModuleDict({"tokenizer": self.tokenizer, "transformer": self.transformer})

    def to(self, device: str = "auto", *, fp32: bool = False) -> NextScale:
        """Move to a device; the transformer's weights take the computing type, the quantiser stays in float32."""
        self.device = pick_device(device)
        self.dtype = torch.float32 if fp32 else fast_dtype(self.device)
        self.tokenizer.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.transformer.to(self.device, self.dtype)
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
            image: a `Picture`, a path, a Pillow image, a numpy array (H W or H W C, uint8 or uint16), or a tensor
                (C H W or 1 C H W, float in [0, 1]).
            options: see `UpscaleOptions`.
            stream: return an iterator that yields x1, x2, x4 as their stages finish, batch of tiles by batch of tiles.
            on_progress: called after every step.

        Raises:
            OptionError: the options do not fit the model.
            ImageError: the image is none.
            NextScaleError: out of memory even with one tile at a time.
        """
        run = _Run(self, as_picture(image), options or UpscaleOptions(), on_progress)
        if stream:
            return run.reveal()
        return run.result()

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
            with self._autocast():
                decoded = self.tokenizer.decode_canvas(
                    stage.f, stage.stage, inputs=inputs, features=features, weight=float(options.fidelity)
                )
            clock.tick(f"decode_{stage.stage + 1}")
            matched = match_color(decoded.float(), inputs, options.color_fix).clamp(-1, 1)
            probabilities = [stage.probabilities[k] for k in ladder.steps_of(stage.stage)]
            enlarged = [F.interpolate(p[:, None], size=(side, side), mode="bilinear") for p in probabilities]
            codes = [Codes([ids[i] for ids in stage.codes.steps], ladder) for i in range(len(inputs))]
            clock.tick("color")
            yield TileStage(factor, matched, torch.stack(enlarged).mean(0), codes)

    def condition(self, inputs: Tensor, label: int, ladder: Ladder | None = None) -> Condition:
        """The transformer's condition for input tiles B 3 s s in [-1, 1]."""
        ladder = ladder or self.tokenizer.ladder
        side = ladder.image_sides[-1]
        enlarged = F.interpolate(inputs, size=(side, side), mode="bilinear").contiguous(
            memory_format=torch.channels_last
        )
        with self._autocast():
            latent = self.tokenizer.latents(enlarged)
        return Condition(latent, torch.full((len(inputs),), label, device=inputs.device))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class _Clock:
    """Adds up the seconds of each part."""

    def __init__(self, device: torch.device, totals: dict[str, float]) -> None:
        self.device = device
        self.totals = totals
        self.last = time.perf_counter()

    def tick(self, part: str) -> None:
        """Everything since the last tick was this part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.totals[part] = self.totals.get(part, 0.0) + now - self.last
        self.last = now


def match_color(decoded: Tensor, inputs: Tensor, how: ColorFix) -> Tensor:
    """Decoded tiles B 3 H H with the colours of the inputs B 3 s s."""
    if how == "none":
        return decoded
    source = F.interpolate(inputs, size=decoded.shape[-2:], mode="bicubic")
    return wavelet_color(decoded, source) if how == "wavelet" else adain_color(decoded, source)


class _Run:
    """One call of `upscale`."""

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
        self.on_progress = on_progress
        own = model.tokenizer.ladder
        self.ladder = own.for_input(options.tile or own.input_side)
        self.scales = cascade(options.scale, self.ladder.factors)
        self.alpha_pass = picture.alpha is not None and int(np.ptp(picture.alpha)) > 0
        self.passes = len(self.scales) + self.alpha_pass
        self.passes_done = 0
        self.out = UpscaleResult({})

    def result(self) -> UpscaleResult:
        started = time.perf_counter()
        for _ in self.reveal(stream=False):
            pass
        self.out.timings["total"] = time.perf_counter() - started
        return self.out

    def reveal(self, *, stream: bool = True) -> Iterator[Reveal]:
        """Run all passes; yields what is ready when streaming."""
        options, picture, out = self.options, self.picture, self.out
        first = self.scales[0]
        wanted = [f for f in self.ladder.factors if f <= first] if options.all_factors else [first]
        alphas = yield from self._alphas(wanted)
        pixels = picture.rgb if picture.alpha is None else images.bleed(picture.rgb, picture.alpha)
        native = 1.0
        for index, scale in enumerate(self.scales):
            # A later pass runs on the model's own result, which is no longer degraded.
            label = CLEAN if index or options.input == "clean" else DEGRADED
            made = yield from self._run(
                pixels, wanted if index == 0 else [scale], label, native, stream, keep_codes=not index
            )
            for factor, output in made.items():
                total = native * factor
                alpha = alphas.get(total)
                if picture.alpha is not None and alpha is None:
                    alpha = images.resize(alphas[max(alphas)], (output.pixels.shape[1], output.pixels.shape[0]))
                out.images[total] = dataclasses.replace(picture, rgb=output.pixels, alpha=alpha)
                if output.confidence is not None:
                    out.confidence[total] = output.confidence
            pixels = made[scale].pixels
            native *= scale
        self._finish(native)
        if stream:
            for factor in sorted(out.images):
                yield Reveal(factor, out.images[factor], True)

    def _finish(self, native: float) -> None:
        """Keep what was asked for; resize exactly to a scale that is not native."""
        out, scale = self.out, self.options.scale
        if scale != native:
            size = output_size(self.picture.size, scale)
            whole = out.images[native]
            rgb, alpha = (
                None if a is None else images.resize(a, size, filter="lanczos") for a in (whole.rgb, whole.alpha)
            )
            assert rgb is not None
            out.images[scale] = dataclasses.replace(whole, rgb=rgb, alpha=alpha)
            if native in out.confidence:
                out.confidence[scale] = images.resize(out.confidence[native], size, filter="bilinear")
        asked = {scale, *(f for f in self.ladder.factors if self.options.all_factors and f < scale)}
        out.images = {f: p for f, p in out.images.items() if f in asked}
        out.confidence = {f: c for f, c in out.confidence.items() if f in asked}

    def _alphas(self, wanted: list[float]) -> Generator[Reveal, None, dict[float, Array]]:
        """Alpha per factor, restored apart as a grey picture; what is fully clear or opaque stays so."""
        alpha = self.picture.alpha
        if alpha is None:
            return {}
        plain = {f: images.resize(alpha, output_size(self.picture.size, f)) for f in wanted}
        if not self.alpha_pass:
            return plain
        made = yield from self._run(alpha[..., None], wanted, CLEAN, 1.0, False, keep_codes=False)
        top = np.iinfo(alpha.dtype).max
        sure = {f: (p == 0) | (p == top) for f, p in plain.items()}
        return {f: np.where(sure[f], plain[f], made[f].pixels[..., 0]).astype(alpha.dtype) for f in wanted}

    def _run(
        self, pixels: Array, wanted: list[float], label: int, native: float, stream: bool, *, keep_codes: bool
    ) -> Generator[Reveal, None, dict[float, _Output]]:
        """One pass over all tiles of H W C pixels, for the wanted native factors."""
        ladder, options = self.ladder, self.options
        height, width = pixels.shape[:2]
        padded = _pad(pixels, ladder.input_side)
        plan = plan_tiles(
            *padded.shape[:2], tile=ladder.input_side, overlap=min(options.tile_overlap, ladder.input_side // 2)
        )
        outputs = {f: _Output(plan, f, pixels, with_confidence=options.confidence and keep_codes) for f in wanted}
        previews = {f: images.resize(pixels, output_size((width, height), f)) for f in wanted} if stream else {}
        total, done = len(plan.tops) * len(plan.lefts), 0
        for row in plan.rows:
            for start in range(0, len(row), options.tile_batch):
                batch = row[start : start + options.tile_batch]
                ready: dict[tuple[Tile, float], FloatArray] = {}
                for tiles, factor, codes, values in self._tiles(padded, batch, wanted, label, done, total):
                    if keep_codes:
                        self.out.codes.update({(t.row, t.column): c for t, c in zip(tiles, codes, strict=True)})
                    for tile, value in zip(tiles, values, strict=True):
                        ready[tile, factor] = value
                        if stream:
                            _paste(previews[factor], tile, value, int(factor))
                    if stream:
                        picture = dataclasses.replace(self.picture, rgb=previews[factor].copy(), alpha=None)
                        yield Reveal(native * factor, picture, False)
                started = time.perf_counter()
                for (tile, factor), value in ready.items():
                    outputs[factor].band.add(tile, value)
                self._time("stitch", started)
                done += len(batch)
            for output in outputs.values():
                output.band.finish_row(row[0].row)
        self.passes_done += 1
        return outputs

    def _tiles(
        self, padded: Array, batch: list[Tile], wanted: list[float], label: int, done: int, total: int
    ) -> Iterator[tuple[list[Tile], float, list[Codes], FloatArray]]:
        """A batch of tiles, stage by stage: pixels and confidence, B H W C+1; halved when memory runs out."""
        side = self.ladder.input_side
        cut = [padded[t.top : t.top + side, t.left : t.left + side] for t in batch]
        inputs = torch.from_numpy(np.stack([images.to_float(c) for c in cut])).permute(0, 3, 1, 2)
        channels = inputs.shape[1]

        def on_step(step: int) -> None:
            if self.on_progress is not None:
                steps = self.ladder.stage_ends[self.ladder.factors.index(max(wanted))]
                self.on_progress(Progress(done, total, step + 1, steps, self.passes_done, self.passes))

        try:
            for stage in self.model.restore_tiles(
                inputs.expand(-1, 3, -1, -1),
                [(t.row, t.column) for t in batch],
                label,
                self.options,
                wanted,
                ladder=self.ladder,
                on_step=on_step,
                timings=self.out.timings,
            ):
                pixels = stage.images if channels == 3 else stage.images.mean(1, keepdim=True)
                values = torch.cat([pixels, stage.confidence], dim=1).permute(0, 2, 3, 1).cpu().numpy()
                yield batch, stage.factor, stage.codes, values
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise NextScaleError(
                    "out of memory with a single tile; try --tile 64, or close other programs"
                ) from None
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                yield from self._tiles(padded, part, wanted, label, done, total)

    def _time(self, part: str, started: float) -> None:
        self.out.timings[part] = self.out.timings.get(part, 0.0) + time.perf_counter() - started


class _Output:
    """One factor's result at its own bit depth, filled band by band."""

    def __init__(self, plan: Plan, factor: float, source: Array, *, with_confidence: bool) -> None:
        height, width, channels = source.shape
        size = output_size((width, height), factor)
        self.pixels: Array = np.empty((size[1], size[0], channels), source.dtype)
        self.confidence: NDArray[np.uint8] | None = np.empty((size[1], size[0]), np.uint8) if with_confidence else None
        self.band = Band(plan, int(factor), channels + 1, self._take)

    def _take(self, top: int, rows: FloatArray) -> None:
        height, width, channels = self.pixels.shape
        rows = rows[: max(0, height - top), :width]
        place = slice(top, top + len(rows))
        self.pixels[place] = images.from_float(rows[..., :channels], self.pixels.dtype)
        if self.confidence is not None:
            self.confidence[place] = np.rint(rows[..., channels] * 255)


def cascade(scale: float, factors: tuple[float, ...]) -> list[float]:
    """The native factor of each pass that together reach a scale (or exceed it, for an exact resize)."""
    top = max(factors)
    passes = []
    while scale > top:
        passes.append(top)
        scale /= top
    return [*passes, min(f for f in factors if f >= scale)]


def output_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) times a scale, halves rounded up, at least one pixel."""
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return width, height


def _pad(pixels: Array, side: int) -> Array:
    """Mirror a picture smaller than a tile to the right and below."""
    short = [max(0, side - length) for length in pixels.shape[:2]]
    return np.pad(pixels, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric") if any(short) else pixels


def _paste(canvas: Array, tile: Tile, values: FloatArray, factor: int) -> None:
    top, left = tile.top * factor, tile.left * factor
    target = canvas[top : top + len(values), left : left + values.shape[1]]
    target[:] = images.from_float(values[: target.shape[0], : target.shape[1], : canvas.shape[2]], canvas.dtype)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def pick_device(name: str) -> torch.device:
    """auto: CUDA, then MPS, then the CPU.

    Raises:
        OptionError: the device is unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"device {name} is not available here ({str(error).splitlines()[0]}); use auto or cpu"
        ) from None
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """The fastest type that keeps quality: bfloat16 where the hardware has it, else float16 on a GPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.float16
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if has_bf16() else torch.float32


def as_picture(image: Any) -> Picture:
    """A `Picture` of a path, a Pillow image, an array or a tensor.

    Raises:
        ImageError: it is none of these, or its shape or type is not a picture's.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return images.read(image)
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, Tensor):
        array = image.detach().cpu().float()
        array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
        if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
            raise ImageError(f"a picture tensor is C H W with 1, 3 or 4 channels in [0, 1], got {tuple(image.shape)}")
        return as_picture(images.from_float(array.permute(1, 2, 0).numpy() * 2 - 1, np.uint8))
    if isinstance(image, np.ndarray):
        array2 = image[..., None] if image.ndim == 2 else image
        if array2.ndim != 3 or array2.shape[2] not in (1, 2, 3, 4) or array2.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"a picture array is H W or H W C of uint8 or uint16, got {image.shape} {image.dtype}")
        if 0 in array2.shape:
            raise ImageError("the picture array is empty")
        alpha = np.ascontiguousarray(array2[..., -1]) if array2.shape[2] in (2, 4) else None
        rgb = np.ascontiguousarray(array2[..., : array2.shape[2] - (alpha is not None)])
        return Picture(rgb=rgb, alpha=alpha, icc=None, exif=None, lossless=True, format="array")
    raise ImageError(f"not a picture: {type(image).__name__}; give a path, a Pillow image, an array or a tensor")


def _from_pil(image: Image.Image) -> Picture:
    """Through an uncompressed PNG, so that one place alone knows modes, palettes and transparency."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
        upright = upright.convert("RGB")
    held = io.BytesIO()
    upright.save(held, "PNG", compress_level=0, icc_profile=image.info.get("icc_profile"))
    return images.decode_bytes(held.getvalue())


def to_pil(picture: Picture) -> Image.Image:
    """A picture as a Pillow image of 8 bits: L, LA, RGB or RGBA."""
    rgb, alpha = picture.rgb, picture.alpha
    if picture.bits == 16:
        rgb = ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
        alpha = None if alpha is None else ((alpha.astype(np.uint32) + 128) // 257).astype(np.uint8)
    whole = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], axis=2)
    return Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)
