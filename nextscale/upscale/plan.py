"""What it takes to enlarge a picture, known before the work begins: passes, tiles, pixels in between. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf, prod

from nextscale.errors import NextScaleError
from nextscale.model.config import MOST_SIDE, Ladder, RestorerConfig
from nextscale.upscale.options import UpscaleOptions, cascade, output_size
from nextscale.upscale.tiles import GROWTH, Plan, best_side, plan_tiles

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class PassPlan:
    """One run of the model over a picture."""

    size: Size
    """Of the picture that goes in; the result of the pass before is reduced to it where it is larger."""
    factor: float
    """The native factor of the pass."""
    reach: float
    """The factor of its result, seen from the photograph."""
    tiles: Plan

    @property
    def result(self) -> Size:
        """What comes out."""
        return output_size(self.size, self.factor)

    @property
    def work(self) -> float:
        """Input pixels of all its tiles, which its time is in proportion to."""
        return len(self.tiles.tops) * len(self.tiles.lefts) * self.tiles.tile**2


@dataclass(frozen=True)
class WorkPlan:
    """All that is to be done for a picture."""

    size: Size
    """Of the photograph."""
    result: Size
    """Of the largest result: exactly the photograph's times the scale."""
    passes: tuple[PassPlan, ...]
    """Over the colors, in order; each goes on from the one before."""
    alpha: PassPlan | None = None
    """Over the transparency, before the others, where it is not the same everywhere and grows."""

    @property
    def runs(self) -> tuple[PassPlan, ...]:
        """All passes in order, that over the transparency first."""
        return self.passes if self.alpha is None else (self.alpha, *self.passes)

    @property
    def tiles(self) -> int:
        """Tiles of all passes, which time is in proportion to."""
        return sum(len(run.tiles.tops) * len(run.tiles.lefts) for run in self.runs)

    @property
    def pixels(self) -> int:
        """Pixels of the largest picture that is held: the result, or one in between."""
        return max(prod(self.result), *(prod(run.result) for run in self.runs))

    @property
    def shares(self) -> tuple[float, ...]:
        """What part of the work each of `runs` is; one in all."""
        work = [run.work for run in self.runs]
        return tuple(part / sum(work) for part in work)

    def words(self) -> str:
        """The sizes and the number of tiles, for people."""
        (width, height), (new_width, new_height) = self.size, self.result
        tiles = "1 tile" if self.tiles == 1 else f"{self.tiles} tiles"
        return f"{width} x {height} -> {new_width} x {new_height} pixels in {tiles}"

    def check(self, *, tiles: int | None = None, pixels: int | None = None) -> None:
        """Refuse work that is more than somebody allows.

        Args:
            tiles: the most tiles.
            pixels: the most pixels of a picture, results and those in between.

        Raises:
            NextScaleError: naming what is too much.
        """
        if tiles is not None and self.tiles > tiles:
            raise NextScaleError(
                f"{self.words()} is more than the {tiles} that are allowed; use a smaller scale or a smaller picture"
            )
        if pixels is not None and self.pixels > pixels:
            raise NextScaleError(
                f"{self.words()} is more than the {pixels / 1e6:g} million pixels that are allowed; use a smaller "
                "scale or a smaller picture"
            )


def plan_work(
    size: Size,
    scale: float,
    factors: tuple[float, ...],
    *,
    tile: int,
    unit: int = 0,
    overlap: int,
    alpha: bool = False,
    most: Callable[[Size], float] = lambda _: inf,
) -> WorkPlan:
    """The cheapest way to a scale.

    Args:
        size: of the photograph.
        factors: the model's native ones.
        tile: side of a tile in input pixels.
        unit: by which tiles may grow where that takes fewer of them (0: they may not).
        overlap: input pixels that tiles share at least.
        alpha: also plan a pass over the transparency.
        most: the largest side of tiles for a picture of some size.

    Raises:
        OptionError: tile and overlap do not fit each other.
    """

    def one(size: Size, factor: float, reach: float) -> PassPlan:
        width, height = size
        side = int(min(best_side(height, width, tile=tile, unit=unit, overlap=overlap), most(size)))
        return PassPlan(size, factor, reach, plan_tiles(height, width, tile=side, overlap=overlap))

    chain = cascade(scale, factors)
    passes = [one(size, chain[0], chain[0])]
    reached = min(scale, max(factors) ** len(chain))
    for place, factor in enumerate(chain[1:], start=1):
        # What the passes from here on multiply must come out at the scale, or a few pixels above.
        rest = prod(chain[place:])
        width, height = (ceil(side / rest) for side in output_size(size, reached))
        before = passes[-1].result
        passes.append(one((min(width, before[0]), min(height, before[1])), factor, reached / prod(chain[place + 1 :])))
    top = min((f for f in factors if f >= scale), default=max(factors))
    return WorkPlan(size, output_size(size, scale), tuple(passes), one(size, top, top) if alpha and top > 1 else None)


def ladder_for(own: Ladder, options: UpscaleOptions) -> Ladder:
    """A model's ladder for the tiles that the options ask for.

    Raises:
        OptionError: tile or tile-overlap do not fit the model.
    """
    ladder = own.for_input(options.tile or own.input_side)
    plan_tiles(1, 1, tile=ladder.input_side, overlap=options.tile_overlap)
    return ladder


def reach_for(restorer: RestorerConfig | None, options: UpscaleOptions) -> int | None:
    """How far from a pixel the input has a say in it, with these options; None where a whole tile has."""
    alone = restorer is not None and options.fast and options.color_fix in ("auto", "none")
    return restorer.reach if restorer is not None and alone else None


def plan_for(
    own: Ladder, size: Size, options: UpscaleOptions, *, alpha: bool = False, reach: int | None = None
) -> WorkPlan:
    """What a picture takes with a model of this ladder; see `plan_work`.

    Args:
        reach: see `reach_for`.

    Raises:
        OptionError: tile or tile-overlap do not fit the model.
    """
    ladder = ladder_for(own, options)
    fixed = options.tile or ladder.sides[-1] * GROWTH > MOST_SIDE

    def most(size: Size) -> float:
        # A tile beyond the picture shows its mirror image. What lies further off than the reach has no say in the
        # result. Hidden pixels take their colors from all of the tile, so with transparency nothing is left out.
        if reach is None or alpha:
            return inf
        least = max(own.input_side, max(size) + reach, 2 * options.tile_overlap)
        return ceil(least / ladder.unit) * ladder.unit

    unit = 0 if fixed else ladder.unit
    how = {"tile": ladder.input_side, "unit": unit, "overlap": options.tile_overlap}
    return plan_work(size, options.scale, ladder.factors, alpha=alpha, most=most, **how)
