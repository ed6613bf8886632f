"""Where the public test sets keep their pairs of small and large pictures; torch-free, and no pixel is read.

A set is a folder of one of these forms, f the factor between LR and HR. Names of folders count without case:

| form | sets |
| --- | --- |
| `LR`, `HR` | ours |
| `test_LR`, `test_HR`, also in `Test_xf` (`a_x1.png`, `a_xf.png`) | DRealSR, StableSR's test sets |
| `lq`, `gt` | several |
| `DIV2K_valid_LR_bicubic/Xf` or `_unknown/Xf`, `DIV2K_valid_HR` (`0801xf.png`, `0801.png`) | DIV2K |
| `DIV2K_valid_LR_mild`, `_difficult`, `_wild`, `_x8` (`0801x4m.png`, `x4d`, `x4w`, `x4w1`) | DIV2K of 2018 |
| `LR_bicubic/Xf`, `HR` (`babyx4.png`, `baby.png`) | Set5, Set14, B100, Urban100 of EDSR |
| `LRbicxf`, and `GTmod12`, `GTmodf` or `original` | Set5, Set14 of BasicSR |
| `LR/Xf` and `HR/Xf` or `HR`; `Xf/LR`, `Xf/GT`; `f/LR`, `f/HR` | others |
| one folder of `a_LRf.png`, `a_HR.png`, also in `Test/f`, `Canon/Test/f`, `Nikon/Test/f` | RealSR, version 3 |
| one folder of `a_SRF_f_LR.png`, `a_SRF_f_HR.png`, also in `image_SRF_f` | Set5, Set14, B100, Urban100 of SelfExSR |

Where a set holds several kinds of LR (DIV2K), the folder to name is that of the LR itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from nextscale import image as images
from nextscale.errors import ImageError

_FOLDERS = [
    ("LR", "HR"),
    ("test_LR", "test_HR"),
    ("lq", "gt"),
    ("DIV2K_valid_LR_bicubic/X{f}", "DIV2K_valid_HR"),
    ("DIV2K_valid_LR_unknown/X{f}", "DIV2K_valid_HR"),
    ("DIV2K_valid_LR_mild", "DIV2K_valid_HR"),
    ("DIV2K_valid_LR_difficult", "DIV2K_valid_HR"),
    ("DIV2K_valid_LR_wild", "DIV2K_valid_HR"),
    ("DIV2K_valid_LR_x8", "DIV2K_valid_HR"),
    ("LR_bicubic/X{f}", "HR"),
    ("LRbicx{f}", "GTmod12"),
    ("LRbicx{f}", "GTmod{f}"),
    ("LRbicx{f}", "original"),
    ("LR/X{f}", "HR/X{f}"),
    ("LR/X{f}", "HR"),
    ("X{f}/LR", "X{f}/GT"),
    ("{f}/LR", "{f}/HR"),
]
_INSIDE = ["", "Test_x{f}", "image_SRF_{f}", "Test/{f}"]
_SEVERAL = ["Canon/Test/{f}", "Nikon/Test/{f}"]
_SHOWN = 20
"""Names that an error lists before it counts the rest."""

Named = tuple[str, Path]


@dataclass(frozen=True)
class Pair:
    """A small picture and the large one it should become."""

    name: str
    """The LR's stem without what says that it is the LR; where one HR has several LR, the LR's whole stem."""
    lr: Path
    hr: Path


Found = tuple[list[Pair], list[str]]
"""Pairs, and what is wrong with the names of the other files."""


def pairs(folder: Path, factor: int = 4, *, crop: bool = False) -> list[Pair]:
    """The pairs of a set, sorted by name; HR is exactly `factor` times as wide and as high as LR, of any size.

    crop: HR may also be up to factor - 1 pixels wider or higher, which whoever reads it cuts off right and below.

    Raises:
        ImageError: no layout fits or several do, or names or sizes do not match: one line that lists them.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder; --bench needs a folder of pairs such as LR and HR")
    found, wrong = _find(folder, factor)
    wrong += [reason for pair in found if (reason := _misfit(pair, factor, crop))]
    if wrong:
        raise ImageError(f"{folder}: every LR needs an HR of its name, exactly {factor} times as large: {_some(wrong)}")
    return sorted(found, key=lambda pair: pair.name)


