"""Smooth ramps and faint lines of the restorer's training."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from nextscale.train.ramps import noisy_input, smooth_ramp, with_faint_lines


def test_lines_are_faint_narrow_and_above_the_noise() -> None:
    strongest, covered = [], []
    for seed in range(40):
        draw = random.Random(seed)
        plain = smooth_ramp(draw, 96) * 0.4 + 0.3
        levels = (with_faint_lines(plain, draw, 2.0) - plain).abs().amax(1) * 255
        strongest.append(float(levels.max()))
        covered.append(float((levels > 1).float().mean()))
    # A blurred thin one may be fainter than it was drawn; several may cross.
    assert sum(level > 5 for level in strongest) > 35
    assert max(strongest) < 150
    assert 0.02 < sum(covered) / 40 < 0.5


@pytest.mark.parametrize("coded", [False, True])
def test_an_input_is_the_reduced_ramp_with_noise_of_so_many_levels(coded: bool) -> None:
    off = []
    for seed in range(20):
        draw = random.Random(seed)
        image = smooth_ramp(draw, 128) * 0.4 + 0.3
        small = noisy_input(image, draw, 4, 6.0, coded=coded)
        assert small.shape == (1, 3, 32, 32)
        off.append(float((small - F.avg_pool2d(image, 4)).std()) * 255)
    assert sum(off) / 20 == pytest.approx(6, abs=1.5 if coded else 0.3)


def test_the_same_draws_give_the_same_input() -> None:
    def made() -> torch.Tensor:
        draw = random.Random(5)
        image = with_faint_lines(smooth_ramp(draw, 64), draw, 1.0)
        return noisy_input(image, draw, 4, 1.0, coded=True)

    assert torch.equal(made(), made())
