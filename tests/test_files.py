"""Claims about nextscale.files: a file is whole or not there, and a torn last line costs only itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextscale.files import (
    JsonLines,
    canonical,
    check_writable,
    has_mark,
    keep_json_lines,
    make_folders,
    mark_of,
    read_json_lines,
    write_atomic,
    write_together,
)


def test_a_file_takes_its_place_and_the_one_before_takes_the_name_given(tmp_path: Path) -> None:
    path, previous = tmp_path / "a", tmp_path / "b"
    write_atomic(path, "öne")
    write_atomic(path, b"two", previous=previous)
    assert path.read_bytes() == b"two"
    assert previous.read_text(encoding="utf-8") == "öne"
    write_atomic(path, lambda part: part.write_bytes(b"three"))
    assert path.read_bytes() == b"three"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="needs modes of files")
def test_a_file_that_a_library_makes_is_as_readable_as_others(tmp_path: Path) -> None:
    def private(part: Path) -> None:
        part.unlink()
        part.write_bytes(b"a")
        part.chmod(0o600)

    write_atomic(tmp_path / "a", private)
    write_atomic(tmp_path / "b", b"b")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"one")

    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, fail, previous=tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"one"


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"before")

    def contents() -> Iterator[tuple[Path, bytes]]:
        yield old, b"after"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_together(contents())
    assert old.read_bytes() == b"before"
    write_together([(old, b"after"), (new, b"new")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"after", "new": b"new"}


def test_a_check_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)


def test_a_torn_last_line_is_no_row_and_ends_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n[1]\nnot json\n{"a": 2')
    assert read_json_lines(path) == [{"a": 1}]
    lines = JsonLines(path)
    lines.write({"a": 3})
    lines.close()
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]
    keep_json_lines(path, lambda row: row["a"] > 1)
    assert path.read_bytes() == b'{"a": 3}\n'


def test_a_mark_is_of_the_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    mark = mark_of(b"one")
    assert mark == [3, "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"]
    assert has_mark(path, mark)
    path.write_bytes(b"two")
    assert not has_mark(path, mark)
    path.write_bytes(b"longer")
    assert not has_mark(path, mark)
    assert not has_mark(tmp_path / "none", mark)
    assert not has_mark(tmp_path, mark)


def test_a_file_has_one_canonical_path_and_a_link_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(os.path.realpath(tmp_path))
    (root / "deep").mkdir()
    (root / "here").symlink_to(".")
    (root / "a").write_bytes(b"")
    (root / "link").symlink_to("a")
    monkeypatch.chdir(root / "deep")
    for typed in ("../a", "./../a", str(root / "a"), "../here/a", "../deep/../here/here/a"):
        assert canonical(typed) == str(root / "a")
    assert canonical("../link") == str(root / "link")
    assert canonical("..") == canonical("../here/.") == str(root)
    assert canonical("b") == str(root / "deep" / "b")


def test_folders_are_made_with_those_above(tmp_path: Path) -> None:
    make_folders(tmp_path / "a" / "b")
    make_folders(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        make_folders(tmp_path / "file" / "c")


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "none") == []
    keep_json_lines(tmp_path / "none", lambda _: True)
    assert not (tmp_path / "none").exists()
