"""Official checkpoints: every wrapper, every refusal, and the full shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextscale.errors import ModelError, NextScaleError, OptionError
from nextscale.model.config import ModelConfig, paper
from nextscale.model.convert import _BUFFERS, Origin, Part, convert
from nextscale.model.tokenizer import Tokenizer
from nextscale.upscale.nextscale import NextScale


@pytest.fixture
def vae(fixtures: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(fixtures / "vae_tiny.pth", weights_only=True)
    return state


@pytest.fixture
def var(fixtures: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(fixtures / "var_tiny.pth", weights_only=True)
    return state


def test_trainer_and_hub_wrappers_give_the_same_tokenizer(
    fixtures: Path, vae: dict[str, Tensor], var: dict[str, Tensor], tmp_path: Path
) -> None:
    wrapped, hub = tmp_path / "ar-ckpt-last.pth", tmp_path / "model.safetensors"
    torch.save({"epoch": 3, "trainer": {"vae_local": vae, "var_wo_ddp": var}}, wrapped)
    save_file(vae, hub)
    sources: list[tuple[Path, Origin]] = [(fixtures / "vae_tiny.pth", "var"), (wrapped, "var"), (hub, "switti")]
    states = []
    for i, (source, origin) in enumerate(sources):
        convert(source, tmp_path / str(i), origin, "tokenizer", steps="1,2,3,4")
        states.append(load_file(tmp_path / str(i) / "model.safetensors"))
    assert all(torch.equal(a, states[1][n]) and torch.equal(a, states[2][n]) for n, a in states[0].items())


def test_without_steps_a_tokenizer_takes_the_hierarchical_ladder(fixtures: Path, tmp_path: Path) -> None:
    report = convert(fixtures / "vae_tiny.pth", tmp_path, "switti", "tokenizer")
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.ladder == paper().tokenizer.ladder
    first, last = tokenizer.decoders[0].state_dict(), tokenizer.decoders[2].state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items())
    assert any("3 stage(s)" in line for line in report)


def test_the_transformer_reports_taken_resized_and_new(fixtures: Path, var: dict[str, Tensor], tmp_path: Path) -> None:
    report = "\n".join(convert(fixtures / "var_tiny.pth", tmp_path, "var", "transformer"))
    assert "taken: 30 tensors (2 blocks" in report
    assert "position (4 x 4 of the last step -> 48 x 48)" in report
    assert "newly initialized: level row of the prefix" in report
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state["stack.blocks.1.attn.qkv.weight"], var["blocks.1.attn.mat_qkv.weight"])
    assert torch.equal(state["stack.head.weight"], var["head.weight"])
    assert torch.equal(state["class_embed.weight"][2], var["class_emb.weight"][-1])
    assert torch.equal(state["start_tokens"][0, :, 3, 2], var["pos_start"][0, 0])
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == "transformer"


@pytest.mark.parametrize(
    ("origin", "part", "reason"),
    [
        ("switti", "transformer", "Switti's transformer"),
        ("varsr", "transformer", "VARSR's transformer"),
        ("varsr", "tokenizer", "VARSR's tokenizer applies no Phi at its last step"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(
    fixtures: Path, tmp_path: Path, origin: Origin, part: Part, reason: str
) -> None:
    with pytest.raises(OptionError, match=reason):
        convert(fixtures / "vae_tiny.pth", tmp_path / "out", origin, part)
    assert not (tmp_path / "out").exists()


def test_varsr_is_recognized_under_another_flag(var: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "VARSR.pth"
    torch.save({"trainer": {"var_wo_ddp": var | {"con_embedding.0.weight": torch.zeros(1)}}}, path)
    with pytest.raises(ModelError, match="this is VARSR's transformer"):
        convert(path, tmp_path / "out", "var", "transformer")


class Unsafe:
    """Something a restricted loader must not build."""


def test_damaged_foreign_and_unsafe_files_give_one_line(fixtures: Path, vae: dict[str, Tensor], tmp_path: Path) -> None:
    whole = (fixtures / "vae_tiny.pth").read_bytes()
    files = {
        "truncated.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "picture.png": b"\x89PNG\r\n\x1a\n",
        "text.safetensors": b"not weights at all",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"model": Unsafe()}, tmp_path / "unsafe.pth")
    torch.save({"lr": 0.1}, tmp_path / "plain.pth")
    torch.save({"trainer": {"vae_local": vae}}, tmp_path / "vae-only.pth")
    torch.save(vae | {"encoder.extra": torch.zeros(1)}, tmp_path / "foreign.pth")
    cases: list[tuple[str, Part, str]] = [
        ("truncated.pth", "tokenizer", "damaged"),
        ("empty.pth", "tokenizer", "damaged"),
        ("picture.png", "tokenizer", "this is no checkpoint; give a .pth or .safetensors file"),
        ("text.safetensors", "tokenizer", "damaged"),
        ("unsafe.pth", "tokenizer", "never loaded"),
        ("plain.pth", "tokenizer", "not a state dict"),
        ("vae-only.pth", "transformer", "without var_wo_ddp"),
        ("foreign.pth", "tokenizer", "foreign tensor encoder.extra"),
        ("missing.pth", "tokenizer", "no such file"),
    ]
    for name, part, reason in cases:
        with pytest.raises(NextScaleError) as caught:
            convert(tmp_path / name, tmp_path / "out", "var", part)
        assert reason in str(caught.value), name
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(ModelError, match=r"not VAR's transformer: it has no word_embed\.weight"):
        convert(fixtures / "vae_tiny.pth", tmp_path / "out", "var", "transformer")
    with pytest.raises(OptionError, match="separated by commas"):
        convert(fixtures / "vae_tiny.pth", tmp_path / "out", "var", "tokenizer", steps="1,x")
    assert not (tmp_path / "out").exists()


def compact(**changes: Tensor) -> dict[str, Tensor]:
    """A small SRVGGNetCompact's state dict (two convolutions of four channels, x4), with other tensors."""
    state: dict[str, Tensor] = {}
    for i, (rows, columns) in enumerate([(4, 3), (4, 4), (4, 4), (48, 4)]):
        state[f"body.{2 * i}.weight"] = torch.randn(rows, columns, 3, 3)
        state[f"body.{2 * i}.bias"] = torch.randn(rows)
        if i < 3:
            state[f"body.{2 * i + 1}.weight"] = torch.rand(4)
    return state | changes


