"""Rendered training pages: the same number gives the same pixels, and the kinds differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont
from scipy import ndimage

from nextscale.commands.data import Pages
from nextscale.commands.main import main
from nextscale.data.pages import LETTERS, find_fonts, render
from nextscale.errors import OptionError


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pillow's own font as a file, so that the test needs no fonts of the system."""
    folder = tmp_path_factory.mktemp("fonts")
    default = ImageFont.load_default(size=12)
    assert isinstance(default, ImageFont.FreeTypeFont)
    data = default.path
    (folder / "plain.ttf").write_bytes(data.getvalue() if hasattr(data, "getvalue") else Path(data).read_bytes())  # type: ignore[arg-type]
    (folder / "symbols.ttf").write_bytes(b"")
    return find_fonts([folder])


def test_symbol_fonts_are_left_out_and_a_folder_without_fonts_is_refused(fonts: list[Path], tmp_path: Path) -> None:
    assert [font.name for font in fonts] == ["plain.ttf"]
    with pytest.raises(OptionError, match="fonts"):
        find_fonts([tmp_path])


def test_a_number_gives_its_picture(fonts: list[Path]) -> None:
    pages = [np.asarray(render(0, number, fonts, 128)) for number in range(12)]
    assert all(page.shape == (128, 128, 3) for page in pages)
    assert np.array_equal(pages[3], np.asarray(render(0, 3, fonts, 128)))
    assert len({page.tobytes() for page in pages}) == 12
    # Some have hard edges, as text has, and some have none.
    edges = [float(np.abs(np.diff(page.astype(int), axis=1)).max()) for page in pages]
    assert max(edges) > 120


def test_kinds_can_be_chosen(fonts: list[Path]) -> None:
    for number in range(4):
        ramp = np.asarray(render(1, number, fonts, 128, ["ramp"])).astype(int)
        assert np.abs(np.diff(ramp, axis=0)).max() < 24
    shapes = [np.asarray(render(1, number, fonts, 128, ["shapes"])).astype(int) for number in range(8)]
    steps = [np.abs(np.diff(shape, axis=0)).max(2) for shape in shapes]
    # Clean outlines between smooth areas: some steps are high, and most of each picture has none.
    assert max(step.max() for step in steps) > 60
    assert all(np.median(step) < 8 for step in steps)
    # They are not part of the usual mixture, whose pictures stay what they were.
    usual = ["page", "sign", "screen", "drawing", "ramp"]
    assert render(2, 5, fonts, 64).tobytes() == render(2, 5, fonts, 64, usual).tobytes()
    with pytest.raises(OptionError, match="poster"):
        render(0, 0, fonts, 128, ["poster"])


def test_some_pages_have_a_rule(fonts: list[Path]) -> None:
    ruled = 0
    for number in range(24):
        page = np.asarray(render(3, number, fonts, 128, ["page"])).astype(int)
        values, counts = np.unique(page.reshape(-1, 3), axis=0, return_counts=True)
        inked = (page != values[counts.argmax()]).any(axis=2)
        # No line of letters is unbroken over most of the page.
        ruled += bool((inked[:, 32:].mean(axis=1) > 0.95).any())
    assert 2 <= ruled <= 16


def test_ruled_pages_have_black_rules_on_bright_paper(fonts: list[Path]) -> None:
    rules, lettered = 0, 0
    for number in range(12):
        page = np.asarray(render(5, number, fonts, 256, ["ruled"])).astype(int)
        assert np.ptp(page, axis=2).max() == 0
        assert np.median(page) >= 200
        dark = page[:, 64:128, 0] < 150
        # Turned by up to three degrees, a rule is within four rows over 64 pixels.
        near = np.lib.stride_tricks.sliding_window_view(dark, 5, 0)
        rules += int(near.max(axis=2).min(axis=1).max())
        lettered += bool((np.abs(np.diff(page[..., 0], axis=1)) > 60).sum() > 200)
    assert rules >= 9
    assert lettered >= 4
    assert render(5, 0, fonts, 64, ["ruled"]).tobytes() != render(5, 0, fonts, 64, ["ruled"], (20, 30)).tobytes()


def test_print_has_letters_of_one_size_alone(fonts: list[Path]) -> None:
    def tall(kind: str) -> int:
        """Letters of more than twice the size of the lines."""
        found = 0
        for number in range(24):
            page = np.asarray(render(6, number, fonts, 256, [kind], (10, 11))).astype(int)
            values, counts = np.unique(page.reshape(-1, 3), axis=0, return_counts=True)
            inked = (np.abs(page - values[counts.argmax()]) > 60).any(axis=2)
            boxes = ndimage.find_objects(ndimage.label(inked)[0])
            # What is wider than this is a rule.
            found += sum(y.stop - y.start > 22 and x.stop - x.start < 80 for y, x in boxes)
        return found

    assert tall("page") > 4
    assert tall("print") == 0


def test_letters_of_pages_have_the_sizes_asked_for(fonts: list[Path]) -> None:
    def steps(letters: tuple[float, float]) -> float:
        """How often a row of pixels changes much: small letters have more rims."""
        pages = [np.asarray(render(4, number, fonts, 256, ["page"], letters)).astype(int) for number in range(6)]
        return float(np.mean([(np.abs(np.diff(page, axis=1)).max(axis=2) > 60).mean() for page in pages]))

    assert steps((10, 12)) > 2 * steps((80, 90))
    assert Pages(Path("pages")).letters == LETTERS
    for letters in ((0.0, 20.0), (30.0, 20.0), (20.0, 2000.0), (float("nan"), 20.0)):
        with pytest.raises(OptionError, match="letters must be two sizes from 4 to 1000 pixels"):
            render(0, 0, fonts, 128, ["page"], letters)


def test_a_damaged_font_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.ttf").write_bytes(b"junk")
    with pytest.raises(OptionError, match=r"torn\.ttf: this font cannot be read"):
        render(0, 0, find_fonts([tmp_path]), 64, ["page"])


def test_the_command_writes_what_is_missing(
    fonts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pages"
    command = ["data", "pages", str(out), "--fonts", str(fonts[0].parent), "--count", "3", "--side", "64"]
    assert main(command) == 0
    files = sorted(out.iterdir())
    assert [file.name for file in files] == [f"page-0-{number:05}.png" for number in range(3)]
    first = files[0].read_bytes()
    files[1].write_bytes(b"kept")
    files[0].unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == f"1 new pages in {out}, from 1 fonts; 2 were there and stay as they are\n"
    assert files[0].read_bytes() == first
    assert files[1].read_bytes() == b"kept"
    assert main(["data", "pages", str(out), "--fonts", str(out)]) == 2
    # Pictures without letters need no fonts.
    wordless = ["data", "pages", str(tmp_path / "shapes"), "--fonts", str(out), "--count", "1", "--side", "64"]
    assert main([*wordless, "--kinds", "ramp", "shapes"]) == 0
    assert main([*command[:2], str(tmp_path / "none"), *command[3:], "--letters", "90", "10"]) == 2
    assert not (tmp_path / "none").exists()
    assert len(list((tmp_path / "shapes").iterdir())) == 1
