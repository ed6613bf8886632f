"""Claims about the command line: names of files, one line per mishap, exit status, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from nextscale import __version__
from nextscale import image as images
from nextscale.commands import progress as progress_lines
from nextscale.commands.main import main
from nextscale.image import Array, Picture
from nextscale.upscale.nextscale import NextScale, Progress

ROOT = Path(__file__).parents[2]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
Run = Callable[..., "Outcome"]


class Outcome:
    """What a call of the command left behind."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.lines = out.splitlines()
        self.complaints = err.splitlines()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def run(
    read_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """`nextscale upscale` with the small model at x1, unless the arguments say otherwise, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        words = [str(word) for word in arguments]
        defaults = {"-n": str(read_once), "-s": "1", "--device": "cpu"}
        for option, value in defaults.items():
            if option not in words:
                words += [option, value]
        try:
            status = main(["upscale", *words, "--fp32"])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        return Outcome(status, *capfd.readouterr())

    return call


def smooth(height: int = 20, width: int = 30, channels: int = 3) -> Array:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 20 + c) + np.cos(y / 15 - c) for c in range(channels)]
    return (127 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


def photo(name: str | Path, *, size: tuple[int, int] = (30, 20), **how: Any) -> Path:
    """A small photograph in a file."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(path.suffix[1:].lower(), path.suffix[1:] or "JPEG")
    Image.fromarray(smooth(size[1], size[0])).save(path, form, **how)
    return path


def files(folder: str | Path = ".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir())


def contents() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in files()}


# ---- names ----


def test_one_picture_to_one_file(run: Run) -> None:
    photo("a.jpg")
    assert run("-i", "a.jpg", "-o", "b.png", "-s", 2).status == 0
    assert files() == ["a.jpg", "b.png"]
    assert images.read("b.png").size == (60, 40)


@pytest.mark.integration
@pytest.mark.parametrize(("scale", "name"), [(4, "a_x4.jpg"), (1.5, "a_x1.5.jpg"), (0.5, "a_x0.5.jpg")])
def test_one_picture_to_a_folder_takes_the_scale_into_its_name(run: Run, scale: float, name: str) -> None:
    photo("a.jpg")
    assert run("-i", "a.jpg", "-o", "new/deep", "-s", scale).status == 0
    assert files("new") == [f"deep/{name}"]
    assert images.read(Path("new/deep", name)).size == (30 * scale, 20 * scale)


@pytest.mark.integration
def test_all_factors_and_confidence_maps_stand_beside_the_picture(run: Run) -> None:
    photo("a.png")
    assert run("-i", "a.png", "-o", "out", "-s", 3, "--all-factors", "--confidence").status == 0
    assert files("out") == [f"a_x{f}{kind}.png" for f in (1, 2, 3) for kind in ("", "_confidence")]
    for factor in (1, 2, 3):
        for kind in ("", "_confidence"):
            assert images.read(f"out/a_x{factor}{kind}.png").size == (30 * factor, 20 * factor)
    assert images.read("out/a_x3_confidence.png").is_gray
    assert run("-i", "a.png", "-o", "one/b.webp", "-s", 2, "--all-factors").status == 0
    assert files("one") == ["b.webp", "b_x1.webp"]


@pytest.mark.integration
def test_a_folder_in_gives_a_folder_out(run: Run) -> None:
    for name in ("in/b.jpg", "in/a.png", "in/c.d e.tif", "in/.hidden.png", "in/sub/e.png"):
        photo(name)
    Path("in/notes.txt").write_text("no picture")
    assert run("-i", "in/", "-o", "out").status == 0
    assert files("out") == ["a_x1.png", "b_x1.jpg", "c.d e_x1.tif"]


@pytest.mark.integration
def test_several_inputs_files_and_folders_each_once(run: Run) -> None:
    photo("in/a.png"), photo("b.png"), photo("c.png")
    outcome = run("-i", "in", "b.png", "-i", "c.png", "./b.png", "in/a.png", "-o", "out")
    assert outcome.status == 0
    assert files("out") == ["a_x1.png", "b_x1.png", "c_x1.png"]
    assert len(outcome.lines) == 4
    assert outcome.lines[3].startswith("3 pictures: 3 done, 0 failed, in ")


@pytest.mark.parametrize(("suffix", "name"), [("_big", "a_big.png"), ("", "a.png"), (".v2", "a.v2.png")])
def test_the_suffix_can_be_chosen(run: Run, suffix: str, name: str) -> None:
    photo("a.png")
    assert run("-i", "a.png", "-o", "out", "--suffix", suffix).status == 0
    assert files("out") == [name]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("A.JPG", "A_x1.JPG"),
        ("a.b.png", "a.b_x1.png"),
        ("with  two spaces.png", "with  two spaces_x1.png"),
        ("größe ☂.png", "größe ☂_x1.png"),
        ("photo", "photo_x1.jpg"),
        ("-dash.png", "-dash_x1.png"),
        ("[red].png", "[red]_x1.png"),
    ],
)
def test_odd_names_are_kept(run: Run, name: str, result: str) -> None:
    photo(name)
    assert run("-i", f"./{name}", "-o", "out").status == 0
    assert files("out") == [result]


