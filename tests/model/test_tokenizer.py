"""The tokenizer against the official code's outputs, and what must hold of any hierarchical tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.errors import OptionError
from nextscale.model.config import Ladder, TokenizerConfig
from nextscale.model.layers import area_downsample
from nextscale.model.quantizer import Quantizer, Scan
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.upscale.nextscale import NextScale

FLAT = Ladder((1, 2, 3, 4), (4,), (0, 1, 2, 3), input_canvas=4)
TWO_STAGES = Ladder((1, 2, 4, 6, 8), (3, 5), (0, 1, 2, 2, 3), input_canvas=4)


def relative(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


def with_ladder(official: Tokenizer, ladder: Ladder) -> Tokenizer:
    """The same weights on another ladder, one copy of the decoder per stage."""
    config = official.config
    tokenizer = Tokenizer(
        TokenizerConfig(ladder, config.autoencoder, codebook_size=config.codebook_size, num_phi=config.num_phi)
    )
    state = official.state_dict()
    state |= {
        name.replace("decoders.0.", f"decoders.{i}."): tensor
        for name, tensor in state.items()
        for i in range(1, ladder.num_stages)
        if name.startswith("decoders.0.")
    }
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


@torch.no_grad()
def test_flat_ladder_equals_the_official_tokenizer(official: Tokenizer, fixtures: Path) -> None:
    data = {name: torch.from_numpy(value) for name, value in np.load(fixtures / "var_vae_tiny.npz").items()}
    assert relative(official.latents(data["img"]), data["f"]) < 1e-5
    codes = official.encode(data["img"])
    for k in range(4):
        assert torch.equal(codes.steps[k].flatten(1), data[f"idx_{k}"])
    assert relative(official.canvases(codes)[-1], data["fhat_3"]) < 1e-5
    assert float((official.decode(codes) - data["rec_last"]).abs().max()) < 1e-4
    inputs = torch.cat([m.flatten(2).transpose(1, 2) for m in official.step_inputs(codes)], dim=1)
    assert relative(inputs, data["teacher_input"]) < 1e-5


@torch.no_grad()
def test_partial_sums_equal_the_official_tokenizer(official: Tokenizer, fixtures: Path) -> None:
    data = {name: torch.from_numpy(value) for name, value in np.load(fixtures / "var_vae_tiny.npz").items()}
    scan = Scan(official.quantizer, FLAT)
    for k in range(4):
        scan.push(data[f"idx_{k}"].view(-1, k + 1, k + 1))
        assert scan.f is not None
        assert relative(scan.f, data[f"fhat_{k}"]) < 1e-5
        if k < 3:
            assert relative(scan.input(), data[f"ar_next_{k}"]) < 1e-5


@torch.no_grad()
def test_two_stages_equal_algorithm_1(official: Tokenizer, fixtures: Path) -> None:
    tokenizer = with_ladder(official, TWO_STAGES)
    data = {name: torch.from_numpy(value) for name, value in np.load(fixtures / "hier_tiny.npz").items()}
    codes = tokenizer.encode(data["img"])
    for k in range(5):
        assert torch.equal(codes.steps[k].flatten(1), data[f"idx_{k}"].flatten(1))
    latents = tokenizer.stage_latents(data["img"])
    for n in range(2):
        assert torch.equal(area_downsample(data["img"], TWO_STAGES.image_sides[n]), data[f"stage_image{n}"])
        assert relative(latents[n], data[f"latent_stage{n}"]) < 1e-5
        assert relative(tokenizer.canvases(codes)[n], data[f"f_stage{n}"]) < 1e-5
        assert float((tokenizer.decode(codes, n) - data[f"rec_stage{n}"]).abs().max()) < 1e-4
    for k, given in enumerate(tokenizer.step_inputs(codes), start=1):
        assert relative(given, data[f"next_{k}_input"]) < 1e-5


def test_the_first_stages_are_a_prefix_of_the_whole(model: NextScale) -> None:
    tokenizer = model.tokenizer
    images = torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = tokenizer.encode(images)
    assert [tuple(ids.shape) for ids in whole.steps] == [(2, s, s) for s in Ladder().sides]
    for stages in (1, 2):
        part = tokenizer.encode(images, stages)
        assert len(part.steps) == Ladder().stage_ends[stages - 1]
        assert all(torch.equal(a, b) for a, b in zip(part.steps, whole.steps, strict=False))


@torch.no_grad()
def test_every_stage_decodes_from_its_prefix_alone(model: NextScale) -> None:
    tokenizer = model.tokenizer
    images = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes, through = tokenizer.encode(images), tokenizer(images)
    for stage, side in enumerate((128, 256, 512)):
        prefix = tokenizer.decode(codes.stages(stage + 1))
        assert tuple(prefix.shape) == (1, 3, side, side)
        assert torch.equal(prefix, through[stage].clamp(-1, 1))
        assert torch.equal(prefix, tokenizer.decode(codes, stage))
    with pytest.raises(OptionError, match="complete 1 stages"):
        tokenizer.decode(codes.stages(1), 2)


def test_codes_of_a_smaller_tile_use_the_same_weights(model: NextScale) -> None:
    ladder = model.tokenizer.ladder.for_input(64)
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2)) * 2 - 1
    codes = model.tokenizer.encode(images, ladder=ladder)
    assert model.tokenizer.decode(codes).shape[-1] == 256


def test_images_that_do_not_fit_are_refused(model: NextScale) -> None:
    with pytest.raises(OptionError, match="at least 512"):
        model.tokenizer.encode(torch.zeros(1, 3, 256, 256))
    with pytest.raises(OptionError, match="square"):
        model.tokenizer.encode(torch.zeros(1, 3, 512, 640))


def test_the_recurrence_stays_in_float32_under_autocast(model: NextScale) -> None:
    images = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(3)) * 2 - 1
    latents = model.tokenizer.stage_latents(images)
    plain = model.tokenizer.quantize(latents)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.tokenizer.quantize(latents)
        canvases = model.tokenizer.canvases(cast)
    assert all(torch.equal(a, b) for a, b in zip(plain.steps, cast.steps, strict=True))
    assert all(f.dtype == torch.float32 for f in canvases)
    assert all(torch.equal(a, b) for a, b in zip(canvases, model.tokenizer.canvases(plain), strict=True))


def test_gradients_reach_codebook_and_phi() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(16, 32, 4)
    scan = Scan(quantizer, FLAT)
    for k in range(4):
        scan.push(torch.randint(16, (1, k + 1, k + 1)))
    assert scan.f is not None
    scan.f.square().sum().backward()  # type: ignore[no-untyped-call]
    assert quantizer.codebook.weight.grad is not None
    assert all(bool(phi.weight.grad.any()) for phi in quantizer.phi)  # type: ignore[union-attr, operator]


def test_the_fidelity_dial_is_monotone_towards_the_input(model: NextScale) -> None:
    inputs = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(4)) * 2 - 1
    enlarged = torch.nn.functional.interpolate(inputs, size=(512, 512), mode="bicubic")
    codes = model.tokenizer.encode(torch.zeros(1, 3, 512, 512))
    f = model.tokenizer.canvases(codes)[-1]
    at = [model.tokenizer.decode_canvas(f, 2, inputs=inputs, fidelity=w) for w in (0.0, 0.5, 1.0)]
    assert torch.equal(at[0], model.tokenizer.decode_canvas(f, 2))
    distances = [float((image - enlarged).abs().mean()) for image in at]
    assert distances[0] > distances[1] > distances[2]


def test_codes_know_their_complete_stages() -> None:
    steps = [torch.zeros(1, s, s, dtype=torch.int64) for s in Ladder().sides[:7]]
    assert Codes(steps, Ladder()).num_stages == 2


def test_another_ladder_keeps_the_decoder_of_each_canvas(model: NextScale) -> None:
    tokenizer = model.tokenizer
    ladder = dataclasses.replace(tokenizer.ladder, stage_ends=(6, 10))
    other = tokenizer.with_ladder(ladder)
    assert other.ladder == ladder
    assert other.config.fusion == tokenizer.config.fusion
    for stage, own in ((0, 1), (1, 2)):
        kept, wanted = (part.state_dict() for part in (other.decoders[stage], tokenizer.decoders[own]))
        assert kept.keys() == wanted.keys()
        assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    assert torch.equal(other.quantizer.codebook.weight, tokenizer.quantizer.codebook.weight)


def test_a_stage_without_a_decoder_gets_the_largest_and_no_dial(model: NextScale) -> None:
    flat = dataclasses.replace(model.tokenizer.ladder, stage_ends=(10,))
    one = model.tokenizer.with_ladder(flat)
    three = one.with_ladder(model.tokenizer.ladder)
    assert one.config.fusion is not None
    assert three.config.fusion is None
    f = torch.randn((1, 32, 4, 4), generator=torch.Generator().manual_seed(0))
    for stage in range(3):
        assert torch.equal(three.decode_canvas(f, stage), one.decode_canvas(f, 0))
