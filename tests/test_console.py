"""What is said, and how: times as one would say them."""

from __future__ import annotations

import pytest

from nextscale.console import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (0.44, "0.44 seconds"),
        (9.96, "10 seconds"),
        (59.6, "1 minute"),
        (61, "1 minute 1 second"),
        (200, "3 minutes 20 seconds"),
        (3600, "1 hour"),
        (7530, "2 hours 5 minutes"),
        (277200, "3 days 5 hours"),
    ],
)
def test_times_are_said_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said