# ---- formats ----


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "how", "result"),
    [
        ("a.jpg", {}, "a_x1.jpg"),
        ("a.png", {}, "a_x1.png"),
        ("a.bmp", {}, "a_x1.bmp"),
        ("a.tif", {}, "a_x1.tif"),
        ("a.webp", {"lossless": True}, "a_x1.webp"),
        ("a.webp", {"quality": 80}, "a_x1.webp"),
        ("a.gif", {}, "a_x1.png"),
        ("a.avif", {}, "a_x1.avif"),
    ],
)
def test_auto_keeps_the_format(run: Run, name: str, how: dict[str, Any], result: str) -> None:
    photo(name, **how)
    assert run("-i", name, "-o", "out").status == 0
    assert files("out") == [result]


@pytest.mark.integration
def test_auto_keeps_lossless_lossless(run: Run) -> None:
    for name in ("a.png", "a.bmp", "a.tif"):
        photo(name)
    photo("b.webp", lossless=True)
    Image.fromarray(smooth()).save("liar.jpg", "PNG")  # a lossless picture by a lossy name
    assert run("-i", ".", "-o", "out").status == 0
    results = [images.read(Path("out", name)) for name in files("out")]
    assert len(results) == 5
    assert all(result.lossless for result in results)
    for result in results[1:]:
        np.testing.assert_array_equal(result.rgb, results[0].rgb)


@pytest.mark.integration
def test_auto_never_drops_alpha(run: Run) -> None:
    rgba = Image.fromarray(np.dstack([smooth(), smooth(channels=1)]))
    rgba.save("a.png")
    rgba.save("b.webp", lossless=True)
    bgra = np.asarray(rgba)[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 30, 20, 1, 32, 3, len(bgra), 0, 0, 0, 0) + masks + bytes(52)
    Path("c.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 122 + len(bgra), 0, 0, 122) + header + bgra)
    rgba.save("d.avif")
    assert run("-i", ".", "-o", "out").status == 0
    assert files("out") == ["a_x1.png", "b_x1.webp", "c_x1.png", "d_x1.avif"]
    assert all(images.read(Path("out", name)).alpha is not None for name in files("out"))


def test_a_format_that_cannot_hold_the_result_is_refused_before_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.dstack([smooth(), smooth(channels=1)])).save("alpha.png")
    images.write("deep.png", Picture(smooth().astype(np.uint16) * 257))
    photo("wide.png", size=(20000, 1))
    monkeypatch.setattr(NextScale, "upscale", lambda *_: pytest.fail("worked in vain"))
    outcome = run("-i", ".", "-o", "out", "--ext", "jpg", "-s", 4)
    assert outcome.status == 1
    assert outcome.complaints == [
        "nextscale: alpha.png: JPEG cannot hold transparency; write .png, .webp, .tif or .avif, or drop it",
        "nextscale: deep.png: JPEG cannot hold 16 bits per channel; write .png or .tif, or reduce it to 8 bits",
        "nextscale: wide.png: JPEG holds at most 65500 pixels a side; write .png or .tif",
    ]
    assert not Path("out").exists()


@pytest.mark.parametrize("ext", ["png", "jpg", "webp"])
def test_the_format_can_be_chosen(run: Run, ext: str) -> None:
    photo("a.tif")
    assert run("-i", "a.tif", "-o", "out", "--ext", ext).status == 0
    assert files("out") == [f"a_x1.{ext}"]
    assert images.read(f"out/a_x1.{ext}").lossless == (ext != "jpg")


# ---- kept, from file to file ----


@pytest.mark.integration
def test_gray_stays_gray_and_a_palette_gives_its_colors(run: Run) -> None:
    Image.fromarray(smooth(channels=1)[..., 0]).save("gray.png")
    Image.fromarray(smooth()).quantize(16).save("palette.png")
    clear = Image.fromarray(smooth()).quantize(16)
    clear.save("clear.png", transparency=3)
    assert run("-i", ".", "-o", "out").status == 0
    gray, palette, clear_one = (images.read(f"out/{name}_x1.png") for name in ("gray", "palette", "clear"))
    assert gray.is_gray
    assert not palette.is_gray
    assert palette.alpha is None
    assert clear_one.alpha is not None


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_in_sixteen_bits_out(run: Run, suffix: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), np.uint16)
    alpha = deep[..., 3].copy() if channels == 4 else None
    images.write(f"a{suffix}", Picture(deep[..., :3].copy(), alpha))
    assert run("-i", f"a{suffix}", "-o", "out", "-s", 1.5).status == 0
    result = images.read(f"out/a_x1.5{suffix}")
    assert (result.bits, result.size, result.is_gray) == (16, (45, 30), channels == 1)
    assert (result.alpha is not None) == (channels == 4)
    assert len(np.unique(result.rgb)) > 256


def test_cmyk_becomes_rgb(run: Run) -> None:
    Image.fromarray(smooth()).convert("CMYK").save("a.jpg")
    assert run("-i", "a.jpg", "-o", "out").status == 0
    with Image.open("out/a_x1.jpg") as im:
        assert im.mode == "RGB"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
