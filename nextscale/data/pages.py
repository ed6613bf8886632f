"""Renders training pictures of what photographs seldom show: text, signs, screens, drawings, ramps, smooth shapes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nextscale.errors import OptionError

Color = tuple[int, int, int]
FONT_SUFFIXES = (".ttf", ".otf")
_VOWELS, _CONSONANTS = "aeiouaeiouy", "bcdfghjklmnpqrstvwxyzthrsnltd"


def find_fonts(folders: Sequence[Path]) -> list[Path]:
    """Every font file in the folders, in a stable order.

    Raises:
        OptionError: there is none.
    """
    fonts = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in FONT_SUFFIXES)
    # Symbol and mathematics fonts have no letters of the Latin alphabet.
    fonts = [p for p in fonts if not any(word in p.name.lower() for word in ("math", "symbol", "emoji", "dingbat"))]
    if not fonts:
        raise OptionError(f"{', '.join(map(str, folders))}: no .ttf or .otf files; name a folder of fonts")
    return fonts


KINDS = ("page", "sign", "screen", "drawing", "ramp", "shapes", "ruled", "print")
USUAL = KINDS[:-3]
"""Those of a mixture; `shapes`, `ruled` and `print` pages are asked for by name."""
WORDLESS = ("ramp", "shapes")
"""Those without letters, which need no fonts."""


LETTERS: tuple[float, float] = (10, 90)
"""Sizes in pixels of the fonts of pages."""


def render(
    seed: int,
    number: int,
    fonts: Sequence[Path],
    side: int = 512,
    kinds: Sequence[str] = USUAL,
    letters: tuple[float, float] = LETTERS,
) -> Image.Image:
    """The picture of a number: side x side, RGB. The same arguments and the same Pillow give the same pixels.

    Args:
        seed: another one, other pictures.
        number: of the picture.
        fonts: files of those that it may use.
        side: in pixels.
        kinds: of KINDS, of which it is one.
        letters: the smallest and largest font of a page's lines, in pixels.

    Raises:
        OptionError: an unknown kind, or sizes of letters that are none.
    """
    if not 4 <= letters[0] <= letters[1] <= 1000:
        given = " ".join(f"{size:g}" for size in letters)
        raise OptionError(f"letters must be two sizes from 4 to 1000 pixels, the smaller one first, got {given}")
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise OptionError(f"kinds must be some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}")
    draw = random.Random(f"{seed}/{number}")
    makers: Sequence[tuple[str, float, Callable[[random.Random, Sequence[Path], int], Image.Image]]] = (
        ("page", 0.3, partial(_page, letters=letters)),
        ("sign", 0.2, _sign),
        ("screen", 0.2, _screen),
        ("drawing", 0.15, _drawing),
        ("ramp", 0.15, _ramp),
        ("shapes", 0.15, _shapes),
        ("ruled", 0.15, partial(_ruled, letters=letters)),
        ("print", 0.15, partial(_page, letters=letters, heads=False)),
    )
    chosen = [(weight, maker) for name, weight, maker in makers if name in kinds]
    maker = draw.choices([maker for _, maker in chosen], [weight for weight, _ in chosen])[0]
    # Twice as large, then reduced: Pillow's shapes have no smooth edges of their own.
    return maker(draw, fonts, 2 * side).reduce(2)


def _word(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.12:
        return str(draw.randrange(10 ** draw.randint(1, 5)))
    letters = "".join(draw.choice(_VOWELS if i % 2 else _CONSONANTS) for i in range(draw.randint(2, 9)))
    if kind < 0.3:
        letters = letters.capitalize()
    elif kind < 0.36:
        letters = letters.upper()
    return letters + draw.choices(["", ",", ".", ":", "-", "!", "?"], [30, 3, 3, 1, 1, 1, 1])[0]


def _font(draw: random.Random, fonts: Sequence[Path], size: int) -> ImageFont.FreeTypeFont:
    path = draw.choice(fonts)
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise OptionError(f"{path}: this font cannot be read ({error}); name folders without it") from None


def _colors(draw: random.Random) -> tuple[Color, Color]:
    """Paper and ink, with contrast between them."""
    if draw.random() < 0.5:
        # Mostly black: how dark a blurred stroke was is open, and a restorer that learns from gray ones draws gray.
        paper, ink = draw.randint(215, 255), int(71 * draw.random() ** 2)
        warm = draw.randint(0, 25)
        pair = (paper, paper - warm // 2, paper - warm), (ink, ink, ink)
    else:
        while True:
            first, second = (tuple(draw.randint(0, 255) for _ in range(3)) for _ in range(2))
            if abs(sum(first) - sum(second)) > 240:
                break
        pair = (first[0], first[1], first[2]), (second[0], second[1], second[2])
    return pair if draw.random() < 0.8 else (pair[1], pair[0])


def _lines(
    draw: random.Random,
    on: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    font: ImageFont.FreeTypeFont,
    ink: Color,
) -> None:
    """Fill a box with lines of words."""
    left, top, right, bottom = box
    height = int(font.size * draw.uniform(1.1, 1.6))
    y = top
    while y + height < bottom:
        text = ""
        while font.getlength(text) < right - left:
            text += _word(draw) + " "
        stop = len(text) if draw.random() < 0.85 else draw.randrange(1, len(text))
        on.text((left, y), text[:stop], font=font, fill=ink)
        y += height if draw.random() < 0.93 else 2 * height


def _page(
    draw: random.Random, fonts: Sequence[Path], side: int, letters: tuple[float, float], *, heads: bool = True
) -> Image.Image:
    """Lines of words in one or two columns; without heads all letters are of one size."""
    paper, ink = _colors(draw)
    image = Image.new("RGB", (side, side), paper)
    on = ImageDraw.Draw(image)
    margin = draw.randint(0, side // 8)
    y = margin
    if heads and draw.random() < 0.5:
        head = _font(draw, fonts, draw.randint(side // 16, side // 7))
        on.text((margin, y), f"{_word(draw)} {_word(draw)}", font=head, fill=ink)
        y += int(head.size * 1.5)
    if draw.random() < 0.4:
        # A thin rule, as dark as the ink or, seldom, much paler: restorers let it waver, and fade.
        paler = draw.random() ** 4
        rule = tuple(round(dark + paler * (light - dark)) for dark, light in zip(ink, paper, strict=True))
        on.line((margin, y, side, y), fill=rule, width=draw.randint(1, 6))
        y += draw.randint(8, 24)
    columns = draw.choice((1, 1, 2))
    font = _font(draw, fonts, int(2 * letters[0] * (letters[1] / letters[0]) ** draw.random()))
    width = (side - margin) // columns
    for column in range(columns):
        left = margin + column * width
        _lines(draw, on, (left, y, left + width - 40, side - margin // 2), font, ink)
    if draw.random() < 0.5:
        image = image.rotate(draw.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=paper)
    return image


def _ruled(draw: random.Random, fonts: Sequence[Path], side: int, letters: tuple[float, float]) -> Image.Image:
    """Black thin rules on bright paper, with lines of words between some: of a page hardly a crop shows one."""
    paper, ink = draw.randint(200, 255), int(60 * draw.random() ** 2)
    image = Image.new("L", (side, side), paper)
    on = ImageDraw.Draw(image)
    font = _font(draw, fonts, int(2 * letters[0] * (letters[1] / letters[0]) ** draw.random()))
    y = draw.randint(0, side // 8)
    while y < side:
        if draw.random() < 0.6:
            thickness = draw.randint(1, 7)
            on.line((draw.choice((0, side // 5)), y, side, y), fill=ink, width=thickness)
            y += thickness + draw.randint(side // 40, side // 6)
        else:
            words = " ".join(_word(draw) for _ in range(12))
            on.text((draw.randint(-side // 4, 0), y), words, font=font, fill=ink)
            y += int(font.size * draw.uniform(1.3, 2))
    if draw.random() < 0.5:
        image = image.rotate(draw.uniform(-3, 3), Image.Resampling.BICUBIC, fillcolor=paper)
    return image.convert("RGB")


def _sign(draw: random.Random, fonts: Sequence[Path], side: int) -> Image.Image:
    image = _ramp(draw, fonts, side)
    on = ImageDraw.Draw(image)
    for _ in range(draw.randint(1, 4)):
        paper, ink = _colors(draw)
        font = _font(draw, fonts, draw.randint(side // 24, side // 5))
        text = "\n".join(" ".join(_word(draw) for _ in range(draw.randint(1, 3))) for _ in range(draw.randint(1, 3)))
        text = text.upper() if draw.random() < 0.5 else text
        left, top = draw.randint(-side // 8, side // 2), draw.randint(0, side * 3 // 4)
        x0, y0, x1, y1 = on.multiline_textbbox((left, top), text, font=font)
        pad = draw.randint(8, 60)
        box = (x0 - pad, y0 - pad, x1 + pad, y1 + pad)
        edge = ink if draw.random() < 0.5 else None
        on.rounded_rectangle(box, draw.randint(0, 40), fill=paper, outline=edge, width=draw.randint(2, 16))
        on.multiline_text((left, top), text, font=font, fill=ink, align=draw.choice(("left", "center")))
    if draw.random() < 0.5:
        image = image.rotate(draw.uniform(-25, 25), Image.Resampling.BICUBIC, expand=False)
        inner = side // 6
        image = image.crop((inner, inner, side - inner, side - inner)).resize((side, side), Image.Resampling.BICUBIC)
    return image


def _screen(draw: random.Random, fonts: Sequence[Path], side: int) -> Image.Image:
    paper, ink = _colors(draw)
    image = Image.new("RGB", (side, side), paper)
    on = ImageDraw.Draw(image)
    for _ in range(draw.randint(2, 7)):
        back, front = _colors(draw)
        left, top = draw.randrange(side), draw.randrange(side)
        right, bottom = left + draw.randint(60, side), top + draw.randint(40, side // 2)
        on.rectangle((left, top, right, bottom), fill=back, outline=front, width=draw.choice((2, 2, 4)))
        font = _font(draw, fonts, draw.randint(22, 56))
        _lines(draw, on, (left + 16, top + 12, right - 16, bottom), font, front)
    for _ in range(draw.randint(0, 6)):
        x, y, size = draw.randrange(side), draw.randrange(side), draw.randint(16, 90)
        shape = draw.choice((on.rectangle, on.ellipse))
        shape((x, y, x + size, y + size), fill=_colors(draw)[0], outline=ink, width=draw.choice((0, 2, 4)))
    return image


def _drawing(draw: random.Random, fonts: Sequence[Path], side: int) -> Image.Image:
    paper, ink = _colors(draw)
    image = Image.new("RGB", (side, side), paper)
    on = ImageDraw.Draw(image)

    def point() -> tuple[int, int]:
        return draw.randint(-side // 10, side * 11 // 10), draw.randint(-side // 10, side * 11 // 10)

    for _ in range(draw.randint(6, 40)):
        width, color = draw.choice((2, 3, 4, 6, 8, 12)), ink if draw.random() < 0.7 else _colors(draw)[1]
        kind = draw.random()
        if kind < 0.35:
            on.line([point() for _ in range(draw.randint(2, 5))], fill=color, width=width, joint="curve")
        elif kind < 0.6:
            x, y = point()
            size = draw.randint(10, side // 2)
            on.arc((x, y, x + size, y + draw.randint(10, size)), draw.randrange(360), draw.randrange(360), color, width)
        elif kind < 0.75:
            on.polygon([point() for _ in range(draw.randint(3, 6))], fill=None, outline=color, width=width)
        elif kind < 0.85:
            on.polygon([point() for _ in range(3)], fill=color)
        else:
            # A hatching or a grid.
            (x, y), gap, length = point(), draw.randint(8, 40), draw.randint(60, side // 2)
            for i in range(draw.randint(4, 16)):
                on.line([(x + i * gap, y), (x + i * gap + draw.randint(0, 3), y + length)], fill=color, width=width)
    if draw.random() < 0.4:
        on.text(point(), f"{_word(draw)} {_word(draw)}", font=_font(draw, fonts, draw.randint(24, 120)), fill=ink)
    return image


def _ramp(draw: random.Random, fonts: Sequence[Path], side: int) -> Image.Image:
    """A smooth background, which a restorer must keep free of grain, blocks and bands."""
    del fonts
    small = draw.choice((2, 2, 3, 4))
    spread = draw.choice((10, 40, 120))
    base = np.array([draw.randint(20, 235) for _ in range(3)], np.float64)
    tint = 0.3 if draw.random() < 0.6 else 1.0
    shared = np.array([draw.uniform(-1, 1) for _ in range(small * small)]).reshape(small, small, 1)
    own = np.array([draw.uniform(-1, 1) for _ in range(3 * small * small)]).reshape(small, small, 3)
    values = base + spread * ((1 - tint) * shared + tint * own)
    planes = [
        Image.fromarray(values[..., c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    return Image.fromarray(np.stack([np.asarray(p) for p in planes], -1).round().clip(0, 255).astype(np.uint8))


def _shapes(draw: random.Random, fonts: Sequence[Path], side: int) -> Image.Image:
    """Smooth things with clean outlines, one over the other: rims, ribbons, vessels, soft shadows."""
    image = _ramp(draw, fonts, side)

    def length(smallest: float, largest: float) -> float:
        """In pixels, from shares of the side: each doubling is as frequent."""
        return side * smallest * float((largest / smallest) ** draw.random())

    def points(count: int) -> list[tuple[float, float]]:
        return [(side * draw.uniform(-0.1, 1.1), side * draw.uniform(-0.1, 1.1)) for _ in range(count)]

    for _ in range(draw.randint(1, 9)):
        mask = Image.new("L", (side, side))
        on = ImageDraw.Draw(mask)
        ((x, y),), a, b = points(1), length(0.06, 1), length(0.06, 1)
        kind = draw.random()
        if kind < 0.2:
            on.ellipse((x - a, y - b, x + a, y + b), fill=255)
        elif kind < 0.42:
            on.ellipse((x - a, y - b, x + a, y + b), outline=255, width=round(length(0.01, 0.18)))
        elif kind < 0.55:
            angles = sorted(draw.uniform(0, math.tau) for _ in range(draw.randint(3, 6)))
            on.polygon([(x + a * math.cos(angle), y + b * math.sin(angle)) for angle in angles], fill=255)
        else:
            # A brush along a parabola: Pillow's wide lines have slits at their joints.
            start, middle, end = map(np.array, points(3))
            along, r = np.linspace(0, 1, 300)[:, None], length(0.004, 0.08)
            curve = (1 - along) ** 2 * start + 2 * along * (1 - along) * middle + along**2 * end
            for x, y in curve.tolist():
                on.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if draw.random() < 0.25:
            mask = mask.filter(ImageFilter.GaussianBlur(length(0.01, 0.06)))
        # Half of them differ little from what lies below, as a vessel or a fold does.
        fill = Image.blend(image, _ramp(draw, fonts, side), draw.choice((1.0, draw.uniform(0.05, 0.5))))
        image.paste(fill, mask=mask)
    return image
