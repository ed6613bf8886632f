"""Training crops: the same for the same position, from folders and shards alike."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.data import Crops, DataError, find_sources


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (160, 200, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def shard(photos: Path, tmp_path: Path) -> Path:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for photo in sorted(photos.iterdir()):
            data = photo.read_bytes()
            info = tarfile.TarInfo(photo.name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


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


def test_missing_empty_and_damaged_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such training data"):
        find_sources([str(tmp_path / "none")])
    with pytest.raises(DataError, match="no pictures inside"):
        find_sources([str(tmp_path)])
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(DataError, match=r"bad\.tar: not a readable tar"):
        find_sources([str(tmp_path / "bad.tar")])
    (tmp_path / "bad.jpg").write_bytes(b"not a photograph")
    with pytest.raises(DataError, match=r"bad\.jpg: damaged"):
        Crops([str(tmp_path / "bad.jpg")], 64).crop(0)