def test_profile_and_exif_are_kept_and_orientation_applied_once(run: Run, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    photo(name, icc_profile=SRGB, exif=exif)
    assert run("-i", name, "-o", "out", "-s", 2).status == 0
    with Image.open(f"out/a_x2{Path(name).suffix}") as im:
        assert im.size == (40, 60)  # a quarter turn of 30 x 20
        kept = im.getexif()
        assert im.info["icc_profile"] == SRGB
        assert kept.get(0x010F) == "Maker"
        assert kept.get(0x0112, 1) == 1
    turned = images.read(name).rgb.astype(int).mean(2)
    result = images.resize(images.read(f"out/a_x2{Path(name).suffix}").rgb, (20, 30)).astype(int).mean(2)
    assert np.corrcoef(turned.ravel(), result.ravel())[0, 1] > 0.5


# ---- nothing is overwritten ----


@pytest.mark.integration
def test_the_input_is_never_overwritten(run: Run) -> None:
    photo("a.png"), photo("b.png")
    Path("link.png").symlink_to("a.png")
    Path("hard.png").hardlink_to("a.png")
    Path("here").symlink_to(".")
    before = contents()
    for arguments in (
        ("-i", "a.png", "-o", "a.png"),
        ("-i", "a.png", "-o", "./here/a.png"),
        ("-i", "a.png", "-o", "link.png"),
        ("-i", "link.png", "-o", "a.png"),
        ("-i", "a.png", "-o", "hard.png"),
        ("-i", "a.png", "b.png", "-o", ".", "--suffix", ""),
    ):
        outcome = run(*arguments)
        assert outcome.status == 1
        assert all("would overwrite an input; choose another -o or --suffix" in c for c in outcome.complaints)
        assert contents() == before


@pytest.mark.integration
def test_nor_another_input_nor_by_a_smaller_factor_or_a_map(run: Run) -> None:
    photo("a.png"), photo("a_x1.png"), photo("b.jpg"), photo("b.png"), photo("c.png"), photo("c_x2_confidence.png")
    before = contents()
    others = ["a_x1.png", "b.png", "c_x2_confidence.png"]
    outcome = run("-i", "a.png", *others, "-o", ".", "-s", 2, "--all-factors")
    assert [line for line in outcome.complaints if "a.png" in line] == [
        "nextscale: a.png: the result a_x1.png would overwrite an input; choose another -o or --suffix"
    ]
    assert run("-i", "b.jpg", *others, "-o", ".", "--ext", "png", "--suffix", "").status == 1
    assert run("-i", "c.png", *others, "-o", ".", "-s", 2, "--confidence").status == 1
    assert {name: data for name, data in contents().items() if name in before} == before


@pytest.mark.integration
def test_two_results_never_share_a_file(run: Run) -> None:
    photo("x/a.png"), photo("y/a.png"), photo("x/b.gif"), photo("x/b.png"), photo("x/c.jpg"), photo("x/c.png")
    outcome = run("-i", "x", "y", "-o", "out", "--json")
    assert outcome.status == 1
    assert outcome.complaints == [
        "nextscale: y/a.png: its result out/a_x1.png would overwrite that of x/a.png; write it to another folder",
    ]
    assert files("out") == ["a_x1.png", "b_gif_x1.png", "b_png_x1.png", "c_jpg_x1.jpg", "c_png_x1.png"]


@pytest.mark.integration
def test_names_that_differ_in_their_suffix_alone_keep_it_in_their_results(run: Run) -> None:
    photo("in/a.jpg"), photo("in/a.png"), photo("in/b.png"), photo("in/deep/a.png"), photo("in/c"), photo("in/c.gif")
    assert run("-i", "in", "in/c", "-o", "out", "-r").status == 0
    want = ["a_jpg_x1.jpg", "a_png_x1.png", "b_x1.png", "c_gif_x1.png", "c_x1.jpg", "deep/a_x1.png"]
    assert files("out") == want
    assert run("-i", "in", "-o", "png", "-r", "--ext", "png", "--suffix", "", "--all-factors").status == 0
    assert files("png") == ["a_jpg.png", "a_png.png", "b.png", "c.png", "deep/a.png"]
    Path("png/a_jpg.png").unlink()
    again = run("-i", "in", "-o", "png", "-r", "--ext", "png", "--suffix", "", "--all-factors", "--resume", "--json")
    assert [row["outputs"] for row in again.rows] == [{"x1": "png/a_jpg.png"}]


@pytest.mark.integration
def test_results_are_no_pictures_of_the_next_run(run: Run) -> None:
    """As long as nothing but them tells so: their names, or the list of what was written."""
    photo("p.jpg"), photo("q.png"), photo("sub/r.png")
    for scale in (1, 2, 2):
        outcome = run("-i", ".", "-o", ".", "-r", "-s", scale, "--confidence", "--manifest", "state")
        assert outcome.status == 0, outcome.complaints
    # Another list does not know them: they may be anybody's, and are neither taken nor replaced.
    before = {name: Path(name).stat().st_mtime_ns for name in files() if not name.startswith("state")}
    outcome = run("-i", ".", "-o", ".", "-r", "-s", 2, "--confidence", "--manifest", "state2")
    assert outcome.status == 1
    assert outcome.complaints[0] == (
        "nextscale: p.jpg: the result p_x2.jpg would overwrite a file that no earlier run is known to have written; "
        "move it, or choose another -o or --suffix"
    )
    assert {name: Path(name).stat().st_mtime_ns for name in before} == before
    names = [f"{stem}{kind}" for stem in ("p_x{}", "q_x{}", "sub/r_x{}") for kind in ("", "_confidence")]
    pictures = {f"{name.format(f)}" for name in names for f in (1, 2)}
    made = {str(Path(name).with_suffix("")) for name in files() if not name.startswith("state")}
    assert made == {"p", "q", "sub/r", *pictures}
    assert outcome.lines[0] == "p_x1.jpg and 11 more: left out as results of earlier runs; name the files"
    quiet = run("-i", ".", "-o", ".", "-r", "-s", 2, "--confidence", "--manifest", "state", "--quiet")
    assert (quiet.status, quiet.lines) == (0, [])
    assert run("-i", "sub", "p_x1.jpg", "-o", ".").status == 0  # but what is named is taken
    assert "p_x1_x1.jpg" in files()


@pytest.mark.integration
def test_the_list_knows_results_by_any_name(run: Run) -> None:
    photo("p.jpg")
    assert run("-i", ".", "-o", ".", "--suffix", "_big").status == 0
    assert run("-i", ".", "-o", ".").status == 0
    Path("p.jpg").unlink()
    outcome = run("-i", ".", "-o", ".", "--json")
    assert files() == ["p_big.jpg", "p_x1.jpg"]
    assert outcome.status == 1
    assert outcome.rows[0]["error"].startswith("nothing but results of earlier runs in this folder")


def test_earlier_results_are_replaced_through_links_too(run: Run) -> None:
    photo("a.png")
    Path("old.png").write_bytes(b"old")
    Path("link.png").symlink_to("old.png")
    assert run("-i", "a.png", "-o", "link.png").status == 0
    assert Path("link.png").is_symlink()
    assert images.read("old.png").size == (30, 20)


# ---- what is said ----


@pytest.mark.integration
def test_each_picture_prints_a_plain_line(run: Run) -> None:
    photo("a.png"), photo("b.png")
    outcome = run("-i", "a.png", "b.png", "-o", "out", "-s", 2)
    assert outcome.complaints == []
    assert [line.split(" in ")[0] for line in outcome.lines] == [
        "a.png: 30 x 20 -> 60 x 40",
        "b.png: 30 x 20 -> 60 x 40",
    ]
    assert outcome.lines[0].endswith(" s -> out/a_x2.png")


def test_json_prints_one_object_per_file(run: Run) -> None:
    photo("a.png")
    Path("b.png").write_bytes(b"")
    outcome = run("-i", "a.png", "b.png", "gone.png", "-o", "out", "-s", 2, "--all-factors", "--confidence", "--json")
    assert outcome.status == 1
    gone, good, empty = outcome.rows  # what is missing is told before the model is loaded
    assert good.keys() == {"input", "outputs", "size", "output_size", "seconds", "timings"}
    assert (good["input"], good["size"], good["output_size"]) == ("a.png", [30, 20], [60, 40])
    assert good["outputs"] == {f"x{f}{kind}": f"out/a_x{f}{kind}.png" for f in (1, 2) for kind in ("", "_confidence")}
    assert all(Path(path).exists() for path in good["outputs"].values())
    assert good["timings"]["total"] > 0
    assert empty == {"input": "b.png", "error": "the file is empty; copy or download it again"}
    assert gone["input"] == "gone.png"


@pytest.mark.integration
def test_long_work_in_a_pipe_says_now_and_then_where_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_lines.ProgressLines, "EVERY", 0.0)
    photo("a.png", size=(200, 20))
    lines = run("-i", "a.png", "-o", "out").lines
    assert lines[0].startswith("a.png: 17%, tile 1/2 step 1/3, about ")
    assert [line.split(",")[0] for line in lines[:-1]] == ["a.png: 17%", "a.png: 33%", "a.png: 50%"]
    assert all("\r" not in line and "\x1b" not in line for line in lines)
    assert len(run("-i", "a.png", "-o", "out", "--json").lines) == 1


