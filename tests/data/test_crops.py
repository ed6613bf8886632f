"""Training crops: the same for the same position, from folders, shards and addresses alike, on any number of ranks."""

from __future__ import annotations

import builtins
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nextscale.data import crops as data
from nextscale.data.crops import Crops, DataError, find_sources
from nextscale.install import how_to_install
from nextscale.train.distributed import positions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (160, 200, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def tar(folder: Path, path: Path) -> Path:
    """A shard of a folder's files."""
    with tarfile.open(path, "w") as shard:
        for photo in sorted(folder.iterdir()):
            content = photo.read_bytes()
            info = tarfile.TarInfo(photo.name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shard(photos: Path, tmp_path: Path) -> Path:
    return tar(photos, tmp_path / "shard.tar")


def damage(photo: Path) -> None:
    """Cut a file in half, as a broken copy does."""
    content = photo.read_bytes()
    photo.write_bytes(content[: len(content) // 2])


# ---- the stream ----


def test_a_position_names_its_crop(photos: Path) -> None:
    a, b, other = Crops([str(photos)], 64, seed=1), Crops([str(photos)], 64, seed=1), Crops([str(photos)], 64, seed=2)
    assert np.array_equal(a.batch(7, 4), b.batch(7, 4))
    assert not np.array_equal(a.batch(7, 4), other.batch(7, 4))
    assert a.batch(0, 3).shape == (3, 3, 64, 64)


def test_a_resumed_stream_continues_exactly(photos: Path) -> None:
    whole = Crops([str(photos)], 64).batch(0, 12)
    later = Crops([str(photos)], 64).batch(8, 4)
    assert np.array_equal(whole[8:], later)


def test_a_shard_gives_what_its_folder_gives(photos: Path, shard: Path) -> None:
    assert np.array_equal(Crops([str(photos)], 64).batch(0, 5), Crops([str(shard)], 64).batch(0, 5))
    assert np.array_equal(Crops([str(shard.parent / "*.tar")], 64).batch(0, 5), Crops([str(shard)], 64).batch(0, 5))


def test_every_epoch_shows_every_photograph_once(photos: Path) -> None:
    crops = Crops([str(photos)], 64)
    for epoch in range(3):
        names = {crops._source(epoch * 5 + i).name for i in range(5)}
        assert len(names) == 5


def test_small_photographs_are_enlarged_to_the_crop(photos: Path) -> None:
    assert Crops([str(photos)], 256).batch(0, 1).shape == (1, 3, 256, 256)


def test_gray_deep_transparent_and_turned_photographs_are_cut_as_they_look(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    red = Image.new("RGB", (96, 64), (200, 0, 0))
    for name, picture, expected in (
        ("gray.png", Image.new("L", (96, 64), 77), (77, 77, 77)),
        ("clear.png", Image.new("RGBA", (96, 64), (0, 0, 0, 0)), (255, 255, 255)),
        ("palette.png", red.quantize(2), (200, 0, 0)),
    ):
        picture.save(tmp_path / name)
        assert (Crops([str(tmp_path / name)], 32).crop(0) == expected).all()
    red.save(tmp_path / "turned.jpg", exif=exif)
    (turned,) = find_sources([str(tmp_path / "turned.jpg")])
    assert data.load(turned).shape == (96, 64, 3)


# ---- ranks ----


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_read_what_one_process_reads(photos: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(step: int, batch: int, rank: int, world: int) -> NDArray[np.uint8]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        return Crops([str(photos)], 64, seed=5).batch(positions(step, batch).start, batch)

    for step in range(3):
        parts = [read(step, 2, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), read(step, 2 * world, 0, 1))
        assert not np.array_equal(parts[0], parts[1])


# ---- damage ----


@pytest.fixture
def worn(tmp_path: Path) -> Path:
    """Twelve JPEG files, of which 3 and 7 are cut off."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "worn"
    folder.mkdir()
    for i in range(12):
        path = folder / f"{i:02d}.jpg"
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
        if i in (3, 7):
            damage(path)
    return folder


@pytest.mark.parametrize("where", ["folder", "tar"])
def test_a_damaged_sample_is_replaced_counted_and_named_once(
    worn: Path, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = worn if where == "folder" else tar(worn, tmp_path / "worn.tar")
    crops = Crops([str(path)], 32, max_damaged=0.2)
    assert crops.batch(0, 36).shape == (36, 3, 32, 32)
    assert sorted(name[-6:] for name in crops.damaged) == ["03.jpg", "07.jpg"]
    assert all("truncated" in reason for reason in crops.damaged.values())
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == 2
    assert all(line.startswith("nextscale: ") and "truncated" in line for line in complaints)


def test_replacements_do_not_depend_on_history(worn: Path) -> None:
    whole = Crops([str(worn)], 32, max_damaged=0.2).batch(0, 24)
    for start, size in ((5, 6), (13, 6), (12, 12)):
        assert np.array_equal(Crops([str(worn)], 32, max_damaged=0.2).batch(start, size), whole[start : start + size])


def test_too_much_damage_stops_with_one_line(worn: Path) -> None:
    one_more = Crops([str(worn)], 32, max_damaged=0.1)  # of twelve: one
    with pytest.raises(DataError) as stop:
        one_more.batch(0, 12)
    line = str(stop.value)
    assert line.startswith("2 of 12 training pictures are damaged (16.7%, allowed are 10.0%): ")
    assert "03.jpg" in line
    assert "07.jpg" in line
    assert "\n" not in line


def test_one_damaged_sample_is_always_allowed_unless_none_is_left(photos: Path, tmp_path: Path) -> None:
    damage(photos / "2.png")
    crops = Crops([str(photos)], 32, max_damaged=0.0)
    crops.batch(0, 10)
    assert len(crops.damaged) == 1
    (tmp_path / "bad.jpg").write_bytes(b"not a photograph")
    with pytest.raises(DataError, match=r"1 of 1 training pictures are damaged.*bad\.jpg"):
        Crops([str(tmp_path / "bad.jpg"), str(tmp_path / "bad.jpg")], 64, max_damaged=1.0).crop(0)


def test_missing_empty_and_damaged_data_are_named(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(DataError, match="no such training data"):
        find_sources([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures inside"):
        find_sources([str(tmp_path / "empty")])
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(DataError, match=r"bad\.tar: not a readable tar"):
        find_sources([str(tmp_path / "bad.tar")])
    damage(shard)
    with pytest.raises(DataError, match=r"shard\.tar: not a readable tar"):
        find_sources([str(shard)])


# ---- shards behind an address ----


class Quiet(SimpleHTTPRequestHandler):
    """A file server that counts what it is asked for."""

    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
            return
        super().do_GET()


@pytest.fixture
def server(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of two shards, s-0.tar and s-1.tar, and the list of requests."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "served"
    folder.mkdir()
    for index in (0, 1):
        tar(photos, folder / f"s-{index}.tar")
    monkeypatch.setattr(Quiet, "asked", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", Quiet.asked
        running.shutdown()


def test_shards_of_a_web_server_are_fetched_once_and_read_like_files(
    server: tuple[str, list[str]], shard: Path, tmp_path: Path
) -> None:
    pytest.importorskip("braceexpand")
    address, asked = server
    cache = tmp_path / "cache"
    crops = Crops([address + "/s-{0..1}.tar"], 64, cache=cache)
    assert np.array_equal(crops.batch(0, 10), Crops([str(shard), str(shard)], 64).batch(0, 10))
    assert crops.sources[0].name == f"{address}/s-0.tar:0.png"
    assert sorted(asked) == ["/s-0.tar", "/s-1.tar"]
    again = Crops([address + "/s-{0..1}.tar"], 64, cache=cache)
    assert np.array_equal(crops.batch(3, 2), again.batch(3, 2))
    assert len(asked) == 2
    assert sorted(path.name[-8:] for path in cache.glob("*.tar")) == ["-s-0.tar", "-s-1.tar"]


@pytest.mark.parametrize("name", ["missing.tar", "cut.tar"])
def test_a_shard_that_cannot_be_fetched_whole_is_one_line_and_leaves_nothing(
    server: tuple[str, list[str]], tmp_path: Path, name: str
) -> None:
    address, _ = server
    with pytest.raises(DataError) as stop:
        find_sources([f"{address}/{name}?key=secret"], tmp_path / "cache")
    assert str(stop.value).startswith(f"{address}/{name}: cannot be fetched (")
    assert "secret" not in str(stop.value)
    assert "\n" not in str(stop.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_an_object_store_is_listed_and_read(shard: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for index in (1, 0):
        store.pipe(f"/bucket/s-{index}.tar", shard.read_bytes())
    found = find_sources(["memory://bucket/s-*.tar"], tmp_path / "cache")
    assert [source.name for source in found][::5] == [
        "memory:///bucket/s-0.tar:0.png",
        "memory:///bucket/s-1.tar:0.png",
    ]
    assert np.array_equal(
        Crops(["memory://bucket/s-*.tar"], 64, cache=tmp_path / "cache").batch(0, 10),
        Crops([str(shard), str(shard)], 64).batch(0, 10),
    )
    with pytest.raises(DataError, match=r"memory://bucket/t-\*\.tar: nothing there has such a name"):
        find_sources(["memory://bucket/t-*.tar"], tmp_path / "cache")


def test_the_cache_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.default_cache() == tmp_path / "nextscale" / "shards"


def test_braces_stand_for_several_paths_and_must_be_closed(photos: Path, shard: Path) -> None:
    pytest.importorskip("braceexpand")
    tar(photos, shard.with_name("t-007.tar")), tar(photos, shard.with_name("t-008.tar"))
    assert len(find_sources([str(shard.with_name("t-{007..008}.tar"))])) == 10
    with pytest.raises(DataError, match="close every brace"):
        find_sources([str(shard.with_name("t-{007..008.tar"))])


def test_a_missing_package_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] in ("fsspec", "braceexpand"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for pattern in ("https://127.0.0.1/a.tar", str(tmp_path / "{a,b}.tar")):
        with pytest.raises(DataError, match=re.escape(how_to_install("data"))):
            find_sources([pattern], tmp_path)


def test_an_unknown_kind_of_address_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match=r"nonsense://a\.tar: cannot be fetched"):
        find_sources(["nonsense://a.tar"], tmp_path)
