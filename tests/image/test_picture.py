"""Pictures in memory."""

from __future__ import annotations

import numpy as np
import pytest

from nextscale import image
from nextscale.image import Array


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_survives_the_floats(dtype: type) -> None:
    values: Array = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(-1, 1, 1)
    floats = image.to_float(values)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(image.from_float(floats, dtype), values)


def test_floats_are_clamped_and_rounded() -> None:
    floats = np.array([-9, -1, 0.0039, 1, 9], np.float32)
    assert image.from_float(floats, np.uint8).tolist() == [0, 0, 128, 255, 255]
    assert image.from_float(floats, np.uint16).tolist() == [0, 0, 32895, 65535, 65535]