def match_folders(pred: Path, target: Path) -> list[tuple[str, Path, Path]]:
    """(name, picture, picture) of the pictures directly in two folders, sorted by name and equal in size.

    Names are the stems. Where these differ, what all names of a folder end with is left out, if the rest then equals:
    an ending such as _x4, -out, .restored or x4.

    Raises:
        ImageError: a folder is missing or empty, or names or sizes do not match: one line that lists them.
    """
    lists = []
    for folder in (pred, target):
        lists.append(images.find_pictures(folder) if folder.is_dir() else [])
        if not lists[-1]:
            if folder.is_file():
                raise ImageError(f"{folder}: this is a file; name the folder of the pictures")
            raise ImageError(f"{folder}: no pictures in such a folder (those below it do not count); check its name")
    endings = _common_endings(*([path.stem for path in paths] for paths in lists))
    named = [[(p.stem.removesuffix(end), p) for p in paths] for end, paths in zip(endings, lists, strict=True)]
    found, wrong = _match(named[0], named[1], (str(pred), str(target)))
    for name, first, second in found:
        sizes = [size_of(path) for path in (first, second)]
        if sizes[0] != sizes[1]:
            wrong.append(f"{name} ({' and '.join(f'{width} x {height}' for width, height in sizes)})")
    if wrong:
        raise ImageError(f"{pred} and {target} must hold pictures of the same names and sizes: {_some(wrong)}")
    return sorted(found)


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of an upright picture, from its header.

    Raises:
        ImageError: the file cannot be read as an image; the message begins with the path.
    """
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (picture.height, picture.width) if turned else picture.size
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        raise ImageError(f"{path}: not a readable picture; remove or replace it") from None


def _find(folder: Path, factor: int) -> Found:
    for inside in _INSIDE:
        base = _inner(folder, inside.format(f=factor))
        if base is not None:
            found = _folders(base, factor) or _mixed([base], factor)
            if found:
                return found
    several = [base for inside in _SEVERAL if (base := _inner(folder, inside.format(f=factor))) is not None]
    found = (_mixed(several, factor) if several else None) or _beside(folder, factor)
    if found:
        return found
    raise ImageError(
        f"{folder}: no pairs found for x{factor}; expected LR and HR folders with the same names, or the layout of "
        "DIV2K, RealSR, DRealSR, Set5, Set14, B100 or Urban100 (docs/evaluation.md)"
    )


def _folders(base: Path, factor: int) -> Found | None:
    """The pairs of the one form of two folders that a base has."""
    kinds: dict[Path, Path] = {}
    for small, large in _FOLDERS:
        lr, hr = (_inner(base, name.format(f=factor)) for name in (small, large))
        # A folder of folders (HR with HR/X4 in it) is none of pictures.
        if lr is not None and hr is not None and images.find_pictures(lr) and images.find_pictures(hr):
            kinds.setdefault(lr, hr)
    if len(kinds) > 1:
        raise ImageError(f"{base}: several kinds of LR; name the folder of one of them ({_some(map(str, kinds))})")
    return next((_pair_up(lr, hr, factor) for lr, hr in kinds.items()), None)


def _beside(folder: Path, factor: int) -> Found | None:
    """The pairs of a folder of LR, whose HR lies beside it or beside its parent."""
    for small, large in _FOLDERS:
        whole = folder.resolve()
        base = whole.parents[min(small.count("/"), len(whole.parents) - 1)] if whole.parents else whole
        hr = _inner(base, large.format(f=factor))
        if hr is not None and _inner(base, small.format(f=factor)) == whole:
            return _pair_up(folder, hr, factor)
    return None


def _mixed(bases: Sequence[Path], factor: int) -> Found | None:
    """The pairs of folders that hold LR and HR side by side; results of other methods there are left alone."""
    files = [path for base in bases for path in images.find_pictures(base)]
    # Either says what it is; the shorter endings (a_x4) would take in results of other methods.
    small = [path for path in files if re.search(rf"_LR(?:{factor})?$", path.stem)]
    large = [path for path in files if path.stem.endswith("_HR")]
    return _matched(small, large, factor) if small and large else None


def _pair_up(lr: Path, hr: Path, factor: int) -> Found:
    return _matched(images.find_pictures(lr), images.find_pictures(hr), factor)


def _matched(small: Sequence[Path], large: Sequence[Path], factor: int) -> Found:
    """LR and HR by equal stems or, where these differ, by the stems without what says that they are LR and HR."""
    if {path.stem for path in small} != {path.stem for path in large}:
        lr = [(_lr_ending(factor).sub("", path.stem), path) for path in small]
        hr = [(_hr_ending(factor).sub("", path.stem), path) for path in large]
    else:
        lr, hr = ([(path.stem, path) for path in paths] for paths in (small, large))
    found, wrong = _match(lr, hr, ("LR", "HR"))
    return [Pair(*pair) for pair in found], wrong


def _match(
    first: Sequence[Named], second: Sequence[Named], sides: tuple[str, str]
) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """Files of equal names, and what is wrong with the others. `sides` are what the two lists are called.

    Several of the first may belong to one of the second; their names are their whole stems then.
    """
    counts = [Counter(name for name, _ in names) for names in (first, second)]
    stems = Counter(path.stem for _, path in first)
    wrong = [f"{stem} (several files in {sides[0]})" for stem, count in stems.items() if count > 1]
    wrong += [f"{name} (several files in {sides[1]})" for name, count in counts[1].items() if count > 1]
    wrong += [f"{name} (only in {sides[0]})" for name in counts[0] if name not in counts[1]]
    wrong += [f"{name} (only in {sides[1]})" for name in counts[1] if name not in counts[0]]
    partners = dict(second)
    found = [
        (path.stem if counts[0][name] > 1 else name, path, partners[name]) for name, path in first if name in partners
    ]
    return found, sorted(wrong)


def _common_endings(first: Sequence[str], second: Sequence[str]) -> tuple[str, str]:
    """What to take off all names of two lists so that both hold the same names; nothing where that does not help."""
    wanted = set(first), set(second)
    for ending in _endings(first):
        short = {name.removesuffix(ending) for name in first}
        for other in _endings(second):
            if "" not in short and short == {name.removesuffix(other) for name in wanted[1]}:
                return ending, other
    return "", ""


def _endings(names: Sequence[str]) -> list[str]:
    """The endings that all names share, shortest first, of those that look like an addition: _x4, -out, .sr, x4."""
    whole = names[0]
    endings = [whole[-i:] for i in range(1, len(whole)) if all(name.endswith(whole[-i:]) for name in names)]
    return ["", *(ending for ending in endings if re.match(r"[_.-]|x\d", ending))]


def _lr_ending(factor: int) -> re.Pattern[str]:
    return re.compile(rf"(?:(?:_SRF_{factor})?_LR(?:{factor})?|_?x{factor}(?:[mdw]\d?)?|_x1)$")


def _hr_ending(factor: int) -> re.Pattern[str]:
    return re.compile(rf"(?:(?:_SRF_{factor})?_HR|_x{factor})$")


def _inner(base: Path, name: str) -> Path | None:
    """The folder of a relative name under another, whatever the case of its letters."""
    for part in name.split("/") if name else []:
        inside: Iterator[Path] = (p for p in base.iterdir() if p.name.lower() == part.lower() and p.is_dir())
        found = min(inside, default=None)
        if found is None:
            return None
        base = found
    return base


def _misfit(pair: Pair, factor: int, crop: bool) -> str:
    """What is wrong with the sizes of a pair, if anything."""
    (width, height), (large_width, large_height) = size_of(pair.lr), size_of(pair.hr)
    over = (large_width - width * factor, large_height - height * factor)
    if over == (0, 0) or (crop and all(0 <= more < factor for more in over)):
        return ""
    line = f"{pair.name} (LR {width} x {height}, HR {large_width} x {large_height}"
    if all(0 <= more < factor for more in over):
        line += f": HR was not cut to a multiple of {factor}; --crop does it"
    return line + ")"


def _some(items: Iterable[str]) -> str:
    """A list for an error's line: all up to a few, then how many more."""
    lines = list(items)
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more
