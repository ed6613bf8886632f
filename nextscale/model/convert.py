"""Official checkpoints -> model folders: the tokenizers of VAR, Switti and TAESD, VAR's transformer, Real-ESRGAN's net.

Pickled files are read by torch's restricted loader only, which builds nothing but tensors and plain containers.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nextscale.errors import ModelError, OptionError
from nextscale.files import check_free
from nextscale.model.checkpoint import CONFIG, WEIGHTS, built_shapes, compare_shapes, load_state, save_folder
from nextscale.model.config import (
    AutoencoderConfig,
    Ladder,
    ModelConfig,
    RestorerConfig,
    TaesdConfig,
    TokenizerConfig,
    TransformerConfig,
    flat_ladder,
    phi_schedule,
)
from nextscale.model.restorer import Restorer, load_compact
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Transformer

State = dict[str, Tensor]
Origin = Literal["var", "switti", "varsr", "realesrgan", "taesd"]
Part = Literal["tokenizer", "transformer", "restorer"]

_TRAINER_KEYS = {"tokenizer": "vae_local", "transformer": "var_wo_ddp"}
# VAR's name within a block -> ours.
_BLOCK = {
    "attn.mat_qkv.weight": "attn.qkv.weight",
    "attn.q_bias": "attn.q_bias",
    "attn.v_bias": "attn.v_bias",
    "attn.scale_mul_1H11": "attn.scale_mul",
    "attn.proj.weight": "attn.proj.weight",
    "attn.proj.bias": "attn.proj.bias",
    "ffn.fc1.weight": "ffn.fc1.weight",
    "ffn.fc1.bias": "ffn.fc1.bias",
    "ffn.fc2.weight": "ffn.fc2.weight",
    "ffn.fc2.bias": "ffn.fc2.bias",
    "ada_lin.1.weight": "ada.weight",
    "ada_lin.1.bias": "ada.bias",
}
_HEAD = {"head": "head", "head_nm.ada_lin.1": "head_ada"}
# Not weights: the mask, zeros, and usage counts, whose shape another ladder changes.
_BUFFERS = ("zero_k_bias", "attn_bias_for_masking", "ema_vocab_hit_SV")


def convert(
    source: Path, target: Path, origin: Origin, part: Part, *, steps: str | None = None, noisy: Path | None = None
) -> list[str]:
    """Convert a checkpoint file to a folder; returns a report, a line per group of tensors.

    Args:
        steps: comma-separated sides of a one-stage ladder; the preset's hierarchical ladder without.
        noisy: for a restorer, weights of the same network that keep the noise: the other end of the denoise dial.

    Raises:
        ModelError: the file is damaged or of another kind.
        OptionError: this part of this origin does not fit our models, or the folder holds a model.
    """
    check_free(target, (CONFIG, WEIGHTS))
    if (origin == "realesrgan") != (part == "restorer"):
        raise OptionError(
            f"{source}: --part restorer comes --from realesrgan, and nothing else does; change one of them"
        )
    if origin == "varsr":
        reason = {
            "tokenizer": "VARSR's tokenizer applies no Phi at its last step; use Switti's or VAR's",
            "transformer": "VARSR's transformer has rotary positions and a diffusion refiner; use VAR-d16's",
        }[part]
        raise OptionError(f"{source}: {reason}")
    if origin == "switti" and part == "transformer":
        raise OptionError(f"{source}: Switti's transformer is text-conditioned with another block; use VAR-d16's")
    if noisy is not None and part != "restorer":
        raise OptionError("--noisy is for the restorer's denoise dial; leave it out")
    if origin == "taesd" and part != "tokenizer":
        raise OptionError(f"{source}: TAESD is an autoencoder; --part tokenizer is all that it can be")
    sides = _parse_steps(steps)
    if sides and part != "tokenizer":
        has = "a restorer has none" if part == "restorer" else "a transformer takes the preset's ladder"
        raise OptionError(f"--steps is for the tokenizer; {has}")
    if origin == "taesd":
        return _convert_taesd(source, target, sides)
    state = read_state(source, part)
    try:
        if part == "restorer":
            return _convert_restorer(state, noisy, target, str(source))
        if part == "tokenizer":
            return _convert_tokenizer(state, target, sides, str(source))
        return _convert_transformer(state, target, str(source))
    except ModelError as error:  # a configuration does not know of which file it was read off
        named = any(str(file) in str(error) for file in (source, noisy))
        raise ModelError(str(error) if named else f"{source}: {error}") from None
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        # Names that are right with shapes that are not fail wherever they are first used.
        raise ModelError(
            f"{source}: not the {part} that {origin} has: its tensors have other shapes ({error})"
        ) from None


def _parse_steps(steps: str | None) -> tuple[int, ...]:
    if steps is None:
        return ()
    try:
        return tuple(int(word) for word in steps.split(","))
    except ValueError:
        raise OptionError(f"--steps takes whole numbers separated by commas, e.g. 1,2,3,4, got {steps!r}") from None


def read_state(path: Path, part: Part) -> State:
    """The state dict of one part in a plain, trainer-wrapped or safetensors file.

    Raises:
        ModelError: not a checkpoint, damaged, or without that part.
    """
    check_there(path)
    try:
        data: Any = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: damaged or not a safetensors file ({str(error).splitlines()[0]})") from None
    if isinstance(data, dict) and isinstance(data.get("trainer"), dict):
        data = data["trainer"]
    if part == "restorer" and isinstance(data, dict):
        # BasicSR keeps the averaged weights apart where it has them.
        data = data.get("params_ema", data.get("params", data))
    wrapped = _TRAINER_KEYS.get(part)
    if wrapped and isinstance(data, dict) and any(key in data for key in _TRAINER_KEYS.values()):
        if wrapped not in data:
            raise ModelError(f"{path}: a trainer's checkpoint without {wrapped}, the {part}")
        data = data[wrapped]
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise ModelError(f"{path}: not a state dict of tensors")
    state = {str(name): value for name, value in data.items() if not str(name).endswith(_BUFFERS)}
    for name, tensor in state.items():
        _check_tensor(name, tensor, path)
    return state


def check_there(path: Path) -> None:
    """Refuse a checkpoint that is not there.

    Raises:
        ModelError: naming it.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; check the name")


