"""The files that a job leaves: pictures to keep, and what the page shows of them at any zoom."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale import image as images
from nextscale.errors import ImageError
from nextscale.image import Picture
from nextscale.upscale.run import to_pil
from nextscale.web.limits import RefusedError

Format = Literal["png", "jpg", "webp"]
FORMATS: Final[tuple[Format, ...]] = ("png", "jpg", "webp")
TILE: Final = 1024
"""Side of a view's tiles."""
EXACT_PIXELS: Final = 4_000_000
"""Up to here a view is lossless."""
PREVIEW_SIDE: Final = 1600
OVERLAY_SIDE: Final = 2048
_PROFILE_BYTES: Final = 64_000
"""A larger profile is left out of the tiles, which would each carry it."""

# The overlay: from amber to magenta, clear below FAINT and at its strongest from STRONG on, in 8-bit levels.
FAINT, STRONG = 8.0, 26.0
_AMBER, _MAGENTA = np.array([255.0, 176.0, 0.0]), np.array([214.0, 0.0, 108.0])


@dataclass(frozen=True)
class View:
    """A picture cut into tiles at several sizes, each half of the one before."""

    width: int
    height: int
    levels: int
    suffix: str
    tile: int = TILE


def write_view(folder: Path, picture: Picture) -> View:
    """Write a picture's tiles to FOLDER/LEVEL_COLUMN_ROW.SUFFIX, level 0 at full size.

    Raises:
        OSError: the disk refuses.
    """
    folder.mkdir()
    image = to_pil(picture)
    suffix = "png" if picture.alpha is not None or image.width * image.height <= EXACT_PIXELS else "jpg"
    icc = picture.icc if picture.icc and len(picture.icc) <= _PROFILE_BYTES else None
    level = 0
    while True:
        for top in range(0, image.height, TILE):
            for left in range(0, image.width, TILE):
                tile = image.crop((left, top, min(left + TILE, image.width), min(top + TILE, image.height)))
                path = folder / f"{level}_{left // TILE}_{top // TILE}.{suffix}"
                if suffix == "png":
                    tile.save(path, "PNG", icc_profile=icc, compress_level=2)
                else:
                    tile.save(path, "JPEG", icc_profile=icc, quality=95, subsampling=0)
        level += 1
        if max(image.size) <= TILE:
            return View(*picture.size, level, suffix)
        image = image.reduce(2)


def preview(picture: Picture) -> bytes:
    """A small JPEG of an unfinished picture."""
    step = max(1, -(-max(picture.size) // PREVIEW_SIDE))
    small = Picture(np.ascontiguousarray(picture.rgb[::step, ::step]), icc=picture.icc)
    out = io.BytesIO()
    to_pil(small).save(out, "JPEG", quality=85, icc_profile=picture.icc)
    return out.getvalue()


def overlay(values: NDArray[np.uint8], factor: float, *, is_error: bool) -> bytes:
    """A PNG to lay over a picture: the more the model may be wrong, the more color.

    Args:
        values: H W, the expected error in 8-bit levels; or, of a model without one, its confidence (255: sure).
        factor: of the picture; the map is averaged to the size of its input, where its grain is gone.
    """
    image = Image.fromarray(values)
    image = image.reduce(max(1, int(factor), -(-max(image.size) // OVERLAY_SIDE)))
    levels = np.arange(256.0)
    share = (levels - FAINT) / (STRONG - FAINT) if is_error else (191 - levels) / 128  # from three quarters sure down
    share = share.clip(0, 1)
    palette = _AMBER + (_MAGENTA - _AMBER) * share[:, None]
    image.putpalette(palette.round().astype(np.uint8).tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", transparency=(share**1.2 * 217).round().astype(np.uint8).tobytes())
    return out.getvalue()


def convert(source: Path, suffix: Format) -> bytes:
    """A stored PNG in another format, with 8 bits.

    Raises:
        RefusedError: the format cannot hold it.
    """
    picture = images.read(source)
    alpha = None if picture.alpha is None else images.eight_bits(picture.alpha)
    try:
        return images.encode_bytes(
            replace(picture, rgb=images.eight_bits(picture.rgb), alpha=alpha), f".{suffix}", quality=92
        )
    except ImageError as error:
        raise RefusedError(422, str(error)) from None


def formats_of(picture: Picture) -> list[Format]:
    """The formats that can hold a picture, once it has 8 bits."""
    found: list[Format] = ["png"]
    for suffix in FORMATS[1:]:
        try:
            images.check_format(
                f".{suffix}",
                bits=8,
                has_alpha=picture.alpha is not None,
                size=picture.size,
                hdr=picture.cicp is not None,
            )
        except ImageError:
            continue
        found.append(suffix)
    return found
