"""Restore and enlarge any photograph with one visual autoregressive model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.options import UpscaleOptions
    from nextscale.tokenizer.model import Tokenizer
    from nextscale.upscale import NextScale

__version__ = "0.1.0"
__all__ = ["NextScale", "Tokenizer", "UpscaleOptions", "__version__"]

_HOMES = {
    "NextScale": "nextscale.upscale",
    "Tokenizer": "nextscale.tokenizer.model",
    "UpscaleOptions": "nextscale.options",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch takes seconds to import, and `nextscale --help` must not wait for it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nextscale' has no attribute {name!r}")
