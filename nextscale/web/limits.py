"""What a stranger may ask of the server, and how much work a request is. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

from nextscale.errors import NextScaleError, OptionError
from nextscale.model.config import Ladder
from nextscale.upscale.options import UpscaleOptions, output_size
from nextscale.upscale.plan import WorkPlan

FIXED: Final = ("all_factors", "tile", "tile_batch", "tile_overlap")
"""Options of `UpscaleOptions` that a client does not choose: they change the server's memory, not the picture."""


class RefusedError(NextScaleError):
    """A request that is not taken.

    status: of HTTP.
    retry: seconds after which it may be taken, or None.
    """

    def __init__(self, status: int, message: str, *, retry: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry = retry


@dataclass(frozen=True)
class Limits:
    """The limits of one server."""

    upload_bytes: int = 64_000_000
    pixels: int = 51_000_000
    """Of an uploaded picture: 48 megapixel telephones, with some room."""
    result_pixels: int = 205_000_000
    """Of the largest result, or of a larger picture on its way: 12 megapixels at x4, 48 at x2."""
    work: float = 6000.0
    """Of one job, in tiles (see `planned_work`)."""
    waiting: int = 20
    """Jobs of everybody that have not begun."""
    per_client: int = 10
    """Jobs of one client that have not ended."""
    active: int = 3
    """Jobs that share the model, each of another client."""
    streams: int = 20
    """Open event streams of one client."""
    uploads: int = 4
    """Bodies of one client that are read at once."""
    keep_seconds: float = 3600.0
    """For which uploads and results stay."""
    keep_bytes: int = 20_000_000_000
    """Of uploads and results; beyond it the oldest go."""
    stall_seconds: float = 15.0
    """Between two pieces of a request, and for its headers."""
    slowest_bytes: int = 8192
    """A second, on the whole of an upload."""
    gone_seconds: float = 30.0
    """After which a job that nobody watches ends."""
    logins: int = 5
    """Wrong passwords of one client a minute."""

    def check_size(self, size: tuple[int, int], scale: float) -> None:
        """Refuse a picture (width, height) or its result as too large.

        Raises:
            RefusedError: in a sentence with a remedy.
        """
        width, height = size
        if width * height > self.pixels:
            raise RefusedError(
                413, f"{width} x {height} pixels are over the limit of {_mega(self.pixels)}; shrink it first"
            )
        wide, high = output_size(size, scale)
        if wide * high > self.result_pixels:
            raise RefusedError(
                413, f"the result of {wide} x {high} pixels is over the limit of {_mega(self.result_pixels)}; "
                "choose a smaller factor or a smaller picture"
            )  # fmt: skip

    def check_held(self, pixels: int, scale: float, native: tuple[float, ...]) -> None:
        """Refuse a job whose largest picture on the way to its result is too large.

        A scale between native factors takes the next larger one first.

        Raises:
            RefusedError: in a sentence with a remedy.
        """
        if pixels > self.result_pixels:
            # What the result's own limit let through fits at the native factor below, which makes nothing larger.
            below = max((factor for factor in native if factor < scale), default=None)
            raise RefusedError(
                413, f"for x{scale:g} the model first makes {_mega(round(pixels, -5))}, and the limit is "
                f"{_mega(self.result_pixels)}; choose {'' if below is None else f'x{below:g} or '}a smaller picture"
            )  # fmt: skip

    def check_work(self, work: float) -> None:
        """Refuse a job as too much work.

        Raises:
            RefusedError: in a sentence with a remedy.
        """
        if work > self.work:
            raise RefusedError(
                413, f"this is the work of {work:.0f} tiles, and {self.work:.0f} are the limit; choose a smaller "
                "factor, a smaller picture, or fast"
            )  # fmt: skip


def _mega(pixels: int) -> str:
    return f"{pixels / 1e6:g} megapixels"


RESTORER_SHARE: Final = 0.15
"""Of a tile's time at the largest factor, what the restorer alone takes (measured on a CPU)."""


def planned_work(plan: WorkPlan, options: UpscaleOptions, ladder: Ladder) -> float:
    """How much work a plan is, in tiles of the ladder restored with codes at the largest native factor."""
    work = 0.0
    for run in plan.runs:
        stages = (ladder.factors.index(run.factor) + 1) / len(ladder.factors)
        codes = 0.0 if options.fast else (1 - RESTORER_SHARE) * stages * (2 if options.cfg else 1)
        work += run.work / ladder.input_side**2 * (RESTORER_SHARE + codes)
    return work


def options_of(fields: dict[str, str]) -> UpscaleOptions:
    """The options that a form's or a query's fields ask for.

    Raises:
        OptionError: a field is unknown, or its value is out of range; the message names it.
    """
    kinds = {name: kind for name, kind in get_type_hints(UpscaleOptions).items() if name in option_names()}
    given: dict[str, Any] = {}
    for name, text in fields.items():
        if name not in kinds:
            raise OptionError(f"there is no option {name[:40]!r}; there are {', '.join(kinds)}")
        given[name] = _parse(name, text.strip(), kinds[name])
    return UpscaleOptions(**given, all_factors=True)


def option_names() -> list[str]:
    """The options that a client may choose."""
    return [field.name for field in dataclasses.fields(UpscaleOptions) if field.name not in FIXED]


def _parse(name: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("", "0", "1", "false", "true"):
            raise OptionError(f"{name} must be true or false, got {text[:40]!r}")
        return text.lower() in ("1", "true")
    if get_args(kind):  # a choice of words; UpscaleOptions refuses others
        return text[:40]
    try:
        value = kind(text)
        is_number = math.isfinite(value)
    except (ValueError, OverflowError):  # a whole number may be too large for isfinite
        is_number = False
    if not is_number:
        raise OptionError(f"{name} must be a {'whole ' if kind is int else ''}number, got {text[:40]!r}")
    return value