def _check_tensor(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse what is no weight of any network: no numbers, one without a dimension, or fewer than its shape says.

    A pickled tensor may repeat one number to any shape, and the sizes of a model are read off the shapes.
    """
    plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or not tensor.ndim or not tensor.numel():
        what = "a scalar" if plain and not tensor.ndim else "an empty tensor" if plain else "no plain tensor"
        raise ModelError(f"{path}: {name} is {what}; this is not a network's checkpoint, or it is damaged")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(f"{path}: {name} holds fewer numbers than its shape {tuple(tensor.shape)}; it is damaged")


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # The loader raises many kinds for damaged, foreign and unsafe files, in words for programmers.
        with path.open("rb") as file:
            head = file.read(2)
        if head and head != b"PK" and head[:1] != b"\x80":  # neither a zip archive, as torch writes, nor a pickle
            raise ModelError(f"{path}: this is no checkpoint; give a .pth or .safetensors file") from None
        raise ModelError(f"{path}: damaged, or more than plain tensors, which is never loaded") from None


def _need(state: State, name: str, where: str, kind: str) -> Tensor:
    if name not in state:
        raise ModelError(f"{where}: not {kind}: it has no {name}")
    return state[name]


def _convert_tokenizer(state: State, target: Path, sides: tuple[int, ...], where: str) -> list[str]:
    what = "VAR's or Switti's tokenizer"
    config = _tokenizer_config(state, sides, where, what)
    stages = config.ladder.num_stages
    renamed: State = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first in ("encoder", "quant_conv"):
            renamed[name] = tensor
        elif first == "decoder":
            renamed |= {f"decoders.{i}.{rest}": tensor for i in range(stages)}
        elif first == "post_quant_conv":
            renamed |= {f"decoders.{i}.{name}": tensor for i in range(stages)}
        elif name == "quantize.embedding.weight":
            renamed["quantizer.codebook.weight"] = tensor
        elif name.startswith("quantize.quant_resi.qresi_ls."):
            renamed["quantizer.phi." + rest.removeprefix("quant_resi.qresi_ls.")] = tensor
        else:
            raise ModelError(f"{where}: not {what}: it has the foreign tensor {name}")
    given = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    compare_shapes(built_shapes(lambda: Tokenizer(config), given, where), given, where)
    tokenizer = Tokenizer(config)
    load_state(tokenizer, renamed, where)
    tokenizer.save_pretrained(target)
    ladder = config.ladder
    return [
        f"taken: {len(state)} tensors (encoder, quantizer with {config.codebook_size} codes, decoder)",
        f"ladder: steps {' '.join(map(str, ladder.sides))} in {stages} stage(s), a decoder for each from the one given",
        f"written: {target}",
    ]


def _tokenizer_config(state: State, sides: tuple[int, ...], where: str, what: str) -> TokenizerConfig:
    channels = _need(state, "encoder.conv_in.weight", where, what).shape[0]
    levels = 0
    while f"encoder.down.{levels}.block.0.conv1.weight" in state:
        levels += 1
    blocks = 0
    while f"encoder.down.0.block.{blocks}.conv1.weight" in state:
        blocks += 1
    widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    codebook = _need(state, "quantize.embedding.weight", where, what)
    num_phi = sum(name.startswith("quantize.quant_resi.qresi_ls.") and name.endswith(".weight") for name in state)
    if not levels or not num_phi or any(width % channels for width in widths):
        raise ModelError(f"{where}: not {what}: its levels or its shared convolutions are missing")
    base = flat_ladder(sides) if sides else Ladder()
    ladder = Ladder(
        base.sides, base.stage_ends, phi_schedule(base.num_steps, num_phi), 2 ** (levels - 1), base.input_canvas
    )
    autoencoder = AutoencoderConfig(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=blocks,
        latent_channels=codebook.shape[1],
    )
    return TokenizerConfig(ladder, autoencoder, codebook_size=codebook.shape[0], num_phi=num_phi)


def _convert_taesd(source: Path, target: Path, sides: tuple[int, ...]) -> list[str]:
    """TAEF2's encoder, and its decoder from the file beside it, for every stage."""
    read_state(source, "tokenizer")
    if "encoder" not in source.name:
        raise ModelError(f"{source}: name the file of the encoder (taef2_encoder); the decoder's is found beside it")
    other = source.with_name(source.name.replace("encoder", "decoder"))
    config = TokenizerConfig(flat_ladder(sides) if sides else Ladder(), TaesdConfig())
    tokenizer = Tokenizer(config)
    parts = [(tokenizer.encoder, source), *((decoder, other) for decoder in tokenizer.decoders)]
    for module, file in parts:
        load_state(module.net, read_state(file, "tokenizer"), str(file))  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in (tokenizer.quant_conv, *(decoder.post_quant_conv for decoder in tokenizer.decoders)):
            nn.init.dirac_(layer.weight)  # type: ignore[arg-type, union-attr]
            layer.bias.zero_()  # type: ignore[union-attr, operator]
    tokenizer.save_pretrained(target)
    kept, of = config.autoencoder.latent_channels, tokenizer.quant_conv.in_channels
    return [
        f"taken: encoder and decoder, a decoder for each of {config.ladder.num_stages} stage(s)",
        f"new: a random codebook of {config.codebook_size}; a linear map to latents, the first {kept} of {of} numbers",
        "next: `train tokenizer --phase codebook` fits both",
        f"written: {target}",
    ]


def _convert_restorer(state: State, noisy_file: Path | None, target: Path, where: str) -> list[str]:
    noisy = None if noisy_file is None else read_state(noisy_file, "restorer")
    what = "a compact network of Real-ESRGAN (SRVGGNetCompact, as realesr-general-x4v3)"
    first = _need(state, "body.0.weight", where, what)
    last = sum(bool(re.fullmatch(r"body\.\d+\.weight", name)) for name in state) - 1
    whole = all(f"body.{i}.weight" in state for i in range(last + 1))
    if first.shape[1:] != (3, 3, 3) or last < 4 or last % 2 or not whole:
        raise ModelError(f"{where}: not {what}: its layers are others")
    config = RestorerConfig(channels=first.shape[0], convs=last // 2 - 1)
    # What is not in the file, the smaller factors' heads and the dial, is left out of the comparison of sizes.
    part = dataclasses.replace(config, factors=(1,), grain_rank=0)
    built_shapes(lambda: Restorer(part), {name: tuple(t.shape) for name, t in state.items()}, where)
    restorer = Restorer(config)
    try:
        load_compact(restorer, state)
        if noisy is not None:
            where = str(noisy_file)
            load_compact(restorer, state, noisy)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise ModelError(f"{where}: does not fit {what}: {reason}") from None
    save_folder(target, "restorer", config, restorer.state_dict())
    return [
        f"taken: {len(state)} tensors ({config.convs} convolutions of {config.channels} channels, "
        f"head x{max(config.factors)})",
        "new: heads of the smaller factors, which give its exact area means",
        f"denoise dial: {'no effect; --noisy gives its other end' if noisy is None else 'down to the second file'}",
        f"written: {target}",
    ]


def _convert_transformer(state: State, target: Path, where: str) -> list[str]:
    what = "VAR's transformer"
    for foreign, owner in (("con_embedding", "VARSR"), ("diffloss", "VARSR"), ("text_pooler", "Switti")):
        if any(name.startswith(foreign) for name in state):
            raise ModelError(f"{where}: this is {owner}'s transformer, which does not fit; use VAR-d16's")
    words = _need(state, "word_embed.weight", where, what)
    positions = _need(state, "pos_1LC", where, what)
    start = _need(state, "pos_start", where, what)
    levels = _need(state, "lvl_embed.weight", where, what)
    classes = _need(state, "class_emb.weight", where, what)
    order = _need(state, "lvl_1L", where, what)
    head = _need(state, "head.weight", where, what)
    width, latent_channels = words.shape
    depth = sum(name.endswith("attn.mat_qkv.weight") for name in state)
    if "blocks.0.ada_lin.1.weight" not in state:
        raise ModelError(f"{where}: VAR's shared-AdaLN transformers (d36) are not supported; use VAR-d16's")
    heads = _need(state, "blocks.0.attn.scale_mul_1H11", where, what).shape[1]
    model = ModelConfig(
        TokenizerConfig(autoencoder=AutoencoderConfig(latent_channels=latent_channels), codebook_size=head.shape[0]),
        TransformerConfig(depth=depth, width=width, heads=heads),
    )
    ladder = model.tokenizer.ladder
    taken = _unchanged(state, depth, where, what)
    given = {name: tuple(tensor.shape) for name, tensor in taken.items()}
    with torch.device("meta"):  # first without memory: the file's other tensors may be of another width
        own = Transformer(model.transformer, ladder, head.shape[0], latent_channels).state_dict()
    compare_shapes({name: tuple(own[name].shape) for name in given}, given, where)
    transformer = Transformer(model.transformer, ladder, head.shape[0], latent_channels)
    new = dict(transformer.state_dict())
    rows = int(order.max()) + 1
    last = int((order == rows - 1).sum() ** 0.5 + 0.5)
    grid = positions[:, -last * last :].transpose(1, 2).reshape(1, width, last, last)
    side = model.transformer.position_grid
    steps = F.interpolate(levels.T[None], size=ladder.num_steps, mode="linear", align_corners=True)[0].T
    resized = {
        "position": F.interpolate(grid, size=(side, side), mode="bicubic"),
        "start_tokens": start[:, :1].transpose(1, 2)[..., None].expand(1, width, ladder.sides[0], ladder.sides[0]),
        "level_embed.weight": torch.cat([new["level_embed.weight"][:1], levels if rows == ladder.num_steps else steps]),
        "class_embed.weight": classes[-1:].expand(model.transformer.classes, width),
        "prefix_embed.weight": state["word_embed.weight"],
        "prefix_embed.bias": state["word_embed.bias"],
    }
    load_state(transformer, new | taken | resized, where)
    save_folder(target, "transformer", model, transformer.state_dict())
    fresh = sorted(set(new) - set(taken) - set(resized))
    return [
        f"taken: {len(taken)} tensors ({depth} blocks, head, word embedding)",
        f"resized: position ({last} x {last} of the last step -> {side} x {side}), "
        f"start tokens (one -> {ladder.sides[0]} x {ladder.sides[0]}), levels ({rows} -> {ladder.num_steps}), "
        f"classes (class-free row -> {model.transformer.classes}), prefix embedding (from the word embedding)",
        f"newly initialized: level row of the prefix{''.join(', ' + name for name in fresh)}",
        f"written: {target}",
    ]


def _unchanged(state: State, depth: int, where: str, what: str) -> State:
    """The tensors of VAR's transformer that are taken as they are, under our names."""
    names = {
        f"stack.blocks.{i}.{ours}": f"blocks.{i}.{theirs}" for i in range(depth) for theirs, ours in _BLOCK.items()
    }
    for kind in ("weight", "bias"):
        names |= {f"stack.{ours}.{kind}": f"{theirs}.{kind}" for theirs, ours in _HEAD.items()}
        names[f"word_embed.{kind}"] = f"word_embed.{kind}"
    absent = [ours for ours, theirs in names.items() if theirs not in state]
    if absent:
        raise ModelError(f"{where}: not {what}: nothing for {absent[0]} ({len(absent)} tensors missing)")
    return {ours: state[theirs] for ours, theirs in names.items()}
