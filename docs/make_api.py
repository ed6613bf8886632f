"""Writes docs/api.md from the docstrings.

python docs/make_api.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from pathlib import Path
from typing import Any

import nextscale
from nextscale import errors, image
from nextscale.upscale import card
from nextscale.upscale import nextscale as upscale

HERE = Path(__file__).parent
NAMES: list[tuple[str, Any, list[str]]] = [
    (
        "nextscale.NextScale",
        nextscale.NextScale,
        [
            "from_pretrained",
            "upscale",
            "plan",
            "save_pretrained",
            "push_to_hub",
            "create",
            "assemble",
            "to",
            "forward",
            "describe",
            "restore_tiles",
        ],
    ),
    ("nextscale.UpscaleOptions", nextscale.UpscaleOptions, []),
    ("nextscale.upscale.nextscale.UpscaleResult", upscale.UpscaleResult, []),
    ("nextscale.upscale.describe.ModelDescription", upscale.ModelDescription, ["memory"]),
    ("nextscale.upscale.nextscale.Reveal", upscale.Reveal, []),
    ("nextscale.upscale.nextscale.Progress", upscale.Progress, []),
    ("nextscale.upscale.nextscale.WorkPlan", upscale.WorkPlan, ["check", "words"]),
    ("nextscale.image.Picture", image.Picture, []),
    ("nextscale.image.read", image.read, []),
    ("nextscale.image.write", image.write, []),
    (
        "nextscale.Tokenizer",
        nextscale.Tokenizer,
        ["from_pretrained", "save_pretrained", "forward", "encode", "decode", "latents"],
    ),
    ("nextscale.upscale.card.CardFacts", card.CardFacts, []),
    ("nextscale.errors.NextScaleError", errors.NextScaleError, []),
    ("nextscale.errors.ImageError", errors.ImageError, []),
    ("nextscale.errors.ModelError", errors.ModelError, []),
    ("nextscale.errors.OptionError", errors.OptionError, []),
]


def signature(call: Any) -> str:
    """A call's arguments and result, with types as they are written in the code."""
    found = inspect.signature(call)
    parts = [p.replace(annotation=_Written(p.annotation)) for name, p in found.parameters.items() if name != "self"]
    return str(found.replace(parameters=parts, return_annotation=_Written(found.return_annotation)))


class _Written:
    """A type that prints as the code writes it: annotations are texts, which would print with quotes."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def __repr__(self) -> str:
        return self.annotation if isinstance(self.annotation, str) else inspect.formatannotation(self.annotation)


def text(thing: Any) -> list[str]:
    """A docstring as a block that keeps its lines."""
    doc = inspect.getdoc(thing) or ""
    first, _, rest = doc.partition("\n")
    return [first, *(["", "```text", rest.strip("\n"), "```"] if rest.strip() else []), ""]


def fields(kind: type) -> list[str]:
    """A dataclass's fields, their defaults and the strings that follow them."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    meanings = {}
    for line, after in itertools.pairwise(made.body if isinstance(made, ast.ClassDef) else []):
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            meanings[ast.unparse(line.target)] = " ".join(str(after.value.value).split()).replace("|", "\\|")
    rows = ["| field | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(kind):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        rows.append(f"| `{field.name}` | {default} | {meanings.get(field.name, '')} |")
    return [*rows, ""]


def page() -> str:
    """The whole reference."""
    out = ["# API", "", "From the docstrings, by `python docs/make_api.py`.", ""]
    for name, thing, methods in NAMES:
        out += [f"## `{name}`", "", *text(thing)]
        if dataclasses.is_dataclass(thing):
            out += fields(thing)  # type: ignore[arg-type]
        elif inspect.isfunction(thing):
            out += [f"`{thing.__name__}{signature(thing)}`", ""]
        for method in methods:
            call = getattr(thing, method)
            out += [f"### `{method}`", "", f"`{method}{signature(call)}`", "", *text(call)]
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    (HERE / "api.md").write_text(page(), encoding="utf-8")
