"""The cache gives back all it was given, with and without room for what comes."""

from __future__ import annotations

import pytest
import torch

from nextscale.model.attention import Cache


@pytest.mark.parametrize("later", [0, 3, 7, 20])
def test_keys_and_values_come_back_in_order(later: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(2, 3, length, 4, generator=generator) for length in (5, 3, 4)]
    cache = Cache(later)
    for count in range(1, 4):
        for layer in (0, 1):
            k, v = cache.extend(layer, keys[count - 1] + layer, -keys[count - 1])
            assert torch.equal(k, torch.cat(keys[:count], dim=2) + layer)
            assert torch.equal(v, -torch.cat(keys[:count], dim=2))


def test_what_there_is_room_for_is_not_copied_along() -> None:
    cache = Cache(later=3)
    first, _ = cache.extend(0, torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4))
    second, _ = cache.extend(0, torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4))
    third, _ = cache.extend(0, torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    assert first.data_ptr() == second.data_ptr() != third.data_ptr()


def test_a_cleared_cache_is_a_new_one() -> None:
    cache = Cache()
    cache.segments = 2
    cache.extend(0, torch.ones(1, 1, 5, 4), torch.ones(1, 1, 5, 4))
    cache.clear()
    k, _ = cache.extend(0, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    assert cache.segments == 0
    assert torch.equal(k, torch.zeros(1, 1, 2, 4))
