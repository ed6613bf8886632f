"""The counted work is what the formulas say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.work import Counter, Work

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_counted_in_its_dtype(dtype: torch.dtype) -> None:
    a, b = torch.ones(3, 5, dtype=dtype), torch.ones(5, 7, dtype=dtype)
    with Counter() as counter:
        a @ b
    moved = (3 * 5 + 5 * 7 + 3 * 7) * dtype.itemsize
    assert counter.take() == Work({str(dtype).removeprefix("torch."): 2.0 * 3 * 5 * 7}, moved, moved)


def test_autocast_is_seen() -> None:
    a = torch.ones(4, 4)
    with Counter() as counter, torch.autocast("cpu", torch.bfloat16):
        a @ a
    assert set(counter.take().flops) == {"bfloat16"}


def test_a_convolution_costs_two_operations_a_weight_and_output_place() -> None:
    with Counter() as counter:
        F.conv2d(torch.ones(2, 3, 8, 8), torch.ones(5, 3, 3, 3), padding=1)
    assert counter.take().all_flops == 2 * (3 * 5 * 9) * (2 * 8 * 8)


def test_fused_attention_costs_its_two_products() -> None:
    q, k = torch.ones(2, 4, 6, 8), torch.ones(2, 4, 10, 8)
    with Counter() as counter:
        F.scaled_dot_product_attention(q, k, k)
    assert counter.take().all_flops == 2 * (2 * 4) * (6 * 10) * (8 + 8)


def test_views_are_free_and_elementwise_work_moves_bytes_only() -> None:
    a = torch.ones(4, 6)
    with Counter() as counter:
        a.t().reshape(24)[3:]  # a view and a copy
        copied = counter.take()
        a.view(6, 4).transpose(0, 1)[1:]
        assert counter.take() == Work()
        a.add_(1)
        a.expand(2, 4, 6) + 1
        added = counter.take()
    assert copied == Work({}, 0, 2 * a.nbytes)
    assert added.least_bytes == 0
    # In place: read as input, written as result. The expanded one is read once; it and the 1 make twice as much.
    assert added.moved_bytes == 2 * a.nbytes + 3 * a.nbytes


def test_taking_starts_over() -> None:
    a = torch.ones(2, 2)
    with Counter() as counter:
        a @ a
        first = counter.take()
        a @ a
        a @ a
    assert counter.take() == first + first == first * 2
