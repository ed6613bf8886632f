"""Degradation: parity with the peers' operations, the presets' statistics, and exact replay of recipes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.data import degrade as d
from nextscale.errors import OptionError

PI = math.pi


@pytest.fixture(scope="module")
def reference() -> Mapping[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "fixtures" / "ref_ops.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def photograph(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random shapes with a little texture, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + 0.1 * torch.rand(batch, 3, height, width, generator=generator)).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-20))


# Kernels


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("sinc_k7_c1.0472", d.sinc_kernel(7, PI / 3)),
        ("sinc_k13_c1.2000", d.sinc_kernel(13, 1.2)),
        ("sinc_k21_c2.5000", d.sinc_kernel(21, 2.5)),
        ("sinc_k9_c3.1416", d.sinc_kernel(9, PI)),
        ("gauss_k15_iso_sx1.7_b1.4", d.gaussian_kernel(15, 1.7, 1.7)),
        ("gauss_k21_aniso_sx2.3_sy0.8_th0.7_b0.6", d.gaussian_kernel(21, 2.3, 0.8, 0.7)),
        ("ggauss_k15_iso_sx1.7_b1.4", d.generalized_gaussian_kernel(15, 1.7, 1.7, beta=1.4)),
        ("ggauss_k21_aniso_sx2.3_sy0.8_th0.7_b0.6", d.generalized_gaussian_kernel(21, 2.3, 0.8, 0.7, beta=0.6)),
        ("plateau_k15_iso_sx1.7_b1.4", d.plateau_kernel(15, 1.7, 1.7, beta=1.4)),
        ("plateau_k21_aniso_sx2.3_sy0.8_th0.7_b0.6", d.plateau_kernel(21, 2.3, 0.8, 0.7, beta=0.6)),
    ],
)
def test_kernel_equals_the_reference(reference: Mapping[str, Tensor], name: str, kernel: Tensor) -> None:
    torch.testing.assert_close(kernel, reference[name], atol=1e-6, rtol=0)


def test_a_spec_makes_the_kernel_of_its_kind() -> None:
    shape = (9, 2.0, 0.7, 0.4)
    torch.testing.assert_close(d.make_kernel(d.KernelSpec("aniso", *shape)), d.gaussian_kernel(*shape))
    torch.testing.assert_close(
        d.make_kernel(d.KernelSpec("generalized_aniso", *shape, beta=0.8)),
        d.generalized_gaussian_kernel(*shape, beta=0.8),
    )
    torch.testing.assert_close(
        d.make_kernel(d.KernelSpec("plateau_aniso", *shape, beta=0.8)), d.plateau_kernel(*shape, beta=0.8)
    )
    torch.testing.assert_close(d.make_kernel(d.KernelSpec("sinc", 9, cutoff=2.0)), d.sinc_kernel(9, 2.0))


# Operations


def test_filter2d_equals_the_reference(reference: Mapping[str, Tensor]) -> None:
    kernels = [reference[f"{kind}_k21_aniso_sx2.3_sy0.8_th0.7_b0.6"] for kind in ("gauss", "plateau")]
    filtered = d.filter2d(reference["img"], torch.stack(kernels))
    torch.testing.assert_close(filtered, reference["filter2d_out"], atol=1e-5, rtol=0)
    alone = d.filter2d(reference["img"][:1], kernels[0])
    torch.testing.assert_close(filtered[:1], alone, atol=1e-6, rtol=0)


def test_zeros_around_a_kernel_change_nothing(reference: Mapping[str, Tensor]) -> None:
    padded = reference["sinc_k7_pad21"]
    assert torch.count_nonzero(padded[7:14, 7:14]) == torch.count_nonzero(padded)
    filtered = d.filter2d(reference["img"], padded)
    torch.testing.assert_close(d.filter2d(reference["img"], d.sinc_kernel(7, 1.5)), filtered, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (5, 3), (11, 40)])
def test_filter2d_mirrors_small_images_repeatedly(height: int, width: int) -> None:
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    kernel = d.gaussian_kernel(21, 3.0, 1.5, 0.3)
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (10, 10), (10, 10)), mode="reflect"))
    expected = torch.nn.functional.conv2d(padded.reshape(6, 1, height + 20, width + 20), kernel.float()[None, None])
    torch.testing.assert_close(d.filter2d(image, kernel), expected.reshape(image.shape), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", d.RESIZE_FILTERS)
def test_resize_equals_the_reference(reference: Mapping[str, Tensor], method: str) -> None:
    torch.testing.assert_close(
        d.resize(reference["img"], method, scale=0.61), reference[f"resize_{method}_0.61"], atol=1e-6, rtol=0
    )


def test_usm_sharpen_equals_the_reference(reference: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(d.usm_sharpen(reference["img"]), reference["usm_out"], atol=1e-4, rtol=0)


def test_usm_sharpen_leaves_flat_areas_alone() -> None:
    flat = torch.full((1, 3, 64, 64), 0.4)
    torch.testing.assert_close(d.usm_sharpen(flat), flat, atol=1e-6, rtol=0)


def test_jpeg_equals_the_reference(reference: Mapping[str, Tensor]) -> None:
    coded = d.jpeg(reference["img"], reference["jpeg_quality"])
    assert all(psnr(a, b) >= 50 for a, b in zip(coded, reference["jpeg_out"], strict=True))


def test_jpeg_takes_one_quality_or_one_per_sample() -> None:
    image = photograph(3, 40, 56)
    coded = d.jpeg(image, [20.5, 50.0, 90.0])
    for i, quality in enumerate((20.5, 50.0, 90.0)):
        torch.testing.assert_close(coded[i : i + 1], d.jpeg(image[i : i + 1], quality), atol=1e-6, rtol=0)
    losses = [psnr(d.jpeg(image, quality), image) for quality in (5.0, 30.0, 60.0, 95.0, 100.0)]
    assert losses == sorted(losses)
    assert min(losses) > 10


def test_gaussian_noise_has_the_asked_sigma() -> None:
    flat = torch.full((3, 256, 256), 0.5)
    noise = d.add_gaussian_noise(flat, 20.0, gray=False, generator=torch.Generator().manual_seed(0)) - flat
    assert float(noise.std()) * 255 == pytest.approx(20.0, rel=0.02)
    assert abs(float((noise[0] * noise[1]).mean() / noise.var())) < 0.02
    gray = d.add_gaussian_noise(flat, 20.0, gray=True, generator=torch.Generator().manual_seed(0)) - flat
    assert float(gray.std()) * 255 == pytest.approx(20.0, rel=0.02)
    assert torch.equal(gray[0], gray[2])


def test_poisson_noise_has_as_many_photons_as_levels() -> None:
    levels = torch.tensor([100, 101, 102, 103, 104]) / 255  # 5 levels: 8 photons at white
    image = levels[torch.arange(3 * 256 * 256) % 5].reshape(3, 256, 256)
    for scale in (0.5, 1.0):
        noise = d.add_poisson_noise(image, scale, gray=False, generator=torch.Generator().manual_seed(0)) - image
        assert float(noise.std()) == pytest.approx(scale * math.sqrt(102 / 255 / 8), rel=0.03)
        assert abs(float((noise[0] * noise[1]).mean() / noise.var())) < 0.02
    gray = d.add_poisson_noise(image, 0.3, gray=True, generator=torch.Generator().manual_seed(0)) - image
    torch.testing.assert_close(gray[0], gray[1], atol=1e-6, rtol=0)


def test_noise_is_clipped() -> None:
    image = torch.cat((torch.zeros(3, 32, 32), torch.ones(3, 32, 32)), dim=2)
    for kind, strength in (("gaussian", 30.0), ("poisson", 3.0)):
        noisy = d.add_noise(image, d.NoiseSpec(kind, strength, gray=False, seed=1))
        assert noisy.min() >= 0
        assert noisy.max() <= 1


# Recipes


def assert_near(count: int, total: int, prob: float) -> None:
    """Within five standard deviations of a binomial count."""
    assert abs(count - total * prob) <= 5 * math.sqrt(total * prob * (1 - prob)) + 1


@pytest.mark.parametrize("name", ["x4plus", "stablesr"])
def test_recipes_follow_the_presets_probabilities(name: str) -> None:
    preset, total = d.PRESETS[name], 6000
    everything = d.sample_recipes(preset, total, random.Random(0))
    recipes = [r for r in everything if r.first is not None]
    assert_near(total - len(recipes), total, preset.clean_prob)
    assert_near(sum(r.sinc_first for r in recipes), len(recipes), 0.5)
    assert_near(sum(r.final_sinc is not None for r in recipes), len(recipes), 0.8)
    for count in Counter(r.final_filter for r in recipes).values():
        assert_near(count, len(recipes), 1 / 3)
    for ranges, passes in (
        (preset.first, [r.first for r in recipes if r.first]),
        (preset.second, [r.second for r in recipes if r.second]),
    ):
        assert ranges is not None
        assert len(passes) == len(recipes)
        blurs = [p.blur for p in passes if p.blur]
        assert_near(len(blurs), len(passes), ranges.blur_prob)
        kinds = Counter(b.kind for b in blurs)
        assert_near(kinds["sinc"], len(blurs), 0.1)
        for kind, prob in zip(d.BLUR_KINDS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True):
            assert_near(kinds[kind], len(blurs), 0.9 * prob)
        for count in Counter(b.size for b in blurs).values():
            assert_near(count, len(blurs), 1 / 8)
        enlarge, shrink, keep = ranges.resize_probs
        assert_near(sum(p.resize_scale > 1 for p in passes), len(passes), enlarge)
        assert_near(sum(p.resize_scale < 1 for p in passes), len(passes), shrink)
        assert_near(sum(p.resize_scale == 1 for p in passes), len(passes), keep)
        noises = [p.noise for p in passes if p.noise]
        assert len(noises) == len(passes)
        assert_near(sum(n.kind == "gaussian" for n in noises), len(noises), 0.5)
        assert_near(sum(n.gray for n in noises), len(noises), 0.4)
        shaped = [b for b in blurs if b.kind.startswith("generalized")]
        assert_near(sum(b.beta < 1 for b in shaped), len(shaped), 0.5)


@pytest.mark.parametrize("name", ["x4plus", "stablesr"])
def test_recipes_stay_within_the_presets_ranges(name: str) -> None:
    preset = d.PRESETS[name]

    def inside(value: float, bounds: tuple[float, float]) -> bool:
        return bounds[0] <= value <= bounds[1]

    for recipe in d.sample_recipes(preset, 2000, random.Random(1)):
        for spec, ranges in ((recipe.first, preset.first), (recipe.second, preset.second)):
            if spec is None or ranges is None:
                continue
            assert inside(spec.resize_scale, ranges.resize_scale)
            assert spec.jpeg_quality is not None
            assert inside(spec.jpeg_quality, ranges.jpeg_quality)
            assert spec.noise is not None
            assert inside(
                spec.noise.strength, ranges.noise_sigma if spec.noise.kind == "gaussian" else ranges.poisson_scale
            )
            if spec.blur is None:
                continue
            assert spec.blur.size in range(7, 22, 2)
            if spec.blur.kind == "sinc":
                assert inside(spec.blur.cutoff, (PI / 3 if spec.blur.size < 13 else PI / 5, PI))
                continue
            assert inside(spec.blur.sigma_x, ranges.blur_sigma)
            assert inside(spec.blur.sigma_y, ranges.blur_sigma)
            if spec.blur.kind.endswith("aniso"):
                assert inside(spec.blur.rotation, (-PI, PI))
            else:
                assert (spec.blur.sigma_y, spec.blur.rotation) == (spec.blur.sigma_x, 0)
            if spec.blur.kind.startswith("generalized"):
                assert inside(spec.blur.beta, ranges.generalized_beta)
            elif spec.blur.kind.startswith("plateau"):
                assert inside(spec.blur.beta, ranges.plateau_beta)
        if recipe.final_sinc is not None:
            assert recipe.final_sinc.size in range(7, 22, 2)
            assert inside(recipe.final_sinc.cutoff, (PI / 3, PI))


def test_the_presets_hold_the_published_numbers() -> None:
    strong, mild = d.X4PLUS, d.STABLESR
    assert strong.first is not None
    assert strong.second is not None
    assert mild.first is not None
    assert mild.second is not None
    assert (strong.first.noise_sigma, strong.second.noise_sigma) == ((1, 30), (1, 25))
    assert (mild.first.noise_sigma, mild.second.noise_sigma) == ((1, 15), (1, 12))
    assert (strong.first.resize_scale, strong.second.resize_scale) == ((0.15, 1.5), (0.3, 1.2))
    assert (mild.first.resize_scale, mild.second.resize_scale) == ((0.3, 1.5), (0.6, 1.2))
    assert (strong.first.jpeg_quality, strong.second.jpeg_quality) == ((30, 95), (30, 95))
    assert (mild.first.jpeg_quality, mild.second.jpeg_quality) == ((60, 95), (60, 100))
    assert (strong.second.blur_prob, mild.second.blur_prob) == (0.8, 0.5)


@pytest.mark.parametrize(
    ("names", "digest"),
    [
        (("x4plus", "stablesr", "bilinear"), "420538a91b6e9003fd180d1357f599b80b3850bfb3949618ab8de044f2ecadb3"),
        (("camera",), "e8514217da7cbe510acf6de74edabff55ba0323c8d3c9db998d7b3c87273149d"),
        (("fullsize",), "a6429ecb3ffc69f16b113d3b252bfbdf42e289f15bea6207df66df445a187efd"),
    ],
)
def test_a_seed_draws_the_same_recipes_in_every_version(names: tuple[str, ...], digest: str) -> None:
    lines = "\n".join(r.to_json() for name in names for r in d.sample_recipes(d.PRESETS[name], 20, random.Random(7)))
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


def test_a_camera_blurs_and_adds_hardly_any_noise() -> None:
    recipes = d.sample_recipes(d.CAMERA, 400, random.Random(0))
    assert all(r.second is None and r.final_sinc is None for r in recipes)
    passes = [r.first for r in recipes if r.first]
    assert len(passes) == len(recipes)
    assert all(p.blur is not None and p.resize_scale == 1 for p in passes)
    assert all(p.jpeg_quality is not None and p.jpeg_quality >= 92 for p in passes)
    hr = photograph(8, 128, 128)
    made = d.degrade(hr, d.sample_recipes(d.CAMERA, 8, random.Random(1)))
    reduced = d.degrade(hr, d.sample_recipes(d.BILINEAR, 8, random.Random(1)))

    def detail(images: torch.Tensor) -> float:
        return float((images[..., 1:] - images[..., :-1]).abs().mean())

    assert detail(made) < 0.9 * detail(reduced)
    # On a flat picture there is nothing but noise.
    flat = d.degrade(torch.full((8, 3, 128, 128), 0.5), d.sample_recipes(d.CAMERA, 8, random.Random(1)))
    assert float((flat - 0.5).abs().mean()) < 3 / 255


def test_a_camera_at_full_size_sharpens_what_the_lens_left() -> None:
    hr = photograph(8, 128, 128)
    recipes = d.sample_recipes(d.FULLSIZE, 8, random.Random(1))
    masks = [r.unsharp for r in recipes]
    assert 0 < sum(mask is None for mask in masks) < 8
    assert all(0.5 <= mask.sigma <= 1.2 and 0.2 <= mask.amount <= 1.6 for mask in masks if mask)
    made = d.degrade(hr, recipes)
    plain = d.degrade(hr, [dataclasses.replace(recipe, unsharp=None) for recipe in recipes])
    detail = [(images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)) for images in (made, plain)]
    for i, mask in enumerate(masks):
        assert torch.equal(made[i], plain[i]) if mask is None else detail[0][i] > 1.05 * detail[1][i]


def test_an_unsharp_mask_adds_what_a_blur_takes_away() -> None:
    image = torch.full((1, 3, 32, 32), 0.25)
    image[..., 16:] = 0.75
    made = d.unsharp(image, d.UnsharpSpec(sigma=1.0, amount=0.5))
    kernel = d.gaussian_kernel(7, 1.0, 1.0)
    overshoot = 0.5 * 0.5 * float(kernel[:, 4:].sum())  # of the column beside the edge, whose blur reaches over it
    assert torch.allclose(made[..., 16], torch.tensor(0.75 + overshoot), atol=1e-6)
    assert torch.allclose(made[..., 15], torch.tensor(0.25 - overshoot), atol=1e-6)
    assert torch.allclose(made[..., :12], image[..., :12], atol=1e-6)
    assert float(d.unsharp(image, d.UnsharpSpec(sigma=1.0, amount=9.0)).max()) == 1.0
    with pytest.raises(OptionError, match="unsharp"):
        d.UnsharpSpec(sigma=0.0, amount=1.0)


def test_json_round_trip_is_exact() -> None:
    for name in d.PRESETS:
        for recipe in d.sample_recipes(d.PRESETS[name], 50, random.Random(3)):
            assert d.Recipe.from_json(recipe.to_json()) == recipe


def test_recipes_with_the_names_of_0_1_are_read() -> None:
    recipe = d.Recipe(
        "x4plus",
        d.PassSpec(
            d.KernelSpec("generalized_iso", 7, 1.0, 1.0, beta=0.8),
            1.0,
            "area",
            d.NoiseSpec("gaussian", 3.0, True, 1),
            90.0,
        ),
        None,
        final_filter="area",
        final_sinc=None,
        sinc_first=False,
    )
    old = recipe.to_json().replace("generalized_iso", "generalised_iso").replace('"gray"', '"grey"')
    assert "generalised_iso" in old
    assert '"grey"' in old
    assert d.Recipe.from_json(old) == recipe


def changed(path: str, value: object) -> str:
    """A valid recipe's JSON with one entry set."""
    recipe = next(r for r in d.sample_recipes(d.X4PLUS, 9, random.Random(0)) if r.first and r.first.blur)
    data = json.loads(recipe.to_json())
    *parents, key = path.split(".")
    entry = data
    for parent in parents:
        entry = entry[parent]
    entry[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("color", 1), r"unknown key recipe\.color"),
        (changed("first.noise.sigma", 1.0), r"unknown key recipe\.first\.noise\.sigma"),
        (changed("sinc_first", "yes"), r"recipe\.sinc_first must be bool"),
        (changed("final_filter", "lanczos"), "unknown resize filter 'lanczos'"),
        (changed("first.blur.kind", "box"), "unknown kernel kind 'box'"),
        (changed("first.blur.size", 8), "size must be odd"),
        (
            changed("first.blur", {**dataclasses.asdict(d.KernelSpec("sinc", 7, cutoff=1.0)), "cutoff": 0}),
            "cutoff above 0",
        ),
        (
            changed("first.blur", {**dataclasses.asdict(d.KernelSpec("iso", 7, 1.0, 1.0)), "sigma_y": 0}),
            "sigma_y above 0",
        ),
        (changed("first.noise.kind", "salt"), "unknown noise kind 'salt'"),
        (changed("first.noise.seed", -1), "32-bit seed"),
        (changed("first.jpeg_quality", 0), "quality lies in 1..100"),
        (changed("first.resize_scale", 0), "scale must be above 0"),
        (changed("first.resize_scale", math.nan), "finite numbers only, got NaN"),
        ("{}", r"missing key recipe\.final_filter"),
        ("[]", "recipe must be an object"),
        ("{", "one line of JSON"),
    ],
)
def test_a_malformed_recipe_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        d.Recipe.from_json(text)


