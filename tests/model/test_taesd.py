"""TAESD as the tokenizer's autoencoder: its published weights load, and what is new in it starts as no change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from nextscale.data.crops import Crops
from nextscale.errors import ModelError, OptionError
from nextscale.model.config import (
    FusionConfig,
    Ladder,
    ModelConfig,
    RestorerConfig,
    StemConfig,
    TaesdConfig,
    TokenizerConfig,
)
from nextscale.model.config_io import from_dict, to_dict
from nextscale.model.convert import convert
from nextscale.model.stem import Stem
from nextscale.model.taesd import TaesdEncoder
from nextscale.model.tokenizer import Tokenizer
from nextscale.train.config import CodebookConfig, LoopConfig
from nextscale.train.loop import Run
from nextscale.train.tasks.codebook import CodebookTask
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from tests.conftest import small_config

EXAMPLES = str(Path(__file__).parents[2] / "examples")
SMALL = TaesdConfig(channels=16, inner_channels=8, blocks=1, latent_channels=12)
CONVS = ("conv.0", "conv.2", "conv.4")
State = dict[str, Tensor]


def official(seed: int) -> tuple[State, State]:
    """Random weights of encoder and decoder in the names and shapes of TAEF2's files: 64 channels, 3 blocks a level."""
    generator = torch.Generator().manual_seed(seed)

    def conv(state: State, name: str, inside: int, out: int, side: int = 3, *, bias: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(out, inside, side, side, generator=generator) / (side * inside**0.5)
        if bias:
            state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    def block(state: State, number: int, *, pooled: bool = False) -> None:
        for part in CONVS:
            conv(state, f"{number}.{part}", 64, 64)
        if pooled:
            conv(state, f"{number}.pool.0", 64, 256, 1, bias=False)
            state[f"{number}.pool.1.weight"] = torch.rand(256, generator=generator)
            state[f"{number}.pool.1.bias"] = torch.randn(256, generator=generator)
            conv(state, f"{number}.pool.3", 256, 64, 1, bias=False)

    encoder: State = {}
    decoder: State = {}
    conv(encoder, "0", 3, 64)
    block(encoder, 1)
    for level, place in enumerate((2, 6, 10)):
        conv(encoder, str(place), 64, 64, bias=False)
        for i in range(3):
            block(encoder, place + 1 + i, pooled=level == 2)
    conv(encoder, "14", 64, 32)
    conv(decoder, "1", 32, 64)
    for i in range(3):
        block(decoder, 3 + i, pooled=True)
    for level, place in enumerate((7, 12, 17)):
        conv(decoder, str(place), 64, 64, bias=False)
        for i in range(1 if level == 2 else 3):
            block(decoder, place + 1 + i)
    conv(decoder, "19", 64, 3)
    return encoder, decoder


def run_block(state: State, number: int, x: Tensor) -> Tensor:
    if f"{number}.pool.0.weight" in state:
        inner = F.conv2d(x, state[f"{number}.pool.0.weight"])
        inner = F.group_norm(inner, 4, state[f"{number}.pool.1.weight"], state[f"{number}.pool.1.bias"])
        x = x + F.conv2d(F.relu(inner), state[f"{number}.pool.3.weight"])
    h = x
    for part in CONVS:
        h = F.conv2d(h, state[f"{number}.{part}.weight"], state[f"{number}.{part}.bias"], padding=1)
        h = h if part == "conv.4" else F.relu(h)
    return F.relu(h + x)


def encoded(state: State, images: Tensor) -> Tensor:
    """TAEF2's latents of images in [0, 1], written out by its definition."""
    x = run_block(state, 1, F.conv2d(images, state["0.weight"], state["0.bias"], padding=1))
    for place in (2, 6, 10):
        x = F.conv2d(x, state[f"{place}.weight"], padding=1, stride=2)
        for i in range(3):
            x = run_block(state, place + 1 + i, x)
    return F.conv2d(x, state["14.weight"], state["14.bias"], padding=1)


def decoded(state: State, z: Tensor) -> Tensor:
    """TAEF2's images in [0, 1] of latents, written out by its definition."""
    x = F.relu(F.conv2d(torch.tanh(z / 3) * 3, state["1.weight"], state["1.bias"], padding=1))
    for i in range(3):
        x = run_block(state, 3 + i, x)
    for level, place in enumerate((7, 12, 17)):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = F.conv2d(x, state[f"{place}.weight"], padding=1)
        for i in range(1 if level == 2 else 3):
            x = run_block(state, place + 1 + i, x)
    return F.conv2d(x, state["19.weight"], state["19.bias"], padding=1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_files_convert_and_compute_what_they_define(suffix: str, tmp_path: Path) -> None:
    states = official(0)
    for name, state in zip(("encoder", "decoder"), states, strict=True):
        file = tmp_path / f"taef2_{name}{suffix}"
        if suffix == ".safetensors":
            save_file(state, file)
        else:
            torch.save(state, file)
    report = convert(tmp_path / f"taef2_encoder{suffix}", tmp_path / "out", "taesd", "tokenizer")
    assert any("a decoder for each of 3 stage(s)" in line for line in report)
    tokenizer = Tokenizer.from_pretrained(tmp_path / "out")
    images = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        packed = tokenizer.encoder(images * 2 - 1)
        torch.testing.assert_close(packed, F.pixel_unshuffle(encoded(states[0], images), 2), atol=1e-4, rtol=1e-4)
        f = tokenizer.latents(images * 2 - 1)
        torch.testing.assert_close(f, packed[:, :64], atol=1e-4, rtol=1e-4)
        z = F.pixel_shuffle(torch.cat([f, torch.zeros_like(f)], dim=1), 2)
        for stage in range(3):
            images = decoded(states[1], z) * 2 - 1
            torch.testing.assert_close(tokenizer.decode_canvas(f, stage), images, atol=1e-4, rtol=1e-4)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    encoder, decoder = official(0)
    torch.save(encoder, tmp_path / "taef2_encoder.pth")
    with pytest.raises(ModelError, match=r"taef2_decoder\.pth: no such file"):
        convert(tmp_path / "taef2_encoder.pth", tmp_path / "out", "taesd", "tokenizer")
    torch.save(decoder | {"20.weight": torch.zeros(1)}, tmp_path / "taef2_decoder.pth")
    with pytest.raises(ModelError, match=r"taef2_decoder\.pth.*20\.weight"):
        convert(tmp_path / "taef2_encoder.pth", tmp_path / "out", "taesd", "tokenizer")
    with pytest.raises(ModelError, match="the file of the encoder"):
        convert(tmp_path / "taef2_decoder.pth", tmp_path / "out", "taesd", "tokenizer")
    with pytest.raises(OptionError, match="--part tokenizer"):
        convert(tmp_path / "taef2_encoder.pth", tmp_path / "out", "taesd", "transformer")
    assert not (tmp_path / "out").exists()


def test_decoders_stop_for_the_fusion_at_the_inputs_resolution() -> None:
    tokenizer = Tokenizer(TokenizerConfig(autoencoder=SMALL, codebook_size=16))
    with torch.no_grad():
        for decoder, canvas in zip(tokenizer.decoders, tokenizer.ladder.canvases, strict=True):
            h, base = decoder.features(torch.zeros(1, 12, canvas, canvas))  # type: ignore[operator]
            assert h.shape == (1, decoder.feature_channels, 128, 128)
            assert decoder.picture(h, base).shape == (1, 3, 16 * canvas, 16 * canvas)  # type: ignore[operator]


@pytest.mark.integration
def test_the_codebook_phase_fits_the_principal_components() -> None:
    torch.manual_seed(0)
    ladder = Ladder((1, 2, 4), (1, 2, 3), (0, 0, 0), input_canvas=1)
    tokenizer = Tokenizer(TokenizerConfig(ladder, SMALL, codebook_size=64, num_phi=1))
    task = CodebookTask(tokenizer, Crops([EXAMPLES], 64), CodebookConfig(side=16, kmeans_images=16))
    images = torch.from_numpy(task.crops.batch(0, 8)).float() / 127.5 - 1

    def lost() -> float:
        """The share of the encoder's output that the map to latents and back does not bring back."""
        with torch.no_grad():
            packed = tokenizer.encoder(images)
            back = tokenizer.decoders[2].post_quant_conv(tokenizer.latents(images))  # type: ignore[operator]
            whole = (packed - packed.mean((0, 2, 3), keepdim=True)).square().mean()
            return float((back - packed).square().mean() / whole)

    task.start()
    weight = tokenizer.quant_conv.weight[:, :, 0, 0]
    torch.testing.assert_close(weight @ weight.T, torch.eye(12), atol=1e-5, rtol=0)
    fitted = lost()
    with torch.no_grad():
        # Any other twelve directions lose more: here a random turn of them.
        turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(2)))[0][:12]
        tokenizer.quant_conv.weight.copy_(turn[..., None, None])
        tokenizer.quant_conv.bias.copy_(-turn @ tokenizer.decoders[2].post_quant_conv.bias)  # type: ignore[union-attr]
        tokenizer.decoders[2].post_quant_conv.weight.copy_(turn.T[..., None, None])  # type: ignore[union-attr, operator]
    assert fitted < 0.5 * lost()
    run = Run(task, LoopConfig(steps=2, batch=4, lr=1e-3, warmup=1, bf16=False, save_minutes=0))
    assert all(run.advance()[0] > 0 for _ in range(2))