@pytest.mark.integration
def test_a_big_job_says_size_tiles_and_time_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png", size=(500, 20))
    monkeypatch.setattr(progress_lines.ProgressLines, "EVERY", 1e9)
    assert len(run("-i", "a.png", "-o", "out", "--tile-batch", 1).lines) == 1
    monkeypatch.setattr(progress_lines.ProgressLines, "LONG", 0.0)
    first, last = run("-i", "a.png", "-o", "out", "--tile-batch", 1, "-s", 6).lines
    said, _, time = first.partition(", ")
    assert said == "a.png: 500 x 20 -> 3000 x 120 pixels in 12 tiles"
    assert time.startswith("about ")
    assert last.startswith("a.png: 500 x 20 -> 3000 x 120 in ")
    assert len(run("-i", "a.png", "-o", "out", "--tile-batch", 1, "--json").lines) == 1


def test_a_job_can_be_bounded(run: Run) -> None:
    photo("a.png", size=(500, 20)), photo("b.png")
    outcome = run("-i", "a.png", "b.png", "-o", "out", "--max-tiles", 4)
    assert outcome.status == 1
    assert outcome.complaints == [
        "nextscale: a.png: 500 x 20 -> 500 x 20 pixels in 5 tiles is more than the 4 that are allowed; "
        "use a smaller scale or a smaller picture"
    ]
    assert files("out") == ["b_x1.png"]
    assert run("-i", "a.png", "-o", "out", "--max-tiles", -1).status == 2