# The pipeline


def test_clean_recipes_only_resize() -> None:
    hr = photograph(1, 64, 96)
    (bilinear,) = d.sample_recipes(d.BILINEAR, 1, random.Random(0))
    expected = d.quantize_8bit(torch.nn.functional.interpolate(hr, scale_factor=0.25, mode="bilinear"))
    assert torch.equal(d.degrade(hr, [bilinear]), expected)
    clean = d.sample_recipe(dataclasses.replace(d.STABLESR, clean_prob=1.0), random.Random(0))
    assert torch.equal(d.degrade(hr, [clean]), d.quantize_8bit(torch.nn.functional.avg_pool2d(hr, 4)))


@pytest.mark.parametrize("sinc_first", [True, False])
def test_the_order_of_operations(sinc_first: bool) -> None:
    hr = photograph(1, 64, 80)
    blur, blur2 = d.KernelSpec("iso", 9, 1.2, 1.2), d.KernelSpec("plateau_aniso", 7, 0.5, 0.9, 0.3, 1.4)
    noise, noise2 = d.NoiseSpec("gaussian", 9.0, False, 5), d.NoiseSpec("poisson", 0.7, True, 6)
    sinc = d.KernelSpec("sinc", 11, cutoff=1.9)
    recipe = d.Recipe(
        preset="x4plus",
        first=d.PassSpec(blur, 0.77, "bicubic", noise, 55.0),
        second=d.PassSpec(blur2, 1.15, "area", noise2, 80.0),
        final_filter="bicubic",
        final_sinc=sinc,
        sinc_first=sinc_first,
    )
    x = d.resize(d.filter2d(hr, d.make_kernel(blur)), "bicubic", size=(49, 61))
    x = d.jpeg(d.add_noise(x[0], noise)[None], 55.0)
    x = d.resize(d.filter2d(x, d.make_kernel(blur2)), "area", size=(18, 23))
    x = d.add_noise(x[0], noise2)[None]
    if sinc_first:
        x = d.jpeg(d.filter2d(d.resize(x, "bicubic", size=(16, 20)), d.make_kernel(sinc)).clamp(0, 1), 80.0)
    else:
        x = d.filter2d(d.resize(d.jpeg(x, 80.0), "bicubic", size=(16, 20)), d.make_kernel(sinc))
    assert torch.equal(d.degrade(hr, [recipe]), d.quantize_8bit(x))


