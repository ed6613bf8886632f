"""Pictures by Pillow: every format of 8 bits."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from nextscale.errors import ImageError
from nextscale.image.avif import check_avif, without_bad_exif
from nextscale.image.bmp import check_runs
from nextscale.image.gif import lean_gif
from nextscale.image.guard import TRUNCATED, check_size
from nextscale.image.jpeg import lean_jpeg, padded_scans
from nextscale.image.picture import Array, split_channels

_PLUGINS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # also a phone's JPEG with gain maps behind it (MPO): the first picture
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}


def open_by_pillow(form: str, data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Parse the header by the format's own class: `Image.open` would check the size against a global.

    Every format first loses what would take more time or memory than its bytes and pixels.
    """
    if form in ("WebP", "AVIF") and not features.check(form.lower()):
        raise ImageError(f"this Pillow was built without {form}; pip install --upgrade pillow")
    im = _PLUGINS[form](io.BytesIO(_LEAN[form](data))) if form in _LEAN else _PLUGINS[form](io.BytesIO(data))
    check_size(im.size, max_pixels)
    if form == "BMP":
        check_runs(data, im.size)
    if form != "TIFF" and getattr(im, "is_animated", False):
        raise ImageError(f"this {form} is animated; save one frame of it as a picture")
    return im


def _lean_avif(data: bytes) -> bytes:
    """The file with no EXIF that takes long to read or that libavif fails on."""
    check_avif(data)
    data = without_bad_exif(data)
    try:
        _PLUGINS["AVIF"](io.BytesIO(data))
    except Exception:
        return data.replace(b"Exif", b"none")
    return data


def check_jpeg_end(im: Image.Image, data: bytes) -> None:
    """Refuse a JPEG of which a scan ends early: libjpeg makes up the rest, flat, without a word.

    Then bytes behind the codes change the picture. Where there is one scan, that can only be if the last block is flat.

    Args:
        im: the decoded picture.
    """
    padded, scans = padded_scans(lean_jpeg(data), _PADDING)
    if scans == 0 or (scans == 1 and not _ends_flat(im)):
        return
    again = _PLUGINS["JPEG"](io.BytesIO(padded))
    again.load()
    if not np.array_equal(np.asarray(again), np.asarray(im)):
        raise ImageError(TRUNCATED)


def _ends_flat(im: Image.Image) -> bool:
    width, height = im.size
    corner = np.asarray(im.crop((max(0, width - 8), max(0, height - 8), width, height)))
    return bool(np.ptp(corner.reshape(-1, len(im.getbands())), axis=0).max() <= _FLAT)


_FLAT: Final = 4
_PADDING: Final = bytes(range(1, 255)) * 16


_LEAN: Final[dict[str, Callable[[bytes], bytes]]] = {"JPEG": lean_jpeg, "GIF": lean_gif, "AVIF": _lean_avif}


def samples_of(im: Image.Image, icc: bytes | None, depth: int = 8) -> tuple[Array, Array | None, bytes | None]:
    """Pillow image -> (rgb H W C, alpha H W | None, profile that fits). `depth` is a PNG's own bit depth."""
    key = im.info.get("transparency") if im.mode in ("1", "L", "RGB") else None
    if im.mode in ("P", "PA"):
        im = im.convert("RGBA" if im.has_transparency_data else "RGB")
    elif im.mode == "1":
        im = im.convert("L")
    elif im.mode in ("CMYK", "LAB"):
        im, icc = _to_srgb(im, icc), None
    elif im.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B"):
        im = im.convert({"La": "LA", "RGBa": "RGBA"}.get(im.mode, "RGB"))
    samples = np.array(im, np.uint16 if im.mode.startswith("I;16") else np.uint8)
    samples = samples.reshape(*samples.shape[:2], -1)
    if key is not None and im.mode == "L" and depth < 8:
        key = min(key * 255 // (2**depth - 1), 255)  # Pillow spreads the samples over eight bits, but not the key
    return split_channels(samples, icc, key)


def _to_srgb(im: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK through its own profile where that is sound, else plainly; Lab by definition. The result is sRGB."""
    srgb = ImageCms.createProfile("sRGB")
    if im.mode == "LAB":
        converted = ImageCms.profileToProfile(im, ImageCms.createProfile("LAB"), srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if icc and icc[16:20] == b"CMYK":
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(
                im,
                profile,
                srgb,
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            if converted is not None:
                return converted
    return im.convert("RGB")
