"""Claims about nextscale.upscale.outputs: a result has its own name, and is known by it."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from nextscale.upscale.outputs import earlier_results, result_stems


def paths(*names: str) -> list[PurePosixPath]:
    return [PurePosixPath(name) for name in names]


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (("a.jpg", "b.png"), ["a", "b"]),
        (("a.jpg", "a.png", "b.png"), ["a_jpg", "a_png", "b"]),
        (("a.jpg", "A.png"), ["a_jpg", "A_png"]),
        (("x/a.jpg", "y/a.png"), ["a", "a"]),
        (("a.b.jpg", "a.c.jpg"), ["a.b", "a.c"]),
        (("a", "a.jpg"), ["a", "a_jpg"]),
        (("a.jpg", "a.png", "a_jpg.jpg"), ["a_jpg", "a_png", "a_jpg_jpg"]),
        (("a.jpg", "a.png", "a_jpg.jpg", "a_jpg_jpg.png"), ["a_jpg", "a_png", "a_jpg_jpg", "a_jpg_jpg_png"]),
        (("a.gif", "a.GIF", "a.png"), ["a_gif", "a_GIF", "a_png"]),
        (("A.jpg", "a.jpg"), ["A", "a"]),
        (("a.GIF", "a.gif"), ["a_GIF", "a_gif"]),  # on a disk that tells them apart: both results would be PNG
    ],
)
def test_a_suffix_is_in_the_name_where_it_is_all_that_differs(names: tuple[str, ...], stems: list[str]) -> None:
    assert result_stems(paths(*names)) == stems


@pytest.mark.parametrize(
    ("name", "is_result"),
    [
        ("p_x4.jpg", True),
        ("p_x2.5.png", True),
        ("p_x0.5_confidence.png", True),
        ("p_x1e+05.png", True),
        ("p_x2_x2_x2.jpg", False),  # without p_x2_x2.jpg beside it
        ("q_x4.jpg", False),
        ("p_x.jpg", False),
        ("p_xyz.jpg", False),
        ("px4.jpg", False),
        ("p.png", False),
        ("p_confidence.png", False),
    ],
)
def test_a_result_is_known_by_the_picture_beside_it(name: str, is_result: bool) -> None:
    assert earlier_results(paths(name), {"p"}, None) == ({PurePosixPath(name)} if is_result else set())


def test_results_of_results_are_results() -> None:
    chain = paths("p_x2.jpg", "p_x2_x2.jpg", "p_x2_x2_x2.jpg")
    assert earlier_results(chain, {"p"}, None) == set(chain)


def test_the_suffix_of_the_run_and_the_list_tell_too() -> None:
    names = paths("p+big.jpg", "p+big_confidence.png", "other.jpg")
    assert earlier_results(names, {"p"}, None) == set()
    assert earlier_results(names, {"p"}, "+big") == set(names[:2])
    assert earlier_results(names, {"p"}, None, {"other.jpg"}) == {names[2]}


def test_results_of_names_with_their_suffix_in_them_are_known() -> None:
    names = paths("a.jpg", "a.png", "a_jpg_x4.jpg", "a_png_x4.png")
    assert earlier_results(names, (), None) == set(names[2:])
