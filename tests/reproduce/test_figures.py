"""Figures: every panel at its place, crops of the same part of every size, the crop where most detail is lost."""

from __future__ import annotations

import numpy as np
import pytest

from nextscale import image as images
from nextscale.errors import ImageError, OptionError
from reproduce.figures import Crop, Strip, figure, fitted, gray, grid, most_lost

pytestmark = pytest.mark.integration


def plain(side: int, color: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (side, side, 3)).copy()


def test_a_sheet_has_a_line_of_panels_and_one_of_crops() -> None:
    panels = [plain(16, (255, 0, 0)), plain(64, (0, 255, 0)), plain(64, (0, 0, 255))]
    with_crop = figure([Strip("a", panels, Crop(8, 16, 16))], ["LR", "x4", "truth"], side=32)
    without = figure([Strip("a", panels)], ["LR", "x4", "truth"], side=32)
    assert with_crop.width == without.width
    assert with_crop.height > without.height + 32
    pixels = np.asarray(without)
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (pixels == color).all(axis=2).sum() == 32 * 32


def test_crops_show_the_same_part_at_every_size() -> None:
    truth = plain(64, (0, 0, 0))
    truth[16:32, 8:24] = 255
    lr = truth[::4, ::4]
    sheet = np.asarray(figure([Strip("a", [lr, truth], Crop(8, 16, 16))], ["LR", "truth"], side=32))
    # Each crop is all white and fills its panel; nothing else on the sheet's last lines is black.
    assert (sheet[-40:] > 0).any()
    assert not (sheet[-30:-4, 10:30] < 255).any()
    assert not (sheet[-30:-4, 50:70] < 255).any()


def test_enlarging_repeats_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    large = np.asarray(fitted(pixels, 32))
    assert large.shape == (16, 32, 3)
    assert (large == pixels.repeat(4, axis=0).repeat(4, axis=1)).all()


def test_the_crop_is_where_detail_is_lost() -> None:
    truth = plain(128, (120, 120, 120))
    truth[80:112, 32:64] = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    bicubic = images.resize(images.resize(truth, (32, 32), filter="box"), (128, 128))
    found = most_lost(bicubic, truth, 32)
    assert (found.left, found.top, found.side) == (32, 80, 32)
    assert most_lost(truth, truth, 32) == Crop(0, 0, 32)


def test_a_crop_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ImageError, match="does not fit into 16 x 16"):
        most_lost(plain(16, (0, 0, 0)), plain(16, (0, 0, 0)), 32)
    with pytest.raises(ImageError, match="does not lie in 16 x 16"):
        figure([Strip("a", [plain(16, (0, 0, 0))], Crop(8, 0, 16))], ["LR"], side=32)


def test_lines_have_a_picture_in_every_column() -> None:
    with pytest.raises(OptionError, match="needs 2 pictures"):
        grid([[fitted(plain(4, (0, 0, 0)), 8)]], ["a", "b"], ["a"], 8)


def test_a_map_becomes_gray() -> None:
    assert (gray(np.array([[0, 255]], np.uint8)) == [[[0, 0, 0], [255, 255, 255]]]).all()
