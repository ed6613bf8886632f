"""A model is a folder: config.json and model.safetensors. Never a pickle.

`config.json` holds {"format": "nextscale", "kind": "model" | "tokenizer", "config": {...}}, read strictly.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextscale.errors import ModelError
from nextscale.files import write_atomic
from nextscale.model.config_io import from_dict, to_dict

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FACTS = "card.json"
"""The facts beside the card in a model folder, from which the card is written."""
CARD = "README.md"
"""The model card, under the name that hubs show."""
SHIPPED = Path(__file__).parents[1] / "weights"
"""Models that come with the package, one folder each."""

ConfigT = TypeVar("ConfigT")


def find_folder(name: str | Path, **hub: Any) -> Path:
    """The folder of a model: a path, the name of a shipped model, or a hub id `owner/name` (downloaded once).

    Args:
        hub: of a hub id, what `huggingface_hub.snapshot_download` takes: revision, token, cache_dir ...

    Raises:
        ModelError: there is no such model, or the download failed.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(
            f"{name}: a model is a folder with {CONFIG} and {WEIGHTS}; convert other files with `nextscale convert`"
        )
    text = str(name)
    if (SHIPPED / text / CONFIG).is_file():
        return SHIPPED / text
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _download(text, **hub)
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}"))) or "none"
    raise ModelError(f"{name}: no such model; give a folder, a hub id (owner/name) or a shipped name ({shipped})")


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
        return from_dict(config_type, data.get("config"))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def read_kind(folder: Path) -> str:
    """What a folder holds: model, tokenizer or transformer."""
    return str(_read_json(folder / CONFIG).get("kind"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; a model folder holds {CONFIG} and {WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error}); copy the model again") from None
    if not isinstance(data, dict) or data.get("format") != "nextscale":
        raise ModelError(f"{path}: not a nextscale model; convert other checkpoints with `nextscale convert`")
    return data


def load_weights(path: Path, module: nn.Module, *, prefix: str = "") -> None:
    """Load a safetensors file, or its tensors under a prefix, into a module in float32; all must be used, none missing.

    Raises:
        ModelError: missing, truncated, damaged, or of another model.
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing; a model folder holds {CONFIG} and {WEIGHTS}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: damaged or not a safetensors file ({reason}); copy the model again") from None
    state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    load_state(module, state, str(path))


def load_state(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a state dict strictly, with one clear line where it does not fit."""
    expected = module.state_dict()
    missing = sorted(set(expected) - set(state))
    foreign = sorted(set(state) - set(expected))
    if missing or foreign:
        what = f"lacks {missing[0]}" if missing else f"has the foreign tensor {foreign[0]}"
        raise ModelError(f"{where}: does not fit its config: {what} ({len(missing)} missing, {len(foreign)} foreign)")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, the config asks for {tuple(expected[name].shape)}"
            )
        if not tensor.dtype.is_floating_point or not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: {name} holds values that are not finite numbers; the file is damaged")
    with torch.no_grad():  # one by one: a second copy of all weights in float32 would double the memory
        for name, tensor in state.items():
            expected[name].copy_(tensor)


def half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in 16 bit, except for the quantizer: rounding its rows would change the ids."""
    return {name: t if "quantizer." in name else t.half() for name, t in state.items()}
