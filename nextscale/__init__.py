"""Restore and enlarge any photograph with one visual autoregressive model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.errors import ImageError, ModelError, NextScaleError, OptionError
    from nextscale.image import Picture
    from nextscale.model.tokenizer import Tokenizer
    from nextscale.upscale.nextscale import NextScale
    from nextscale.upscale.options import UpscaleOptions
    from nextscale.upscale.run import Progress, UpscaleResult

__version__ = "0.2.0"
__all__ = [
    "ImageError",
    "ModelError",
    "NextScale",
    "NextScaleError",
    "OptionError",
    "Picture",
    "Progress",
    "Tokenizer",
    "UpscaleOptions",
    "UpscaleResult",
    "__version__",
]

_HOMES = {
    "ImageError": "nextscale.errors",
    "ModelError": "nextscale.errors",
    "NextScale": "nextscale.upscale.nextscale",
    "NextScaleError": "nextscale.errors",
    "OptionError": "nextscale.errors",
    "Picture": "nextscale.image",
    "Progress": "nextscale.upscale.run",
    "Tokenizer": "nextscale.model.tokenizer",
    "UpscaleOptions": "nextscale.upscale.options",
    "UpscaleResult": "nextscale.upscale.run",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch takes seconds to import, and `nextscale --help` must not wait for it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nextscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
