"""One picture's way through the pipeline: passes over its tiles, blended into outputs at every factor asked for.

`Run.reveals` goes over the passes, `Run._pass` over the batches of tiles of one, `restore_tiles` over their stages.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nextscale import image as images
from nextscale.device import is_out_of_memory
from nextscale.errors import ImageError, NextScaleError
from nextscale.image import Picture
from nextscale.model.tokenizer import Codes
from nextscale.model.transformer import CLEAN, DEGRADED
from nextscale.upscale.options import UpscaleOptions, output_size
from nextscale.upscale.pipeline import Pipeline, TileStage
from nextscale.upscale.plan import PassPlan, WorkPlan
from nextscale.upscale.tiles import Band, FloatArray, Plan, Tile

Array = NDArray[Any]
OnProgress = Callable[["Progress"], None]
RestoreTiles = Callable[..., Iterator[TileStage]]
"""What `Pipeline.restore_tiles` does."""


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
    shares: tuple[float, ...] = ()
    """What part of the work each pass is (empty: all the same)."""

    @property
    def share(self) -> float:
        """How much of the picture is done, above 0 to 1."""
        shares = self.shares or (1 / self.passes,) * self.passes
        tiles = self.tiles_done + self.step / self.steps
        return min(1.0, sum(shares[: self.passes_done]) + shares[self.passes_done] * tiles / self.tiles)


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
    expected absolute difference in 8-bit levels, mean over the colors."""
    codes: dict[tuple[int, int], Codes] = field(default_factory=dict)
    """Per tile (row, column) of the first pass over the colors: as `Tokenizer.decode` takes them."""
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
    def tensor(self) -> Tensor:
        """The result as C H W, float32 in [0, 1], without alpha."""
        return to_tensor(self.picture)

    @property
    def pil(self) -> Image.Image:
        """The result as a Pillow image (8 bit)."""
        return to_pil(self.picture)