@pytest.mark.integration
def test_a_whole_model_on_it_is_saved_loaded_and_restores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        TokenizerConfig(autoencoder=SMALL, codebook_size=32),
        small_config().transformer,
        RestorerConfig(channels=8, convs=2),
        FusionConfig(8, 1, 8),
    )
    assert from_dict(ModelConfig, to_dict(config)) == config
    model = NextScale.create(config).to("cpu", fp32=True)
    other = NextScale.from_pretrained(model.save_pretrained(tmp_path / "m", half=False), device="cpu", fp32=True)
    picture = Image.new("RGB", (40, 30), (90, 60, 30))
    first, second = (m.upscale(picture, UpscaleOptions(fidelity=0.5)) for m in (model, other))
    assert first.pil.size == (160, 120)
    assert first.pil.tobytes() == second.pil.tobytes()


def test_a_stem_goes_on_from_the_encoders_last_level() -> None:
    torch.manual_seed(0)
    ladder = Ladder()
    tokenizer = Tokenizer(TokenizerConfig(ladder, SMALL, codebook_size=8))
    assert isinstance(tokenizer.encoder, TaesdEncoder)
    sizes = StemConfig(features=8, channels=16, blocks=1, inner_channels=8, out_channels=20)
    stem = Stem(sizes, ladder, 12)
    stem.start_from(tokenizer.encoder, tokenizer.quant_conv)
    h = torch.rand(1, 16, 32, 32)
    last = len(tokenizer.encoder.net) - len(stem.level)
    with torch.no_grad():
        wanted = tokenizer.quant_conv(F.pixel_unshuffle(tokenizer.encoder.net[last:](h), 2))
        torch.testing.assert_close(stem.latent(F.pixel_unshuffle(stem.level(h), 2)), wanted)
        maps = stem(torch.rand(1, 8, 128, 128), torch.rand(1, 3, 128, 128), ladder)
        assert [m.shape for m in maps] == [(1, 20, side, side) for side in ladder.canvases]
        halved = stem(torch.rand(2, 8, 64, 64), torch.rand(2, 3, 64, 64), ladder.for_input(64))
        assert [m.shape for m in halved] == [(2, 20, side // 2, side // 2) for side in ladder.canvases]
        # The restorer's features are of a residual: colors reach the condition through the picture alone.
        features, picture = torch.rand(1, 8, 64, 64), torch.rand(1, 3, 64, 64)
        maps = zip(*(stem(features, x, ladder.for_input(64)) for x in (picture, picture.flip(1))), strict=True)
        assert all((a - b).abs().max() > 1e-3 for a, b in maps)
    wide = Stem(StemConfig(features=8, channels=16, inner_channels=8, out_channels=20), ladder, 12)
    with pytest.raises(ModelError, match="sizes are not those"):
        wide.start_from(tokenizer.encoder, tokenizer.quant_conv)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothere\.pth: no such file"):
        convert(tmp_path / "nothere.pth", tmp_path / "out", "taesd", "tokenizer")
