"""Files that a kill, a full disk or a power cut leaves whole: atomic writes, and append-only lines of JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nextscale.errors import OptionError

Row = dict[str, Any]
Mark = list[Any]
"""What a file holds: its bytes, and their SHA-256 in hex."""


Content = bytes | str | Callable[[Path], object]
"""A file's bytes or text, or a function that writes the file at the path it is given."""


def write_atomic(path: Path, content: Content, *, previous: Path | None = None) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then to the disk, then to its own name.

    The folder must be there.

    Args:
        previous: the name that a file which was there before takes (default: it is gone).

    Raises:
        OSError: the disk refuses; a file that was there before is still there. Errors of the function pass through.
    """
    write_together([(path, content)], previous=previous)


def write_together(contents: Iterable[tuple[Path, Content]], *, previous: Path | None = None) -> None:
    """Write several files, all of them or none: each to a temporary name first, then each to its own.

    The folders must be there. Only a rename that fails after all is on the disk can leave a part of them.

    Args:
        previous: as for `write_atomic`, where it is a single file.

    Raises:
        OSError: the disk refuses; files that were there before are still there.
    """
    parts: list[tuple[Path, Path]] = []
    try:
        for path, content in contents:
            parts.append((_temporary(path), path))
            _fill(parts[-1][0], content)
        for part, path in parts:
            if previous is not None and path.exists():
                path.replace(previous)
            part.replace(path)
        for folder in {path.parent for _, path in parts}:
            _flush_folder(folder)
    finally:
        for part, _ in parts:
            part.unlink(missing_ok=True)


def _fill(part: Path, content: Content) -> None:
    if callable(content):
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        content(part)
        part.chmod(mode)  # some libraries make files that only their owner can read
    else:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing, to last through a power cut.

    Raises:
        OSError: the disk refuses.
    """
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def mark_of(data: bytes) -> Mark:
    """The mark of a file that holds these bytes."""
    return [len(data), hashlib.sha256(data).hexdigest()]


def has_mark(path: Path, mark: Mark) -> bool:
    """Whether a file is there and holds what the mark says; one of another length is not read."""
    try:
        if path.stat().st_size != mark[0]:
            return False
        digest = hashlib.sha256()  # by parts: hashlib.file_digest is new in Python 3.11
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return [mark[0], digest.hexdigest()] == list(mark)
    except OSError:
        return False


def canonical(path: str | os.PathLike[str]) -> str:
    """One absolute name for a file, however its folder is typed or linked to; a link keeps a name of its own."""
    text = os.fspath(path)
    folder, name = os.path.split(text)
    if name in ("", ".", ".."):
        return os.path.realpath(text)
    return os.path.join(os.path.realpath(folder), name)


def check_writable(path: Path) -> None:
    """Raise the OSError that writing a file of this name would meet, as far as an empty file beside it tells."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    part = _temporary(path)
    try:
        part.touch(exist_ok=False)
    finally:
        part.unlink(missing_ok=True)


def check_report(
    path: Path, option: str, kind: str, fits: Callable[[Path], bool], *, inputs: Iterable[Path] = ()
) -> None:
    """Refuse to write a report over what is none: a slip in a command line must not cost a photograph.

    Args:
        option: the option that names the file.
        kind: what is written there, as in "manifest".
        fits: whether a file that is there is of that kind.
        inputs: files and folders that the run reads; the report may be none of them and lie in none of them.

    Raises:
        OptionError: naming the file and the option.
        OSError: the file cannot be read.
    """
    place = path.resolve()
    if any(place.is_relative_to(source.resolve()) for source in inputs):
        raise OptionError(f"{path}: this is or lies among the inputs of this run; name another file with {option}")
    if path.is_file() and not fits(path):
        raise OptionError(f"{path}: this is no {kind}; name another file with {option}")


def check_free(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder that is a file, or in which something has a name that is about to be written.

    Raises:
        OptionError: naming it.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder}: this is a file; name a folder")
    for name in names:
        if (folder / name).exists():
            raise OptionError(f"{folder / name}: is there already; name a new folder")


def check_earlier(file: Path, kind: str, starts: Iterable[str]) -> None:
    """Refuse to replace or continue a file in the folder of --out that an earlier run did not write.

    Args:
        kind: what is written there, as in "log of a training".
        starts: what such files begin with.

    Raises:
        OptionError: naming it.
        OSError: the file cannot be read.
    """
    if file.is_file() and not begins(file, starts):
        raise OptionError(f"{file}: this is no {kind}; name another --out")


def begins(path: Path, starts: Iterable[str]) -> bool:
    """Whether a file begins with one of these texts; an empty file does.

    Raises:
        OSError: it cannot be read.
    """
    texts = [text.encode() for text in starts]
    with path.open("rb") as file:
        head = file.read(max(map(len, texts)))
    return not head or head.startswith(tuple(texts))


def _temporary(path: Path) -> Path:
    """A hidden name in the same folder; short, so that a file of the longest name can be written, too."""
    return path.with_name(f".nextscale-{secrets.token_hex(8)}.tmp")


def _flush_folder(folder: Path) -> None:
    """Make a new name last through a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:  # some network file systems cannot flush a folder
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


class JsonLines:
    """A file of JSON objects, one a line, that only grows. Every row is on the disk before `write` returns."""

    def __init__(self, path: Path) -> None:
        """Open a file to append to; a last line that a killed writer left incomplete is ended, and is no row.

        Raises:
            OSError: it cannot be opened.
        """
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        _flush_folder(path.parent)
        self.waiting = b""
        size = path.stat().st_size
        if size:
            with path.open("rb") as file:
                file.seek(size - 1)
                self.waiting = b"" if file.read() == b"\n" else b"\n"

    def write(self, row: Row) -> None:
        """Append a row.

        Raises:
            OSError: the disk refuses; the row waits, and the next call writes it first.
        """
        self.waiting += json.dumps(row).encode() + b"\n"
        while self.waiting:
            self.waiting = self.waiting[self.file.write(self.waiting) :]
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def read_json_lines(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no file. What is no whole JSON object is left out.

    Raises:
        OSError: it cannot be read.
    """
    return [row for line in _lines(path) if (row := _row(line)) is not None]


def keep_json_lines(path: Path, keep: Callable[[Row], bool]) -> None:
    """Cut incomplete lines, and the rows that are not to be kept, out of a file of JSON lines.

    Raises:
        OSError: the disk refuses; the file is as it was.
    """
    lines = _lines(path)
    kept = [line for line in lines if (row := _row(line)) is not None and keep(row)]
    if kept != lines:
        write_atomic(path, b"".join(kept))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None
