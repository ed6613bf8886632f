"""Claims about nextscale.upscale: any picture in, pictures of exactly the right size out, whatever the tiles."""

from __future__ import annotations

import dataclasses
import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFilter
from torch import Tensor

from nextscale import image as images
from nextscale.device import exact_float32, fast_dtype, pick_device
from nextscale.errors import ImageError, NextScaleError, OptionError
from nextscale.image import Array, Picture
from nextscale.model.checkpoint import CONFIG, SHIPPED
from nextscale.model.config import Ladder, flat_ladder
from nextscale.model.tokenizer import Codes
from nextscale.model.transformer import Transformer
from nextscale.upscale import pipeline
from nextscale.upscale.color import keep_flat
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import ColorFix, UpscaleOptions, cascade, output_size
from nextscale.upscale.pipeline import Pipeline, TileStage, match_color
from nextscale.upscale.run import Progress, as_picture, to_pil
from tests.conftest import restoring_model

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
needs_tiny = pytest.mark.skipif(not (SHIPPED / "tiny" / CONFIG).exists(), reason="the shipped weights are not here")


class Enlarger(Pipeline):
    """The model's place taken by plain bicubic enlargement: what is left is tiling, stitching and bookkeeping."""

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
        assert len(inputs) == len(keys) <= options.tile_batch
        assert label in (0, 1)
        assert timings is not None
        ladder = ladder or self.tokenizer.ladder
        for stage, factor in enumerate(ladder.factors):
            if factor in wanted:
                side = ladder.image_sides[stage]
                enlarged = F.interpolate(inputs, size=(side, side), mode="bicubic").clamp(-1, 1)
                sure = torch.linspace(0, 1, side).expand(len(inputs), 1, side, side)
                yield TileStage(factor, enlarged, sure, [Codes([], ladder)] * len(inputs))
            if on_step is not None:
                on_step(ladder.stage_ends[stage] - 1)


@pytest.fixture(scope="session")
def enlarger(model: NextScale) -> NextScale:
    enlarger = NextScale(model.config, model.tokenizer, model.transformer)
    enlarger.pipeline = Enlarger(model.config, model.tokenizer, model.transformer)
    return enlarger


@pytest.fixture(scope="session")
def tiny() -> NextScale:
    return NextScale.from_pretrained("tiny", device="cpu", fp32=True)


