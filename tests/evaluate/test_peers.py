"""Peers give pictures of the right sizes, and unknown ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.errors import OptionError
from nextscale.evaluate.peers import peers


def test_interpolation_is_pillows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    filters = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
    for method in peers(["bicubic", "lanczos"]):
        given = method(tmp_path / "a.png")
        assert set(given) == {1, 2, 4}
        assert np.array_equal(given[1], pixels)
        for factor in (2, 4):
            expected = Image.fromarray(pixels).resize((13 * factor, 9 * factor), filters[method.name])
            assert np.array_equal(given[factor], np.asarray(expected))


def test_an_unknown_peer_is_named_with_those_there_are() -> None:
    with pytest.raises(OptionError, match=r"unknown peer nearest; use some of bicubic lanczos realesrgan"):
        peers(["bicubic", "nearest"])
