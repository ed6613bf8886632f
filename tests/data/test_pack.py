"""Packing: sharp, different, attributed crops in shards that every reader of WebDataset understands."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from nextscale.data.crops import Crops, DataError, find_sources
from nextscale.data.options import PackOptions
from nextscale.data.pack import Seen, Summary, dhash, pack, provenance, sharp_windows
from nextscale.errors import OptionError

SMALL = PackOptions(side=64, per_photo=16)


def leaves(seed: int, width: int = 256, height: int = 192) -> Image.Image:
    """Overlapping rectangles of many sizes with a fine texture, as sharp as a good photograph."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), int)
    for _ in range(2000):
        side = int(3 + 30 * rng.random() ** 2)
        top, left = rng.integers(-side, height), rng.integers(-side, width)
        pixels[max(0, top) : top + side, max(0, left) : left + side] = rng.integers(0, 256, 3)
    pixels += rng.integers(-15, 16, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    leaves(0).save(folder / "a.png")
    leaves(1).save(folder / "deep" / "b.png")
    return folder


class Lines(list[str]):
    """What was said."""

    def __call__(self, text: str) -> None:
        self.append(text)


def packed(folder: Path, out: Path, options: PackOptions = SMALL) -> tuple[Summary, Lines]:
    complaints = Lines()
    return pack([folder], out, options, say=Lines(), complain=complaints), complaints


def members(out: Path) -> dict[str, bytes]:
    """Every file of every shard, by shard and name."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                content = shard.extractfile(member)
                assert content is not None
                found[f"{path.name}:{member.name}"] = content.read()
    return found


def descriptions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(data) for name, data in members(out).items() if name.endswith(".json")]


def test_every_window_of_a_sharp_photograph_becomes_a_crop_with_its_origin(photos: Path, tmp_path: Path) -> None:
    summary, _ = packed(photos, tmp_path / "out")
    assert (summary.photos, summary.crops, summary.shards) == (2, 24, 1)
    assert summary.bytes == (tmp_path / "out" / "train-0000.tar").stat().st_size
    pictures = [data for name, data in members(tmp_path / "out").items() if name.endswith(".jpg")]
    for data in pictures:
        with Image.open(io.BytesIO(data)) as crop:
            assert (crop.size, crop.mode) == ((64, 64), "RGB")
    rows = descriptions(tmp_path / "out")
    assert len(rows) == len(pictures) == 24
    assert {row["photo"] for row in rows} == {"a.png", "deep/b.png"}
    assert {row["source"] for row in rows} == {"photos"}
    assert {row["reduction"] for row in rows} == {1}
    assert {row["license"] for row in rows} == {None}
    assert summary.unlicensed == 24


def test_flat_and_blurred_photographs_give_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    leaves(0).filter(ImageFilter.GaussianBlur(12)).save(tmp_path / "in" / "blurred.png")
    Image.new("RGB", (256, 192), (90, 120, 200)).save(tmp_path / "in" / "flat.png")
    with pytest.raises(DataError, match=r"2 without a sharp window.*lower --min-sharpness"):
        packed(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_soft_photograph_is_reduced_until_it_is_sharp() -> None:
    soft = np.array(leaves(0, 512, 512).filter(ImageFilter.GaussianBlur(1.5)))
    windows = sharp_windows(soft, SMALL)
    assert windows
    assert min(window.reduction for window in windows) > 1
    assert all(window.cut(soft).shape == (64, 64, 3) for window in windows)


def test_the_blurred_half_of_a_photograph_is_left_out() -> None:
    photo = leaves(0)
    photo.paste(photo.crop((128, 0, 256, 192)).filter(ImageFilter.GaussianBlur(4)), (128, 0))
    windows = [window for window in sharp_windows(np.array(photo), SMALL) if window.reduction == 1]
    assert len(windows) == 6
    assert all(window.left + window.side <= 128 for window in windows)


def test_windows_never_overlap_and_are_as_many_as_asked_for() -> None:
    photo = np.array(leaves(3, 512, 320))
    for most in (1, 3, 100):
        windows = sharp_windows(photo, PackOptions(side=64, per_photo=most))
        assert len(windows) == min(most, 40)
        covered = np.zeros(photo.shape[:2], int)
        for window in windows:
            covered[window.top : window.top + window.side, window.left : window.left + window.side] += 1
        assert covered.max() == 1
    details = [window.detail for window in windows]
    assert details == sorted(details, reverse=True)


def test_near_duplicates_are_dropped_across_the_whole_set(photos: Path, tmp_path: Path) -> None:
    with Image.open(photos / "a.png") as a:
        a.resize((224, 168), Image.Resampling.BOX).save(photos / "smaller.jpg")
        # Another photograph by its whole, but with windows of the first in it.
        wide = Image.new("RGB", (512, 192))
        wide.paste(leaves(7), (0, 0))
        wide.paste(a.point(lambda value: min(255, value + 2)), (256, 0))
        wide.save(photos / "wide.png")
    summary, _ = packed(photos, tmp_path / "out", PackOptions(side=64, per_photo=100))
    assert (summary.photos, summary.duplicate_photos, summary.duplicate_crops) == (4, 1, 12)
    assert summary.crops == 36


def test_hashes_are_near_within_the_set_distance_only() -> None:
    photo = leaves(2)
    seen = Seen(near=3)
    mark = dhash(np.array(photo))
    assert mark not in seen
    seen.add(mark)
    for bits, near in ((3, True), (4, False)):
        other = np.unpackbits(mark)
        other[:bits] ^= 1
        assert (np.packbits(other) in seen) is near
    assert dhash(np.array(photo.resize((128, 96), Image.Resampling.BOX))) in seen
    for seed in range(2000):  # beyond the room it starts with
        seen.add(np.random.default_rng(seed).integers(0, 256, 8, dtype=np.uint8))
    assert mark in seen
    assert seen.count == 2001


def test_the_same_photographs_give_the_same_bytes_and_a_seed_another_order(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        packed(photos, tmp_path / name, PackOptions(side=64, per_photo=16, shard_mb=0.05, seed=seed))
    one, two, three = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two", "three"))
    assert one == two
    assert one != three
    assert len(one) > 1
    assert all(len(data) <= 50_000 for data in one.values())
    assert sorted(members(tmp_path / "one").values()) == sorted(members(tmp_path / "three").values())


def test_shards_are_read_by_crops_and_by_webdataset(photos: Path, tmp_path: Path) -> None:
    packed(photos, tmp_path / "out")
    assert len(find_sources([str(tmp_path / "out")])) == 24
    assert Crops([str(tmp_path / "out")], 32).batch(0, 4).shape == (4, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own imports
        webdataset = pytest.importorskip("webdataset")
        samples = list(webdataset.WebDataset(str(tmp_path / "out" / "train-0000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:06d}" for i in range(24)]
    assert all(json.loads(sample["json"])["photo"] and sample["jpg"][:2] == b"\xff\xd8" for sample in samples)


def test_source_and_license_come_from_options_sidecars_and_license_files(photos: Path) -> None:
    plain = PackOptions()
    a, b = photos / "a.png", photos / "deep" / "b.png"
    assert provenance(b, photos, plain) == ("photos", None)
    (photos / "LICENSE").write_text("\nThe Unlicense\n\nand more\n")
    assert provenance(b, photos, plain) == ("photos", "The Unlicense")
    (photos / "deep" / "LICENSES.md").write_text("# Here\n| bb.png | no |\n| `b.png` | Ada | CC0 |\n")
    assert provenance(b, photos, plain) == ("photos", "`b.png`; Ada; CC0")
    assert provenance(a, photos, plain) == ("photos", "The Unlicense")
    b.with_suffix(".json").write_text('{"source": "https://example.org/b", "license": "CC-BY-4.0", "size": 3}')
    assert provenance(b, photos, plain) == ("https://example.org/b", "CC-BY-4.0")
    b.with_suffix(".json").write_text('{"licence": "CC0-1.0"}')
    assert provenance(b, photos, plain) == ("photos", "CC0-1.0")
    assert provenance(b, photos, PackOptions(source="mine", license="all mine")) == ("mine", "all mine")
    b.with_suffix(".json").write_text("{broken")
    assert provenance(b, photos, plain) == ("photos", "`b.png`; Ada; CC0")


def test_damaged_photographs_are_counted_named_and_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:3000])
    summary, complaints = packed(photos, tmp_path / "out")
    assert (summary.photos, summary.damaged, summary.crops) == (2, 1, 24)
    assert len(complaints) == 1
    assert "cut.png: the file is truncated" in complaints[0]
    assert "2 photographs read (1 damaged" in summary.line()


def test_an_earlier_result_is_never_touched(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-0000.tar").write_bytes(b"yesterday")
    with pytest.raises(OptionError, match="is there already; name a new folder"):
        packed(photos, out)
    assert (out / "train-0000.tar").read_bytes() == b"yesterday"
    (out / "train-0000.tar").unlink()
    assert packed(photos, out)[0].crops == 24


def test_the_folder_where_the_user_is_is_no_new_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(OptionError, match=r"^\.: is there already; name a new folder"):
        packed(photos, Path())


def test_a_full_disk_is_one_line_and_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(DataError, match="No space left on device"):
        packed(photos, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_pictures_named_twice_count_once_and_missing_folders_are_named(photos: Path, tmp_path: Path) -> None:
    summary = pack([photos, photos / "deep"], tmp_path / "out", SMALL, say=Lines(), complain=Lines())
    assert summary.photos == 2
    with pytest.raises(OptionError, match="no such folder of photographs"):
        pack([tmp_path / "none"], tmp_path / "new", SMALL, say=Lines(), complain=Lines())
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(DataError, match="0 photographs read"):
        packed(photos, tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "value"),
    [("side", 30), ("side", 66), ("shard_mb", 0), ("per_photo", 0), ("near", 64), ("quality", 0), ("seed", -1)],
)
def test_wrong_options_name_themselves(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name.replace('_', '-')} must be"):
        PackOptions(**{name: value})
