"""What keeps decoders in bounds: budgets, silence, and every failure in one line "reason; remedy"."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Final

from PIL import _imaging

from nextscale.errors import ImageError

NO_MEMORY: Final = "there is not enough memory for it; close other programs or use a smaller picture"
TRUNCATED: Final = "the file is truncated; copy or download it again"
DAMAGED: Final = "the file is damaged; copy or download it again"
RARE_LAYOUT: Final = "16-bit samples are laid out in a rare way; save it again as a plain 16-bit PNG"
MAX_RATIO: Final = {1: 1, 5: 2000, 8: 1100, 32946: 1100}  # none, LZW, Deflate: no stream expands further
MAX_PROFILE: Final = 1 << 24
"""Bytes of an ICC profile or an XMP packet; what is larger is no description of a picture."""


def _silence_libtiff() -> None:
    """Pillow mutes libtiff's warnings but not its errors, which it raises as well. Where the library has no such name
    to find (it is a part of Pillow's own on Windows), they still reach stderr."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


_silence_libtiff()
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it finds odd is no news to the user

_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Mute Python warnings while any thread decodes (a bare `catch_warnings` per thread would leave them muted)."""
    global _quiet_depth
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_filters.close()


def one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:160] or type(error).__name__


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise ImageError(f"{width} x {height} pixels are over the limit of {limit}; crop or shrink it first")
