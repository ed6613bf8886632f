"""The list of finished pictures survives a killed run, and knows a picture, its settings and its files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nextscale.errors import NextScaleError, OptionError
from nextscale.files import has_mark
from nextscale.image import Picture
from nextscale.upscale.manifest import Manifest, default_path, settings_key, unfinished
from nextscale.upscale.options import UpscaleOptions
from nextscale.upscale.outputs import Targets, write_results
from nextscale.upscale.run import UpscaleResult

OPEN: list[Manifest] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def manifest(path: Path, key: str = "k", resume: bool = True) -> Manifest:
    OPEN.append(Manifest(path, key, resume=resume))
    return OPEN[-1]


def test_what_was_recorded_is_done_in_the_next_run(tmp_path: Path) -> None:
    first = manifest(tmp_path / "deep" / "m.jsonl")
    first.record("a.png", [3, 1], {"out/a.png": [7, "ab"]})
    first.record("b.png", [4, 1], error="no picture")
    second = manifest(first.path)
    assert second.is_done("a.png", [3, 1])
    assert second.outputs("a.png") == {"out/a.png": [7, "ab"]}
    assert not second.is_done("b.png", [4, 1])
    assert not second.is_done("a.png", [3, 2])
    assert not manifest(first.path, key="other").is_done("a.png", [3, 1])


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    manifest(tmp_path / "m").record("a.png", [3, 1])
    assert not manifest(tmp_path / "m", resume=False).is_done("a.png", [3, 1])
    assert (tmp_path / "m").read_bytes() == b""


def test_what_is_a_result_is_not_forgotten(tmp_path: Path) -> None:
    """Neither by a run that begins anew nor under other settings."""
    manifest(tmp_path / "m").record("a.png", [3, 1], {"a_x4.png": [7, "ab"]})
    manifest(tmp_path / "m", resume=False).record("a.png", [3, 1], {"a_x2.png": [5, "cd"]})
    third = manifest(tmp_path / "m", key="other", resume=False)
    assert third.results == {"a_x4.png", "a_x2.png"}
    assert not third.is_done("a.png", [3, 1])
    assert manifest(tmp_path / "m").results == third.results


def test_a_result_is_on_the_disk_before_the_list_says_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what reaches the disk: the new folder, the result, its name, then the line."""
    real, seen = os.fsync, list[str]()

    def fsync(handle: int) -> None:
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("sees in /proc what is written")
    done = manifest(tmp_path / "m")
    monkeypatch.setattr(os, "fsync", fsync)
    targets = Targets(UpscaleOptions(scale=1.0), tmp_path / "new", [Path("a.png")])
    targets.factors = [1.0]
    picture = Picture(np.zeros((4, 4, 3), np.uint8))
    files = targets.claim(Path("a.png"), picture)
    marks = write_results(UpscaleResult({1.0: picture}), files, lossless=True)
    done.record("a.png", [3, 1], marks)
    assert seen[0] == tmp_path.name  # the folder's own name
    assert seen[1].startswith(".nextscale-")
    assert seen[2:] == ["new", "m"]
    (mark,) = marks.values()
    assert has_mark(tmp_path / "new" / "a_x1.png", mark)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_off_by_a_kill_costs_its_picture_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m"
    manifest(path).record("a.png", [3, 1])
    whole = path.read_bytes()
    manifest(path).record("b.png", [3, 1])
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    after = manifest(path)
    assert after.is_done("a.png", [3, 1])
    assert not after.is_done("b.png", [3, 1])
    after.record("c.png", [3, 1])
    assert manifest(path).is_done("c.png", [3, 1])


def test_junk_in_the_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"results": []}\n' + b"\xff\xfe\n[1]\n7\n{}\n")
    manifest(path).record("a.png", [3, 1])
    assert manifest(path).is_done("a.png", [3, 1])


def test_threads_record_whole_lines(tmp_path: Path) -> None:
    shared = manifest(tmp_path / "m")

    def twenty(t: int) -> None:
        for i in range(20):
            shared.record(f"{t}-{i}", [1, 1], {"x" * 99: [1, "y"]})

    threads = [threading.Thread(target=twenty, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert len({row["input"] for row in rows}) == len(rows) == 160


def test_the_plan_keeps_order_and_redoes_what_lost_its_files(tmp_path: Path) -> None:
    done = manifest(tmp_path / "m")
    for name in ("a", "c", "d"):
        done.record(name, [1, 1], {f"out/{name}": [1, name]})
    items = {name: ([1, 1], name.upper()) for name in ("d", "c", "b", "a")}
    assert unfinished(items, done, lambda path, mark: (path, mark) != ("out/c", [1, "c"])) == ["C", "B"]


def test_settings_of_other_results_have_another_key() -> None:
    one = settings_key(UpscaleOptions(), "tiny")
    assert one == settings_key(UpscaleOptions(), "tiny")
    assert len({one, settings_key(UpscaleOptions(seed=1), "tiny"), settings_key(UpscaleOptions(), "other")}) == 3


def test_a_place_that_cannot_be_written_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NextScaleError, match="name another --manifest"):
        manifest(tmp_path / "file" / "m.jsonl")


def test_the_default_is_in_the_users_state_by_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    one, other = default_path("/out/a"), default_path("/out/b")
    assert one.parent == Path("/state/nextscale")
    assert one != other


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 photo", b"garbage\n", b"{}\n", b'{"a": 1}\n', b'{"key": 1'])
def test_what_is_no_manifest_is_not_touched(tmp_path: Path, content: bytes, resume: bool) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=r"photo\.jpg: this is no manifest; name another file with --manifest"):
        manifest(file, resume=resume)
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b'{"key": "ab', b'{"results": []}\n'])
def test_a_manifest_that_was_cut_off_is_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    assert not manifest(tmp_path / "m").rows
