"""Training of the restorer and the fusion: samples by position, terms of the loss, critics that go on, exact resume."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale.data.crops import Crops, DataError
from nextscale.data.degrade import usm_sharpen
from nextscale.errors import ImageError
from nextscale.image import read
from nextscale.model.config import RestorerConfig, TaesdConfig, TokenizerConfig
from nextscale.model.restorer import Restorer, with_more_blocks, with_own_layers, with_precleaning, with_refinement
from nextscale.train.adversarial import Adversary, load_critic, save_critic
from nextscale.train.config import FusionTrainingConfig, LoopConfig, RestorationConfig
from nextscale.train.loop import Run, train
from nextscale.train.stream import Batch, Samples, Stream
from nextscale.train.tasks.fusion import MARGIN, FusionTask
from nextscale.train.tasks.restorer import RestorerTask
from nextscale.train.terms import Terms, ripples, unevenness
from nextscale.upscale.nextscale import NextScale
from tests.conftest import restoring_model

EXAMPLES = str(Path(__file__).parents[2] / "examples")
CPU = torch.device("cpu")
PLAIN = RestorationConfig(side=16, workers=0, feature=0.0, lpips=0.0, clean=0.2, smooth_share=0.0)
"""Pixels alone: what needs no weights of others."""


def samples(config: RestorationConfig, factor: int = 4) -> Samples:
    return Samples(Crops([EXAMPLES], factor * config.side), None, None, config)


def tiny_restorer() -> Restorer:
    torch.manual_seed(0)
    return Restorer(RestorerConfig(channels=8, convs=2))


def test_a_sample_depends_on_its_position_alone() -> None:
    config = dataclasses.replace(PLAIN, workers=1)
    here, apart = Stream(samples(PLAIN), CPU), Stream(samples(config), CPU)
    first = [here.batch(step, 2) for step in (3, 4)]
    again = [apart.batch(step, 2) for step in (3, 4)]
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    assert torch.equal(here.batch(3, 2).inputs, first[0].inputs)


def test_given_pairs_are_used_as_they_are(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, height, width in (("a", 16, 20), ("b", 24, 16)):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for folder, values in (("LR", pixels), ("HR", 255 - pixels.repeat(4, 0).repeat(4, 1))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / folder / f"{name}.png")
    config = dataclasses.replace(PLAIN, pairs=(str(tmp_path),), pairs_share=0.5)
    found = [samples(config)[position] for position in range(40)]
    # The targets here are negatives of their inputs, which no photograph is.
    sums = [s[0] + s[1].repeat_interleave(4, 1).repeat_interleave(4, 2) for s in found]
    given = [s for s, total in zip(found, sums, strict=True) if float(total.abs().max()) < 1e-6]
    assert 10 < len(given) < 30
    assert sum(float(s[-1]) for s in found) == len(given)
    assert all(
        s[1].shape == (3, 16, 16) and [float(mark) for mark in s[3:]] == [1, 0, 0, 1] and not s[2].any() for s in given
    )
    assert len({s[1].numpy().tobytes() for s in given}) > 8
    assert torch.equal(samples(config)[3][1], found[3][1])
    with pytest.raises(DataError, match=r"a\.png.*crop of 24 px"):
        samples(dataclasses.replace(config, side=24))
    broken = tmp_path / "LR" / "a.png"
    whole = samples(config)
    broken.write_bytes(broken.read_bytes()[:200])
    assert whole.given is not None
    whole.given.found = [pair for pair in whole.given.found if pair.lr == broken]
    with pytest.raises(DataError, match=r"a: .*remove or replace the pair"):
        whole.given.crop(random.Random(0))
    with pytest.raises(ImageError, match="no such folder"):
        samples(dataclasses.replace(config, pairs=("nowhere",)))


def test_targets_and_inputs_are_sharpened_where_asked() -> None:
    config = dataclasses.replace(PLAIN, clean=1.0, grain=0.0, soft=0.0)
    plain, sharp = (samples(dataclasses.replace(config, sharpen=value))[3] for value in (False, True))
    target = usm_sharpen(plain[0][None] / 2 + 0.5)[0] * 2 - 1
    torch.testing.assert_close(sharp[0], target, atol=1e-6, rtol=0)
    assert float((sharp[0] - plain[0]).abs().max()) > 0.05
    assert not torch.equal(sharp[1], plain[1])


def test_targets_of_a_camera_at_full_size_are_always_soft() -> None:
    config = dataclasses.replace(PLAIN, presets=("camera",), clean=0.0, grain=0.0, soft=0.0)
    sharp, soft = (samples(dataclasses.replace(config, presets=(name,)))[3][0] for name in ("camera", "fullsize"))
    sharp_finest, soft_finest = (float((x[:, 1:] - x[:, :-1]).abs().mean()) for x in (sharp, soft))
    assert soft_finest < 0.9 * sharp_finest


def test_targets_keep_as_much_noise_as_the_dial_lets_through() -> None:
    config = dataclasses.replace(PLAIN, presets=("noisy",), grain=1.0, clean=0.0, soft=0.0)
    rows = [samples(config)[i] for i in range(24)]
    left: dict[bool, list[float]] = {}
    for targets, inputs, grain, denoise, *_ in rows:
        assert grain.shape == inputs.shape
        left.setdefault(float(denoise) > 0.5, []).append(float(grain.std() / (1.0001 - denoise)))
        if float(denoise) == 0:
            assert float(grain.abs().mean()) > 0.005
            assert targets.shape[-1] == 4 * inputs.shape[-1]
    # Per share kept, the noise is the same whatever `denoise`.
    assert np.median(left[True]) == pytest.approx(np.median(left[False]), rel=0.8)
    without = samples(dataclasses.replace(config, grain=0.0))
    assert all(not sample[2].any() and float(sample[3]) == 1 for sample in (without[0], without[1]))


def test_a_share_of_the_samples_are_ramps_with_faint_lines_and_little_noise() -> None:
    config = dataclasses.replace(PLAIN, smooth_share=0.5, lines_share=1.0)
    rows = [samples(config)[i] for i in range(40)]
    lined = [row for row in rows if not float(row[-2])]
    assert 10 < len(lined) < 30
    for targets, inputs, *_ in lined:
        assert float(targets.diff(n=2, dim=-1).abs().max() + targets.diff(n=2, dim=-2).abs().max()) > 1e-3
        assert float((inputs - torch.nn.functional.avg_pool2d(targets, 4)).std()) * 127.5 < 8
    # An anchor's inputs are photographs.
    assert not samples(config).of_presets(("camera",)).config.lines_share


def test_a_share_of_the_samples_are_small_print_whose_target_is_a_plain_enlargement(tmp_path: Path) -> None:
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[np.arange(160) % 16 < 8] = 255
    Image.fromarray(stripes).save(tmp_path / "print.png")
    config = dataclasses.replace(PLAIN, prints_share=0.5)
    photographs = samples(config).photographs
    alone = dataclasses.replace(config, prints_share=1.0)
    prints = Crops([str(tmp_path)], photographs.side)
    made = Samples(photographs, None, None, alone, prints=prints)
    for i in range(20):
        target, image, grain, *marks = made[i]
        assert [float(mark) for mark in marks] == [1, 0, 0, 0]
        assert not grain.any()
        page = torch.from_numpy(prints.crop(i).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        undamaged = torch.nn.functional.avg_pool2d(page, 4)
        enlarged = torch.nn.functional.interpolate(undamaged, scale_factor=4, mode="bicubic").clamp(-1, 1)
        torch.testing.assert_close(target, enlarged[0], atol=1e-5, rtol=0)
        # Some inputs are strongly compressed.
        assert 0.1 < float((image - undamaged).std()) * 127.5 < 24
    assert len({made[i][1].numpy().tobytes() for i in range(20)}) == 20
    # The others, and an anchor's inputs, are photographs.
    some = Samples(photographs, None, None, config, prints=prints)
    assert 10 < sum(torch.equal(some[i][0], samples(config)[i][0]) for i in range(40)) < 30
    assert not any(torch.equal(made.of_presets(("camera",))[i][0], made[i][0]) for i in range(20))


def test_smooth_samples_are_ramps_under_noise_that_pixels_alone_judge() -> None:
    config = dataclasses.replace(PLAIN, smooth_share=0.5)
    rows = [samples(config)[i] for i in range(40)]
    smooth = [row for row in rows if float(row[-2])]
    assert 10 < len(smooth) < 30
    for targets, inputs, *_ in smooth:
        second = targets.diff(n=2, dim=-1).abs().max() + targets.diff(n=2, dim=-2).abs().max()
        assert float(second) < 1e-5
        noise = inputs - torch.nn.functional.avg_pool2d(targets, 4)
        assert 0 < float(noise.std()) * 127.5 < 90
    terms = Terms(dataclasses.replace(config, pixel=1.0, factor_weights=(2.0,)), [4], CPU)
    picture, target = torch.ones(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    marks = torch.tensor([True, False, False, False])
    values, activations = terms.terms(0, picture, target, marks, (0.0, 0.0, 0.0))
    assert activations is None
    assert {name: float(value) for name, value in values.items()} == {"pixel": 0.75, "smooth": 0.25}
    loss, numbers = terms.loss(0, picture, target, marks, 0)
    assert float(loss) == pytest.approx(2 * (0.75 + 3 * 0.25))
    assert numbers == {"pixel_1": 0.75, "smooth_1": 0.25}
    loss, _ = terms.loss(0, picture, target, torch.ones(4, dtype=torch.bool), 0)
    assert float(loss) == pytest.approx(2 * 3)


def test_samples_are_made_in_float32_whatever_the_loop_casts() -> None:
    config = dataclasses.replace(PLAIN, presets=("compressed",))
    plain = samples(config)[3]
    with torch.autocast("cpu", torch.bfloat16):
        inside = samples(config)[3]
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(inside, plain, strict=True))


def test_the_target_at_a_factor_is_the_area_mean_plus_the_kept_noise() -> None:
    batch = Stream(samples(dataclasses.replace(PLAIN, presets=("noisy",), grain=1.0)), CPU).batch(0, 2)
    x1 = batch.target_at(16)
    mean = torch.nn.functional.avg_pool2d(batch.targets, 4)
    torch.testing.assert_close(x1, (mean + batch.grain).clamp(-1, 1), atol=1e-5, rtol=0)
    assert batch.target_at(64).shape == (2, 3, 64, 64)


@pytest.mark.integration
def test_the_restorer_learns_and_resumes_exactly(tmp_path: Path) -> None:
    loop = LoopConfig(steps=12, batch=2, lr=3e-3, warmup=1, bf16=False, ema=0.5, save_minutes=0)

    def run(steps: int, folder: Path) -> dict[str, Tensor]:
        task = RestorerTask(tiny_restorer(), samples(PLAIN), PLAIN)
        return train(task, dataclasses.replace(loop, steps=steps), folder).state_dict()

    whole = run(4, tmp_path / "whole")
    short = dataclasses.replace(loop, steps=4)
    halved = Run(RestorerTask(tiny_restorer(), samples(PLAIN), PLAIN), short)
    losses = [halved.advance()[0] for _ in range(2)]
    saved = halved.state_dict()
    other = Run(RestorerTask(tiny_restorer(), samples(PLAIN), PLAIN), short)
    other.load_state_dict(saved)
    losses += [other.advance()[0] for _ in range(2)]
    assert all(torch.equal(value, whole[name]) for name, value in other.averaged().state_dict().items())
    assert all(np.isfinite(losses))
    start = Run(RestorerTask(tiny_restorer(), samples(PLAIN), PLAIN), dataclasses.replace(loop, steps=60))
    values = [start.advance()[0] for _ in range(60)]
    assert np.mean(values[-20:]) < 0.9 * np.mean(values[:20])


@pytest.mark.parametrize(("share", "degraded"), [(0.0, [4]), (0.5, [2]), (0.8, [1]), (1.0, [])])
def test_an_anchor_sees_the_share_of_photographs_that_is_asked_for(
    share: float, degraded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(PLAIN, anchor=1.0, anchor_photographs=share)
    task = RestorerTask(tiny_restorer(), samples(PLAIN), config)
    assert task.held is not None
    draw, drawn, seen = task.held.batch, list[int](), list[int]()

    def counted(step: int, size: int) -> Batch:
        drawn.append(size)
        return draw(step, size)

    monkeypatch.setattr(task.held, "batch", counted)
    moved = task._moved

    def watched(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return moved(inputs)

    monkeypatch.setattr(task, "_moved", watched)
    # A different draw of the photographs' size at each step: none of them goes through both.
    for step in range(4):
        task.losses(step, 4)
    assert (drawn, seen) == (4 * degraded, [4] * 4)


@pytest.mark.parametrize(("share", "inputs"), [(1.0, 4), (0.5, 2), (0.0, 1)])
def test_an_anchor_can_see_fewer_inputs_than_the_batch_has(
    share: float, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(PLAIN, anchor=1.0, anchor_share=share)
    task = RestorerTask(tiny_restorer(), samples(PLAIN), config)
    seen = list[int]()
    moved = task._moved

    def watched(held: Tensor) -> Tensor:
        seen.append(len(held))
        return moved(held)

    monkeypatch.setattr(task, "_moved", watched)
    task.losses(0, 4)
    assert seen == [inputs]


def test_an_anchor_holds_what_becomes_of_photographs() -> None:
    config = dataclasses.replace(PLAIN, anchor=50.0, grain=0.0)
    loop = LoopConfig(steps=12, batch=2, lr=3e-3, warmup=1, bf16=False)
    moved = {}
    for weight in (50.0, 1e-6):
        task = RestorerTask(tiny_restorer(), samples(PLAIN), dataclasses.replace(config, anchor=weight))
        assert float(task.losses(0, 2)[1]["anchor"]) == 0
        run = Run(task, loop)
        for _ in range(12):
            run.advance()
        moved[weight] = float(task.losses(0, 2)[1]["anchor"])
    assert 0 < moved[50.0] < 0.7 * moved[1e-6]
    # Half of what it sees are a camera's pictures.
    cameras = dataclasses.replace(PLAIN, presets=("camera",), clean=0.0, grain=0.0)
    anchored = RestorerTask(tiny_restorer(), samples(PLAIN), dataclasses.replace(config, anchor_presets=("camera",)))
    assert anchored.held is not None
    assert torch.equal(anchored.held.batch(0, 2).inputs, Stream(samples(cameras), CPU).batch(0, 2).inputs)
    # Before and after the way from the cleaned picture is added, pictures differ: those of before can be kept.
    before = with_own_layers(tiny_restorer(), 1)
    after = with_precleaning(before, 0.5)
    assert float(RestorerTask(after, samples(PLAIN), config, anchored=before).losses(0, 2)[1]["anchor"]) > 0
    assert float(RestorerTask(after, samples(PLAIN), config).losses(0, 2)[1]["anchor"]) == 0
    # Where it weighs nothing, nothing more is computed or logged.
    assert "anchor" not in RestorerTask(tiny_restorer(), samples(PLAIN), PLAIN).losses(0, 2)[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_its_one_line(workers: int, tmp_path: Path) -> None:
    shutil.copy(f"{EXAMPLES}/coffee.jpg", tmp_path)
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(b"no picture")
    config = dataclasses.replace(PLAIN, workers=workers)
    stream = Stream(Samples(Crops([str(tmp_path)], 64), None, None, config), CPU)

    def run() -> None:
        for step in range(20):
            stream.batch(step, 2)

    with pytest.raises(DataError) as stop:
        run()
    assert "2 of 3 training pictures are damaged" in str(stop.value)
    assert "Traceback" not in str(stop.value)


def test_the_largest_factors_own_layers_train_alone(tmp_path: Path) -> None:
    restorer = with_own_layers(tiny_restorer(), 1)
    before = {name: value.clone() for name, value in restorer.state_dict().items()}
    config = dataclasses.replace(PLAIN, evenness=1.0)
    run = LoopConfig(steps=2, batch=2, lr=1e-2, warmup=0, bf16=False)
    train(RestorerTask(restorer, samples(config), config), run, tmp_path)
    changed = {name for name, value in restorer.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"largest.0.weight", "largest.0.bias", "largest.1.weight", "heads.2.weight", "heads.2.bias"}


def test_and_so_does_the_way_from_the_cleaned_picture(tmp_path: Path) -> None:
    restorer = with_precleaning(with_own_layers(tiny_restorer(), 1), 0.2)
    before = {name: value.clone() for name, value in restorer.state_dict().items()}
    config = dataclasses.replace(PLAIN, anchor=1.0)
    train(RestorerTask(restorer, samples(config), config), LoopConfig(2, 2, lr=1e-2, warmup=0, bf16=False), tmp_path)
    changed = {name for name, value in restorer.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"cleaning", "largest", "heads"}
    assert not {"heads.0.weight", "heads.1.weight"} & changed


def test_and_so_do_layers_at_the_pictures_resolution(tmp_path: Path) -> None:
    restorer = with_refinement(with_more_blocks(with_own_layers(tiny_restorer(), 1), 1), 4, 1)
    before = {name: value.clone() for name, value in restorer.state_dict().items()}
    run = LoopConfig(3, 2, lr=1e-2, warmup=0, bf16=False)
    train(RestorerTask(restorer, samples(PLAIN), PLAIN), run, tmp_path)
    changed = {name for name, value in restorer.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"largest", "deeper", "heads", "refinement"}
    assert {name for name in before if name.startswith(("deeper", "refinement"))} <= changed


def test_unevenness_tells_blocks_dots_and_weaves_from_photographs() -> None:
    pixels = torch.from_numpy(read(f"{EXAMPLES}/coffee.jpg").rgb.copy()).permute(2, 0, 1)[None].float()
    photo = pixels[..., : pixels.shape[-2] // 4 * 4, : pixels.shape[-1] // 4 * 4] / 127.5 - 1
    plain = float(unevenness(photo, 4))
    assert plain < 0.03
    smooth = torch.nn.functional.avg_pool2d(photo, 4)
    blocks = torch.nn.functional.interpolate(smooth, scale_factor=4.0, mode="nearest")
    assert float(unevenness(blocks, 4)) > 0.5
    # Dots whose sign changes from one pixel of the input to the next have no mean, and are seen.
    signs = torch.rand(smooth[:, :1].shape, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    dots = torch.zeros_like(photo[:, :1])
    dots[..., 1::4, 1::4] = 0.15 * signs
    assert float(unevenness(photo + dots, 4)) > 2 * plain
    noise = 0.05 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    assert float(unevenness(photo + noise, 4)) < plain
    # Stripes of a level lie in the grain and change its strength nowhere by more than a hundredth.
    stripes = torch.tensor([1.0, -1, -1, 1]).repeat(photo.shape[-2] // 4)[:, None] / 127.5
    assert float(unevenness(noise + stripes, 4)) > 3 * float(unevenness(noise, 4))
    assert float(unevenness(photo, 4, allowed=1.0)) == 0
    moved = [float(unevenness(photo[..., i:, i:], 4)) for i in (1, 2, 3)]
    assert max(moved) < 0.03


def test_hatching_is_what_checkers_add_to_the_target() -> None:
    config = dataclasses.replace(PLAIN, hatching=1.0, pixel=0.0, factor_weights=(1.0,))
    terms = Terms(config, [4], CPU)
    photo = samples(PLAIN)[1][0][None]
    signs = 1 - 2 * ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()
    hatched, marks = photo + 0.02 * signs, torch.tensor([False])

    def hatching(picture: Tensor, target: Tensor) -> float:
        return float(terms.terms(0, picture, target, marks, (0.0, 0.0, 0.0))[0]["hatching"])

    assert hatching(photo, photo) == hatching(torch.zeros_like(photo), photo) == hatching(photo, hatched) == 0
    assert 0.005 < hatching(hatched, photo) < 0.021


@pytest.mark.parametrize("name", ["pairs_contrast", "pairs_ripples"])
def test_terms_of_pairs_see_pairs_alone(name: str, tmp_path: Path) -> None:
    weight: dict[str, Any] = {name: 1.0}
    config = dataclasses.replace(PLAIN, **weight, pixel=0.0, factor_weights=(1.0,))
    terms = Terms(config, [4], CPU)
    page = torch.full((4, 3, 64, 64), 0.8)
    page[..., 30:33] = -0.6
    worse = page + 0.2 * (page < 0).float()
    worse[..., 36] -= 0.1  # beside the stroke
    smooth, given = torch.zeros(4, dtype=torch.bool), torch.tensor([False, True, False, False])

    def found(pictures: Tensor, given: Tensor | None) -> dict[str, Tensor]:
        return terms.terms(0, pictures, page, smooth, (0.0, 0.0, 0.0), given=given)[0]

    # A mean over all samples, as the other terms are.
    assert 0 < float(found(worse, given)[name]) == pytest.approx(float(found(worse, ~smooth)[name]) / 4)
    assert float(found(torch.cat([worse[:1], page[1:2], worse[2:]]), given)[name]) == 0
    for none in (None, ~given & given):
        assert name not in found(worse, none)
    # The task tells which of its samples are pairs.
    for folder, side in (("LR", 32), ("HR", 128)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (side, side), "red").save(tmp_path / folder / "a.png")
    config = dataclasses.replace(PLAIN, pairs=(str(tmp_path),), **weight)
    for share in (0.0, 1.0):
        task = RestorerTask(tiny_restorer(), samples(dataclasses.replace(config, pairs_share=share)), config)
        logged = task.losses(0, 2)[1]
        assert any(logged_name.startswith(name) for logged_name in logged) == (share == 1.0)


def test_ripples_are_what_is_drawn_where_the_target_is_flat() -> None:
    page = torch.full((1, 3, 64, 64), 0.8)
    page[..., 30:33] = -0.6
    places = torch.arange(64.0)
    wave = 0.03 * torch.sin(places * math.pi / 2)

    def cost(change: Tensor, target: Tensor = page) -> float:
        return float(ripples(target + change, target))

    beside, along = cost(wave.expand_as(page)), cost(wave[:, None].expand_as(page))
    assert beside == pytest.approx(along, rel=0.3)
    assert 0.004 < beside < 0.02
    assert cost(2 * wave.expand_as(page)) == pytest.approx(2 * beside, rel=1e-3)
    # Slow ones count as well, another level and other ink do not, nor does what is drawn on texture.
    slow = 0.03 * torch.sin(places * math.pi / 8)
    assert cost(slow.expand_as(page)) > 0.3 * beside
    assert cost(torch.full_like(page, 0.1)) == pytest.approx(0, abs=1e-6)
    assert cost(0.3 * (page < 0).float()) == 0
    textured = page + 0.1 * torch.rand(page.shape, generator=torch.Generator().manual_seed(0))
    assert cost(wave.expand_as(page), textured) < 0.02 * beside


def test_a_faint_letter_costs_four_times_what_a_strong_one_does() -> None:
    config = dataclasses.replace(PLAIN, contrast=1.0, pixel=0.0, factor_weights=(1.0,))
    terms = Terms(config, [4], CPU)
    marks = torch.zeros(1, dtype=torch.bool)

    def contrast(picture: Tensor) -> float:
        return float(terms.terms(0, picture, page, marks, (0.0, 0.0, 0.0))[0]["contrast"])

    page = torch.full((1, 3, 64, 64), 0.8)
    page[..., 30:33] = -0.6
    stroke = (page < 0).float()
    assert contrast(page) == 0
    assert contrast(page + 0.2 * stroke) == pytest.approx(4 * contrast(page - 0.2 * stroke), rel=1e-4)
    # White letters on black alike.
    faint, strong = contrast(page + 0.2 * stroke), contrast(page - 0.2 * stroke)
    page = -page
    assert contrast(page - 0.2 * stroke) == pytest.approx(faint)
    assert contrast(page + 0.2 * stroke) == pytest.approx(strong)
    # Paper far from any letter has no contrast to miss.
    assert contrast(page + 0.2 * (torch.arange(64) < 16)) == pytest.approx(0, abs=1e-6)


def test_gradients_tell_a_soft_outline_from_a_sharp_one_and_not_where_it_runs() -> None:
    config = dataclasses.replace(PLAIN, gradients=1.0, pixel=0.0, factor_weights=(1.0,))
    terms = Terms(config, [4], CPU)
    ramp = torch.arange(64.0)
    outline = {width: ((ramp - 31.5) / width).clamp(-0.5, 0.5).expand(1, 3, 64, 64) for width in (1, 3, 8)}

    def gradients(picture: Tensor, target: Tensor) -> float:
        marks = torch.tensor([False])
        return float(terms.terms(0, picture, target, marks, (0.0, 0.0, 0.0))[0]["gradients"])

    sharp, soft = outline[1], outline[8]
    assert gradients(sharp, sharp) == 0
    weak = 0.5 * sharp
    assert gradients(weak, sharp) == pytest.approx(gradients(torch.zeros_like(sharp), sharp) / 2, rel=0.02)
    # Within one window, a step of three pixels adds up to that of one; its square does not.
    assert gradients(outline[3], sharp) > 0.4 * gradients(torch.zeros_like(sharp), sharp)
    # Blurred, the same contrast is spread over its neighbors; moved by a pixel, it is as strong in nearly all windows.
    assert gradients(sharp.roll(1, -1)[..., 2:-2, 2:-2], sharp[..., 2:-2, 2:-2]) < 0.5 * gradients(soft, sharp)


def test_drift_is_what_many_pixels_are_off_together_and_spares_pairs() -> None:
    config = dataclasses.replace(PLAIN, drift=1.0, pixel=0.0, factor_weights=(1.0,))
    terms = Terms(config, [4], CPU)
    photo = samples(PLAIN)[1][0][None].repeat(2, 1, 1, 1) / 2
    signs = 1 - 2 * ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()
    smooth = torch.tensor([False, False])

    def costs(change: Tensor | float, given: Tensor | None = None) -> dict[str, Tensor]:
        return terms.terms(0, photo + change, photo, smooth, (0.0, 0.0, 0.0), given=given)[0]

    assert float(costs(-0.02)["drift"]) == pytest.approx(0.02, rel=1e-3)
    assert float(costs(0.02 * signs)["drift"]) < 1e-4
    # A mean over all samples, as the other terms are.
    assert float(costs(-0.02, torch.tensor([True, False]))["drift"]) == pytest.approx(0.01, rel=1e-3)
    assert "drift" not in costs(-0.02, ~smooth)


def test_raggedness_tells_a_wavering_rim_from_a_straight_one() -> None:
    config = dataclasses.replace(PLAIN, raggedness=1.0, pixel=0.0, factor_weights=(1.0,))
    terms = Terms(config, [4], CPU)
    across, down = torch.arange(64.0), torch.arange(64.0)[:, None]

    def rim(width: float = 2.0, moved: Tensor | float = 0.0) -> Tensor:
        """A slanted step of so many pixels."""
        return ((across + 0.4 * down - 45 - moved) / width).clamp(-0.5, 0.5).expand(1, 3, 64, 64)

    def ragged(picture: Tensor, target: Tensor) -> float:
        return float(terms.terms(0, picture, target, torch.tensor([False]), (0.0, 0.0, 0.0))[0]["raggedness"])

    wavering, uneven = rim(moved=2 * torch.sin(down)), rim() * (1 - 0.5 * (down.int() // 3 % 2))
    assert ragged(rim(), rim()) == 0
    # A step beside its place is less ragged than one that wavers about it; uneven ink and a soft step count too.
    beside = ragged(rim(moved=1.0), rim())
    assert ragged(wavering, rim()) > 5 * beside
    assert ragged(uneven, rim()) > 5 * beside
    assert ragged(rim(8.0), rim()) > beside
    # Neither flat places nor texture of all directions is an outline.
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    assert ragged(noise, torch.zeros_like(noise)) == 0
    assert ragged(torch.zeros_like(noise), noise) < 0.05 * ragged(torch.zeros_like(noise), rim())


@pytest.mark.integration
def test_a_critic_that_guesses_has_no_say_and_one_that_knows_has_all(tmp_path: Path) -> None:
    adversary = Adversary(1, (3,), 1e-3, CPU, by_accuracy=True)
    real, made = [torch.ones(4, 3, 32, 32)], [torch.zeros(4, 3, 32, 32, requires_grad=True)]
    term, _ = adversary.generator_loss(0, made)
    assert float(term.detach().abs()) == 0
    for _ in range(150):
        adversary.keep(0, made, real)
        adversary.step()
    assert adversary.accuracies[0] > 0.9
    term, _ = adversary.generator_loss(0, made)
    (slope,) = torch.autograd.grad(term, made)
    # As large as that of the mean absolute difference, times what the critic is better than a guess.
    wanted = made[0].numel() ** -0.5 * (2 * adversary.accuracies[0] - 1)
    assert float(slope.norm()) == pytest.approx(wanted, rel=1e-3)
    save_critic(adversary, tmp_path / "critic.safetensors")
    other = Adversary(1, (3,), 1e-3, CPU, by_accuracy=True)
    load_critic(other, tmp_path / "critic.safetensors")
    assert other.accuracies == pytest.approx(adversary.accuracies)
    assert all(
        torch.equal(a, b) for a, b in zip(adversary.critics.parameters(), other.critics.parameters(), strict=True)
    )


@pytest.mark.integration
def test_the_fusion_trains_alone_and_remembers_its_predictions() -> None:
    plain = {f.name: getattr(PLAIN, f.name) for f in dataclasses.fields(PLAIN)} | {"side": 64, "presets": ("stablesr",)}
    config = FusionTrainingConfig(**plain, predicted=1.0, predicted_after=0, cycle=4)
    model = restoring_model(untrained=False)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "fusions" not in name}
    loop = LoopConfig(steps=4, batch=2, lr=1e-3, warmup=1, bf16=False, ema=0.5)
    run = Run(FusionTask(model, samples(config), config), loop)
    for _ in range(2):
        run.advance()
    task = run.task
    assert isinstance(task, FusionTask)
    assert sorted(task.predicted) == [0, 1, 2, 3]
    saved = run.state_dict()
    again = restoring_model(untrained=False)
    other = Run(FusionTask(again, samples(config), config), loop)
    other.load_state_dict(saved)
    assert other.advance()[0] == run.advance()[0]
    assert all(torch.equal(value, frozen[name]) for name, value in model.state_dict().items() if name in frozen)


def test_a_fusion_is_trained_on_the_pictures_that_it_will_give() -> None:
    plain = {f.name: getattr(PLAIN, f.name) for f in dataclasses.fields(PLAIN)} | {"side": 64}
    model = restoring_model(untrained=True, precleaned=0.3, refined=4)
    assert model.restorer is not None
    assert model.restorer.refinement is not None
    torch.nn.init.normal_(model.restorer.refinement.leave.weight, std=0.05)
    config = FusionTrainingConfig(**plain)
    task = FusionTask(model, samples(config), config)
    codes = model.tokenizer.encode(torch.rand(1, 3, 256, 256) * 2 - 1, ladder=task.ladder)
    inputs = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        canvases = model.tokenizer.canvases(codes)
        probabilities = [torch.full((1, side, side), 0.5) for side in task.ladder.sides]
        made = [p for p, *_ in task._pictures(task.model, inputs, 1.0, canvases, probabilities)]
        for picture, wanted in zip(made, model.restorer(inputs), strict=True):
            torch.testing.assert_close(picture, wanted, atol=1e-5, rtol=0)


@pytest.mark.integration
@pytest.mark.parametrize("taesd", [False, True])
def test_the_decoders_train_alone_on_predicted_codes(taesd: bool) -> None:
    plain = {f.name: getattr(PLAIN, f.name) for f in dataclasses.fields(PLAIN)} | {
        "side": 64,
        "presets": ("stablesr",),
        "window": 48,
    }
    config = FusionTrainingConfig(**plain, predicted=1.0, predicted_after=0, cycle=4)
    model = restoring_model(untrained=False)
    if taesd:
        part = TokenizerConfig(
            model.config.tokenizer.ladder, TaesdConfig(16, 8, blocks=1, latent_channels=32), codebook_size=64
        )
        torch.manual_seed(0)
        model = NextScale.create(dataclasses.replace(model.config, tokenizer=part))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = FusionTask(model, samples(config), config, part="decoders")
    loop = LoopConfig(steps=4, batch=2, lr=1e-3, warmup=1, bf16=False, ema=0.5)
    run = Run(task, loop)
    assert np.isfinite([run.advance()[0] for _ in range(2)]).all()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("tokenizer.decoders.") for name in changed)
    # A training sees windows where the pictures are large, the same place of the target; whole pictures otherwise.
    codes = model.tokenizer.encode(torch.rand(1, 3, 256, 256) * 2 - 1, ladder=task.ladder)
    canvases = model.tokenizer.canvases(codes)
    inputs = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        whole = [picture for picture, *_ in task._pictures(task.model, inputs, 1.0, canvases, [])]
        parts = list(task._pictures(task.model, inputs, 1.0, canvases, [], 3))
    for stage, (picture, full, (_, _, (rows, columns))) in enumerate(
        zip([p for p, *_ in parts], whole, parts, strict=True)
    ):
        assert picture.shape == full[..., rows, columns].shape
        if taesd and stage == 2:
            assert picture.shape[-1] == 4 * (48 // 4 + MARGIN)
        inside = slice(24, -24)
        torch.testing.assert_close(
            picture[..., inside, inside], full[..., rows, columns][..., inside, inside], atol=1e-4, rtol=1e-4
        )
