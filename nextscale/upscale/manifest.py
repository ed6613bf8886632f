"""An append-only JSONL manifest of a folder's pictures, and the plan of a resumed run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nextscale.errors import NextScaleError
from nextscale.files import JsonLines, Mark, check_report, read_json_lines, write_atomic

Stamp = list[int]
"""Bytes of a picture's file and when it was last written (nanoseconds, or what its store counts by)."""
Item = TypeVar("Item")


class Manifest:
    """Append-only lines of JSON: a picture's canonical path, its stamp, its state (done or failed), its files with what
    they hold, or its error.

    Every line also holds the key of the settings that made it; lines of another key tell only which files are results.
    A line that was cut off by the end of a run is no line. Threads may record at once.
    """

    def __init__(self, path: Path, key: str, *, resume: bool) -> None:
        """
        Args:
            resume: go on from what the file says; else it begins anew, and keeps only the names of earlier results.

        Raises:
            OptionError: a file of that name is no manifest. NextScaleError: it cannot be read or written.
        """
        self.path = path
        self.key = key
        self.rows: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        try:
            check_report(path, "--manifest", "manifest", is_manifest)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = read_json_lines(path)
            self.results = {name for row in rows for name in (row.get("results") or row.get("outputs") or ())}
            if not resume:
                kept = json.dumps({"results": sorted(self.results)}) + "\n" if self.results else ""
                write_atomic(path, kept)
                rows = []
            for row in rows:
                if row.get("key") == key and isinstance(row.get("input"), str):
                    self.rows[row["input"]] = row
            self.lines = JsonLines(path)
        except OSError as error:
            raise NextScaleError(f"{path}: {_reason(error)}; name another --manifest") from None

    def is_done(self, name: str, stamp: Stamp) -> bool:
        """Whether this very picture was finished under these settings."""
        row = self.rows.get(name)
        return row is not None and row["state"] == "done" and row["stamp"] == stamp

    def outputs(self, name: str) -> dict[str, Mark]:
        """The files that were written for a picture, by canonical path, and what each holds."""
        return dict(self.rows.get(name, {}).get("outputs", {}))

    def record(
        self, name: str, stamp: Stamp, outputs: Mapping[str, Mark] | None = None, error: str | None = None
    ) -> None:
        """Note a picture's end, on the disk before this returns. Its files must be there before.

        Raises:
            NextScaleError: the disk refuses.
        """
        row: dict[str, Any] = {"key": self.key, "input": name, "stamp": stamp, "state": "failed" if error else "done"}
        row |= {"error": error} if error else {"outputs": dict(outputs or {})}
        with self.lock:
            self.rows[name] = row
            try:
                self.lines.write(row)
            except OSError as failure:
                raise NextScaleError(f"{self.path}: {_reason(failure)}; the next run does this picture again") from None

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


def unfinished(
    items: Mapping[str, tuple[Stamp, Item]], manifest: Manifest, holds: Callable[[str, Mark], bool]
) -> list[Item]:
    """The plan: what a manifest does not know as done, or whose files are gone or changed, in the given order.

    Args:
        items: name -> stamp and whatever stands for the picture.
        holds: whether a file of that name is there and holds what was written.
    """

    def is_finished(name: str, stamp: Stamp) -> bool:
        return manifest.is_done(name, stamp) and all(holds(*output) for output in manifest.outputs(name).items())

    return [item for name, (stamp, item) in items.items() if not is_finished(name, stamp)]


def settings_key(*settings: Any) -> str:
    """A short name of what decides about results: dataclasses and plain values."""
    plain = [dataclasses.asdict(s) if dataclasses.is_dataclass(s) and not isinstance(s, type) else s for s in settings]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_manifest(path: Path) -> bool:
    """Whether a file's first line is one of a manifest; an empty file is one, too.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(1)
        if head not in (b"", b"{"):
            return False
        line = head + file.readline()
    if not line.endswith(b"\n"):  # nothing, or the first line of a run that was killed
        return any(line[: len(start)] == start[: len(line)] for start in (b'{"key": "', b'{"results": ['))
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and ("results" in row or {"key", "input", "state"} <= row.keys())


def default_path(output: str) -> Path:
    """Where the manifest of an output folder is, if it is not named: outside of that folder, in the user's state."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(
        home, "nextscale", hashlib.sha256(output.encode("utf-8", "surrogateescape")).hexdigest()[:16] + ".jsonl"
    )


def stamp_of(path: Path) -> Stamp:
    """A local file's stamp; that of nothing where there is none."""
    try:
        status = path.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _reason(error: OSError) -> str:
    return f"the list of finished pictures cannot be kept ({error.strerror or error})"
