"""GIF: its blocks are walked here, before Pillow decodes it."""

from __future__ import annotations

from typing import Final

from nextscale.errors import ImageError
from nextscale.image.guard import TRUNCATED

_EXTENSION, _IMAGE, _END, _CONTROL = 0x21, 0x2C, 0x3B, 0xF9
_MAX_RATIO: Final = 2800
"""Pixels a byte: a code of 12 bits stands for at most 4,095 pixels."""


def lean_gif(data: bytes) -> bytes:
    """A still GIF without comments, which Pillow joins in time by their length's square.

    Raises:
        ImageError: it is animated or truncated.
    """
    at = 13 + _table(data, 10)
    kept, images = [data[:at]], 0
    while at < len(data) and data[at] != _END:
        if data[at] == _EXTENSION:
            end = _skip_blocks(data, at + 2)
            keep = data[at + 1 : at + 2] == bytes([_CONTROL])
        elif data[at] == _IMAGE:
            images += 1
            end = _skip_blocks(data, at + 11 + _table(data, at + 9))
            keep = True
        else:  # rubbish between blocks, which decoders skip
            end, keep = at + 1, False
        if images > 1:
            raise ImageError("this GIF is animated; save one frame of it as a picture")
        if keep:
            kept.append(data[at:end])
        at = end
    _check_length(data, at)
    return b"".join([*kept, bytes([_END])])


def _check_length(data: bytes, length: int) -> None:
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if width * height > length * _MAX_RATIO:
        raise ImageError(TRUNCATED)


def _table(data: bytes, at: int) -> int:
    """Bytes of the color table that the flags at an offset announce."""
    if at >= len(data):
        raise ImageError(TRUNCATED)
    return 3 << ((data[at] & 7) + 1) if data[at] & 0x80 else 0


def _skip_blocks(data: bytes, at: int) -> int:
    """The offset behind a chain of blocks, each with its length in front, to the empty one."""
    while at < len(data):
        size = data[at]
        at += 1 + size
        if not size:
            return at
    raise ImageError(TRUNCATED)