@pytest.mark.integration
def test_a_terminal_gets_bars_and_the_pipe_its_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    photo("[bold]a.png"), photo("b.png")
    outcome = run("-i", ".", "-o", "out")
    bars = "".join(outcome.complaints)
    assert "pictures" in bars
    assert "[bold]a.png" in bars
    assert [line.split(":")[0] for line in outcome.lines] == ["[bold]a.png", "b.png", "2 pictures"]
    assert not run("-i", ".", "-o", "out", "--json").complaints


def test_progress_counts_passes_tiles_and_steps() -> None:
    progress = Progress(tiles_done=1, tiles=4, step=5, steps=10, passes_done=1, passes=2)
    assert progress_lines.position(progress) == "pass 2/2 tile 2/4 step 5/10"
    assert progress.share == (1 + 1.5 / 4) / 2


def test_names_that_the_terminal_cannot_print_are_escaped(run: Run) -> None:
    odd = os.fsdecode(b"a\xff.png")
    try:
        Path(odd).touch()
    except OSError:
        pytest.skip("this disk takes no such name")
    photo("a.png").replace(odd)
    Path("two\nlines.png").write_bytes(b"")
    outcome = run("-i", odd, "two\nlines.png", "-o", "out")
    assert outcome.status == 1
    assert outcome.lines[0].startswith("a\\udcff.png: 30 x 20")
    assert outcome.complaints == ["nextscale: two\\nlines.png: the file is empty; copy or download it again"]
    assert run("-i", odd, "-o", "out", "--json").rows[0]["input"] == odd


@pytest.mark.integration
def test_version() -> None:
    for words in (["version"], ["--version"]):
        result = subprocess.run([sys.executable, "-m", "nextscale", *words], cwd=ROOT, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, f"nextscale {__version__}\n")


# ---- bad input ----


