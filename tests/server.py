"""Servers of the page for tests: in this process, or as the command starts them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from nextscale.upscale.nextscale import NextScale
from nextscale.web.limits import Limits
from nextscale.web.serve import example_photos, free_port, patient
from nextscale.web.server import Server


@dataclass
class Local:
    """A server in a thread of this process."""

    url: str
    port: int
    folder: Path
    server: Server


@contextmanager
def local(model: NextScale, folder: Path, limits: Limits | None = None, **guard: Any) -> Iterator[Local]:
    """A server on any free port; ended afterwards."""
    folder.mkdir(exist_ok=True)
    limits = limits or Limits()
    server, port = Server(model, folder, limits, example_photos()), free_port("127.0.0.1", 0)
    config = uvicorn.Config(
        server.app(**guard), port=port, http=patient(limits.stall_seconds), ws="none", lifespan="off",
        log_level="critical", access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    listener = uvicorn.Server(config)
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        wait_until(lambda: listener.started)
        yield Local(f"http://127.0.0.1:{port}", port, folder, server)
    finally:
        server.close()
        listener.should_exit = True
        thread.join(30)


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for something that happens soon; fails where it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@dataclass
class Command:
    """A running `nextscale serve`."""

    process: subprocess.Popen[str]
    url: str
    root: Path
    """Where it makes its folders."""
    log: Path

    def errors(self) -> str:
        """What it said on stderr."""
        return self.log.read_text(encoding="utf-8")


@contextmanager
def command(model: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Command]:
    """`nextscale serve` on any free port; ended afterwards."""
    with tempfile.TemporaryDirectory() as root, Path(root, "log").open("w", encoding="utf-8") as log:
        words = ["serve", "--port", "0", "-n", str(model), "--device", "cpu", "--fp32", *options]
        given = os.environ | {"TMPDIR": root, "OMP_NUM_THREADS": "2"} | (environment or {})
        process = subprocess.Popen(
            [sys.executable, "-m", "nextscale", *words], env=given, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        try:
            found = re.search(r"open (http://\S+)", process.stdout.readline())
            assert found is not None, Path(root, "log").read_text(encoding="utf-8")
            yield Command(process, found[1], Path(root), Path(root, "log"))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.stdout.close()