def shown_map(confidence: NDArray[np.uint8], expected_error: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """The expected error in whole 8-bit levels; of a model without one, the confidence."""
    return confidence if expected_error is None else np.rint(expected_error.clip(0, 255)).astype(np.uint8)


class Run:
    """One call of `upscale`: passes over the alpha, over the colors, and again over the result beyond x4."""

    def __init__(
        self,
        pipeline: Pipeline,
        picture: Picture,
        options: UpscaleOptions,
        on_progress: OnProgress | None = None,
        restore_tiles: RestoreTiles | None = None,
    ) -> None:
        """
        Args:
            restore_tiles: takes the place of the pipeline's, for tiles that share batches with other pictures'.

        Raises:
            OptionError: the options do not fit the model.
        """
        pipeline.check(options)
        self.pipeline = pipeline
        self.restore_tiles = restore_tiles or pipeline.restore_tiles
        self.picture = picture
        self.options = options
        self.on_progress = on_progress
        self.plan = plan_of(pipeline, picture, options)
        self.native = pipeline.ladder_for(options).factors
        self.passes_done = 0
        self.batch = options.tile_batch
        self.alphas: dict[float, Array] = {}
        self.out = UpscaleResult({})

    def result(self) -> UpscaleResult:
        """Run all passes at once.

        Raises:
            NextScaleError: out of memory even with one tile at a time, or for the result itself.
        """
        started = time.perf_counter()
        for _ in self.reveals(stream=False):
            pass
        self.out.timings["total"] = time.perf_counter() - started
        return self.out

    def reveals(self, *, stream: bool = True) -> Iterator[Reveal]:
        """Run all passes; when streaming, yields whatever is new.

        Raises:
            NextScaleError: as `result`.
        """
        options, picture, out = self.options, self.picture, self.out
        passes = self.plan.passes
        with self._memory_errors():
            self._check_memory()
            asked = options.factors(self.native)
            wanted = [f for f in self.native if f in asked or f == passes[0].factor]
            self.alphas = self._restore_alpha(wanted)
            whole = picture
            earlier: float | None = None
            for step in passes:
                # A later pass runs on the model's own result, which is no longer degraded.
                label = DEGRADED if earlier is None and options.input_class == "degraded" else CLEAN
                parts = wanted if earlier is None else [step.factor]
                whole = _resized(whole, step.size, self.alphas)
                for tiles, stage, output in self._pass(step, whole.rgb, whole.alpha, parts, label, stream):
                    if earlier is None and stage.codes:
                        out.codes.update({(t.row, t.column): c for t, c in zip(tiles, stage.codes, strict=True)})
                    reach = stage.factor if earlier is None else step.reach
                    if output.complete:
                        self._keep(reach, output, earlier)
                    if stream and not output.complete:
                        yield Reveal(reach, dataclasses.replace(picture, rgb=output.pixels.copy(), alpha=None), False)
                    elif stream and reach in asked and reach != options.scale:
                        yield self._reveal_of(reach)
                earlier = step.reach
                whole = out.images[earlier]
            self._finish(passes[-1].reach)
            yield self._reveal_of(options.scale)
            out.images = {f: out.images[f] for f in asked}
            out.confidence = {f: out.confidence[f] for f in asked if f in out.confidence}
            out.expected_error = {f: out.expected_error[f] for f in asked if f in out.expected_error}

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Say in one line that the result does not fit into memory."""
        try:
            yield
        except MemoryError:
            width, height = output_size(self.picture.size, self.options.scale)
            raise NextScaleError(
                f"out of memory for {width} x {height} pixels; use a smaller --scale, or close other programs"
            ) from None

    def _planes(self) -> list[str]:
        """The maps that go beside the colors."""
        if not self.options.confidence or self.options.fast:
            return []
        return ["confidence"] if self.pipeline.fusions is None else ["confidence", "expected_error"]

    def _reveal_of(self, factor: float) -> Reveal:
        out = self.out
        return Reveal(factor, out.images[factor], True, out.confidence.get(factor), out.expected_error.get(factor))

    def _check_memory(self) -> None:
        """Fail now rather than after the first pass where the largest output can never be held."""
        try:
            np.empty((self.plan.pixels, self.picture.rgb.shape[2]), self.picture.rgb.dtype)
        except ValueError as error:  # more bytes than an address can name
            raise MemoryError from error

    def _keep(self, factor: float, output: _Output, earlier: float | None) -> None:
        """Take over a complete output; `earlier` is the factor of the result that its pass started from."""
        height, width = output.pixels.shape[:2]
        size = width, height
        alpha = self.alphas.get(factor)
        if self.alphas and (alpha is None or alpha.shape != (height, width)):
            alpha = _resize_alpha(self.alphas[max(self.alphas)], size, "bicubic")
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

    def _finish(self, reach: float) -> None:
        """From the result of the last pass to exactly the scale asked for."""
        out, scale, size = self.out, self.options.scale, self.plan.result
        whole = out.images[reach]
        if whole.size != size:
            whole = _resized(whole, size)
        out.images[scale] = whole
        if reach in out.confidence:
            out.confidence[scale] = _fitted(out.confidence[reach], size)
        if reach in out.expected_error:
            out.expected_error[scale] = _fitted(out.expected_error[reach], size)

    def _restore_alpha(self, wanted: list[float]) -> dict[float, Array]:
        """Alpha per factor, restored apart as a gray picture; what is fully clear or opaque stays so, and at x1 all."""
        alpha = self.picture.alpha
        if alpha is None:
            return {}
        step = self.plan.alpha
        wanted = sorted({*wanted, self.plan.passes[0].factor if step is None else step.factor})
        alphas = {f: images.resize(alpha, output_size(self.picture.size, f), filter="bilinear") for f in wanted}
        if step is not None:
            larger = [f for f in wanted if f > 1]
            for _, stage, output in self._pass(step, alpha[..., None], None, larger, CLEAN, False, planes=[]):
                if output.complete:
                    alphas[stage.factor] = _pin_alpha(output.pixels[..., 0], alphas[stage.factor], alpha)
        return alphas

    def _pass(
        self,
        step: PassPlan,
        pixels: Array,
        alpha: Array | None,
        wanted: list[float],
        label: int,
        preview: bool,
        *,
        planes: list[str] | None = None,
    ) -> Iterator[tuple[list[Tile], TileStage, _Output]]:
        """One run over all tiles of H W C pixels: yields an output whenever tiles were added to it.

        Where alpha (H W) is 0, each tile takes the colors of what is visible nearby. When memory runs out, the batch
        is run again in smaller ones; its early stages come twice, and the outputs leave out what they have.

        Args:
            planes: maps beside the colors (None: those that the options ask for).
        """
        plan, side = step.tiles, step.tiles.tile
        ladder = self.pipeline.ladder_for(self.options).for_input(side)
        padded = _pad(pixels, side)
        padded_alpha = None if alpha is None else _pad(alpha, side)
        planes = self._planes() if planes is None else planes
        outputs = {f: _Output(plan, f, pixels, planes, preview=preview) for f in wanted}
        total, done = len(plan.tops) * len(plan.lefts), 0
        steps = ladder.stage_ends[ladder.factors.index(max(wanted))]

        def on_step(step: int) -> None:
            if self.on_progress is not None:
                shares = self.plan.shares
                self.on_progress(Progress(done, total, step + 1, steps, self.passes_done, len(shares), shares))

        for row in plan.rows:
            while row:
                tiles = row[: self.batch]
                inputs, keys = _cut(padded, padded_alpha, tiles, side), [(t.row, t.column) for t in tiles]
                how: dict[str, Any] = {"ladder": ladder, "on_step": on_step, "timings": self.out.timings}
                exhausted = False
                try:
                    for stage in self.restore_tiles(inputs, keys, label, self.options, wanted, **how):
                        output = outputs[stage.factor]
                        if self._stitch(output, tiles, stage):
                            yield tiles, stage, output
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    exhausted = True
                if exhausted:  # outside `except`: the error holds on to all tensors of the failed attempt
                    self._shrink(len(tiles))
                else:
                    if self.options.fast:  # it has no steps to tell of
                        on_step(steps - 1)
                    row = row[len(tiles) :]
                    done += len(tiles)
        self.passes_done += 1

    def _stitch(self, output: _Output, tiles: list[Tile], stage: TileStage) -> bool:
        started = time.perf_counter()
        added = output.add(tiles, stage)
        self.out.timings["stitch"] = self.out.timings.get("stitch", 0.0) + time.perf_counter() - started
        return added

    def _shrink(self, failed: int) -> None:
        """Halve the batch of tiles that did not fit, for good."""
        if failed == 1:
            raise NextScaleError("out of memory with a single tile; use a smaller --tile, or close other programs")
        self.batch = failed // 2
        if self.pipeline.device.type == "cuda":
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
        colors = stage.images.mean(1, keepdim=True) if self.pixels.shape[2] == 1 else stage.images
        parts = [colors, *(getattr(stage, name) for name in self.planes)]
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


def _cut(padded: Array, alpha: Array | None, tiles: list[Tile], side: int) -> Tensor:
    """Tiles of H W C pixels as the pipeline takes them: B 3 s s in [-1, 1]."""
    places = [np.s_[t.top : t.top + side, t.left : t.left + side] for t in tiles]
    cut = [padded[p] if alpha is None else images.bleed(padded[p], alpha[p]) for p in places]
    return torch.from_numpy(images.to_float(np.stack(cut))).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def _pin_alpha(restored: Array, soft: Array, alpha: Array) -> Array:
    """Restored alpha (H W, a whole multiple of `alpha`) within the values around each place of the input's.

    Where `soft`, the input's alpha by linear interpolation, is fully clear or opaque, so is the result.
    """
    full, factor = np.iinfo(alpha.dtype).max, len(restored) // len(alpha)
    for around, bound in ((np.minimum, np.maximum), (np.maximum, np.minimum)):
        limit = _around(alpha, around).repeat(factor, axis=0).repeat(factor, axis=1)
        restored = bound(restored, limit)
    restored[soft == full], restored[soft == 0] = full, 0
    return restored


def _around(plane: Array, pick: np.ufunc) -> Array:
    """The least or largest value (`pick`) of each place H W and the eight around it."""
    for _ in range(2):
        out = plane.copy()
        pick(out[1:], plane[:-1], out=out[1:])
        pick(out[:-1], plane[1:], out=out[:-1])
        plane = out.T
    return plane


def _resize_alpha(alpha: Array, size: tuple[int, int], filter: images.Filter) -> Array:
    """Alpha H W at another (width, height); what is fully clear or opaque stays so, where a filter would ring."""
    out, soft = images.resize(alpha, size, filter=filter), images.resize(alpha, size, filter="bilinear")
    full = np.iinfo(alpha.dtype).max
    out[soft == full], out[soft == 0] = full, 0
    return out


def _resized(picture: Picture, size: tuple[int, int], alphas: dict[float, Array] | None = None) -> Picture:
    """A picture at another (width, height); the same where it has it.

    Args:
        alphas: the photograph's transparency at several sizes, the largest of which is taken.
    """
    if picture.size == size:
        return picture
    alpha = alphas[max(alphas)] if alphas else picture.alpha
    alpha = None if alpha is None else _resize_alpha(alpha, size, "lanczos")
    return dataclasses.replace(picture, rgb=images.resize(picture.rgb, size, filter="lanczos"), alpha=alpha)


def _fitted(plane: Array, size: tuple[int, int]) -> Array:
    """A map H W at another (width, height); itself where it has it."""
    if plane.shape[::-1] == size:
        return plane
    return images.resize(plane, size, filter="bilinear") if plane.dtype == np.uint8 else _resize_plane(plane, size)


def _resize_plane(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A plane H W at another (width, height)."""
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))


