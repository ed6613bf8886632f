"""The paper's numbers are those printed in it, each at its place."""

from __future__ import annotations

import pytest

from reproduce.published import Table, published, set_of

pytestmark = pytest.mark.integration


def numbers(table: Table, bench: str, method: str) -> dict[float, dict[str, float]]:
    return {row.factor: row.metrics for row in published(table, bench) if row.method == method}


def test_table_1a_has_what_the_paper_has() -> None:
    assert numbers("1a", "", "Switti") == {4.0: {"psnr": 24.17, "lpips": 0.115}}
    assert numbers("1a", "", "Switti*")[2.0] == {"psnr": 21.43, "lpips": 0.159}
    assert numbers("1a", "", "the paper")[1.0] == {"psnr": 20.10, "lpips": 0.184}


def test_methods_and_factors_are_not_mixed_up() -> None:
    assert numbers("1b", "DRealSR", "the paper without DPO")[2.0] == {"psnr": 26.38, "lpips": 0.311}
    assert numbers("2", "RealSR", "VARSR")[1.0] == {"psnr": 18.97, "ssim": 0.4251, "lpips": 0.6178}
    assert numbers("2", "RealSR", "the paper's baseline")[4.0] == {"psnr": 26.11, "ssim": 0.7564, "lpips": 0.3110}
    assert numbers("2", "DIV2K", "the paper")[2.0] == {"psnr": 24.04, "ssim": 0.6656, "lpips": 0.2347}
    assert numbers("3", "DIV2K", "VARSR-d16") == {4.0: {"psnr": 23.14, "ssim": 0.5791, "lpips": 0.4947, "fid": 45.96}}
    assert numbers("3", "DRealSR", "the paper") == {4.0: {"psnr": 28.76, "ssim": 0.814, "lpips": 0.280}}


def test_table_1b_with_the_preference_term_is_table_2() -> None:
    for bench in ("RealSR", "DRealSR"):
        of_2 = numbers("2", bench, "the paper")
        for factor, metrics in numbers("1b", bench, "the paper with DPO").items():
            assert {name: of_2[factor][name] for name in metrics} == metrics


@pytest.mark.parametrize("table", ["1b", "2", "3"])
def test_an_unknown_set_has_no_rows(table: Table) -> None:
    assert published(table, "") == []


@pytest.mark.parametrize(
    ("name", "known"),
    [("RealSR", "RealSR"), ("drealsr_test", "DRealSR"), ("DIV2K_valid", "DIV2K"), ("val", "")],
)
def test_sets_go_by_their_folders_names(name: str, known: str) -> None:
    assert set_of(name) == known
