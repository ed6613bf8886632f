"""A server of the page in a process of its own, as its tests start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Server:
    """A running page."""

    process: subprocess.Popen[str]
    url: str
    root: Path
    """Where it makes its folder of temporary files."""
    log: Path

    @property
    def folder(self) -> Path:
        """The folder of uploads and results."""
        return next(iter(self.root.glob("nextscale-*")), self.root / "none")

    def errors(self) -> str:
        """What it said on stderr."""
        return self.log.read_text(encoding="utf-8")


@contextmanager
def running(model: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """A page with small limits on any free port; ended afterwards."""
    with tempfile.TemporaryDirectory() as root, Path(root, "log").open("w", encoding="utf-8") as log:
        command = [
            sys.executable,
            "-m",
            "nextscale",
            "serve",
            "--port",
            "0",
            "-n",
            str(model),
            "--device",
            "cpu",
            "--fp32",
        ]
        limits = ["--max-mb", "2", "--max-pixels", "200000"]
        given = os.environ | {"TMPDIR": root, "OMP_NUM_THREADS": "2"} | (environment or {})
        process = subprocess.Popen(
            [*command, *limits, *options], env=given, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            found = re.search(r"open (http://\S+)", process.stdout.readline())
            assert found is not None, Path(root, "log").read_text(encoding="utf-8")
            url = found[1] if found[1].endswith("/") else f"{found[1]}/"
            yield Server(process, url, Path(root), Path(root, "log"))
        finally:
            process.terminate()
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()
