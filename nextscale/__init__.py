"""Restore and enlarge any photograph with one visual autoregressive model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.model.tokenizer import Tokenizer
    from nextscale.upscale.nextscale import NextScale
    from nextscale.upscale.options import UpscaleOptions

__version__ = "0.1.0"
__all__ = ["NextScale", "Tokenizer", "UpscaleOptions", "__version__"]

_HOMES = {
    "NextScale": "nextscale.upscale.nextscale",
    "Tokenizer": "nextscale.model.tokenizer",
    "UpscaleOptions": "nextscale.upscale.options",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch takes seconds to import, and `nextscale --help` must not wait for it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nextscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
