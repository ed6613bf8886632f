"""The fusion of codes and restorer: it starts as the restorer, and its error is that of its own picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nextscale.errors import ModelError, OptionError
from nextscale.model.config import FusionConfig, ModelConfig, RestorerConfig
from nextscale.model.fusion import Fusion, laplace_loss
from nextscale.upscale.nextscale import NextScale, shown_map, with_restorer
from nextscale.upscale.options import UpscaleOptions
from tests.conftest import random_model, restoring_model, small_config


@pytest.fixture(scope="module")
def untrained() -> NextScale:
    return restoring_model(untrained=True)


@pytest.fixture(scope="module")
def speaking() -> NextScale:
    return restoring_model(untrained=False)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


@pytest.mark.parametrize(("precleaned", "refined"), [(0.0, 0), (0.3, 0), (0.3, 4)])
def test_an_untrained_fusion_is_the_restorer(precleaned: float, refined: int, picture: np.ndarray) -> None:
    model = restoring_model(untrained=True, precleaned=precleaned, refined=refined)
    if refined:
        assert model.restorer is not None
        assert model.restorer.refinement is not None
        torch.nn.init.normal_(model.restorer.refinement.leave.weight, std=0.05)
    options = UpscaleOptions(all_factors=True, tile=64, color_fix="none")
    whole = model.upscale(picture, options)
    fast = model.upscale(picture, dataclasses.replace(options, fast=True))
    for factor in (1, 2, 4):
        assert np.array_equal(whole.images[factor].rgb, fast.images[factor].rgb)
    assert whole.codes
    assert not fast.codes


def test_untrained_tiles_are_the_draft_and_its_area_means(untrained: NextScale) -> None:
    from nextscale.model.restorer import area_head

    assert untrained.restorer is not None
    assert untrained.fusions is not None
    x4 = untrained.restorer.heads[2]
    with torch.no_grad():
        for number, factor in ((0, 1), (1, 2)):
            for module in (untrained.restorer.heads[number], untrained.fusions[number].head):
                module.weight.copy_(area_head(x4.weight, 4, factor))  # type: ignore[arg-type, operator, union-attr]
                module.bias.copy_(area_head(x4.bias, 4, factor))  # type: ignore[arg-type, operator, union-attr]
        inputs = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
        draft = untrained.restorer(inputs)[2]
    options = UpscaleOptions(all_factors=True, tile=64, color_fix="none")
    stages = list(
        untrained.restore_tiles(inputs, [(0, 0)], 0, options, [1.0, 2.0, 4.0], ladder=untrained.ladder_for(options))
    )
    for stage in stages:
        wanted = F.avg_pool2d(draft, round(4 / stage.factor)).clamp(-1, 1)
        torch.testing.assert_close(stage.images, wanted, atol=2e-6, rtol=0)


def test_fidelity_goes_from_the_codes_to_the_fusion(speaking: NextScale, picture: np.ndarray) -> None:
    def made(fidelity: float) -> np.ndarray:
        options = UpscaleOptions(scale=2, tile=64, fidelity=fidelity, color_fix="none")
        return speaking.upscale(picture[:64, :64], options).picture.rgb.astype(np.float64)

    ends = made(0.0), made(1.0)
    distances = [np.abs(made(w) - ends[1]).mean() for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert distances == sorted(distances, reverse=True)
    codes = speaking.upscale(picture[:64, :64], UpscaleOptions(scale=2, tile=64, color_fix="none")).codes[0, 0]
    decoded = speaking.tokenizer.decode(codes)[0].permute(1, 2, 0).numpy()
    assert np.abs((decoded + 1) * 127.5 - ends[0]).max() <= 0.51


def test_the_codes_have_a_say(speaking: NextScale) -> None:
    assert speaking.fusions is not None
    fusion = speaking.fusions[1]
    assert isinstance(fusion, Fusion)
    generator = torch.Generator().manual_seed(0)
    inputs, features = torch.rand(1, 3, 8, 8, generator=generator), torch.rand(1, 8, 8, 8, generator=generator)
    sure = torch.full((1, 1, 8, 8), 0.7)
    decoded = [torch.randn(1, 16, 4, 4, generator=generator) for _ in range(2)]
    with torch.no_grad():
        one, other = (fusion(inputs, features, codes, sure)[0] for codes in decoded)
    assert float((one - other).abs().max()) > 1e-4


def test_a_fusion_without_codes_decodes_only_below_fidelity_1(
    picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_codes = restoring_model(untrained=True)
    assert with_codes.restorer is not None
    assert with_codes.fusions is not None
    model = with_restorer(
        with_codes.tokenizer, with_codes.transformer, with_codes.restorer, FusionConfig(8, 0, 8, codes=False)
    ).to("cpu", fp32=True)
    assert model.fusions is not None
    model.fusions.load_state_dict(with_codes.fusions.state_dict(), strict=False)
    for fidelity in (0.5, 1.0):
        options = UpscaleOptions(all_factors=True, tile=64, fidelity=fidelity, color_fix="none", confidence=True)
        if fidelity == 1:
            for decoder in model.tokenizer.decoders:
                monkeypatch.setattr(decoder, "features", lambda _: pytest.fail("nothing asks for it"))
        made = model.upscale(picture, options)
        monkeypatch.undo()
        wanted = with_codes.upscale(picture, options)
        for factor in (1, 2, 4):
            assert np.array_equal(made.images[factor].rgb, wanted.images[factor].rgb)
            assert np.array_equal(made.maps[factor], wanted.maps[factor])


def test_the_expected_error_is_learned_and_leaves_the_picture_alone() -> None:
    torch.manual_seed(0)
    fusion = Fusion(FusionConfig(8, 1, 8), features=8, decoded=4, factor=2)
    inputs, features, decoded = torch.zeros(2, 3, 8, 8), torch.randn(2, 8, 8, 8), torch.randn(2, 4, 4, 4)
    target = torch.zeros(2, 3, 16, 16)
    target[..., 8:] = 0.5 * torch.randn(2, 3, 16, 8).sign()
    features[:, 0] = torch.tensor([-1.0, 1.0]).repeat_interleave(4)
    with torch.no_grad():
        fusion.head.weight.zero_()
        fusion.head.bias.zero_()  # type: ignore[union-attr]
    picture, error = fusion(inputs, features, decoded, torch.full((2, 1, 8, 8), 0.5))
    assert picture.shape == (2, 3, 16, 16)
    assert error.shape == (2, 1, 16, 16)
    laplace_loss(picture, target, error).backward()  # type: ignore[no-untyped-call]
    assert fusion.head.weight.grad is None
    assert fusion.codes.weight.grad is None
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        picture, error = fusion(inputs, features, decoded, torch.full((2, 1, 8, 8), 0.5))
        laplace_loss(picture, target, error).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    error = error.detach()
    assert float(error[..., :7].mean()) < 0.05
    assert 0.4 < float(error[..., 9:].mean()) < 0.6


def test_the_map_is_given_at_every_factor_in_8_bit_levels(speaking: NextScale, picture: np.ndarray) -> None:
    result = speaking.upscale(picture, UpscaleOptions(scale=3, all_factors=True, tile=64, confidence=True))
    assert set(result.expected_error) == {1, 2, 3}
    for factor, error in result.expected_error.items():
        rgb = result.images[factor].rgb
        assert error.shape == rgb.shape[:2]
        assert error.dtype == np.float32
        assert float(error.min()) > 0
        assert np.array_equal(result.maps[factor], np.rint(error).clip(0, 255).astype(np.uint8))
    twice = speaking.upscale(picture[:20, :20], UpscaleOptions(scale=8, tile=64, confidence=True))
    assert twice.expected_error[8].shape == (160, 160)


def test_a_model_without_a_fusion_shows_its_confidence() -> None:
    confidence = np.array([[3, 250]], np.uint8)
    assert shown_map(confidence, None) is confidence
    assert shown_map(confidence, np.array([[0.4, 300.0]], np.float32)).tolist() == [[0, 255]]


def test_options_that_exclude_each_other_or_that_a_model_lacks_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--fast.*confidence"):
        UpscaleOptions(fast=True, confidence=True)
    with pytest.raises(OptionError, match=r"--fast.*--fidelity"):
        UpscaleOptions(fast=True, fidelity=0.5)
    with pytest.raises(OptionError, match="denoise"):
        UpscaleOptions(denoise=1.5)
    older, picture = random_model(), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(OptionError, match="--fast"):
        older.upscale(picture, UpscaleOptions(fast=True))
    with pytest.raises(OptionError, match="--denoise"):
        older.upscale(picture, UpscaleOptions(denoise=0.25))


def test_a_restorer_is_saved_and_loaded(speaking: NextScale, picture: np.ndarray, tmp_path: Path) -> None:
    folder = speaking.save_pretrained(tmp_path, half=False)
    again = NextScale.from_pretrained(folder, device="cpu", fp32=True)
    options = UpscaleOptions(scale=2, tile=64, denoise=0.3)
    wanted = speaking.upscale(picture, options).picture.rgb
    assert np.array_equal(again.upscale(picture, options).picture.rgb, wanted)


def test_configs_that_do_not_fit_are_refused() -> None:
    base = small_config()
    with pytest.raises(ModelError, match="neither"):
        ModelConfig(base.tokenizer, base.transformer, RestorerConfig(), None)
    with pytest.raises(ModelError, match="fusion in its tokenizer"):
        ModelConfig(base.tokenizer, base.transformer, RestorerConfig(), FusionConfig())
    part = dataclasses.replace(base.tokenizer, fusion=None)
    with pytest.raises(ModelError, match="factors"):
        ModelConfig(part, base.transformer, RestorerConfig(factors=(1, 2)), FusionConfig())
