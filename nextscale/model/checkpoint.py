"""A model is a folder: config.json and model.safetensors. Never a pickle.

`config.json` holds {"format": "nextscale", "kind": "model" | "tokenizer", "config": {...}}, read strictly.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nextscale.errors import ModelError, NextScaleError
from nextscale.files import write_atomic
from nextscale.model.config_io import check_numbers, from_dict, parse_json, to_dict

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FACTS = "card.json"
"""The facts beside the card in a model folder, from which the card is written."""
CARD = "README.md"
"""The model card, under the name that hubs show."""
SHIPPED = Path(__file__).parents[1] / "weights"
"""Models that come with the package, one folder each."""
MOST_CONFIG = 1_000_000
"""Bytes of a config.json; the longest so far has 2,000."""

ConfigT = TypeVar("ConfigT")
SCALE = ".scale"
"""Ends the name of what the rows of a matrix in 8 bits are multiplied by."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor of a checkpoint, by name."""


def find_folder(name: str | Path, **hub: Any) -> Path:
    """The folder of a model: the name of a shipped model, a path, or a hub id `owner/name` (downloaded once).

    See `local_folder` for which of them a name is.

    Args:
        hub: of a hub id, what `huggingface_hub.snapshot_download` takes: revision, token, cache_dir ...

    Raises:
        ModelError: there is no such model, or the download failed.
    """
    folder = local_folder(name)
    if folder is not None:
        return folder
    text = os.fspath(name)
    if os.path.isdir(text):
        raise ModelError(f"{text}: no such model; for the folder of that name write .{os.sep}{text}")
    if os.path.exists(os.path.expanduser(text)):
        raise ModelError(
            f"{text}: a model is a folder with {CONFIG} and {WEIGHTS}; convert other files with `nextscale convert`"
        )
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text):
        return _download(text, **hub)
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}"))) or "none"
    raise ModelError(f"{text}: no such model; give a folder, a hub id (owner/name) or a shipped name ({shipped})")


def local_folder(name: str | Path) -> Path | None:
    """The folder that a name leads to on this machine; None where there is none.

    A word without a separator is the name of a shipped model, whatever folders lie in the current one; a folder there
    is written `./word`, or given as a `Path`.
    """
    text = os.fspath(name)
    if re.fullmatch(r"\w[\w.-]*", text):
        if os.path.isfile(SHIPPED / text / CONFIG):
            return SHIPPED / text
        if isinstance(name, str):
            return None
    path = os.path.expanduser(text)
    return Path(path) if os.path.isdir(path) else None


def _download(hub_id: str, **hub: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG, WEIGHTS, FACTS, CARD], **hub))
    except Exception as error:
        raise ModelError(
            f"{hub_id}: no such folder, and the hub does not give it ({hub_reason(error)}); check the name and the "
            "connection"
        ) from None


def hub_reason(error: Exception) -> str:
    """In one line, what an error of the hub's library says.

    It raises many unrelated kinds, some of an HTTP client that differs with its version; all mean the same to a user.
    """
    text = re.sub(r" \(Request ID: [^)]*\)| for url: \S+", "", str(error))
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and re.match(r"\d{3} \w+ Error", lines[0]):  # the lines after it say more
        lines = lines[1:]
    return ": ".join(lines[:2]) or type(error).__name__


def save_folder(
    folder: str | Path, kind: str, config: Any, state: dict[str, Tensor], texts: dict[str, str] | None = None
) -> Path:
    """Write a model folder; each file appears whole or not at all.

    Args:
        texts: further files, by name.

    Raises:
        ModelError: the folder cannot be written.
    """
    folder = Path(folder)
    text = json.dumps({"format": "nextscale", "kind": kind, "config": to_dict(config)}, indent=1) + "\n"
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, lambda part: save_file(plain, part, metadata={"format": "pt"}))
        for name, content in {CONFIG: text, **(texts or {})}.items():
            write_atomic(folder / name, content)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: the model could not be written ({error})") from None
    return folder


def read_config(folder: Path, kind: str, config_type: type[ConfigT]) -> ConfigT:
    """The strict configuration of a model folder.

    Raises:
        ModelError: missing, damaged, of another kind, or with an unknown key (named).
    """
    path = folder / CONFIG
    data = _read_json(path)
    if data.get("kind") != kind:
        raise ModelError(f"{path}: holds a {data.get('kind')}, a {kind} is needed")
    unknown = sorted(set(data) - {"format", "kind", "config"})
    if unknown:
        raise ModelError(f"{path}: unknown key {unknown[0]}")
    try:
        check_numbers(data.get("config"))
        return from_dict(config_type, data.get("config"))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def read_kind(folder: Path) -> str:
    """What a folder holds: model, tokenizer or transformer."""
    return str(_read_json(folder / CONFIG).get("kind"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_CONFIG + 1)
        if len(content) > MOST_CONFIG:
            raise ModelError(f"{path}: longer than any configuration ({MOST_CONFIG} bytes); copy the model again")
        data = parse_json(content.decode())
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; a model folder holds {CONFIG} and {WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error}); copy the model again") from None
    if not isinstance(data, dict) or data.get("format") != "nextscale":
        raise ModelError(f"{path}: not a nextscale model; convert other checkpoints with `nextscale convert`")
    return data


