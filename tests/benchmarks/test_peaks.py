"""Seconds, rates and memory mean what their names say."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.peaks import PeakMemory, Peaks, copy_rate
from nextscale.device import Timer, product_rate

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
MIB = 2**20


class Scripted(Timer):
    """A timer that runs nothing and gives the seconds of a list."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__(CPU)
        self.seconds = iter(seconds)

    def once(self, action: object) -> float:
        del action
        return next(self.seconds)


def test_the_first_run_is_not_counted() -> None:
    assert Scripted([9, 1, 5, 2]).median(lambda: None, 3) == 2
    assert Scripted([0.5, 3, 1, 2]).best(lambda: None, 3) == 1


def test_rates_are_of_the_best_run() -> None:
    assert product_rate(4, torch.float32, Scripted([9, 4, 2]), runs=2) == 2 * 4**3 / 2
    assert copy_rate(10, Scripted([9, 4, 2]), runs=2) == 2 * 10 / 2


def test_a_sleep_takes_the_clocks_time_and_none_of_the_processors() -> None:
    assert Timer(CPU).once(lambda: time.sleep(0.05)) >= 0.05
    assert Timer(CPU, cpu_time=True).once(lambda: time.sleep(0.05)) < 0.04


def test_the_limit_is_the_larger_of_both_times() -> None:
    peaks = Peaks({"float32": 10.0, "bfloat16": 20.0}, bandwidth=5.0)
    assert peaks.limit({"float32": 10.0, "bfloat16": 40.0}, 5.0) == (3.0, "compute")
    assert peaks.limit({"float32": 10.0}, 10.0) == (2.0, "memory")


def test_the_better_of_two_measurements_is_kept_each() -> None:
    better = Peaks({"float32": 1.0, "bfloat16": 4.0}, 3.0).best(Peaks({"float32": 2.0, "bfloat16": 3.0}, 5.0))
    assert better == Peaks({"float32": 2.0, "bfloat16": 4.0}, 5.0)


def test_peaks_are_measured_for_every_dtype() -> None:
    peaks = Peaks.measure(Scripted([1.0] * 100), [torch.bfloat16])
    assert peaks == Peaks({"bfloat16": 2.0 * 2048**3}, 2.0 * 256 * MIB)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a peak start over")
def test_peak_memory_rises_with_what_is_held_and_starts_over() -> None:
    memory = PeakMemory(CPU)
    before = memory.now()
    held = torch.ones(64 * MIB, dtype=torch.uint8)
    assert memory.bytes() - before > 60 * MIB
    del held
    assert memory.bytes() - before > 60 * MIB
    assert memory.now() - before < 30 * MIB


def test_some_memory_is_free() -> None:
    assert PeakMemory(CPU).free() > MIB