@pytest.mark.parametrize("name", ["x4plus", "stablesr", "camera"])
def test_a_batch_equals_each_sample_alone(name: str) -> None:
    hr = photograph(6, 96, 128)
    recipes = d.sample_recipes(d.PRESETS[name], 6, random.Random(2))
    alone = [d.degrade(hr[i : i + 1], recipes[i : i + 1]) for i in range(6)]
    assert torch.equal(d.degrade(hr, recipes), torch.cat(alone))


def test_a_recipe_replayed_from_json_gives_the_same_bytes() -> None:
    hr = photograph(4, 64, 64)
    recipes = d.sample_recipes(d.X4PLUS, 4, random.Random(11))
    again = d.sample_recipes(d.X4PLUS, 4, random.Random(11))
    replayed = [d.Recipe.from_json(r.to_json()) for r in recipes]
    lr = d.degrade(hr, recipes)
    assert torch.equal(lr, d.degrade(hr, again))
    assert torch.equal(lr, d.degrade(hr, replayed))
    assert not torch.equal(lr, d.degrade(hr, d.sample_recipes(d.X4PLUS, 4, random.Random(12))))


def test_the_input_and_the_global_generator_stay_untouched() -> None:
    hr = photograph(2, 64, 64)
    before, state = hr.clone(), torch.get_rng_state()
    d.degrade(hr, d.sample_recipes(d.X4PLUS, 2, random.Random(0)))
    assert torch.equal(hr, before)
    assert torch.equal(torch.get_rng_state(), state)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    height=st.integers(8, 24),
    width=st.integers(8, 24),
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(sorted(d.PRESETS)),
)
def test_any_size_gives_8_bit_values(height: int, width: int, seed: int, name: str) -> None:
    hr = photograph(1, 4 * height, 4 * width, seed % 97)
    lr = d.degrade(hr, d.sample_recipes(d.PRESETS[name], 1, random.Random(seed)))
    assert lr.shape == (1, 3, height, width)
    assert lr.min() >= 0
    assert lr.max() <= 1
    assert torch.equal(lr, (lr * 255).round() / 255)


@pytest.mark.parametrize("shape", [(1, 3, 66, 64), (1, 1, 64, 64)])
def test_degrade_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        d.degrade(torch.zeros(shape), d.sample_recipes(d.BILINEAR, 1, random.Random(0)))


def test_degrade_wants_one_recipe_per_sample() -> None:
    with pytest.raises(ValueError, match="got 1 for 2"):
        d.degrade(torch.zeros(2, 3, 64, 64), d.sample_recipes(d.BILINEAR, 1, random.Random(0)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpus_bytes_up_to_rounding() -> None:
    hr = photograph(8, 256, 256)
    for name in d.PRESETS:
        recipes = d.sample_recipes(d.PRESETS[name], 8, random.Random(4))
        off = (d.degrade(hr.cuda(), recipes).cpu() - d.degrade(hr, recipes)).abs() * 255
        assert off.mean() < 0.05
