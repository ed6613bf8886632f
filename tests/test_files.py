"""Claims about nextscale.files: a file is whole or not there, and a torn last line costs only itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.files import JsonLines, check_writable, keep_json_lines, read_json_lines, write_atomic


def test_a_file_takes_its_place_and_the_one_before_takes_the_name_given(tmp_path: Path) -> None:
    path, previous = tmp_path / "a", tmp_path / "b"
    write_atomic(path, "öne")
    write_atomic(path, b"two", previous=previous)
    assert path.read_bytes() == b"two"
    assert previous.read_text(encoding="utf-8") == "öne"
    write_atomic(path, lambda part: part.write_bytes(b"three"))
    assert path.read_bytes() == b"three"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


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


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "none") == []
    keep_json_lines(tmp_path / "none", lambda _: True)
    assert not (tmp_path / "none").exists()
