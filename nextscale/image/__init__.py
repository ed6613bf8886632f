"""Any picture in, pictures out: the only package that knows file formats."""

from nextscale.image.picture import (
    MAX_PIXELS,
    OTHER_SUFFIXES,
    READABLE,
    SUFFIXES,
    WRITE_FORMATS,
    Array,
    Picture,
    eight_bits,
    from_float,
    rgb8,
    to_float,
)
from nextscale.image.read import decode_bytes, find_pictures, from_pil, is_picture_path, read
from nextscale.image.resize import Filter, bleed, resize
from nextscale.image.write import check_folder, check_format, encode_bytes, write, write_all, write_bytes

__all__ = [
    "MAX_PIXELS",
    "OTHER_SUFFIXES",
    "READABLE",
    "SUFFIXES",
    "WRITE_FORMATS",
    "Array",
    "Filter",
    "Picture",
    "bleed",
    "check_folder",
    "check_format",
    "decode_bytes",
    "eight_bits",
    "encode_bytes",
    "find_pictures",
    "from_float",
    "from_pil",
    "is_picture_path",
    "read",
    "resize",
    "rgb8",
    "to_float",
    "write",
    "write_all",
    "write_bytes",
]