def test_a_small_restorer_converts(tmp_path: Path) -> None:
    torch.save(compact(), tmp_path / "a.pth")
    assert "2 convolutions of 4 channels" in convert(tmp_path / "a.pth", tmp_path / "out", "realesrgan", "restorer")[0]


def test_no_model_is_written_over_another(tmp_path: Path) -> None:
    torch.save(compact(), tmp_path / "a.pth")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for target, said in (("mine", r"config\.json: is there already; name a new folder"), ("a.pth", "this is a file")):
        with pytest.raises(OptionError, match=said):
            convert(tmp_path / "a.pth", tmp_path / target, "realesrgan", "restorer")
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_an_autoencoder_is_read_before_its_name_is(tmp_path: Path) -> None:
    for content in (b"", b"junk"):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(ModelError, match=r"a\.pth: (damaged|this is no checkpoint)") as stop:
            convert(tmp_path / "a.pth", tmp_path / "out", "taesd", "tokenizer")
        assert "name the file" not in str(stop.value)
    torch.save({"1.weight": torch.zeros(4)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="name the file of the encoder"):
        convert(tmp_path / "a.pth", tmp_path / "out", "taesd", "tokenizer")


def test_the_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    torch.save(compact(), tmp_path / "a.pth")
    torch.save(compact() | {"more.weight": torch.zeros(4)}, tmp_path / "noisy.pth")
    with pytest.raises(ModelError, match=r"^\S*noisy\.pth: does not fit .*unknown tensor more\.weight"):
        convert(tmp_path / "a.pth", tmp_path / "out", "realesrgan", "restorer", noisy=tmp_path / "noisy.pth")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("body.0.bias", torch.tensor(3.0), "body.0.bias is a scalar"),
        ("body.0.bias", torch.zeros(0), "body.0.bias is an empty tensor"),
        ("body.0.bias", torch.zeros(4).to_sparse(), "body.0.bias is no plain tensor"),
        ("body.0.weight", torch.zeros(1).expand(10**6, 3, 3, 3), "body.0.weight holds fewer numbers than its shape"),
        ("body.0.weight", torch.zeros(100_000, 3, 3, 3), "does not fit its config: the config asks for more than"),
        ("body.0.weight", torch.zeros(4), "not a compact network of Real-ESRGAN"),
        ("body.99999999.weight", torch.zeros(4), "not a compact network of Real-ESRGAN"),
        ("body.4.bias", torch.zeros(5), "does not fit a compact network"),
    ],
)
def test_tensors_that_no_network_has_are_one_line(tmp_path: Path, name: str, tensor: Tensor, said: str) -> None:
    path = tmp_path / "odd.pth"
    torch.save(compact(**{name: tensor}), path)
    line = refusal(path, "realesrgan", "restorer")
    assert said in line


