"""The `nextscale data` commands: plain settings, free of torch until they run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextscale.console import complain, say
from nextscale.data.options import PackOptions
from nextscale.errors import OptionError


@dataclass(frozen=True)
class Pack:
    """Pack sharp crops of photographs into tar shards: nextscale data pack PHOTOS SHARDS"""

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="DIR [DIR ...] OUT")]
    """Folders of photographs, whose subfolders count, too; the last is the new folder of shards."""
    options: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)

    def run(self) -> int:
        from nextscale.data.pack import pack

        *folders, out = self.folders or (Path(),)
        if not folders:
            raise OptionError("data pack needs folders of photographs, then the folder to write")
        say(pack(folders, out, self.options, say=say, complain=complain).line())
        return 0


@dataclass(frozen=True)
class Check:
    """Fetch and decode every training picture, and name the damaged ones: nextscale data check SHARDS"""

    data: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA [DATA ...]")]
    """Folders, .tar shards, globs of them, or addresses of shards."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for shards from the net (default: nextscale/shards in the user's cache)."""

    def run(self) -> int:
        from nextscale.data.crops import damage, find_sources

        if not self.data:
            raise OptionError("data check needs folders, shards or addresses")
        sources = find_sources(self.data, self.cache)
        damaged = 0
        for source in sources:
            reason = damage(source)
            if reason is not None:
                damaged += 1
                complain(f"{source.name}: {reason}")
        say(f"{len(sources)} pictures, {damaged} damaged ({damaged / len(sources):.2%})")
        return 1 if damaged else 0


@dataclass(frozen=True)
class Pages:
    """Render training pictures of text, signs, screens, drawings, smooth ramps and shapes: nextscale data pages OUT"""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write; a picture that is there already stays."""
    fonts: tuple[Path, ...] = (Path("/usr/share/fonts"),)
    """Folders of .ttf and .otf files."""
    count: int = 600
    """Number of pictures."""
    side: int = 512
    """Side of the pictures in pixels."""
    seed: int = 0
    """Another seed, other pictures."""
    kinds: tuple[str, ...] = ("page", "sign", "screen", "drawing", "ramp")
    """Some of these, shapes, ruled or print; ramps alone teach what smooth surfaces look like, shapes what clean
    outlines do, ruled pages what a thin rule does, and print has lines of letters without heads."""
    letters: tuple[float, float] = (10, 90)
    """Smallest and largest letters of the lines of a page, in pixels. Training crops reduce a page by up to half."""

    def run(self) -> int:
        from nextscale.data.pages import WORDLESS, find_fonts, render
        from nextscale.image import from_pil, write

        if self.count < 1 or self.side < 64:
            raise OptionError(f"count must be 1 or more and side 64 or more, got {self.count} and {self.side}")
        fonts = find_fonts(self.fonts) if set(self.kinds) - set(WORDLESS) else []
        paths = [self.out / f"page-{self.seed}-{number:05}.png" for number in range(self.count)]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        for number in missing:
            write(paths[number], from_pil(render(self.seed, number, fonts, self.side, self.kinds, self.letters)))
        there = f"; {self.count - len(missing)} were there and stay as they are" if len(missing) < self.count else ""
        how = f"from {len(fonts)} fonts" if fonts else "without letters"
        say(f"{len(missing)} new pages in {self.out}, {how}{there}")
        return 0


Part = (
    Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Pages, tyro.conf.subcommand("pages")]
)


@dataclass(frozen=True)
class Data:
    """Prepare training data."""

    part: Annotated[Part, tyro.conf.arg(name="")]
    """What to do."""

    def run(self) -> int:
        return self.part.run()
