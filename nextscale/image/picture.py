"""A picture in memory, and the formats it comes in and goes out by.

Shapes: H W C with C = 1 (gray) or 3 (RGB); sizes are (width, height).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
WRITE_FORMATS: Final = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
}
SUFFIXES: Final = (*WRITE_FORMATS, ".gif", ".jfif", ".jpe")
READABLE: Final = "JPEG, PNG, WebP, TIFF, BMP, AVIF and GIF"
"""The formats of these, for messages."""
OTHER_SUFFIXES: Final = (
    *(".heic", ".heif", ".jxl", ".jp2", ".psd", ".xcf", ".svg", ".exr", ".dng"),
    *(".arw", ".cr2", ".cr3", ".nef", ".orf", ".pef", ".raf", ".rw2"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".ico", ".pcx", ".dds", ".hdr", ".j2k", ".avifs", ".apng"),
)
"""Of pictures that are not read."""
MAX_PIXELS: Final = 512_000_000


@dataclass(frozen=True)
class Description:
    """What describes a picture beside its pixels; the fields are those of `Picture`."""

    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None
    cicp: tuple[int, int] | None = None
    texts: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture in memory, upright, colors not premultiplied by alpha.

    rgb: H W 3, or H W 1 for gray; uint8 or uint16.
    alpha: H W of the same dtype (0 = transparent), or None.
    icc: a profile that fits the pixels (gray or RGB), or None for sRGB (or what `cicp` says).
    exif: "Exif\\0\\0" + TIFF block with orientation 1 and without thumbnail, or None.
    lossless: whether the source file kept its pixels exactly.
    format: name of the source format ("PNG", "JPEG", "WebP", "TIFF", "BMP", "AVIF", "GIF").
    dpi: pixels per inch (across, down) at which it is to be printed, or None.
    xmp: an XMP packet that describes the upright picture, or None.
    cicp: of a picture in HDR, its color primaries and transfer function by the numbers of ITU-T H.273; else None.
    texts: text chunks of a PNG as they are stored, (kind, content).
    """

    rgb: Array
    alpha: Array | None = None
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    lossless: bool = True
    format: str = "PNG"
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = field(default=None, repr=False)
    cicp: tuple[int, int] | None = None
    texts: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] not in (1, 3) or not self.rgb.size:
            raise ValueError(f"rgb must be H W 3 or H W 1, got {self.rgb.shape}")
        if self.rgb.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"rgb must be uint8 or uint16, got {self.rgb.dtype}")
        if self.alpha is not None and (self.alpha.shape, self.alpha.dtype) != (self.rgb.shape[:2], self.rgb.dtype):
            raise ValueError(f"alpha {self.alpha.shape} {self.alpha.dtype} does not fit rgb {self.rgb.shape}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def bits(self) -> int:
        """Bits per channel: 8 or 16."""
        return self.rgb.dtype.itemsize * 8

    @property
    def is_gray(self) -> bool:
        """Whether there is one color channel."""
        return bool(self.rgb.shape[2] == 1)


def split_channels(samples: Array, icc: bytes | None, key: Any = None) -> tuple[Array, Array | None, bytes | None]:
    """H W 1..4 -> rgb, alpha, profile; `key` is the color that a PNG without alpha declares transparent."""
    channels = samples.shape[2]
    colors = 3 if channels >= 3 else 1
    rgb = np.ascontiguousarray(samples[..., :colors])
    alpha = np.ascontiguousarray(samples[..., -1]) if channels in (2, 4) else None
    if key is not None:
        full = np.iinfo(rgb.dtype).max
        alpha = np.where((rgb == np.asarray(key)).all(axis=2), 0, full).astype(rgb.dtype)
    return rgb, alpha, icc if icc_fits(icc, colors) else None


def stacked(picture: Picture) -> Array:
    """H W 1..4: colors, then alpha."""
    if picture.alpha is None:
        return picture.rgb
    return np.concatenate([picture.rgb, picture.alpha[..., None]], axis=2)


def icc_fits(icc: bytes | None, colors: int) -> bool:
    return icc is not None and icc[36:40] == b"acsp" and icc[16:20] == {1: b"GRAY", 3: b"RGB "}[colors]


def upright(
    rgb: Array, alpha: Array | None, orientation: int, about: Description, *, lossless: bool, form: str
) -> Picture:
    """A picture of stored pixels and the EXIF orientation (1 to 8) that they are stored in."""
    turn = TURNS.get(orientation)
    dpi = about.dpi
    if turn is not None:
        rgb = np.ascontiguousarray(turn(rgb))
        alpha = None if alpha is None else np.ascontiguousarray(turn(alpha))
        dpi = dpi[::-1] if dpi is not None and orientation >= 5 else dpi
    return Picture(rgb, alpha, lossless=lossless, format=form, **(vars(about) | {"dpi": dpi}))


TURNS: Final[dict[int, Callable[[Array], Array]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def to_float(array: Array) -> NDArray[np.float32]:
    """uint8 or uint16 of any shape (H W C) -> float32 of that shape in [-1, 1]."""
    full = np.iinfo(array.dtype).max
    out = array.astype(np.float32)
    out *= np.float32(2 / full)
    out -= 1
    return out


def from_float(array: Array, dtype: DTypeLike) -> Array:
    """Finite floats, [-1, 1] and what overshoots it -> uint8 or uint16 of that shape; clamped, rounded to nearest.

    Exact halves go to the even neighbor (`np.rint`). `from_float(to_float(x), x.dtype)` is `x`.
    """
    full = np.iinfo(np.dtype(dtype)).max
    out: NDArray[np.float32] = array.astype(np.float32)
    out += 1
    out *= np.float32(full / 2)
    np.rint(out, out=out)
    np.clip(out, 0, full, out=out)
    return out.astype(dtype)


def rgb8(picture: Picture) -> NDArray[np.uint8]:
    """A picture as 8-bit RGB, H W 3: gray repeated, 16 bits rounded to 8, what is transparent laid on white."""
    rgb = eight_bits(picture.rgb)
    if picture.alpha is not None:
        opacity = eight_bits(picture.alpha).astype(np.uint16)[..., None]
        rgb = ((rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(rgb) if rgb.shape[2] == 3 else np.repeat(rgb, 3, axis=2)


def eight_bits(array: Array) -> NDArray[np.uint8]:
    """uint8 or uint16 of any shape -> uint8, to the nearest."""
    return array if array.dtype == np.uint8 else ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
