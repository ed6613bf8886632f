"""Every public layout gives its pairs, and a mismatch of names or sizes is one line that lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from nextscale.errors import ImageError
from nextscale.evaluate.datasets import Pair, match_folders, pairs, size_of

LR, HR = (6, 5), (24, 20)


def draw(path: Path, size: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def make(root: Path, lr: Sequence[str], hr: Sequence[str]) -> Path:
    for names, size in ((lr, LR), (hr, HR)):
        for name in names:
            draw(root / name, size)
    return root


def names(found: list[Pair]) -> list[str]:
    return [pair.name for pair in found]


LAYOUTS = {
    "ours": (["LR/a.png", "LR/b.png"], ["HR/a.png", "HR/b.webp"], ["a", "b"]),
    "StableSR": (["test_LR/a.png"], ["test_HR/a.png"], ["a"]),
    "DRealSR": (
        ["Test_x4/test_LR/Canon_10_x1.png", "Test_x4/test_LR/DSC_1454_x1.png"],
        ["Test_x4/test_HR/Canon_10_x4.png", "Test_x4/test_HR/DSC_1454_x4.png"],
        ["Canon_10", "DSC_1454"],
    ),
    "lq and gt": (["lq/a.png"], ["gt/a.png"], ["a"]),
    "DIV2K bicubic": (
        ["DIV2K_valid_LR_bicubic/X4/0801x4.png", "DIV2K_valid_LR_bicubic/X2/0801x2.png"],
        ["DIV2K_valid_HR/0801.png"],
        ["0801"],
    ),
    "DIV2K unknown": (["DIV2K_valid_LR_unknown/X4/0801x4.png"], ["DIV2K_valid_HR/0801.png"], ["0801"]),
    "DIV2K mild": (["DIV2K_valid_LR_mild/0801x4m.png"], ["DIV2K_valid_HR/0801.png"], ["0801"]),
    "DIV2K difficult": (["DIV2K_valid_LR_difficult/0801x4d.png"], ["DIV2K_valid_HR/0801.png"], ["0801"]),
    "DIV2K wild": (["DIV2K_valid_LR_wild/0801x4w.png"], ["DIV2K_valid_HR/0801.png"], ["0801"]),
    "Set5 of EDSR": (["LR_bicubic/X4/babyx4.png"], ["HR/baby.png"], ["baby"]),
    "Set5 of BasicSR": (["LRbicx4/baby.png"], ["GTmod12/baby.png", "original/baby.png"], ["baby"]),
    "X4 in LR and HR": (["LR/x4/a_x4.png"], ["HR/x4/a.png"], ["a"]),
    "X4 with LR and GT": (["X4/LR/baby.png"], ["X4/GT/baby.png"], ["baby"]),
    "4 with LR and HR": (["4/LR/baby.png"], ["4/HR/baby.png"], ["baby"]),
    "RealSR": (
        ["Canon/Test/4/Canon_001_LR4.png", "Nikon/Test/4/Nikon_001_LR4.png"],
        ["Canon/Test/4/Canon_001_HR.png", "Nikon/Test/4/Nikon_001_HR.png", "Canon/Test/2/Canon_001_HR.png"],
        ["Canon_001", "Nikon_001"],
    ),
    "RealSR of one camera": (["Test/4/Canon_001_LR4.png"], ["Test/4/Canon_001_HR.png"], ["Canon_001"]),
    "Set14 of SelfExSR": (
        ["image_SRF_4/img_001_SRF_4_LR.png"],
        ["image_SRF_4/img_001_SRF_4_HR.png", "image_SRF_4/img_001_SRF_4_bicubic.png"],
        ["img_001"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_public_layout_gives_its_pairs(layout: str, tmp_path: Path) -> None:
    lr, hr, expected = LAYOUTS[layout]
    found = pairs(make(tmp_path, lr, hr))
    assert names(found) == expected
    for pair in found:
        assert (size_of(pair.lr), size_of(pair.hr)) == (LR, HR)


@pytest.mark.parametrize("inner", ["DIV2K_valid_LR_bicubic/X4", "DIV2K_valid_LR_wild"])
def test_the_folder_of_lr_may_be_named_where_there_are_several(inner: str, tmp_path: Path) -> None:
    lr = ["DIV2K_valid_LR_bicubic/X4/0801x4.png", "DIV2K_valid_LR_wild/0801x4w.png"]
    make(tmp_path, lr, ["DIV2K_valid_HR/0801.png"])
    with pytest.raises(ImageError, match=r"several kinds of LR; name the folder of one of them .*wild") as error:
        pairs(tmp_path)
    assert "\n" not in str(error.value)
    (pair,) = pairs(tmp_path / inner)
    assert pair.lr.parent == tmp_path / inner
    assert pair.name == "0801"


def test_several_lr_of_one_hr_keep_their_own_names(tmp_path: Path) -> None:
    make(tmp_path, [f"DIV2K_valid_LR_wild/0801x4w{i}.png" for i in (1, 2)], ["DIV2K_valid_HR/0801.png"])
    found = pairs(tmp_path)
    assert names(found) == ["0801x4w1", "0801x4w2"]
    assert len({pair.hr for pair in found}) == 1


def test_other_factors_have_their_own_folders(tmp_path: Path) -> None:
    draw(tmp_path / "LR_bicubic" / "X2" / "babyx2.png", (12, 10))
    make(tmp_path, ["LR_bicubic/X4/babyx4.png"], ["HR/baby.png"])
    assert pairs(tmp_path, 2)[0].lr.parent.name == "X2"
    with pytest.raises(ImageError, match="no pairs found for x3"):
        pairs(tmp_path, 3)


def test_names_and_sizes_that_do_not_match_are_listed_in_one_line(tmp_path: Path) -> None:
    make(tmp_path, ["LR/a.png", "LR/b.png", "LR/d.png"], ["HR/b.png", "HR/c.png"])
    draw(tmp_path / "HR" / "d.png", (23, 20))
    with pytest.raises(ImageError) as error:
        pairs(tmp_path)
    text = str(error.value)
    for part in ("a (only in LR)", "c (only in HR)", "d (LR 6 x 5, HR 23 x 20)"):
        assert part in text
    assert "\n" not in text
    assert " b (" not in text


def test_many_wrong_names_are_counted(tmp_path: Path) -> None:
    make(tmp_path, [f"LR/{i:02}.png" for i in range(30)], ["HR/x.png"])
    with pytest.raises(ImageError, match=r"and 11 more$"):
        pairs(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    make(tmp_path, ["LR/a.png"], ["HR/a.png", "HR/a.webp"])
    with pytest.raises(ImageError, match=r"a \(several files in HR\)"):
        pairs(tmp_path)


def test_hr_that_was_not_cut_is_explained_and_can_be_cut(tmp_path: Path) -> None:
    draw(tmp_path / "LR" / "a.png", LR)
    draw(tmp_path / "HR" / "a.png", (27, 21))
    with pytest.raises(ImageError, match=r"a \(LR 6 x 5, HR 27 x 21: HR was not cut to a multiple of 4; --crop"):
        pairs(tmp_path)
    assert names(pairs(tmp_path, crop=True)) == ["a"]
    draw(tmp_path / "HR" / "a.png", (28, 20))
    with pytest.raises(ImageError, match="HR 28 x 20"):
        pairs(tmp_path, crop=True)


def test_folders_without_pairs_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder"):
        pairs(tmp_path / "missing")
    (tmp_path / "LR").mkdir()
    (tmp_path / "HR").mkdir()
    with pytest.raises(ImageError, match="expected LR and HR"):
        pairs(tmp_path)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    make(tmp_path, ["LR/a.png"], ["HR/a.png"])
    (tmp_path / "LR" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png: not a readable picture"):
        pairs(tmp_path)


def test_sizes_are_those_of_upright_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert size_of(tmp_path / "a.jpg") == (20, 30)


# --- two folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pred", "target"),
    [
        (["a", "b"], ["a", "b"]),
        (["a_x4", "b_x4"], ["a", "b"]),
        (["0801x4", "0802x4"], ["0801", "0802"]),
        (["a_out", "b_out"], ["a", "b"]),
        (["a-nextscale_x4", "b-nextscale_x4"], ["a", "b"]),
        (["a_SR", "b_SR"], ["a_HR", "b_HR"]),
        (["only_x4"], ["only"]),
    ],
)
def test_names_match_without_what_all_of_them_end_with(pred: list[str], target: list[str], tmp_path: Path) -> None:
    for folder, stems in (("p", pred), ("t", target)):
        for stem in stems:
            draw(tmp_path / folder / f"{stem}.png", HR)
    found = match_folders(tmp_path / "p", tmp_path / "t")
    assert [(first.stem, second.stem) for _, first, second in found] == list(zip(pred, target, strict=True))
    assert len({name for name, *_ in found}) == len(pred)


def test_two_folders_that_do_not_match_are_one_line(tmp_path: Path) -> None:
    for name, size in (("p/a.png", HR), ("p/b.png", HR), ("t/b.png", LR), ("t/c.png", HR)):
        draw(tmp_path / name, size)
    with pytest.raises(ImageError) as error:
        match_folders(tmp_path / "p", tmp_path / "t")
    text = str(error.value)
    assert f"a (only in {tmp_path / 'p'})" in text
    assert f"c (only in {tmp_path / 't'})" in text
    assert "b (24 x 20 and 6 x 5)" in text
    assert "\n" not in text
    with pytest.raises(ImageError, match="no pictures"):
        match_folders(tmp_path / "p", tmp_path / "missing")
    with pytest.raises(ImageError, match=r"a\.png: this is a file; name the folder"):
        match_folders(tmp_path / "p" / "a.png", tmp_path / "t")
