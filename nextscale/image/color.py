"""What a file says of its colors in numbers (PNG's cICP, cHRM and gAMA, AVIF's nclx) as an ICC profile.

Every format but BMP holds a profile, so that these colors survive whatever format the result has. HDR has no profile
that programs agree on: its numbers stay numbers (`Picture.cicp`).
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from nextscale.errors import ImageError
from nextscale.image.picture import Array, Picture

Chromaticities = tuple[float, ...]
"""x and y of white, red, green and blue."""
Curve = tuple[float, ...]
"""Gamma; or g a b c d of y = (a x + b) ** g from x = d on, c x below."""

_D65, _C, _THEATER = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_PRIMARIES: Final[dict[int, Chromaticities]] = {
    1: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (*_THEATER, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
SRGB_CHROMATICITIES: Final = _PRIMARIES[1]
SRGB_CURVE: Final[Curve] = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_VIDEO_CURVE: Final[Curve] = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: Final[dict[int, Curve]] = {
    **dict.fromkeys((1, 6, 14, 15), _VIDEO_CURVE),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
    13: SRGB_CURVE,
}
HDR: Final = {16: "PQ", 18: "HLG"}
_UNSPECIFIED: Final = 2
_D50: Final = (0.9642, 1.0, 0.8249)
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def from_cicp(primaries: int, transfer: int, *, gray: bool) -> tuple[bytes | None, tuple[int, int] | None]:
    """Code points of H.273 -> (ICC profile, None for sRGB; the code points where the picture is in HDR).

    Raises:
        ImageError: the code points mean nothing that is known here.
    """
    if transfer in HDR:
        return None, (primaries, transfer)
    primaries = 1 if primaries == _UNSPECIFIED else primaries
    transfer = 13 if transfer == _UNSPECIFIED else transfer
    if primaries not in _PRIMARIES or transfer not in _CURVES:
        raise ImageError(f"its colors ({primaries}, {transfer} by H.273) are not known; convert it to sRGB first")
    return profile_of(_PRIMARIES[primaries], _CURVES[transfer], gray=gray), None


def from_png_numbers(gamma: float | None, chromaticities: Sequence[float] | None, *, gray: bool) -> bytes | None:
    """What PNG's gAMA (as 0.45455) and cHRM mean together; None for sRGB and for numbers that no screen has."""
    curve = SRGB_CURVE
    if gamma is not None and 0.1 <= gamma <= 5 and abs(gamma - 0.45455) > 0.0005:
        curve = (1 / gamma,)
    chromaticities = tuple(chromaticities or SRGB_CHROMATICITIES)
    if len(chromaticities) != 8 or not _is_a_triangle(chromaticities):
        chromaticities = SRGB_CHROMATICITIES
    return profile_of(chromaticities, curve, gray=gray)


def _is_a_triangle(chromaticities: Sequence[float]) -> bool:
    white_y, corners = chromaticities[1], np.array(chromaticities[2:]).reshape(3, 2)
    area = np.linalg.det(np.c_[corners, np.ones(3)])
    return (
        white_y > 0.01 and abs(area) > 0.001 and max(map(abs, chromaticities)) < 2 and bool((corners[:, 1] > 0).all())
    )


@functools.lru_cache(64)
def profile_of(chromaticities: Chromaticities, curve: Curve, *, gray: bool) -> bytes | None:
    """An ICC profile (version 4, matrix and curves) of these colors; None where they are those of sRGB."""
    near = np.allclose(chromaticities, SRGB_CHROMATICITIES, atol=0.002)
    if curve == SRGB_CURVE and (gray or near):
        return None
    name = "gray" if gray else "RGB"
    text = f"{name} by the numbers of the source file"
    tags = {b"desc": _text(text), b"cprt": _text("no copyright"), b"wtpt": _xyz(_D50)}
    if gray:
        tags[b"kTRC"] = _curve(curve)
    else:
        colorants, adaptation = _colorants(chromaticities)
        tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, colorants.T), strict=True))
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(curve))
        tags[b"chad"] = b"sf32\0\0\0\0" + _fixed(adaptation.flatten())
    return _pack(tags, b"GRAY" if gray else b"RGB ")


def _colorants(chromaticities: Chromaticities) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns: X Y Z of red, green and blue as seen under D50; and the matrix of that adaptation."""
    points = np.array([(x / y, 1, (1 - x - y) / y) for x, y in np.array(chromaticities).reshape(4, 2)])
    white, corners = points[0], points[1:].T
    colors = corners * np.linalg.solve(corners, white)
    gain = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    adaptation: NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ gain @ _BRADFORD
    return adaptation @ colors, adaptation


def _fixed(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _xyz(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(curve: Curve) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", 3 if len(curve) > 1 else 0, 0) + _fixed(curve)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(encoded), 28) + encoded


def _pack(tags: dict[bytes, bytes], space: bytes) -> bytes:
    start, table, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, start + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    size = start + len(bodies)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04300000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(_D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def to_srgb(picture: Picture) -> Array:
    """The colors of an 8-bit picture with a profile as sRGB, uint8 H W 3; as they are where the profile is unsound."""
    if picture.icc is None:
        return picture.rgb
    im = Image.fromarray(picture.rgb[..., 0] if picture.is_gray else picture.rgb)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.icc))
        converted = ImageCms.profileToProfile(im, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture.rgb
    assert converted is not None
    return np.array(converted)
