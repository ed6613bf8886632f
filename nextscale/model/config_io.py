"""Configurations, strictly read from and written to JSON. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeVar

from nextscale.errors import ModelError

ConfigT = TypeVar("ConfigT")


ADDED: Mapping[str, Any] = types.MappingProxyType({"added": True})
"""Metadata of a field that older files lack; it gets its default there."""


ALIASES: Mapping[str, str] = types.MappingProxyType(
    {
        "vocabulary": "codebook_size",  # config.json
        "licence": "license",  # card.json
        "optimiser": "optimizer",  # a training's state
        "grey": "gray",  # recipes of degradations
        "generalised_iso": "generalized_iso",
        "generalised_aniso": "generalized_aniso",
    }
)
"""Old name in earlier files -> today's name."""


LARGEST = 1_000_000
"""The largest number that a model's configuration may hold; the paper's largest is 4096."""


def parse_json(text: str) -> Any:
    """The data of a JSON text.

    Raises:
        ValueError: it is none, or nested deeper than anything that is meant to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def check_numbers(data: Any) -> None:
    """Refuse what no configuration of a model holds: negative whole numbers, and any beyond `LARGEST` or not finite.

    Raises:
        ModelError: naming the number.
    """
    waiting = [data]
    while waiting:  # no recursion, which the data could exhaust
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int | float) and not (
            abs(value) <= LARGEST and (value >= 0 or isinstance(value, float))
        ):
            raise ModelError(f"a configuration holds whole numbers from 0 to {LARGEST}, got {reprlib.repr(value)}")


def renamed(data: Mapping[str, Any], known: AbstractSet[str]) -> dict[str, Any]:
    """The data with old keys replaced by today's, where `known` has those."""
    names = {
        old: new for old, new in ALIASES.items() if old in data and old not in known and new in known - data.keys()
    }
    return {names.get(key, key): value for key, value in data.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON data."""
    plain = dataclasses.asdict(config)
    assert isinstance(plain, dict)
    return plain


def from_dict(kind: type[ConfigT], data: Any, *, where: str = "config") -> ConfigT:
    """Read a configuration strictly: unknown or missing keys and wrong types are errors that name them.

    Raises:
        ModelError: naming the key, as `where.key`.
    """
    assert dataclasses.is_dataclass(kind)
    if not isinstance(data, Mapping):
        raise ModelError(f"{where} must be an object, got {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name for f in dataclasses.fields(kind)}
    data = renamed(data, fields)
    unknown = sorted(set(data) - fields)
    if unknown:
        raise ModelError(f"unknown key {where}.{unknown[0]} (known: {', '.join(sorted(fields))})")
    added = {f.name for f in dataclasses.fields(kind) if f.metadata.get("added")}
    missing = sorted(fields - set(data) - added)
    if missing:
        raise ModelError(f"missing key {where}.{missing[0]}")
    values = {name: _read(hints[name], data[name], f"{where}.{name}") for name in sorted(fields & set(data))}
    try:
        return typing.cast(ConfigT, kind(**values))
    except (ArithmeticError, LookupError, ValueError) as error:
        raise ModelError(f"{where}: its values do not fit each other ({error})") from None


def changed(config: ConfigT, difference: Any, *, where: str = "config") -> ConfigT:
    """A configuration with some values replaced; `difference` holds these alone, nested as in config.json.

    Raises:
        ModelError: an unknown key or a value of the wrong type, named as `where.key`, or values that do not fit.
    """

    def merged(old: Any, new: Any) -> Any:
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            return new
        return {**old, **{key: merged(old.get(key), value) for key, value in renamed(new, old.keys()).items()}}

    if not isinstance(difference, Mapping):
        raise ModelError(f"{where} must be an object, got {type(difference).__name__}")
    return from_dict(type(config), merged(to_dict(config), difference), where=where)


def read_difference(config: ConfigT, file: Path | None) -> ConfigT:
    """A configuration with what a JSON file changes in it (`changed`); itself without a file.

    Raises:
        ModelError: the file is missing or no JSON, or does not fit; the message names it.
    """
    if file is None:
        return config
    try:
        return changed(config, parse_json(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ModelError(f"{file}: it cannot be read ({error.strerror}); check --config") from None
    except ValueError as error:
        raise ModelError(f"{file}: not readable as JSON ({error})") from None
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        if len(kinds) > 1 and isinstance(value, Mapping):
            # Of several dataclasses, the one that has all the keys; the first one's error where none has.
            kinds = [a for a in kinds if set(value) <= {f.name for f in dataclasses.fields(a)}] or kinds
        return _read(kinds[0], value, where)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type[Any], kind), value, where=where)
    if origin is typing.Literal:
        if value not in args:
            raise ModelError(f"{where} must be one of {', '.join(map(repr, args))}, got {reprlib.repr(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ModelError(f"{where} must be a list, got {reprlib.repr(value)}")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ModelError(f"{where} must be {kind.__name__}, got {reprlib.repr(value)}")
    return value