def check_sizes(path: Path, make: Callable[[], nn.Module], *, prefix: str = "") -> None:
    """Hold the module that a configuration asks for against the header of its weights, before any memory is taken.

    The module is built on the meta device, where a tensor is its shape alone, and the building stops as soon as it has
    more parameters than the file can hold. So a configuration costs no more than its weights, whatever it says.

    Args:
        path: the safetensors file.
        make: builds the module.
        prefix: of the names in the file that belong to it.

    Raises:
        ModelError: the file is missing or damaged, or the two do not fit; the message names what differs.
    """
    given = {name.removeprefix(prefix): s for name, s in read_shapes(path).items() if name.startswith(prefix)}
    compare_shapes(built_shapes(make, given, str(path)), given, str(path))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes that a safetensors file's header tells, without the scales of matrices in 8 bits; no tensor is read.

    Raises:
        ModelError: the file is missing or damaged.
    """
    with _readable(path), safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        scales = {name + SCALE for name in shapes if file.get_slice(name).get_dtype() == "I8"}
    return {name: shape for name, shape in shapes.items() if name not in scales}


def built_shapes(make: Callable[[], nn.Module], given: Shapes, where: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's tensors, from building it without memory, and not on and on beyond what there is given.

    Raises:
        ModelError: it is larger than that, or its numbers make no module.
    """
    tensors, elements = 0, 0
    most, thread = sum(map(prod, given.values())), threading.get_ident()
    slack = 2  # for parts that are built and then replaced

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal tensors, elements
        if threading.get_ident() != thread:  # the hook is everybody's
            return
        tensors += 1
        elements += parameter.numel()
        if not parameter.numel():
            raise ModelError(f"{where}: its config makes no model (an empty {type(module).__name__}.{name})")
        if tensors > slack * len(given) or elements > slack * most:
            kind = f"{type(module).__name__}.{name}"
            raise ModelError(
                f"{where}: does not fit its config: the config asks for more than the file's {len(given)} tensors "
                f"with {most} numbers (at {kind} {tuple(parameter.shape)})"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            module = make()
    except NextScaleError:
        raise
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AssertionError) as error:
        # Torch and Python refuse senseless sizes in many ways.
        raise ModelError(f"{where}: its config makes no model ({_reason(error)}); copy the model again") from None
    finally:
        hook.remove()
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def compare_shapes(own: Shapes, given: Shapes, where: str) -> None:
    """Refuse, in one line, a checkpoint whose tensors are not a module's own."""
    missing = sorted(set(own) - set(given))
    foreign = sorted(set(given) - set(own))
    if missing or foreign:
        what = f"lacks {missing[0]}" if missing else f"has the foreign tensor {foreign[0]}"
        raise ModelError(f"{where}: does not fit its config: {what} ({len(missing)} missing, {len(foreign)} foreign)")
    for name, shape in given.items():
        if tuple(shape) != tuple(own[name]):
            raise ModelError(f"{where}: {name} has shape {tuple(shape)}, the config asks for {tuple(own[name])}")


def load_weights(path: Path, module: nn.Module, *, prefix: str = "") -> None:
    """Load a safetensors file, or its tensors under a prefix, into a module in float32; all must be used, none missing.

    Raises:
        ModelError: missing, truncated, damaged, or of another model.
    """
    with _readable(path):
        state = load_file(path)
    state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    load_state(module, from_eight_bits(state, str(path)), str(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say in one line why a safetensors file cannot be read."""
    if not path.is_file():
        raise ModelError(f"{path}: missing; a model folder holds {CONFIG} and {WEIGHTS}")
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: damaged or not a safetensors file ({_reason(error)}); copy the model again"
        ) from None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def load_state(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a state dict strictly, with one clear line where it does not fit."""
    expected = module.state_dict()
    compare_shapes(_shapes(expected), _shapes(state), where)
    for name, tensor in state.items():
        plain = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
        if not plain or not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: {name} holds values that are not finite numbers; the file is damaged")
    with torch.no_grad():  # one by one: a second copy of all weights in float32 would double the memory
        for name, tensor in state.items():
            expected[name].copy_(tensor)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in 16 bit, but for what they cannot hold exactly of the quantizer: rounding would change the ids."""

    def halved(name: str, tensor: Tensor) -> Tensor:
        half = tensor.half()
        return tensor if "quantizer." in name and not torch.equal(half.to(tensor.dtype), tensor) else half

    return {name: halved(name, tensor) for name, tensor in state.items()}


def to_eight_bits(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of a state dict in 8 bits, -127 to 127, and what each row is multiplied by (`SCALE`), in 32.

    A row's largest value is kept; the others are off by at most half a 127th of it.
    """
    found = {}
    for name, tensor in state.items():
        if tensor.ndim != 2 or not name.endswith(".weight"):
            continue
        scale = tensor.float().abs().amax(dim=1) / 127
        found[name] = (tensor.float() / scale.clamp_min(1e-30)[:, None]).round().to(torch.int8)
        found[name + SCALE] = scale
    return found


def from_eight_bits(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """A state dict with its matrices in 8 bits (`to_eight_bits`) in 32.

    Raises:
        ModelError: such a matrix lacks the numbers for its rows, or has others.
    """
    out = dict(state)
    for name, tensor in state.items():
        if tensor.dtype != torch.int8:
            continue
        scale = out.pop(name + SCALE, None)
        if scale is None or scale.shape != tensor.shape[:1] or not scale.is_floating_point():
            raise ModelError(f"{where}: {name} is in 8 bits without a scale for each row; the file is damaged")
        out[name] = tensor.float() * scale[:, None]
    return out
