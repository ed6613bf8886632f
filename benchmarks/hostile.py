"""Any folder of files, however hostile, against the reader: how many of each kind, and the worst time and memory.

    python -m benchmarks.hostile FOLDER [--seconds 60] [--write] [--list]

A worker process reads one file after another. Where it crashes or takes too long, a new one goes on with the next file.
The outcome of a file is

- read: it became a picture; with --write, also written as PNG and TIFF and found equal when read back;
- refused: one line said why (counted by the line, numbers left out);
- traceback: any other exception, or what was read back differs; crashed: a signal; late: over its time; noisy: lines on
  stderr.

All but the first two are faults: the exit status is then 1.
"""

from __future__ import annotations

import json
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from nextscale import image as images
from nextscale.errors import ImageError

WORKER = "--worker"


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    path: Path
    kind: str
    detail: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0
    """The most memory of its process so far."""

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("read", "refused")


def attempt(path: Path, *, write: bool) -> dict[str, Any]:
    """Read one file in this process."""
    started = time.perf_counter()
    try:
        picture = images.read(path)
        kind, detail = "read", f"{picture.format} {picture.bits} bit"
        if write:
            for suffix in (".png", ".tif"):
                if picture.cicp is None or suffix == ".png":
                    _check_round_trip(picture, suffix)
    except ImageError as error:
        kind, detail = "refused", re.sub(r"\d[\d.,]*", "N", str(error))
    except Exception as error:
        kind, detail = "traceback", f"{type(error).__name__}: {error}"[:200]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"kind": kind, "detail": detail, "seconds": time.perf_counter() - started, "mebibytes": peak}


def _check_round_trip(picture: images.Picture, suffix: str) -> None:
    back = images.decode_bytes(images.encode_bytes(picture, suffix))
    assert np.array_equal(back.rgb, picture.rgb), suffix
    assert (back.alpha is None) == (picture.alpha is None), suffix
    assert back.alpha is None or picture.alpha is None or np.array_equal(back.alpha, picture.alpha), suffix


def work(write: bool) -> None:
    """Answer every path on stdin with an outcome on stdout."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(attempt(Path(json.loads(line)), write=write)) + "\n")
        sys.stdout.flush()


def command(*, write: bool) -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-m", "benchmarks.hostile", WORKER, *(["--write"] if write else [])]


class Worker:
    """A process that reads files one after another, and what it says on stderr."""

    def __init__(self, *, write: bool) -> None:
        self.noise = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.noise}
        self.process = subprocess.Popen(command(write=write), text=True, cwd=Path(__file__).parents[1], **pipes)

    def run(self, path: Path, seconds: float) -> Outcome:
        """The outcome of one file; a worker that crashed or is late is of no further use."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        before = self.noise.seek(0, 2)
        self.process.stdin.write(json.dumps(str(path.absolute())) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            return Outcome(path, "late", f"over {seconds:g} s", seconds)
        answer = self.process.stdout.readline()
        self.noise.seek(before)
        said = self.noise.read().decode("utf-8", "replace")
        if not answer:
            return Outcome(path, "crashed", f"status {self.process.wait()}")
        row = json.loads(answer)
        if said and row["kind"] in ("read", "refused"):
            row |= {"kind": "noisy", "detail": said.splitlines()[0][:120]}
        return Outcome(path, **row)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.noise.close()


def outcomes(paths: list[Path], *, seconds: float, write: bool) -> Iterator[Outcome]:
    """What becomes of each file, each within its time."""
    worker = None
    try:
        for path in paths:
            worker = worker or Worker(write=write)
            outcome = worker.run(path, seconds)
            if outcome.kind in ("late", "crashed"):
                worker.stop()
                worker = None
            yield outcome
    finally:
        if worker is not None:
            worker.stop()


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    seconds: float = 60.0,
    write: bool = False,
    list_all: Annotated[bool, tyro.conf.arg(name="list")] = False,
) -> int:
    """Read every file of a folder and print how many of each kind there are.

    Args:
        folder: searched with its folders, whatever the names.
        seconds: time that one file may take.
        write: also write what was read as PNG and TIFF, and read that back.
        list_all: print a line for every file, not only for faults.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    done = []
    for outcome in outcomes(paths, seconds=seconds, write=write):
        done.append(outcome)
        if list_all or outcome.is_fault:
            print(f"{outcome.kind}\t{outcome.seconds:.2f} s\t{outcome.path}\t{outcome.detail}")  # noqa: T201
    for (kind, detail), number in sorted(Counter((o.kind, o.detail) for o in done).items(), key=lambda i: -i[1]):
        print(f"{number:6}  {kind}: {detail}")  # noqa: T201
    slowest = max(done, key=lambda outcome: outcome.seconds, default=None)
    if slowest is not None:
        peak = max(outcome.mebibytes for outcome in done)
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(o.kind for o in done).most_common())
        print(f"{len(done)} files: {kinds}; slowest {slowest.seconds:.2f} s {slowest.path}; peak {peak:.0f} MiB")  # noqa: T201
    return int(any(outcome.is_fault for outcome in done))


if __name__ == "__main__":
    if WORKER in sys.argv:
        work(write="--write" in sys.argv)
    else:
        raise SystemExit(tyro.cli(main))