def noise(*shape: int, dtype: type = np.uint8) -> Array:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def smooth(height: int, width: int, channels: int = 3) -> Array:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 40 + c) + np.cos(y / 30 - c) for c in range(channels)]
    return (127 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


def as_tile(photo: Array) -> Tensor:
    """H W 3 -> 1 3 H W in [-1, 1], in memory as the product lays it out."""
    return torch.from_numpy(images.to_float(photo[None])).permute(0, 3, 1, 2)


def options(**changes: Any) -> UpscaleOptions:
    return UpscaleOptions(**changes)


def assert_same(got: Picture, want: Picture) -> None:
    np.testing.assert_array_equal(got.rgb, want.rgb)
    assert (got.alpha is None) == (want.alpha is None)
    if got.alpha is not None and want.alpha is not None:
        np.testing.assert_array_equal(got.alpha, want.alpha)


def assert_alike(got: Picture, want: Picture) -> None:
    """Equal but for a level in a few places."""
    difference = np.abs(got.rgb.astype(int) - want.rgb)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


# ---- sizes ----


@pytest.mark.parametrize("scale", [0.5, 1, 1.5, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [(1, 1), (129, 127), (1, 300), (300, 1), (37, 64)])
def test_the_output_is_exactly_scale_times_the_input(enlarger: NextScale, size: tuple[int, int], scale: float) -> None:
    result = enlarger.upscale(noise(*size, 3), options(scale=scale, confidence=True))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    assert list(result.images) == [scale]
    assert result.picture.rgb.shape == (height, width, 3)
    assert result.confidence[scale].shape == (height, width)


@pytest.mark.integration
@pytest.mark.parametrize(("size", "scale"), [((1, 1), 4), ((1, 140), 2), ((129, 127), 1), ((129, 60), 3), ((9, 7), 8)])
def test_so_it_is_with_the_real_network(model: NextScale, size: tuple[int, int], scale: float) -> None:
    assert model.upscale(noise(*size, 3), options(scale=scale)).picture.size == (size[1] * scale, size[0] * scale)


@given(st.integers(1, 5000), st.floats(0.01, 30))
def test_sizes_round_to_the_nearest_pixel(side: int, scale: float) -> None:
    width, height = output_size((side, 1), scale)
    assert abs(width - side * scale) <= 0.5 or (width == 1 and side * scale < 1)
    assert height >= 1


@pytest.mark.parametrize(
    ("scale", "factors"), [(4.0, [1, 2, 4]), (3.0, [1, 2, 3]), (2.0, [1, 2]), (2.0000001, [1, 2.0000001]), (0.5, [0.5])]
)
def test_all_factors_have_names_of_their_own(scale: float, factors: list[float]) -> None:
    assert UpscaleOptions(scale=scale, all_factors=True).factors((1.0, 2.0, 4.0)) == factors


@pytest.mark.parametrize(
    ("scale", "passes"),
    [
        *((0.3, [1]), (1, [1]), (1.01, [2]), (2, [2]), (3, [4]), (4, [4]), (4.1, [4]), (5, [4])),
        *((5.1, [2, 4]), (6, [2, 4]), (8, [2, 4]), (9, [4, 4]), (16, [4, 4]), (20, [4, 4]), (21, [2, 4, 4])),
        *((64, [4, 4, 4]), (65, [4, 4, 4]), (100_000, [4, 4, 4])),
    ],
)
def test_scales_above_four_cascade(scale: float, passes: list[float]) -> None:
    assert cascade(scale, (1.0, 2.0, 4.0)) == passes


def test_a_model_that_only_cleans_is_enlarged_by_a_resize_alone() -> None:
    assert cascade(4, flat_ladder((1, 2, 3, 4)).factors) == [1]


@pytest.mark.parametrize(
    ("scale", "factors"), [(4, [1, 2, 4]), (2, [1, 2]), (3, [1, 2, 3]), (1, [1]), (0.5, [0.5]), (8, [1, 2, 4, 8])]
)
def test_all_factors_are_the_native_ones_below_the_scale(
    enlarger: NextScale, scale: float, factors: list[float]
) -> None:
    result = enlarger.upscale(noise(20, 30, 3), options(scale=scale, all_factors=True))
    assert {f: p.size for f, p in result.images.items()} == {f: (int(30 * f), int(20 * f)) for f in factors}
    assert list(result.images) == factors
    assert result.picture is result.images[scale]


@pytest.mark.integration
def test_smaller_factors_equal_those_asked_for_alone(model: NextScale) -> None:
    photo = smooth(100, 140)
    together = model.upscale(photo, options(all_factors=True))
    for factor in (1, 2):
        assert_same(together.images[factor], model.upscale(photo, options(scale=factor)).picture)


def test_a_result_beyond_memory_is_refused_before_the_work_begins(enlarger: NextScale) -> None:
    with pytest.raises(NextScaleError, match=r"out of memory for \d+ x \d+ pixels; use a smaller --scale"):
        enlarger.upscale(noise(500, 500, 3), options(scale=50_000))


# ---- tiles ----


@pytest.mark.integration
@settings(max_examples=12, deadline=None)
@given(st.integers(100, 400), st.integers(100, 400), st.sampled_from([1, 2, 4]))
def test_tiled_equals_untiled(enlarger: NextScale, height: int, width: int, factor: int) -> None:
    photo = smooth(height, width)
    got = enlarger.upscale(photo, options(scale=factor)).picture.rgb
    whole = F.interpolate(as_tile(photo), scale_factor=factor, mode="bicubic")
    want = images.from_float(whole[0].permute(1, 2, 0).numpy(), np.uint8)
    # The outermost pixels differ where a small picture was mirrored to a tile's size.
    inner = np.s_[: -2 * factor, : -2 * factor]
    assert np.abs(got[inner].astype(int) - want[inner]).max() <= 1


@pytest.mark.integration
def test_one_tile_is_the_decoders_image_itself(model: NextScale) -> None:
    photo = smooth(128, 128)
    (stage,) = model.restore_tiles(as_tile(photo), [(0, 0)], 0, options(), [4])
    want = images.from_float(stage.images[0].permute(1, 2, 0).numpy(), np.uint8)
    np.testing.assert_array_equal(model.upscale(photo).picture.rgb, want)


@pytest.mark.integration
@pytest.mark.parametrize(("tile", "rows", "columns"), [(64, 2, 4), (80, 2, 3), (144, 1, 2), (192, 1, 1)])
def test_tiles_of_another_side_work(model: NextScale, tile: int, rows: int, columns: int) -> None:
    result = model.upscale(smooth(100, 150), options(scale=2, tile=tile))
    assert result.picture.size == (300, 200)
    assert result.codes.keys() == {(r, c) for r in range(rows) for c in range(columns)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tile": 100}, "tile of 100"),
        ({"tile_overlap": 1}, "tile-overlap"),
        ({"tile": 64, "tile_overlap": 40}, "tile-overlap"),
    ],
)
def test_tiles_that_do_not_fit_the_model_are_refused_by_name(
    model: NextScale, changes: dict[str, int], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        model.upscale(noise(10, 10, 3), options(**changes))


@pytest.mark.integration
@pytest.mark.parametrize("size", [(130, 130), (128, 128), (240, 250)])
def test_tiles_that_grew_are_what_the_option_gives(model: NextScale, size: tuple[int, int]) -> None:
    """A picture of two pixels more than a tile is one larger tile; one that fits the model's own stays as it was."""
    how = options(scale=2, confidence=True)
    grown = model.upscale(smooth(*size), how)
    assert len(grown.codes) == (1 if size[0] < 200 else 4)
    side = grown.codes[0, 0].ladder.input_side
    assert side == (128 if size == (128, 128) else 144)
    same = model.upscale(smooth(*size), dataclasses.replace(how, tile=side))
    assert_same(grown.picture, same.picture)
    np.testing.assert_array_equal(grown.confidence[2], same.confidence[2])


@pytest.mark.integration
def test_a_plan_says_what_then_happens(model: NextScale) -> None:
    rgba = np.dstack([smooth(60, 150), smooth(60, 150, 1)])
    for scale in (2.0, 6.0):
        plan = model.plan(rgba, options(scale=scale))
        seen: list[Progress] = []
        result = model.upscale(rgba, options(scale=scale, tile_batch=1), on_progress=seen.append)
        assert result.picture.size == plan.result
        ran = {(p.passes_done, p.tiles) for p in seen}
        assert ran == {(i, len(run.tiles.tops) * len(run.tiles.lefts)) for i, run in enumerate(plan.runs)}
        assert sum(tiles for _, tiles in ran) == plan.tiles
        shares = [p.share for p in seen]
        assert shares == sorted(shares)
        assert 0 < shares[0] < 0.2
        assert shares[-1] == pytest.approx(1)


@pytest.mark.integration
def test_alpha_beyond_four_comes_from_its_largest_factor(model: NextScale) -> None:
    """The first of two passes is x2; alpha needs one pass alone, at x4."""
    rgba = disc()
    first, second = (model.upscale(rgba, options(scale=s)).picture.alpha for s in (4, 8))
    assert first is not None
    assert second is not None
    partial = (second > 0) & (second < 255)
    np.testing.assert_array_equal(second[partial], images.resize(first, (768, 768))[partial])


def example_tiles() -> Tensor:
    """Eight tiles of the example photographs, B 3 128 128."""
    tiles = []
    for path in EXAMPLES:
        rgb = images.resize(images.read(path).rgb, (256, 128))
        tiles += [rgb[:, :128], rgb[:, 128:]]
    return torch.from_numpy(images.to_float(np.stack(tiles[:8]))).permute(0, 3, 1, 2)


def codes_of(model: NextScale, order: Sequence[int], batch: int, how: UpscaleOptions) -> list[Tensor]:
    """Per example tile, all its ids, restored in the given order and batch size."""
    inputs = example_tiles()
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        *_, last = model.restore_tiles(inputs[part], [(0, i) for i in part], 0, how, [how.scale])
        for index, codes in zip(part, last.codes, strict=True):
            found[index] = torch.cat([ids.flatten() for ids in codes.steps])
    return [found[i] for i in sorted(found)]


def check_codes(model: NextScale, how: UpscaleOptions) -> None:
    wanted = codes_of(model, range(8), 8, how)
    for order, batch in ((range(8), 1), (range(8), 3), (random.Random(0).sample(range(8), 8), 8)):
        for got, want in zip(codes_of(model, order, batch, how), wanted, strict=True):
            assert torch.equal(got, want)


@pytest.mark.integration
@pytest.mark.parametrize("how", [options(), options(scale=2, temperature=1, top_k=20, seed=5)], ids=["greedy", "drawn"])
def test_codes_do_not_depend_on_batch_or_order(model: NextScale, how: UpscaleOptions) -> None:
    check_codes(model, how)


@needs_tiny
@pytest.mark.slow
def test_nor_do_the_shipped_models(tiny: NextScale) -> None:
    check_codes(tiny, options())


def test_codes_are_kept_per_tile_and_decode(model: NextScale) -> None:
    result = model.upscale(smooth(128, 200), options(scale=2, fidelity=0, color_fix="none", confidence=True))
    assert result.codes.keys() == {(0, 0), (0, 1)}
    assert [tuple(ids.shape) for ids in result.codes[0, 1].steps] == [(1, k, k) for k in (4, 6, 8, 10, 14, 16)]
    alone = model.tokenizer.decode(result.codes[0, 0])
    shown = images.to_float(result.picture.rgb[:, :100]).transpose(2, 0, 1)
    np.testing.assert_allclose(alone[0, :, :, :100].numpy(), shown, atol=1.1 / 255)


# ---- sampling ----


@pytest.mark.integration
def test_the_same_seed_gives_the_same_bytes_and_another_others(model: NextScale) -> None:
    how = partial(options, scale=1, temperature=1.0)
    photo = smooth(64, 200)
    first = model.upscale(photo, how(seed=1)).picture
    assert_same(first, model.upscale(photo, how(seed=1)).picture)
    assert not np.array_equal(first.rgb, model.upscale(photo, how(seed=2)).picture.rgb)
    assert not np.array_equal(first.rgb, model.upscale(photo, how(temperature=0.0)).picture.rgb)


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_result_does_not_depend_on_the_tile_batch(model: NextScale, temperature: float) -> None:
    """The codes are equal; a convolution over another batch may round a pixel the other way."""
    how = partial(options, scale=2, temperature=temperature, seed=3)
    one, *others = (model.upscale(smooth(64, 500), how(tile_batch=b)) for b in (1, 3, 8))
    for other in others:
        assert_alike(other.picture, one.picture)
        for place, codes in one.codes.items():
            assert all(map(torch.equal, other.codes[place].steps, codes.steps))


@pytest.mark.integration
@pytest.mark.parametrize(
    "changes",
    [
        {"cfg": 2.0},
        {"input_class": "clean"},
        {"fidelity": 0.0},
        {"color_fix": "adain"},
        {"color_fix": "none"},
        {"tile": 64},
    ],
)
def test_every_option_speaks(model: NextScale, changes: dict[str, Any]) -> None:
    photo = smooth(100, 100)
    plain, other = (model.upscale(photo, options(scale=2, **c)).picture.rgb for c in ({}, changes))
    assert plain.shape == other.shape
    assert not np.array_equal(plain, other)


# ---- the stream ----


def check_stream(model: NextScale, photo: Array, scale: float) -> list[tuple[float, bool]]:
    """Stream a picture; every complete reveal must equal the unstreamed result. Returns (factor, complete)."""
    want = model.upscale(photo, options(scale=scale, all_factors=True)).images
    seen = []
    for reveal in model.upscale(photo, options(scale=scale), stream=True):
        seen.append((reveal.factor, reveal.complete))
        if reveal.complete:
            assert_same(reveal.picture, want.pop(reveal.factor))
    assert not want
    return seen


@pytest.mark.integration
def test_one_tile_streams_x1_x2_x4(model: NextScale) -> None:
    assert check_stream(model, smooth(90, 120), 4) == [(1, True), (2, True), (4, True)]


@pytest.mark.integration
def test_several_tiles_stream_canvases_that_fill(model: NextScale) -> None:
    photo = smooth(128, 230)
    batches = options(tile_batch=1)
    seen = [(r.factor, r.complete) for r in model.upscale(photo, batches, stream=True)]
    assert seen == [(1, False), (2, False), (4, False), (1, True), (2, True), (4, True)]
    assert check_stream(model, np.dstack([photo, smooth(128, 230, 1)]), 2) == [(1, True), (2, True)]


@pytest.mark.parametrize("scale", [3, 5, 8])
def test_the_stream_ends_with_the_scale_asked_for(enlarger: NextScale, scale: float) -> None:
    seen = [factor for factor, complete in check_stream(enlarger, smooth(40, 50), scale) if complete]
    assert seen == [1, 2, *([4] if scale > 4 else []), scale]


@pytest.mark.integration
def test_a_partly_filled_canvas_shows_the_tile_and_the_input_enlarged(model: NextScale) -> None:
    photo = smooth(128, 230)
    stream = model.upscale(photo, options(tile_batch=1, color_fix="none"), stream=True)
    first, second = next(stream), next(stream)
    for reveal, factor in ((first, 1), (second, 2)):
        enlarged = images.resize(photo, (230 * factor, 128 * factor))
        np.testing.assert_array_equal(reveal.picture.rgb[:, 128 * factor :], enlarged[:, 128 * factor :])
        assert not np.array_equal(reveal.picture.rgb[:, : 128 * factor], enlarged[:, : 128 * factor])
    kept = first.picture.rgb.copy()
    list(stream)
    np.testing.assert_array_equal(first.picture.rgb, kept)  # a canvas once given does not change


@pytest.mark.integration
def test_progress_counts_every_step_of_every_tile_and_pass(model: NextScale) -> None:
    seen: list[Progress] = []
    rgba = np.dstack([smooth(128, 230), smooth(128, 230, 1)])
    model.upscale(rgba, options(scale=2, tile_batch=1), on_progress=seen.append)
    assert [(p.passes_done, p.tiles_done, p.step) for p in seen] == [
        (run, tile, step) for run in range(2) for tile in range(2) for step in range(1, 7)
    ]
    assert {(p.passes, p.tiles, p.steps) for p in seen} == {(2, 2, 6)}


# ---- what is kept ----


@pytest.mark.integration
def test_gray_stays_gray(model: NextScale) -> None:
    result = model.upscale(smooth(40, 60, 1)[..., 0], options(all_factors=True))
    assert [p.rgb.shape for p in result.images.values()] == [(40, 60, 1), (80, 120, 1), (160, 240, 1)]
    assert result.pil.mode == "L"


@pytest.mark.integration
def test_sixteen_bits_stay_sixteen_bits(enlarger: NextScale, model: NextScale) -> None:
    ramp = np.linspace(20000, 21000, 100 * 100).reshape(100, 100, 1).astype(np.uint16)
    got = enlarger.upscale(ramp, options(scale=1)).picture.rgb
    assert got.dtype == np.uint16
    assert np.abs(got.astype(int) - ramp).max() <= 1  # finer than any 8-bit step
    deep = model.upscale(np.dstack([ramp] * 4), options(scale=3)).picture
    assert deep.alpha is not None
    assert deep.rgb.dtype == deep.alpha.dtype == np.uint16


@pytest.mark.integration
@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_alpha_is_untouched(model: NextScale, value: int) -> None:
    rgba = np.dstack([smooth(30, 40), np.full((30, 40), value, np.uint8)])
    result = model.upscale(rgba, options(scale=3, all_factors=True))
    for factor, picture in result.images.items():
        assert picture.alpha is not None
        assert picture.alpha.shape == (30 * factor, 40 * factor)
        assert (picture.alpha == value).all()
    assert result.pil.mode == "RGBA"


def disc(side: int = 96) -> Array:
    """An opaque orange disc with a soft rim, on transparent black."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    alpha = np.clip(side / 3 - np.hypot(x, y), 0, 1)
    rgba = np.zeros((side, side, 4), np.uint8)
    rgba[alpha > 0, :3] = (230, 120, 30)
    rgba[..., 3] = np.rint(alpha * 255)
    return rgba


@pytest.mark.parametrize(("side", "scale"), [(96, 1), (96, 2), (96, 3), (96, 4), (96, 8), (260, 1), (260, 3)])
def test_a_disc_on_transparent_black_gets_no_halo(enlarger: NextScale, side: int, scale: int) -> None:
    picture = enlarger.upscale(disc(side), options(scale=scale)).picture
    assert picture.alpha is not None
    seen = picture.rgb[picture.alpha > 0].astype(int)
    assert np.abs(seen - (230, 120, 30)).max() <= 2


@pytest.mark.integration
def test_alpha_is_restored_apart_from_color(model: NextScale) -> None:
    rgba = disc()
    gray = rgba[..., 3].copy()
    opaque = np.dstack([smooth(96, 96), gray])
    first, second = (model.upscale(picture, options(scale=2)).picture.alpha for picture in (rgba, opaque))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first, second)  # the colors have no say in it
    soft = images.resize(gray, (192, 192), filter="bilinear")
    sure = (soft == 0) | (soft == 255)
    np.testing.assert_array_equal(first[sure], soft[sure])
    restored = model.upscale(gray, options(scale=2, input_class="clean")).picture.rgb[..., 0]
    low, high = (pick.reduce(around(gray)).repeat(2, axis=0).repeat(2, axis=1) for pick in (np.minimum, np.maximum))
    np.testing.assert_array_equal(first[~sure], np.clip(restored, low, high)[~sure])


def around(plane: Array) -> list[Array]:
    """Nine planes H W: each value and its eight neighbors."""
    padded, (height, width) = np.pad(plane, 1, mode="edge"), plane.shape
    return [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]


@pytest.mark.parametrize("scale", [0.4, 1, 2, 2.7, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_opaque_or_clear_stays_so(enlarger: NextScale, scale: float, dtype: type) -> None:
    full, rng = np.iinfo(dtype).max, np.random.default_rng(0)
    alpha: Array = np.zeros((60, 40), dtype)
    alpha[20:40, 10:30] = full
    alpha[48:] = rng.integers(0, full + 1, (12, 40))
    flat = Picture(np.full((60, 40, 3), 90, dtype), alpha)
    got = enlarger.upscale(flat, options(scale=scale)).picture.alpha
    assert got is not None
    at = [round(scale * place) for place in (12, 22, 28, 38, 17)]
    assert (got[at[1] : at[3], at[0] : at[2]] == full).all()
    assert (got[: at[4]] == 0).all()
    if scale == 1:
        np.testing.assert_array_equal(got, alpha)


@pytest.mark.integration
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_flat_places_stay_flat_to_the_border(tiny: NextScale, factor: int) -> None:
    photo = np.zeros((100, 110, 3), np.uint8)
    photo[60:80, 60:80] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    got = tiny.upscale(photo, options(scale=factor, fast=True)).picture.rgb
    inside = slice(57 * factor, 83 * factor)
    assert got[inside, inside].max() > 100
    got[inside, inside] = 0
    assert got.max() == 0


def test_only_what_is_flat_is_kept() -> None:
    inputs = torch.full((1, 3, 16, 16), -1.0)
    inputs[:, 1, 8, 8] = -0.9
    images = torch.rand(1, 3, 32, 32)
    kept = keep_flat(images, inputs)
    rows = (torch.arange(32) // 2 - 8).abs()
    distance = torch.maximum(rows[:, None], rows[None])
    assert (kept[..., distance > 3] == -1).all()
    torch.testing.assert_close(kept[..., distance <= 1], images[..., distance <= 1], rtol=0, atol=0)
    assert ((kept < images) & (kept > -1))[..., (distance == 2) | (distance == 3)].all()
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    assert keep_flat(images, ramp) is images


@pytest.mark.parametrize("value", [0, 100, 254])
def test_one_level_of_noise_is_flat_too(value: int) -> None:
    """As a black bar is that went through JPEG: what a network adds there is cut to the levels around."""
    noise = np.random.default_rng(0).integers(0, 2, (16, 16, 3))
    inputs, wider = (
        torch.from_numpy((value + step * noise) / 127.5 - 1).float().permute(2, 0, 1)[None] for step in (1, 3)
    )
    specks = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = torch.round((keep_flat(specks, inputs) + 1) * 127.5)
    assert (int(kept.min()), int(kept.max())) == (value, value + 1)
    enlarged = inputs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(keep_flat(enlarged, inputs), enlarged)  # what fits is left as it is
    assert keep_flat(specks, wider) is specks


def test_colors_are_kept(model: NextScale) -> None:
    """A network that knows nothing still leaves the mean colors right."""
    photo = images.read(EXAMPLES[0]).rgb[:100, :100]
    got = model.upscale(photo, options(scale=2, fidelity=0)).picture.rgb
    np.testing.assert_allclose(got.mean((0, 1)), photo.mean((0, 1)), atol=6)


@pytest.mark.parametrize("how", ["wavelet", "adain"])
def test_a_color_cast_of_the_decoder_is_removed(how: ColorFix) -> None:
    inputs = as_tile(images.read(EXAMPLES[0]).rgb[:128, :128]) / 2
    enlarged = F.interpolate(inputs, size=(256, 256), mode="bicubic")
    cast = enlarged + torch.tensor([0.2, -0.1, 0.3])[:, None, None]
    torch.testing.assert_close(match_color(cast, inputs, how), enlarged, atol=1e-4, rtol=0)


def test_profile_and_exif_travel_with_every_result(enlarger: NextScale) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    photo = dataclasses.replace(as_picture(smooth(20, 30)), icc=SRGB, exif=exif.tobytes())
    result = enlarger.upscale(photo, options(scale=3, all_factors=True))
    assert {(p.icc, p.exif) for p in result.images.values()} == {(photo.icc, photo.exif)}
    assert result.pil.info["icc_profile"] == SRGB
    assert result.pil.getexif()[0x010F] == "Maker"


# ---- the confidence map ----


@pytest.mark.integration
def test_the_confidence_map_comes_only_when_asked_for(model: NextScale) -> None:
    assert model.upscale(smooth(30, 30), options(all_factors=True)).confidence == {}


@pytest.mark.integration
@pytest.mark.parametrize("scale", [2, 3, 5])
def test_every_picture_has_a_confidence_map_of_its_size(model: NextScale, scale: int) -> None:
    result = model.upscale(smooth(30, 50), options(scale=scale, all_factors=True, confidence=True))
    assert result.confidence.keys() == result.images.keys()
    for factor, values in result.confidence.items():
        assert values.dtype == np.uint8
        assert (values.shape[1], values.shape[0]) == result.images[factor].size
        assert values.any()


@pytest.mark.integration
def test_the_confidence_is_the_probability_of_the_codes(model: NextScale) -> None:
    stages = list(model.restore_tiles(as_tile(smooth(128, 128)), [(0, 0)], 0, options(), [1, 2, 4]))
    result = model.upscale(smooth(128, 128), options(all_factors=True, confidence=True))
    for stage in stages:
        assert 0 <= stage.confidence.min() <= stage.confidence.max() <= 1
        want = np.rint(stage.confidence[0, 0].numpy() * 255)
        np.testing.assert_array_equal(result.confidence[stage.factor], want)


def test_a_cascade_is_as_sure_as_its_least_sure_pass(enlarger: NextScale) -> None:
    result = enlarger.upscale(smooth(128, 128), options(scale=8, all_factors=True, confidence=True))
    first = images.resize(result.confidence[4], (1024, 1024), filter="bilinear")
    assert (result.confidence[8] <= first).all()


# ---- what goes in ----


@pytest.mark.integration
def test_arrays_tensors_pillow_images_and_paths_mean_the_same(model: NextScale, tmp_path: Path) -> None:
    rgb = smooth(30, 40)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    same = [
        rgb, np.asfortranarray(rgb), rgb[:, ::-1][:, ::-1], tensor, tensor[None], Image.fromarray(rgb),
        tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), as_picture(rgb),
    ]  # fmt: skip
    want = model.upscale(rgb, options(scale=1)).picture
    for given_as in same:
        assert_same(as_picture(given_as), as_picture(rgb))
        got = model.upscale([given_as], options(scale=1)) if given_as is same[4] else [model.upscale(given_as, scale=1)]
        assert_same(got[0].picture, want)
    with (tmp_path / "a.png").open("rb") as file:
        assert_same(model.upscale(file, scale=1).picture, want)
    with (
        (tmp_path / "a.png").open(encoding="latin-1") as text,
        pytest.raises(ImageError, match='open it with mode "rb"'),
    ):
        model.upscale(text)


def test_floats_keep_sixteen_bits(model: NextScale) -> None:
    fine = np.linspace(0.2, 0.3, 30 * 40 * 3, dtype=np.float32).reshape(30, 40, 3)
    tensor = torch.from_numpy(fine).permute(2, 0, 1)
    for given_as in (fine, fine.astype(np.float64), tensor, tensor.double(), tensor.contiguous()):
        picture = as_picture(given_as)
        assert picture.bits == 16
        np.testing.assert_allclose(picture.rgb / 65535, fine, atol=1e-5)
    result = model.upscale(fine, scale=2)
    assert result.picture.bits == 16
    assert result.tensor.shape == (3, 60, 80)
    assert len(np.unique(result.picture.rgb)) > 256
    np.testing.assert_allclose(result.tensor.permute(1, 2, 0).numpy() * 65535, result.picture.rgb, atol=0.01)


@pytest.mark.integration
def test_a_list_or_a_batch_gives_a_list(model: NextScale) -> None:
    photos = [smooth(20, 30), smooth(24, 16, 1)]
    results = model.upscale(photos, scale=1, fidelity=0.5)
    for photo, result in zip(photos, results, strict=True):
        assert_same(result.picture, model.upscale(photo, options(scale=1, fidelity=0.5)).picture)
    batch = torch.rand(2, 3, 18, 20, generator=torch.Generator().manual_seed(0))
    both = model.upscale(batch, scale=2)
    assert [result.picture.size for result in both] == [(40, 36)] * 2
    assert_same(both[1].picture, model.upscale(batch[1], scale=2).picture)
    assert model.upscale([]) == []
    with pytest.raises(OptionError, match="stream is for one picture"):
        model.upscale(batch, stream=True)


def test_keywords_take_the_place_of_options(model: NextScale) -> None:
    base = options(scale=4, fidelity=0.3)
    want = model.upscale(smooth(20, 30), options(scale=2, fidelity=0.3)).picture
    assert_same(model.upscale(smooth(20, 30), base, scale=2).picture, want)
    with pytest.raises(OptionError, match=r"^there is no option fidelty; did you mean fidelity\?$"):
        model.upscale(smooth(20, 30), fidelty=1)
    with pytest.raises(OptionError, match=r"^there is no option zzz; there are scale, all_factors, "):
        model.upscale(smooth(20, 30), zzz=1)
    with pytest.raises(OptionError, match=r"^scale must be"):
        model.upscale(smooth(20, 30), scale=0)


@pytest.mark.integration
def test_the_model_is_a_module(model_folder: Path) -> None:
    model = NextScale.from_pretrained(model_folder, device="cpu", fp32=True)
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert {name.split(".")[0] for name in model.state_dict()} == {"tokenizer", "transformer"}
    batch = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    out = model(batch, scale=2, fidelity=0.5)
    assert out.shape == (2, 3, 32, 40)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[1], model.upscale(batch[1], scale=2, fidelity=0.5).tensor)
    assert model.half().dtype == torch.float16
    assert next(model.tokenizer.quantizer.parameters()).dtype == torch.float32
    assert model.float().dtype == torch.float32
    assert model.to(torch.bfloat16).to("cpu", torch.float16).to(None, torch.float32).dtype == torch.float32
    out = model(batch, scale=2, fidelity=0.5)  # with weights that went through 16 bit
    assert bool(torch.isfinite(out).all())
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert copy.pipeline.tokenizer is copy.tokenizer
    torch.testing.assert_close(model(batch, scale=2, fidelity=0.5), out)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_to_four_channels_are_gray_or_color_with_or_without_alpha(channels: int) -> None:
    picture = as_picture(noise(5, 6, channels))
    assert picture.is_gray == (channels < 3)
    assert (picture.alpha is not None) == (channels % 2 == 0)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((3, 40, 50), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
        np.full((4, 4, 3), np.nan),
        np.full((4, 4, 3), 255.0),
        np.full((4, 4, 3), -1.0),
        torch.zeros(4, 4),
        [torch.zeros(2, 3, 4, 4)],
        torch.zeros(1, 2, 3, 4, 4),
        torch.zeros(3, 0, 4),
        torch.full((3, 4, 4), 200.0),
        torch.zeros(3, 4, 4, dtype=torch.int64),
        Image.new("F", (4, 4)),
        Image.new("I", (4, 4)),
        [[1, 2], [3, 4]],
        b"bytes",
        None,
        Path("no such file.png"),
    ],
    ids=lambda bad: (
        f"{type(bad).__name__}-{getattr(bad, 'shape', '')}-{getattr(bad, 'dtype', getattr(bad, 'mode', ''))}"
    ),
)
def test_what_is_no_picture_gives_one_clear_line(enlarger: NextScale, bad: Any) -> None:
    with pytest.raises(ImageError) as caught:
        enlarger.upscale(bad)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_pillow_mode_is_understood(mode: str) -> None:
    rgba = Image.fromarray(np.dstack([smooth(20, 30), np.full((20, 30), 200, np.uint8)]))
    steps = {"PA": ("P", "PA"), "La": ("LA", "La"), "LAB": ("RGB",), "HSV": ("RGB", "HSV"), "YCbCr": ("RGB", "YCbCr")}
    im = rgba
    for step in steps.get(mode, (mode,)):
        im = im.convert(step)
    if mode == "LAB":
        lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        converted = ImageCms.applyTransform(im, lab)
        assert converted is not None
        im = converted
    picture = as_picture(im)
    assert picture.size == (30, 20)
    assert picture.is_gray == (mode in ("1", "L", "LA", "La"))
    assert (picture.alpha is not None) == (mode in ("LA", "P", "PA", "RGBA", "RGBa", "La"))
    if mode not in ("1", "P", "PA", "L", "LA", "La"):
        assert np.abs(picture.rgb.astype(int) - smooth(20, 30)).mean() < 4


def test_pillow_images_keep_profile_exif_and_are_turned_once() -> None:
    im = Image.fromarray(smooth(20, 30))
    im.getexif()[0x0112] = 6
    im.getexif()[0x010F] = "Maker"
    im.info["icc_profile"] = SRGB
    picture = as_picture(im)
    np.testing.assert_array_equal(picture.rgb, np.rot90(smooth(20, 30), -1))
    again = as_picture(to_pil(picture))
    assert_same(again, picture)
    assert (again.icc, again.exif) == (SRGB, picture.exif)


def test_a_truncated_pillow_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(EXAMPLES[0].read_bytes()[:3000])
    with Image.open(tmp_path / "cut.jpg") as im, pytest.raises(ImageError, match="truncated"):
        as_picture(im)


def test_results_become_pillow_images_of_eight_bits() -> None:
    deep = Picture(np.array([[[0], [128], [65535]]], np.uint16), np.array([[0, 257, 65535]], np.uint16))
    assert np.asarray(to_pil(deep)).tolist() == [[[0, 0], [0, 1], [255, 255]]]


# ---- options ----


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("scale", 0.0), ("scale", -1.0), ("scale", float("nan")), ("scale", float("inf")),
        ("fidelity", 1.5), ("seed", -1), ("seed", 2**63), ("temperature", -0.1), ("top_k", -1), ("top_p", 1.5),
        ("cfg", -1.0), ("tile", -1), ("tile_overlap", -1), ("tile_batch", 0), ("input_class", "dirty"),
        ("color_fix", "sepia"), ("scale", "2"), ("seed", 1.5), ("top_k", None), ("fidelity", True),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(name: str, bad: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name.replace('_', '-')} must be .*, got "):
        options(**{name: bad})


# ---- memory ----


def hungry(model: NextScale, monkeypatch: pytest.MonkeyPatch, room: int, *, late: bool = False) -> list[int]:
    """Make a model run out of memory above `room` tiles, perhaps after its first stage; returns the batches tried."""
    real, tried = model.pipeline.restore_tiles, []

    def restore_tiles(inputs: Tensor, *args: Any, **more: Any) -> Iterator[TileStage]:
        tried.append(len(inputs))
        stages = real(inputs, *args, **more)
        if len(inputs) > room:
            if late:
                yield next(stages)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        yield from stages

    monkeypatch.setattr(model.pipeline, "restore_tiles", restore_tiles)
    return tried


@pytest.mark.integration
@pytest.mark.parametrize("late", [False, True])
def test_out_of_memory_means_smaller_batches_and_the_same_bytes(
    model: NextScale, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    how = options(scale=2, all_factors=True, tile_batch=4, confidence=True)
    photo = smooth(64, 500)
    want = model.upscale(photo, dataclasses.replace(how, tile_batch=1))
    tried = hungry(model, monkeypatch, 1, late=late)
    got = model.upscale(photo, how)
    assert tried == [4, 2, 1, 1, 1, 1, 1]  # what did not fit once is not tried again
    assert got.codes.keys() == want.codes.keys()
    for factor, picture in got.images.items():
        # A stage that was ready before memory ran out is kept, and was computed in a larger batch.
        (assert_alike if late and factor == 1 else assert_same)(picture, want.images[factor])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    ],
)
def test_out_of_memory_with_one_tile_is_one_clear_line(
    model: NextScale, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def restore_tiles(*_: Any, **__: Any) -> Iterator[TileStage]:
        raise error

    monkeypatch.setattr(model.pipeline, "restore_tiles", restore_tiles)
    with pytest.raises(NextScaleError, match=r"^out of memory with a single tile; use a smaller --tile, or close"):
        model.upscale(smooth(64, 300))


def test_a_model_too_large_for_its_device_is_one_clear_line(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Transformer, "to", to)
    with pytest.raises(NextScaleError, match=r"^out of memory for the model on cpu; close other programs, or"):
        NextScale.from_pretrained(model_folder, device="cpu")


def test_other_errors_are_not_mistaken_for_it(model: NextScale, monkeypatch: pytest.MonkeyPatch) -> None:
    def restore_tiles(*_: Any, **__: Any) -> Iterator[TileStage]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(model.pipeline, "restore_tiles", restore_tiles)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        model.upscale(smooth(64, 64))


def peak(work: Callable[[], object]) -> int:
    """The most bytes that numpy and Python held at once for some work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.integration
@pytest.mark.parametrize("channels", [3, 4])
def test_floats_do_not_grow_with_the_picture(enlarger: NextScale, channels: int) -> None:
    """Beyond the input and the outputs at their own depth, a tall picture takes no more than a short one."""
    taken = {}
    for height in (600, 2400):
        photo = smooth(height, 128, channels)
        if channels == 4:
            photo[..., 3][::2] = 0
        held = photo.size * (1 + 2 * 2)  # the input split into colors and alpha, the outputs at x2
        taken[height] = peak(partial(enlarger.upscale, photo, options(scale=2, tile_batch=1))) - held
    allowance = 128 * (2400 - 600) * 4 * 4  # some more copies at the output's size and depth, but no floats
    assert taken[2400] - taken[600] <= allowance


@pytest.mark.slow
def test_a_large_picture_takes_little_more_than_its_own_size(model: NextScale) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    model.upscale(smooth(128, 500))
    before, most = process.memory_info().rss, 0

    def watch(_: Progress) -> None:
        nonlocal most
        most = max(most, process.memory_info().rss)

    result = model.upscale(smooth(128, 6000), on_progress=watch)
    assert result.picture.size == (24000, 512)
    assert most - before <= result.picture.rgb.nbytes + 3 * 128 * 6000 + 512 * 24000 * 4 * 4 + (200 << 20)


@pytest.mark.integration
def test_timings_account_for_the_whole(model: NextScale) -> None:
    timings = model.upscale(smooth(128, 230), options(all_factors=True)).timings
    parts = {name: seconds for name, seconds in timings.items() if name != "total"}
    per_stage = {f"{part}_{stage}" for part in ("codes", "decode") for stage in (1, 2, 3)}
    assert parts.keys() >= {"encode", "stitch", "color", *per_stage}
    assert 0.5 * timings["total"] < sum(parts.values()) <= timings["total"]


# ---- devices ----


def test_devices_are_chosen_or_refused_by_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    assert pick_device("-1") == torch.device("cpu")
    with pytest.raises(OptionError, match="device cuda:77 is not available"):
        pick_device("77")
    for absent in ("nonsense", "meta", "cuda:77"):
        with pytest.raises(OptionError, match=f"device {absent}"):
            pick_device(absent)


def test_convolutions_are_exact_where_float32_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    exact_float32()
    assert not torch.backends.cudnn.allow_tf32


def test_sixteen_bit_is_used_where_it_is_fast_and_fp32_on_request(model_folder: Path) -> None:
    fast = NextScale.from_pretrained(model_folder, device="cpu")
    assert fast.dtype == fast_dtype(torch.device("cpu"))
    assert fast.dtype in (torch.bfloat16, torch.float32)
    assert next(fast.transformer.parameters()).dtype == fast.dtype
    assert next(fast.tokenizer.quantizer.parameters()).dtype == torch.float32
    assert NextScale.from_pretrained(model_folder, device="cpu", fp32=True).dtype == torch.float32


@pytest.mark.integration
def test_bfloat16_gives_whole_pictures_too(model_folder: Path) -> None:
    model = NextScale.from_pretrained(model_folder, device="cpu", fp32=True)
    model.bfloat16()
    result = model.upscale(smooth(60, 60), options(scale=2, confidence=True))
    assert result.picture.rgb.std() > 1
    assert result.confidence[2].any()


def test_color_fix_none_changes_nothing() -> None:
    decoded, inputs = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 32, 32)
    assert match_color(decoded, inputs, "none") is decoded


# ---- large tiles of small pictures ----


def without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "reach_for", lambda *_: None)


