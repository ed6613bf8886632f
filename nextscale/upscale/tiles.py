"""Tile plan and seamless blending. Pure geometry on arrays: no model, no file formats.

Tiles overlap; within an overlap the outer margins, where a tile lacks context, are discarded and only a narrow ramp in
the middle is blended. Averaging two differing textures softens them, so the ramp is kept short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.errors import OptionError

FloatArray = NDArray[np.float32]

RAMP = 8
"""Input pixels over which one tile fades into the next."""
GROWTH = 1.5
"""How many times its own side a tile may have where fewer tiles are needed then."""
GAIN = 0.75
"""The share of the work that larger tiles must come down to: a model is at its best with tiles of its own side."""


@dataclass(frozen=True)
class Tile:
    """One tile: its place in the plan and its upper left corner in input pixels."""

    row: int
    column: int
    top: int
    left: int


@dataclass(frozen=True)
class Plan:
    """Where the tiles of a picture lie; the picture is at least one tile large (padded before)."""

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    tile: int

    @property
    def rows(self) -> list[list[Tile]]:
        """The tiles, row by row."""
        return [[Tile(r, c, top, left) for c, left in enumerate(self.lefts)] for r, top in enumerate(self.tops)]

    @property
    def height(self) -> int:
        return self.tops[-1] + self.tile

    @property
    def width(self) -> int:
        return self.lefts[-1] + self.tile


def plan_tiles(height: int, width: int, *, tile: int, overlap: int) -> Plan:
    """Tiles of a side, sharing at least `overlap` pixels, spread evenly over the (padded) picture.

    Raises:
        OptionError: the overlap leaves no room for a ramp or takes more than half a tile.
    """
    if not RAMP <= overlap <= tile // 2:
        raise OptionError(f"tile-overlap must be from {RAMP} to half a tile ({tile // 2}), got {overlap}")
    return Plan(_starts(height, tile, overlap), _starts(width, tile, overlap), tile)


def best_side(height: int, width: int, *, tile: int, unit: int, overlap: int) -> int:
    """The side of the tiles for a picture: the model's own, or a larger one that takes much less work.

    Two pixels more than a tile would else take a whole further row and column of tiles, which show next to nothing.

    Args:
        unit: what a side grows by (0: not at all).
    """

    def work(side: int) -> int:
        return len(_starts(height, side, overlap)) * len(_starts(width, side, overlap)) * side * side

    larger = range(tile + unit, int(tile * GROWTH) + 1, unit) if unit else ()
    best = min((tile, *larger), key=work)
    return best if work(best) <= GAIN * work(tile) else tile


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    if length <= tile:
        return (0,)
    count = 1 + -(-(length - tile) // (tile - overlap))
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count))


def axis_weights(starts: tuple[int, ...], index: int, tile: int, factor: int) -> FloatArray:
    """Weights of one tile along one axis (tile x factor values); those of all tiles sum to one everywhere."""
    return (_taken(starts, index, index, tile, factor) - _taken(starts, index + 1, index, tile, factor)).astype(
        np.float32
    )


def _taken(starts: tuple[int, ...], by: int, index: int, tile: int, factor: int) -> NDArray[np.float64]:
    """Share of the tiles from `by` on, along tile `index`: 0 to 1 over a ramp in the middle of by's overlap."""
    if by in (0, len(starts)):
        return np.full(tile * factor, 1.0 if by == 0 else 0.0)
    middle = (starts[by] + starts[by - 1] + tile) / 2 - starts[index]
    places = (np.arange(tile * factor) + 0.5) / factor
    along = np.clip((places - middle) / RAMP + 0.5, 0, 1)
    return along * along * (3 - 2 * along)


class Band:
    """A band of output rows in float: tiles are added to it in order, finished rows leave it at once.

    Memory is one row of tiles, whatever the height of the picture.

    Args:
        sink: takes (number of the first row, finished rows x width x channels), from top to bottom; the rows are only
            lent, the next tile overwrites them.
    """

    def __init__(self, plan: Plan, factor: int, channels: int, sink: Callable[[int, FloatArray], None]) -> None:
        self.plan = plan
        self.factor = factor
        self.sink = sink
        self.rows: FloatArray = np.zeros((plan.tile * factor, plan.width * factor, channels), np.float32)

    def add(self, tile: Tile, pixels: FloatArray) -> None:
        """Blend in the next tile's pixels, (tile x factor) squared x channels; row by row, from left to right."""
        plan, factor = self.plan, self.factor
        down = axis_weights(plan.tops, tile.row, plan.tile, factor)[:, None, None]
        across = axis_weights(plan.lefts, tile.column, plan.tile, factor)[:, None]
        left = tile.left * factor
        self.rows[:, left : left + len(pixels)] += pixels * (down * across)
        if tile.column + 1 == len(plan.lefts):
            self._pass_on(tile)

    def _pass_on(self, last: Tile) -> None:
        """A row of tiles is whole: hand over the rows that no later tile touches."""
        plan, factor = self.plan, self.factor
        until = plan.height if last.row + 1 == len(plan.tops) else plan.tops[last.row + 1]
        done = (until - last.top) * factor
        self.sink(last.top * factor, self.rows[:done])
        rest = len(self.rows) - done
        self.rows[:rest] = self.rows[done:].copy()
        self.rows[rest:] = 0