def refusal(path: Path, origin: Origin, part: Part) -> str:
    with pytest.raises(ModelError) as caught:
        convert(path, path.parent / "out", origin, part)
    assert not (path.parent / "out").exists()
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.zeros(0), torch.zeros(2, 0)])
def test_scalars_and_empty_tensors_are_refused_in_every_place(
    vae: dict[str, Tensor], var: dict[str, Tensor], tmp_path: Path, value: Tensor
) -> None:
    path = tmp_path / "odd.pth"
    parts: list[tuple[dict[str, Tensor], Part]] = [(vae, "tokenizer"), (var, "transformer"), (compact(), "restorer")]
    for state, part in parts:
        names = [name for name in state if not name.endswith(_BUFFERS)]
        for name in names[:: len(names) // 3]:
            torch.save(state | {name: value}, path)
            line = refusal(path, "realesrgan" if part == "restorer" else "var", part)
            assert "scalar" in line or "empty" in line or "its layers are others" in line, (name, line)


@pytest.mark.parametrize(
    ("part", "name", "shape"),
    [
        ("tokenizer", "encoder.conv_in.weight", (1_000_000, 1)),
        ("tokenizer", "encoder.conv_in.weight", (7,)),
        ("tokenizer", "quantize.embedding.weight", (1, 1_000_000)),
        ("tokenizer", "quantize.embedding.weight", (7,)),
        ("tokenizer", "encoder.down.0.block.0.conv1.weight", (1_000_000,)),
        ("transformer", "word_embed.weight", (1_000_000, 1)),
        ("transformer", "word_embed.weight", (7,)),
        ("transformer", "head.weight", (1_000_000, 1)),
        ("transformer", "blocks.0.attn.scale_mul_1H11", (7,)),
        ("transformer", "blocks.0.attn.scale_mul_1H11", (1, 7, 1, 1)),
        ("transformer", "pos_1LC", (2, 3, 5)),
        ("transformer", "lvl_1L", (7, 7)),
    ],
)
def test_other_shapes_are_one_line_before_memory_is_taken(
    vae: dict[str, Tensor], var: dict[str, Tensor], tmp_path: Path, part: Part, name: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "odd.pth"
    state = vae if part == "tokenizer" else var
    assert name in state
    torch.save(state | {name: torch.ones(shape)}, path)
    refusal(path, "var", part)


def official_tokenizer_state(config: ModelConfig) -> dict[str, Tensor]:
    """Random weights under VAR's names in the full `paper` shapes."""
    tokenizer = Tokenizer(config.tokenizer)
    state: dict[str, Tensor] = {"quantize.ema_vocab_hit_SV": torch.zeros(10, 4096)}
    for name, tensor in tokenizer.state_dict().items():
        if name.startswith("decoders.0.post_quant_conv"):
            state[name.removeprefix("decoders.0.")] = tensor
        elif name.startswith("decoders.0."):
            state["decoder." + name.removeprefix("decoders.0.")] = tensor
        elif name.startswith("quantizer.phi."):
            state["quantize.quant_resi.qresi_ls." + name.removeprefix("quantizer.phi.")] = tensor
        elif name == "quantizer.codebook.weight":
            state["quantize.embedding.weight"] = tensor
        elif not name.startswith("decoders."):
            state[name] = tensor
    return state


@pytest.mark.slow
def test_full_paper_shapes_convert(tmp_path: Path) -> None:
    state = official_tokenizer_state(paper())
    assert len(state) == 324
    assert abs(sum(t.numel() for t in state.values()) - 108.99e6) < 0.1e6
    torch.save(state, tmp_path / "vae_ch160v4096z32.pth")
    del state
    convert(tmp_path / "vae_ch160v4096z32.pth", tmp_path / "tokenizer", "var", "tokenizer")
    assert Tokenizer.from_pretrained(tmp_path / "tokenizer").config == paper().tokenizer
    width, rows = 1024, 680
    var: dict[str, Tensor] = {
        "pos_start": torch.randn(1, 1, width),
        "pos_1LC": torch.randn(1, rows, width),
        "lvl_1L": torch.cat([torch.full((s * s,), k) for k, s in enumerate((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))])[None],
        "word_embed.weight": torch.randn(width, 32),
        "word_embed.bias": torch.randn(width),
        "class_emb.weight": torch.randn(1001, width),
        "lvl_embed.weight": torch.randn(10, width),
        "head.weight": torch.randn(4096, width),
        "head.bias": torch.randn(4096),
        "head_nm.ada_lin.1.weight": torch.randn(2 * width, width),
        "head_nm.ada_lin.1.bias": torch.randn(2 * width),
    }
    shapes = {
        "attn.mat_qkv.weight": (3 * width, width),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.zero_k_bias": (width,),
        "attn.scale_mul_1H11": (1, 16, 1, 1),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "ffn.fc1.weight": (4 * width, width),
        "ffn.fc1.bias": (4 * width,),
        "ffn.fc2.weight": (width, 4 * width),
        "ffn.fc2.bias": (width,),
        "ada_lin.1.weight": (6 * width, width),
        "ada_lin.1.bias": (6 * width,),
    }
    var |= {f"blocks.{i}.{name}": torch.randn(shape) for i in range(16) for name, shape in shapes.items()}
    torch.save(var, tmp_path / "var_d16.pth")
    del var
    report = "\n".join(convert(tmp_path / "var_d16.pth", tmp_path / "transformer", "var", "transformer"))
    assert "16 blocks" in report
    assert "position (16 x 16 of the last step -> 48 x 48)" in report
    assert "levels (10 -> 10)" in report
    model = NextScale.assemble(tmp_path / "tokenizer", tmp_path / "transformer")
    assert model.config == paper()
    assert isinstance(model.transformer, nn.Module)