def test_bad_files_give_one_line_each_and_the_rest_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = images.read.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "max_pixels", 5000)
    photo("in/good1.png"), photo("in/good2.jpg"), photo("in/bomb.png", size=(100, 100))
    whole = photo("whole.jpg").read_bytes()
    Path("in/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Path("in/empty.png").write_bytes(b"")
    Path("in/text.png").write_text("hello, this is text")
    Path("in/dangling.png").symlink_to("nowhere.png")
    Image.new("RGB", (4, 4)).save("in/moving.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    Path("none").mkdir()
    outcome = run("-i", "in", "none", "gone.png", "in/good2.jpg", "-o", "out")
    assert outcome.status == 1
    assert sorted(outcome.complaints) == [
        "nextscale: gone.png: no such file; check the name",
        "nextscale: in/bomb.png: 100 x 100 pixels are over the limit of 0.005 megapixels; crop or shrink it first",
        "nextscale: in/dangling.png: the link points to a missing file; mend the link or name the file itself",
        "nextscale: in/empty.png: the file is empty; copy or download it again",
        "nextscale: in/moving.gif: this GIF is animated; save one frame of it as a picture",
        "nextscale: in/text.png: this is not a picture; supported are JPEG, PNG, WebP, TIFF, BMP, AVIF and GIF",
        "nextscale: in/truncated.jpg: the file is truncated; copy or download it again",
        "nextscale: none: no pictures in this folder; supported are JPEG, PNG, WebP, TIFF, BMP, AVIF and GIF",
    ]
    assert files("out") == ["good1_x1.png", "good2_x1.jpg"]
    assert outcome.lines[2].startswith("10 pictures: 2 done, 8 failed, in ")


def test_an_empty_folder_alone_is_a_failure_too(run: Run) -> None:
    Path("none").mkdir()
    outcome = run("-i", "none", "-o", "out", "--json")
    assert outcome.status == 1
    assert [row["input"] for row in outcome.rows] == ["none"]
    assert not Path("out").exists()


def test_a_folder_that_may_not_be_read_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("in/a.png"), photo("b.png")
    scandir = os.scandir

    def guarded(path: Any) -> Any:
        if str(path) == "in":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    outcome = run("-i", "in", "b.png", "-o", "out")
    assert outcome.status == 1
    assert outcome.complaints == [
        "nextscale: in: the folder cannot be listed (Permission denied); check its name and permissions"
    ]
    assert files("out") == ["b_x1.png"]


def test_a_mishap_inside_is_one_line_as_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXTSCALE_DEBUG", raising=False)
    monkeypatch.setattr(NextScale, "upscale", lambda *_, **__: 1 / 0)
    photo("a.png")
    outcome = run("-i", "a.png", "-o", "out")
    assert outcome.status == 1
    assert outcome.complaints == [
        "nextscale: a.png: internal error (ZeroDivisionError: division by zero); NEXTSCALE_DEBUG=1 shows where"
    ]
    monkeypatch.setenv("NEXTSCALE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("-i", "a.png", "-o", "out")


def test_pictures_that_are_not_read_are_named(run: Run) -> None:
    photo("a.png")
    Path("b.jfif").write_bytes(photo("b.jpg").read_bytes())
    Path("b.jpg").unlink()
    Path("c.HEIC").write_bytes(b"")
    Path("d.nef").write_bytes(b"")
    Path("e.ppm").write_bytes(b"")
    Path("notes.txt").write_text("no picture")
    outcome = run("-i", ".", "-o", "out")
    assert outcome.status == 0
    assert outcome.complaints == [
        "nextscale: c.HEIC and 2 more: left out, as such pictures are not read; make JPEG, PNG or TIFF files of them"
    ]
    assert files(Path("out")) == ["a_x1.png", "b_x1.jpg"]


def test_a_set_that_fails_leaves_none_of_its_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    encode, calls = images.encode_bytes, []

    def failing(*arguments: Any, **options: Any) -> bytes:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return encode(*arguments, **options)

    monkeypatch.setattr(images, "encode_bytes", failing)
    outcome = run("-i", "a.png", "-o", "out", "--all-factors", "-s", "2")
    (line,) = outcome.complaints
    assert line.startswith(f"nextscale: a.png: {Path('out')}")
    assert line.endswith(": the disk is full; free some space")
    assert len(calls) == 2
    assert not files(Path("out"))


# ---- bad targets ----


def test_a_target_that_cannot_be_is_refused_before_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    Path("file").write_text("not a folder")
    monkeypatch.setattr(NextScale, "upscale", lambda *_, **__: pytest.fail("worked in vain"))
    for target in ("file/b.png", "file/deep/b.png", "file/folder"):
        outcome = run("-i", "a.png", "-o", target)
        assert outcome.status == 1
        (line,) = outcome.complaints
        assert line.startswith("nextscale: a.png: file/")  # the place, whose input alone tells nothing
        assert line.endswith(": a part of the folder's path is a file; choose another folder")
    long = "n" * 300
    outcome = run("-i", "a.png", "-o", f"{long}.png")
    assert outcome.complaints == [f"nextscale: a.png: {long}.png: the name is too long; choose a shorter one"]
    assert files() == ["a.png", "file"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which nobody may write")
def test_an_unwritable_target_is_one_line(run: Run) -> None:
    photo("a.png"), photo("b.png")
    for target in ("/proc/b.png", "/sys/b.png"):
        outcome = run("-i", "a.png", "-o", target)
        assert outcome.status == 1
        (line,) = outcome.complaints
        assert line.startswith(f"nextscale: a.png: {target}: ")
        assert line.endswith("choose another folder")


@pytest.mark.integration
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(model_folder: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    assert resource
    rng = np.random.default_rng(0)
    for name, side in (("a_small.png", 8), ("b_large.png", 120), ("c_small.png", 8)):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(tmp_path / name)
    arguments = ["upscale", "-i", ".", "-o", "out", "-s", "2", "-n", str(model_folder), "--device", "cpu", "--fp32"]
    code = f"""
import resource, sys
from nextscale.commands.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
sys.exit(main({arguments!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"nextscale: b_large.png: {Path('out', 'b_large_x2.png')}: the file would exceed the size limit; "
        "raise it (ulimit -f) or write a smaller format"
    ]
    assert files(tmp_path / "out") == ["a_small_x2.png", "c_small_x2.png"]
    assert result.stdout.splitlines()[2].startswith("3 pictures: 2 done, 1 failed, in ")


def test_a_disk_that_fills_while_writing_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    Path("b.png").write_bytes(b"the result of yesterday")

    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", write)  # the last step, after the data
    outcome = run("-i", "a.png", "-o", "b.png")
    assert outcome.status == 1
    assert outcome.complaints == ["nextscale: a.png: b.png: the disk is full; free some space"]
    assert files() == ["a.png", "b.png"]
    assert Path("b.png").read_bytes() == b"the result of yesterday"


# ---- wrong usage ----


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("-s", "0"), "scale must be above 0"),
        (("-s", "nan"), "scale must be above 0"),
        (("-s", "four"), "-s/--scale"),
        (("-t", "100"), "tile of 100 px"),
        (("--tile", "-1"), "tile must be 0 or more"),
        (("--tile-overlap", "1"), "tile-overlap must be from 8 to half a tile (64), got 1"),
        (("--tile-overlap", "100"), "tile-overlap must be from 8 to half a tile (64), got 100"),
        (("--temperature", "-1"), "temperature must be"),
        (("--top-k", "-1"), "top-k must be"),
        (("--top-k", "1.5"), "--top-k"),
        (("--top-p", "2"), "top-p must be"),
        (("--cfg", "-1"), "cfg must be"),
        (("--seed", "-1"), "seed must be"),
        (("--fidelity", "2"), "fidelity must be"),
        (("--input-class", "dirty"), "--input-class"),
        (("--color-fix", "sepia"), "--color-fix"),
        (("--ext", "xcf"), "--ext"),
        (("--device", "toaster"), "unknown device toaster"),
        (("--suffix", "../x"), "--suffix"),
        (("--tint", "red"), "--tint"),
    ],
)
def test_wrong_options_exit_with_2_and_name_the_option(run: Run, arguments: tuple[str, ...], named: str) -> None:
    photo("a.png")
    outcome = run("-i", "a.png", "-o", "out", *arguments)
    assert outcome.status == 2
    assert named in " ".join(outcome.complaints)
    assert "Traceback" not in " ".join(outcome.complaints)
    assert outcome.lines == []
    assert files() == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("-i", "a.png", "b.png", "-o", "a.png"),
            "-o a.png: this is a file's name, but several pictures need a folder",
        ),
        (("-i", "a.png", "b.png", "-o", "new.png"), "several pictures need a folder"),
        (("-i", ".", "-o", "new.png"), "several pictures need a folder"),
        (("-i", "a.png", "-o", "text"), "-o text: this is no picture's name; name a folder"),
        (("-i", "a.png", "-o", "new.xcf"), "-o new.xcf: unknown format; use one of .png"),
        (("-i", "a.png", "-o", "new.png", "--ext", "jpg"), "-o new.png and --ext jpg contradict each other"),
        (("-i", "a.png", "-o", "new.png", "--suffix", "_big"), "--suffix is for names in a folder"),
        (("-i", "-o", "out"), "name at least one picture or folder"),
        (("-o", "out"), "name at least one picture or folder"),
        (("-i", "a.png"), "-o FILE|DIR"),
    ],
)
def test_contradictions_exit_with_2(run: Run, arguments: tuple[str, ...], said: str) -> None:
    photo("a.png"), photo("b.png")
    Path("text").write_text("text")
    outcome = run(*arguments)
    assert outcome.status == 2
    assert said in " ".join(outcome.complaints)
    assert files() == ["a.png", "b.png", "text"]


@pytest.mark.integration
@pytest.mark.parametrize("words", [[], ["restore"], ["upscale", "-h", "--tint"]])
def test_wrong_commands_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == (0 if "-h" in words else 2)
    assert capsys.readouterr()


@pytest.mark.integration
def test_an_interrupt_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["nextscale.image"], "encode_bytes", interrupt)
    photo("a.png")
    outcome = run("-i", "a.png", "-o", "out")
    assert outcome.status == 130
    assert outcome.complaints == ["nextscale: stopped"]
    assert files() == ["a.png"]


@pytest.mark.integration
def test_a_reader_that_goes_away_is_no_traceback(model_folder: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    command = [sys.executable, "-m", "nextscale", "upscale", "-i", str(tmp_path), "-o", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [*command, "-s", "1", "-n", str(model_folder)],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


# ---- models ----


def test_an_unknown_model_is_one_line(run: Run) -> None:
    photo("a.png")
    outcome = run("-i", "a.png", "-o", "out", "-n", "nonsense")
    assert outcome.status == 1
    (line,) = outcome.complaints
    assert line.startswith("nextscale: nonsense: no such model; give a folder, a hub id (owner/name) or a shipped name")


def test_a_hub_id_without_network_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("Name or service not known\nand many more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    photo("a.png")
    outcome = run("-i", "a.png", "-o", "out", "-n", "owner/name")
    assert outcome.status == 1
    (line,) = outcome.complaints
    assert line.startswith("nextscale: owner/name: ")
    assert line.endswith("check the name and the connection")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "damaged or not a safetensors file"),
        ("no weights", "missing; a model folder holds config.json and model.safetensors"),
        ("no config", "missing; a model folder holds config.json and model.safetensors"),
        ("broken json", "not readable as JSON"),
        ("unknown key", "unknown key config.transformer.color"),
    ],
)
def test_a_damaged_model_folder_is_one_line(run: Run, model_folder: Path, damage: str, said: str) -> None:
    folder = Path(shutil.copytree(model_folder, "broken"))
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    elif damage == "broken json":
        config.write_text(config.read_text()[:-20])
    else:
        data = json.loads(config.read_text())
        data["config"]["transformer"]["color"] = "red"
        config.write_text(json.dumps(data))
    photo("a.png")
    outcome = run("-i", "a.png", "-o", "out", "-n", "./broken")
    assert outcome.status == 1
    (line,) = outcome.complaints
    assert line.startswith("nextscale: broken/")
    assert said in line
    assert files("out") == []


# ---- help and options ----


def help_of(*words: str) -> subprocess.CompletedProcess[str]:
    """`--help` in a fresh process; its last line is the CPU time and whether torch was imported."""
    code = f"""
import sys, time
from nextscale.commands.main import main

try:
    main({[*words, "--help"]!r})
finally:
    print(time.process_time(), "torch" in sys.modules)
"""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("upscale",),
        ("evaluate",),
        ("train",),
        ("train", "tokenizer"),
        ("train", "transformer"),
        ("degrade",),
        ("data", "pack"),
        ("convert",),
        ("version",),
    ],
)
def test_help_is_instant_and_without_torch(words: tuple[str, ...]) -> None:
    result = help_of(*words)
    assert result.returncode == 0
    assert "usage: nextscale" in result.stdout
    seconds, torch_imported = result.stdout.splitlines()[-1].split()
    assert torch_imported == "False"
    assert float(seconds) < 1.5


@pytest.mark.integration
def test_every_option_has_its_promised_spelling(run: Run) -> None:
    photo("a.png")
    text = help_of("upscale").stdout
    for option in ("-i", "-o", "-s", "-t", "-n"):
        assert f" {option} " in text
    outcome = run(
        "-i", "a.png", "-o", "out", "-s", 1, "--all-factors", "--confidence", "--seed", 1, "--temperature", 1,
        "--top-k", 5, "--top-p", 0.9, "--cfg", 1, "--input-class", "clean", "-t", 128, "--tile-overlap", 16,
        "--color-fix", "adain", "--suffix", "_s", "--ext", "webp", "--device", "cpu", "--json", "--fidelity", 0.5,
    )  # fmt: skip
    assert outcome.status == 0
    assert files("out") == ["a_s.webp", "a_s_confidence.png"]


def test_options_reach_the_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = NextScale.upscale

    def upscale(self: NextScale, picture: Any, options: Any, **more: Any) -> Any:
        seen.append(options)
        return real(self, picture, options, **more)

    monkeypatch.setattr(NextScale, "upscale", upscale)
    photo("a.png")
    run("-i", "a.png", "-o", "out", "--seed", 7, "--temperature", 0.5, "--top-k", 9, "--top-p", 0.8, "--cfg", 1.5)
    (options,) = seen
    assert (options.seed, options.temperature, options.top_k, options.top_p, options.cfg) == (7, 0.5, 9, 0.8, 1.5)


@pytest.mark.integration
def test_the_same_command_gives_the_same_bytes(run: Run) -> None:
    photo("a.png")
    drawn = ("--temperature", 1)
    for folder, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert run("-i", "a.png", "-o", folder, "--seed", seed, *drawn).status == 0
    one, two, three = (Path(folder, "a_x1.png").read_bytes() for folder in ("one", "two", "three"))
    assert one == two
    assert one != three


# ---- degrade and data ----


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Any `nextscale` command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Outcome:
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        return Outcome(status, *capfd.readouterr())

    return call


def test_degrade_says_a_line_per_picture_and_complains_of_bad_ones(command: Run) -> None:
    photo("in/a.png", size=(30, 20))
    Path("in/b.png").write_bytes(b"nothing")
    outcome = command("degrade", "-i", "in", "-o", "out", "--preset", "x4plus", "--seed", 3, "--sheet", "sheet.png")
    assert outcome.status == 1
    assert outcome.lines == ["in/a.png: 30 x 20 -> 7 x 5 -> out/a.png"]
    assert outcome.complaints == [
        "nextscale: in/b.png: this is not a picture; supported are JPEG, PNG, WebP, TIFF, BMP, AVIF and GIF"
    ]
    assert files() == ["in/a.png", "in/b.png", "out/a.json", "out/a.png", "sheet.png"]
    again = command("degrade", "-i", "in", "-o", "again", "--recipes", "out")
    assert again.lines == ["in/a.png: 30 x 20 -> 7 x 5 -> again/a.png"]
    assert Path("again/a.png").read_bytes() == Path("out/a.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("degrade", "-i", "none", "-o", "out"), 2, "-i none: no such folder"),
        (("degrade", "-i", "in", "-o", "in/lr"), 2, "-o in/lr: lies inside the folder of photographs"),
        (("degrade", "-i", "in", "-o", "out", "--preset", "strong"), 2, "--preset"),
        (("degrade", "-i", "in", "-o", "out", "--factor", 0), 2, "factor must be 1 or more"),
        (("data", "pack", "in"), 2, "needs folders of photographs, then the folder to write"),
        (("data", "pack", "none", "out"), 2, "none: no such folder of photographs"),
        (("data", "pack", "in", "out", "--side", 30), 2, "side must be a multiple of 4 from 32"),
        (("data", "pack", "in", "out"), 1, "1 without a sharp window"),
        (("data", "check", "none"), 1, "none: no such training data"),
        (("data", "check"), 2, "data check needs"),
    ],
)
def test_mistakes_in_preparing_data_are_one_line(
    command: Run, words: tuple[object, ...], status: int, said: str
) -> None:
    photo("in/a.png")
    outcome = command(*words)
    assert outcome.status == status
    assert said in " ".join(outcome.complaints)
    assert "Traceback" not in " ".join(outcome.complaints)
    assert files() == ["in/a.png"]


def test_pack_says_its_summary_and_check_names_what_is_damaged(command: Run) -> None:
    Path("in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save("in/a.png")
    outcome = command("data", "pack", "in", "out", "--side", 32, "--license", "CC0-1.0")
    assert outcome.status == 0
    (line,) = outcome.lines
    assert line.startswith(
        "1 photographs read (0 damaged, 0 near-duplicates, 0 without a sharp window): 4 crops kept, "
    )
    assert line.endswith(f"; 1 shards, {Path('out/train-0000.tar').stat().st_size / 1e6:.1f} MB")
    assert command("data", "check", "out").lines == ["4 pictures, 0 damaged (0.00%)"]
    Path("in/b.png").write_bytes(Path("in/a.png").read_bytes()[:2000])
    checked = command("data", "check", "in", "out/*.tar")
    assert checked.status == 1
    assert checked.lines == ["6 pictures, 1 damaged (16.67%)"]
    assert checked.complaints == ["nextscale: in/b.png: the file is truncated; copy or download it again"]


@pytest.mark.parametrize(
    "arguments", [("a.png", "-o", "b.png"), ("-o", "b.png", "a.png"), ("-i", "a.png", "-o", "b.png")]
)
def test_pictures_need_no_option(run: Run, arguments: tuple[str, ...]) -> None:
    images.write("a.png", Picture(np.zeros((9, 9, 3), np.uint8)))
    outcome = run(*arguments, "--input-class", "clean", "--json")
    assert outcome.status == 0, outcome.complaints
    assert outcome.rows[0]["outputs"] == {"x1": "b.png"}
