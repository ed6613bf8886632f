"""What `python -m benchmarks.bench` times, and how often; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from nextscale.errors import check_values
from nextscale.evaluate.options import split_words

Numbers = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="+",
        metavar="N[,N ...]",
        instance_from_str=lambda words: tuple(map(int, split_words(words))),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, int) for item in value),
        str_from_instance=lambda numbers: [",".join(map(str, numbers))],
    ),
]


@dataclass(frozen=True)
class SpeedOptions:
    """What is timed, and how often.

    Raises:
        OptionError: a value is out of range.
    """

    sizes: Numbers = (64, 128, 256, 512, 1024, 2048)
    """Sides of the square input pictures in pixels."""
    batches: Numbers = (1, 2, 4, 8, 16, 32)
    """Tiles that run at once; pictures take as many as a row of theirs has, at most."""
    runs: int = 3
    """Timed runs, of which the median counts."""
    max_minutes: float = 5.0
    """Skip what would take longer, judging by what ran before; a row that has begun is not repeated beyond it."""
    fp32: bool = False
    """Compute in float32 even where 16 bit is faster."""

    def __post_init__(self) -> None:
        checks = (
            ("sizes", bool(self.sizes) and min(self.sizes) >= 1, "1 or more"),
            ("batches", bool(self.batches) and min(self.batches) >= 1, "1 or more"),
            ("runs", self.runs >= 1, "1 or more"),
            ("max_minutes", self.max_minutes > 0, "above 0"),
        )
        check_values(self, checks)