def _pad(pixels: Array, side: int) -> Array:
    """Mirror a picture (H W or H W C) smaller than a tile to the right and below."""
    short = [(0, max(0, side - length)) for length in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, short, mode="symmetric") if np.any(short) else pixels


def plan_of(pipeline: Pipeline, picture: Picture, options: UpscaleOptions) -> WorkPlan:
    """What a picture takes; see `Pipeline.plan`."""
    alpha = picture.alpha is not None and int(np.ptp(picture.alpha)) > 0
    return pipeline.plan(picture.size, options, alpha=alpha)


def as_picture(image: Any) -> Picture:
    """A `Picture` of a path, a file's bytes, an open binary file, a Pillow image, an array or a tensor.

    Raises:
        ImageError: it is none of these, or its shape, type or values are not a picture's.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | os.PathLike):
        return images.read(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return images.decode_bytes(bytes(image))
    if callable(getattr(image, "read", None)) and not isinstance(image, Image.Image):
        return images.decode_bytes(_bytes_of(image))
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
    raise ImageError(
        f"not a picture: {type(image).__name__}; give a path, bytes, a file, a Pillow image, an array or a tensor"
    )


def _bytes_of(file: Any) -> bytes:
    """The rest of an open file."""
    try:
        data = file.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"the open file cannot be read ({error}); open it again") from None
    if not isinstance(data, bytes):
        raise ImageError('the file is open as text; open it with mode "rb"')
    return data


def _from_array(array: Array) -> Picture:
    """H W C: gray, gray and alpha, RGB, or RGB and alpha."""
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or not array.size:
        raise ImageError(f"a picture has a height, a width and 1 to 4 channels, got {array.shape}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -0.25 and high <= 1.25):  # some overshoot is usual after a resize; NaN is not
            raise ImageError(f"float pixels must lie in [0, 1], got {low:g} to {high:g}")
        array = images.from_float(array * 2 - 1, np.uint16)  # finer than any screen shows, and written as such
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"pixels must be uint8, uint16 or float, got {array.dtype}")
    colors = 3 if array.shape[2] >= 3 else 1
    alpha = np.ascontiguousarray(array[..., colors]) if array.shape[2] > colors else None
    return Picture(np.ascontiguousarray(array[..., :colors]), alpha, format="array")


def to_tensor(picture: Picture) -> Tensor:
    """The colors of a picture as C H W, float32 in [0, 1]."""
    top = np.iinfo(picture.rgb.dtype).max
    return torch.from_numpy(picture.rgb.astype(np.float32) / top).permute(2, 0, 1)


def to_pil(picture: Picture) -> Image.Image:
    """A picture as a Pillow image of 8 bits: L, LA, RGB or RGBA, with what describes it in `info`."""
    whole = images.eight_bits(picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha]))
    out = Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)
    about = {"icc_profile": picture.icc, "exif": picture.exif, "dpi": picture.dpi, "xmp": picture.xmp}
    out.info |= {key: value for key, value in about.items() if value}
    return out
