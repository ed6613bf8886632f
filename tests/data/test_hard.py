"""The degradations that photographs bring beside Real-ESRGAN's: compression again, coarse noise, too little light."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from nextscale.data import degrade as d
from nextscale.errors import OptionError


def photograph(side: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("name", ["compressed", "noisy", "scan", "clean"])
def test_a_recipe_replays_from_its_line(name: str) -> None:
    recipes = d.sample_recipes(d.PRESETS[name], 12, random.Random(3))
    image = photograph().expand(12, -1, -1, -1)
    again = [d.Recipe.from_json(recipe.to_json()) for recipe in recipes]
    assert again == recipes
    assert torch.equal(d.degrade(image, recipes), d.degrade(image, again))


def test_recipes_from_before_lack_the_new_keys_and_still_load() -> None:
    (recipe,) = d.sample_recipes(d.STABLESR, 1, random.Random(0))
    older = recipe.to_json()
    assert "exposure" not in older
    assert "recompress" not in older
    assert d.Recipe.from_json(older) == recipe


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_a_shifted_grid_puts_its_blocks_elsewhere(codec: str) -> None:
    image = photograph()
    plain = d.compress(image, d.CompressSpec(codec, 20))
    shifted = d.compress(image, d.CompressSpec(codec, 20, 3, 5))
    assert plain.shape == shifted.shape == image.shape
    assert not torch.equal(plain, shifted)
    if codec == "jpeg":  # steps between columns are largest where blocks meet
        for coded, offset in ((plain, 0), (shifted, 5)):
            jumps = (coded - image).diff(dim=-1).abs().mean(dim=(0, 1, 2))
            borders = [i for i in range(len(jumps)) if (i + 1) % 8 == offset]
            inside = [i for i in range(len(jumps)) if (i + 1) % 8 == (offset + 4) % 8]
            assert float(jumps[borders].mean()) > float(jumps[inside].mean())


def test_coarse_noise_has_its_strength_and_is_coarser_than_white_noise() -> None:
    gray = torch.full((3, 96, 96), 0.5)
    spec = d.NoiseSpec("coarse", 12.0, gray=False, seed=5)
    noise = d.add_noise(gray, spec) - gray
    assert float(noise.std() * 255) == pytest.approx(12, rel=0.1)
    white = d.add_noise(gray, dataclasses.replace(spec, kind="gaussian")) - gray
    pooled = [float(torch.nn.functional.avg_pool2d(n[None], 2).std() / n.std()) for n in (noise, white)]
    assert pooled[1] == pytest.approx(0.5, abs=0.03)
    assert pooled[0] > 0.65


def test_a_scan_blurs_letters_over_pixels_of_the_input() -> None:
    edge = torch.zeros(1, 3, 96, 96)
    edge[..., 48:] = 1
    steps = {}
    for preset in (d.SCAN, d.COMPRESSED):
        recipes = [r.without_noise() for r in d.sample_recipes(preset, 60, random.Random(2))]
        steps[preset.name] = torch.stack([d.degrade(edge, [r]).diff(dim=-1).abs().max() for r in recipes])
    # The largest step between neighbors: all of the edge where it is sharp.
    assert float((steps["scan"] < 0.55).float().mean()) > 0.4
    assert float((steps["compressed"] < 0.55).float().mean()) < 0.2


def test_less_light_darkens_the_photograph_and_not_the_noise() -> None:
    recipe = dataclasses.replace(d.sample_recipes(d.CLEAN, 1, random.Random(0))[0], final_filter="area", exposure=0.5)
    image = photograph()
    dark = d.degrade(image, [recipe])
    torch.testing.assert_close(dark, torch.nn.functional.avg_pool2d(image, 4) / 2, atol=1 / 255, rtol=0)


def test_a_recipe_without_its_noise_or_compression() -> None:
    recipes = [d.sample_recipes(preset, 20, random.Random(1)) for preset in (d.COMPRESSED, d.NOISY)]
    for recipe in [*recipes[0], *recipes[1]]:
        quiet, plain = recipe.without_noise(), recipe.without_compression()
        assert quiet.recompress is None
        assert plain.recompress is None
        for spec in (quiet.second, plain.second):
            assert spec is not None
            assert spec.jpeg_quality is None
        assert quiet.second is not None
        assert quiet.second.noise is None
        assert plain.second is not None
        assert recipe.second is not None
        assert plain.second.noise == recipe.second.noise


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="quality"):
        d.CompressSpec("jpeg", 0)
    with pytest.raises(OptionError, match="codec"):
        d.CompressSpec("gif", 50)
    with pytest.raises(OptionError, match="exposure"):
        dataclasses.replace(d.sample_recipes(d.CLEAN, 1, random.Random(0))[0], exposure=0.0)