@pytest.mark.parametrize(
    ("width", "height", "scale", "tile"),
    [(32, 24, 4.0, 128), (124, 30, 1.0, 128), (125, 30, 2.0, 144), (30, 140, 1.0, 144), (230, 30, 1.0, 240)],
)
def test_a_tile_beyond_the_picture_is_not_computed_where_it_has_no_say(
    width: int, height: int, scale: float, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = restoring_model(untrained=False)
    assert model.config.restorer is not None
    assert model.config.restorer.reach == 4
    photo, how = noise(height, width, 3), options(scale=scale, fast=True, tile=256)
    assert model.plan(photo, how).passes[0].tiles.tile == tile
    got = model.upscale(photo, how).picture
    without_bound(monkeypatch)
    assert model.plan(photo, how).passes[0].tiles.tile == 256
    assert_same(got, model.upscale(photo, how).picture)


@needs_tiny
@pytest.mark.integration
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_nor_by_the_shipped_model(tiny: NextScale, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, how = noise(30, 126, 3), options(scale=scale, fast=True, tile=256)
    assert tiny.plan(photo, how).passes[0].tiles.tile == 224
    got = tiny.upscale(photo, how).picture
    without_bound(monkeypatch)
    assert_same(got, tiny.upscale(photo, how).picture)


def test_it_is_computed_where_it_may_have_a_say() -> None:
    model, hidden = restoring_model(untrained=False), noise(30, 40, 4)
    for photo, more in (
        (hidden[..., :3], {}),  # the codes' ladder goes by the side of the tile
        (hidden[..., :3], {"fast": True, "color_fix": "adain"}),  # means of the whole tile
        (hidden[..., :3], {"fast": True, "color_fix": "wavelet"}),
        (hidden, {"fast": True}),  # hidden pixels take their colors from all of it
    ):
        assert model.plan(photo, options(tile=512, **more)).passes[0].tiles.tile == 512
    assert model.plan(noise(300, 30, 3), options(tile=256, fast=True)).passes[0].tiles.tile == 256
    assert model.plan(noise(30, 30, 3), options(tile=64, fast=True)).passes[0].tiles.tile == 64
    assert model.plan(noise(30, 30, 3), options(tile=256, fast=True, tile_overlap=90)).passes[0].tiles.tile == 192


@needs_tiny
def test_the_shipped_codes_do_not_change_the_picture_at_fidelity_1(tiny: NextScale) -> None:
    """The fusion has heads of its own: those of another restorer would draw another picture than --fast."""
    picture = noise(40, 40, 3)
    whole, fast = (tiny.upscale(picture, all_factors=True, fast=value).images for value in (False, True))
    assert list(whole) == list(fast) == [1, 2, 4]
    assert all(np.array_equal(whole[factor].rgb, fast[factor].rgb) for factor in whole)


# ---- seams of the shipped model ----

BAND = slice(104, 128)
"""Where the two tiles of a picture 232 pixels wide overlap."""


@pytest.fixture(scope="session")
def bands(tiny: NextScale) -> Callable[[float, int], tuple[Array, Array]]:
    """(blur, factor) -> the overlap of two tiles, and the same part of the photograph as the middle of one tile."""
    with Image.open(EXAMPLES[1]) as im:
        photo = im.convert("RGB").crop((0, 0, 120, 120))
    mirrored = Image.fromarray(np.pad(np.asarray(photo), ((0, 8), (60, 52), (0, 0)), "symmetric"))
    results: dict[tuple[float, int], tuple[Array, Array]] = {}

    def find(blur: float, factor: int) -> tuple[Array, Array]:
        if (blur, factor) not in results:
            blurred = mirrored.filter(ImageFilter.GaussianBlur(blur))
            two = tiny.upscale(blurred, options(all_factors=True)).images
            one = tiny.upscale(blurred.crop((52, 0, 180, 128)), options(all_factors=True)).images
            for f in (1, 2, 4):
                band = two[f].rgb[:, BAND.start * f : BAND.stop * f]
                middle = one[f].rgb[:, (BAND.start - 52) * f : (BAND.stop - 52) * f]
                results[blur, f] = band.astype(float), middle.astype(float)
        return results[blur, factor]

    return find


def gradients(pixels: Array) -> Array:
    """The mean gradient along the rows, per column: a seam is a column that stands out."""
    steps: Array = np.abs(np.diff(pixels, axis=1)).mean((0, 2))
    return steps


def laplacian(pixels: Array) -> float:
    around = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float(np.abs(4 * pixels[1:-1, 1:-1] - around).mean())


@needs_tiny
@pytest.mark.integration
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_no_seam_shows_on_a_smooth_photograph(bands: Callable[[float, int], tuple[Array, Array]], factor: int) -> None:
    band, middle = bands(6.0, factor)
    steep, usual = gradients(band), gradients(middle)
    fade = np.zeros(len(steep), bool)
    fade[8 * factor : 16 * factor] = True  # where one tile fades into the other; on both sides there is but one
    assert steep[fade].mean() / usual[fade].mean() <= 1.05 * steep[~fade].mean() / usual[~fade].mean()
    assert steep[fade].max() <= 1.15 * usual.max()


@needs_tiny
@pytest.mark.integration
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_overlaps_are_as_sharp_as_tiles_on_a_textured_photograph(
    bands: Callable[[float, int], tuple[Array, Array]], factor: int
) -> None:
    band, middle = bands(0.0, factor)
    assert laplacian(band) >= 0.9 * laplacian(middle)
