"""Figures: pictures side by side with zoomed crops, and the paper's figure 2. Torch-free.

Pixels are 8-bit RGB, H W 3. A crop is given in pixels of the largest picture and shown at the same place of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nextscale import image as images
from nextscale.errors import ImageError, OptionError
from nextscale.evaluate.methods import Pixels
from nextscale.image.luma import BT601

_FONT = 15
_GAP = 6
_MARK = (230, 40, 40)


@dataclass(frozen=True)
class Crop:
    """A square of the largest picture, in its pixels."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Strip:
    """One picture by several methods, each panel of any size: the input first, the truth among them."""

    name: str
    panels: list[Pixels]
    """In the order of the figure's columns."""
    crop: Crop | None = None
    """What to zoom in on; None leaves the second line out."""


def figure(strips: Sequence[Strip], columns: Sequence[str], side: int = 256) -> Image.Image:
    """A sheet: per picture a line of whole panels with the crop outlined and a line of the crops, labeled on top.

    Args:
        side: pixels of a panel's longer side on the sheet.

    Raises:
        ImageError: a crop does not lie in its picture.
    """
    lines: list[list[Image.Image]] = []
    names: list[str] = []
    for strip in strips:
        largest = max(strip.panels, key=lambda panel: panel.shape[0])
        lines.append([_whole(panel, largest, strip.crop, side) for panel in strip.panels])
        names.append(strip.name)
        if strip.crop is not None:
            lines.append([_zoomed(panel, largest, strip.crop, side) for panel in strip.panels])
            names.append("crop")
    return grid(lines, columns, names, side)


def grid(
    lines: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str], side: int
) -> Image.Image:
    """Pictures of at most `side` pixels in lines and columns on white, with a label over each column and a line's name.

    Raises:
        OptionError: a line has not as many pictures as there are columns.
    """
    if any(len(line) != len(columns) for line in lines):
        raise OptionError(f"every line of this figure needs {len(columns)} pictures")
    font = ImageFont.load_default(size=_FONT)
    head = _FONT + 2 * _GAP
    heights = [max(picture.height for picture in line) + head for line in lines]
    width = len(columns) * (side + _GAP) + _GAP
    sheet = Image.new("RGB", (width, head + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        draw.text((_GAP + column * (side + _GAP), _GAP), label, fill="black", font=font)
    top = head
    for line, name, height in zip(lines, names, heights, strict=True):
        draw.text((_GAP, top), name, fill="dimgray", font=font)
        for column, picture in enumerate(line):
            sheet.paste(picture, (_GAP + column * (side + _GAP), top + head - _GAP))
        top += height
    return sheet


def fitted(pixels: Pixels, side: int) -> Image.Image:
    """A picture resized to the longer side `side`: pixels are repeated to enlarge, averaged to reduce."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, kind)


def gray(values: NDArray[np.uint8]) -> Pixels:
    """A map H W as a gray picture H W 3."""
    return np.repeat(values[..., None], 3, axis=2)


def most_lost(bicubic: Pixels, truth: Pixels, side: int, step: int = 4) -> Crop:
    """The square in which interpolation loses most detail.

    Args:
        bicubic, truth: H W 3 alike.
        step: the corner lies on multiples of it, so that smaller pictures are cut at whole pixels.

    Raises:
        ImageError: the pictures are smaller than the square.
    """
    height, width = truth.shape[:2]
    if side < 1 or side > min(height, width):
        raise ImageError(f"a crop of {side} pixels does not fit into {width} x {height}; choose another")
    difference = np.abs(_fine(truth) - _fine(bicubic))
    sums = np.pad(difference.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    squares = squares[::step, ::step]
    row, column = np.unravel_index(int(squares.argmax()), squares.shape)
    return Crop(int(column) * step, int(row) * step, side)


def _fine(pixels: Pixels) -> NDArray[np.float64]:
    """The fine detail of the luma: what a reduction to a quarter loses."""
    luma = np.rint(pixels.astype(np.float64) @ np.array(BT601)).astype(np.uint8)
    height, width = luma.shape
    small = images.resize(luma, (max(1, width // 4), max(1, height // 4)), filter="box")
    coarse = images.resize(small, (width, height))
    fine: NDArray[np.float64] = luma.astype(np.float64) - coarse.astype(np.float64)
    return fine


def _place(panel: Pixels, largest: Pixels, crop: Crop) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a crop in a panel."""
    height, width = largest.shape[:2]
    if min(crop.left, crop.top) < 0 or crop.side < 1 or crop.left + crop.side > width or crop.top + crop.side > height:
        raise ImageError(f"a crop of {crop.side} pixels at {crop.left}, {crop.top} does not lie in {width} x {height}")
    scale = panel.shape[1] / width
    left, top = round(crop.left * scale), round(crop.top * scale)
    side = max(1, round(crop.side * scale))
    return left, top, left + side, top + side


def _whole(panel: Pixels, largest: Pixels, crop: Crop | None, side: int) -> Image.Image:
    picture = fitted(panel, side)
    if crop is not None:
        scale = picture.width / panel.shape[1]
        place = [round(value * scale) for value in _place(panel, largest, crop)]
        ImageDraw.Draw(picture).rectangle((place[0], place[1], place[2] - 1, place[3] - 1), outline=_MARK, width=2)
    return picture


def _zoomed(panel: Pixels, largest: Pixels, crop: Crop, side: int) -> Image.Image:
    left, top, right, bottom = _place(panel, largest, crop)
    return fitted(panel[top:bottom, left:right], side)
