"""Mixed and hostile requests against `nextscale serve` on this machine: memory, what stays, whose picture is whose.

python -m benchmarks.soak --requests 1000
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import tyro
from PIL import Image

from nextscale.image.png import png_chunk


@dataclass
class Outcome:
    """What came of the requests."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    """Of each kind and status."""
    wrong: list[str] = field(default_factory=list)
    """What should not have happened."""
    memory: list[float] = field(default_factory=list)
    """Megabytes of the server, at even distances."""
    seconds: float = 0.0
    left: int = 0
    """Files of the server after its time to keep them."""


class Client:
    """One client after the other, each with an address of its own."""

    def __init__(self, url: str, seed: int, number: int, expected: dict[int, bytes], fields: dict[str, str]) -> None:
        self.random = random.Random(f"{seed} {number}")
        self.port = int(url.rpartition(":")[2])
        self.address = f"127.0.{1 + number % 20}.{1 + number % 200}"
        transport = httpx.HTTPTransport(local_address=self.address)
        self.http = httpx.Client(base_url=url, transport=transport, timeout=600)
        self.expected, self.fields = expected, fields

    def act(self, kind: str) -> str:
        """One request of a kind; a word for what came of it.

        Raises:
            AssertionError: it is not what it should be.
        """
        with self.http:
            return str(getattr(self, kind)())

    def patiently(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Again as long as the server is busy."""
        for _ in range(600):
            answer = send()
            if answer.status_code not in (429, 503):
                return answer
            assert int(answer.headers["retry-after"]) > 0
            time.sleep(0.5)
        raise AssertionError("the server never had room")

    def post(self, path: str, data: bytes, **fields: str) -> httpx.Response:
        files = {"image": ("a.png", data)}
        return self.patiently(lambda: self.http.post(path, files=files, data=self.fields | fields))

    # -- good ones -----------------------------------------------------------------------------------------------------

    def upscale(self) -> int:
        seed = self.random.randrange(len(self.expected))
        answer = self.post("/api/upscale", photograph(seed))
        assert answer.status_code == 200, answer.text
        assert answer.content == self.expected[seed], "not this client's picture"
        return answer.status_code

    def new_job(self) -> tuple[int, str]:
        seed = self.random.randrange(len(self.expected))
        answer = self.post("/api/jobs", photograph(seed), view="true")
        assert answer.status_code == 201, answer.text
        return seed, f"/api/jobs/{answer.json()['id']}"

    def job(self) -> str:
        seed, path = self.new_job()
        with self.http.stream("GET", f"{path}/events") as stream:
            events = [line for line in stream.iter_lines() if line.startswith("event: ")]
        assert events[-1] == "event: done", events[-1]
        assert self.http.get(f"{path}/x1.png").content == self.expected[seed], "not this client's picture"
        return "done"

    def formats(self) -> str:
        _, path = self.new_job()
        while (state := self.http.get(path).json()["state"]) in ("waiting", "running"):
            time.sleep(0.2)
        assert state == "done", state
        for suffix in ("jpg", "webp"):
            Image.open(io.BytesIO(self.http.get(f"{path}/x1.{suffix}").content)).load()
        assert self.http.get(f"{path}/x1.png", headers={"Range": "bytes=5-9"}).status_code == 206
        assert self.http.get(f"/api/zip?jobs={path.rpartition('/')[2]}").content[:2] == b"PK"
        assert self.http.delete(path).status_code == 204
        return "removed"

    # -- rude ones -----------------------------------------------------------------------------------------------------

    def stop(self) -> int:
        return self.http.delete(self.new_job()[1]).status_code

    def abandon(self) -> str:
        self.new_job()
        return "left"

    def hang_up(self) -> str:
        with contextlib.suppress(httpx.TimeoutException):
            files = {"image": ("a.png", photograph(0, 200))}
            self.http.post("/api/upscale", files=files, data=self.fields, timeout=self.random.uniform(0.01, 0.5))
        return "gone"

    def break_off(self) -> str:
        head = f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: 99999\r\n\r\n"
        self.raw(head.encode() + b"x" * 500, wait=False)
        return "gone"

    # -- hostile ones --------------------------------------------------------------------------------------------------

    def refused(self, answer: httpx.Response, *statuses: int) -> int:
        assert answer.status_code in (*statuses, 429, 503), f"{answer.status_code} {answer.text[:200]}"
        assert not re.search(r"Traceback|File \"|/tmp", answer.text), answer.text[:200]
        return answer.status_code

    def garbage(self) -> int:
        return self.refused(self.post("/api/jobs", self.random.randbytes(self.random.randrange(1, 50_000))), 415)

    def truncated(self) -> int:
        data = photograph(1)
        return self.refused(self.post("/api/jobs", data[: self.random.randrange(9, len(data) - 20)]), 415)

    def bomb(self) -> int:
        return self.refused(self.post("/api/jobs", bomb()), 413, 415)

    def broken_form(self) -> int:
        body = b"--a\r\n" + self.random.randbytes(3000)
        kind = self.random.choice(["multipart/form-data; boundary=a", "multipart/form-data", "text/html; charset=x"])
        return self.refused(self.http.post("/api/jobs", content=body, headers={"Content-Type": kind}), 400, 415)

    def many_fields(self) -> int:
        return self.refused(
            self.http.post("/api/jobs", files={"image": b"x"}, data={f"f{n}": "y" for n in range(99)}), 400
        )

    def wrong_option(self) -> int:
        name = self.random.choice(["scale", "seed", "fidelity", "tile_batch", "../x"])
        return self.refused(self.post("/api/jobs", photograph(0), **{name: "1e999"}), 422)

    def traversal(self) -> int:
        path = self.random.choice(
            ["/static/..%2fserver.py", "/api/jobs/..%2f..%2fetc/x1.png", "/examples/%2e%2e/x.jpg"]
        )
        return self.refused(self.http.get(path), 404)

    def stranger(self) -> int:
        headers = self.random.choice([{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
        return self.refused(self.http.post("/api/upscale", headers=headers, content=b"x"), 403)

    def too_large(self) -> str:
        head = f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: 99999999999\r\n\r\n"
        said = self.raw(head.encode() + b"x" * 1000)
        assert re.match(rb"HTTP/1.1 (413|429|503) ", said), said[:100]
        return said[9:12].decode()

    def no_http(self) -> str:
        self.raw(self.random.randbytes(400) + b"\r\n\r\n")
        return "closed"

    def slow_headers(self) -> str:
        assert self.raw(b"GET / HTTP/1.1\r\nX:") == b""
        return "closed"

    def stall(self) -> str:
        head = f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: 999\r\n\r\nx"
        said = self.raw(head.encode())
        assert re.match(rb"HTTP/1.1 (408|429|503) ", said), said[:100]
        return said[9:12].decode()

    def raw(self, data: bytes, *, wait: bool = True) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 60, (self.address, 0)) as line:
            said = b""
            with contextlib.suppress(ConnectionError):
                line.sendall(data)
                while wait and (piece := line.recv(65536)):
                    said += piece
            return said


KINDS = {
    **{"upscale": 30, "job": 15, "formats": 8, "stop": 6, "abandon": 4, "hang_up": 6, "break_off": 5, "garbage": 6},
    **{"truncated": 5, "bomb": 3, "broken_form": 5, "many_fields": 3, "wrong_option": 5, "traversal": 5, "stranger": 5},
    **{"too_large": 3, "no_http": 4, "slow_headers": 1, "stall": 1},
}
"""Every kind of request and how often it comes."""


def photograph(seed: int, side: int = 24) -> bytes:
    """A small PNG that only its seed has."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 3.6 billion pixels."""
    head = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(b"\0" * 10**6), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks.items())


def soak(
    url: str, requests: int, seed: int = 0, workers: int = 8, memory: Callable[[], float] | None = None
) -> Outcome:
    """Send requests of all kinds, several at once.

    Args:
        memory: gives the server's megabytes.
    """
    outcome, started, lock = Outcome(), time.monotonic(), threading.Lock()
    about = httpx.get(f"{url}/api").json()
    fields = {"scale": "1"} | ({"fast": "true"} if about["has_fast"] else {})
    expected: dict[int, bytes] = {}
    for number in range(8):  # what each photograph becomes when it is alone
        answer = httpx.post(f"{url}/api/upscale", files={"image": photograph(number)}, data=fields, timeout=600)
        expected[number] = answer.raise_for_status().content
    kinds = random.Random(seed).choices(list(KINDS), list(KINDS.values()), k=requests)

    def act(number: int) -> None:
        kind = kinds[number]
        try:
            word = Client(url, seed, number, expected, fields).act(kind)
        except Exception as error:
            with lock:
                outcome.wrong.append(f"{kind}: {type(error).__name__} {error}")
            word = "wrong"
        with lock:
            outcome.counts[f"{kind} {word}"] += 1
            if memory is not None and sum(outcome.counts.values()) % max(1, requests // 10) == 0:
                outcome.memory.append(memory())

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        list(pool.map(act, range(requests)))
    outcome.seconds = time.monotonic() - started
    return outcome


@dataclass(frozen=True)
class Soak:
    """Mixed and hostile requests against a server that is started for it."""

    requests: int = 1000
    """How many."""
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """As in `nextscale serve`."""
    workers: int = 8
    """How many at once."""
    seed: int = 0
    """Of the order and the contents."""

    def run(self) -> int:
        """Run it, print what came of it as JSON; the exit status is 1 if anything was wrong."""
        with tempfile.TemporaryDirectory() as root, self._serving(Path(root)) as (process, url):
            server = psutil.Process(process.pid)

            def memory() -> float:
                return round(float(server.memory_info().rss) / 1e6, 1)

            outcome = soak(url, self.requests, self.seed, self.workers, memory)
            deadline = time.monotonic() + 120
            while (left := count_files(Path(root))) and time.monotonic() < deadline:
                time.sleep(1)
            outcome.left = left
            row: dict[str, Any] = dataclasses.asdict(outcome) | {
                "counts": dict(sorted(outcome.counts.items())),
                "seconds": round(outcome.seconds, 1),
                "memory_at_the_end": memory(),
                "threads": server.num_threads(),
                "connections": len(server.net_connections()),
                "healthy": httpx.get(f"{url}/healthz").status_code == 200,
            }
        sys.stdout.write(json.dumps(row, indent=2) + "\n")
        return 1 if outcome.wrong or outcome.left else 0

    @contextmanager
    def _serving(self, root: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
        words = ["serve", "--port", "0", "-n", self.model, "--keep-minutes", "0.1"]
        call = [sys.executable, "-m", "nextscale", *words]
        process = subprocess.Popen(call, env=os.environ | {"TMPDIR": str(root)}, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            found = re.search(r"open (http://\S+)", process.stdout.readline())
            if found is None:
                raise SystemExit(process.wait())
            yield process, found[1]
        finally:
            process.terminate()
            process.wait(60)


def count_files(root: Path) -> int:
    """Of a server's uploads and results."""
    return sum(len(files) for _, _, files in os.walk(root))  # what vanishes meanwhile is no error


if __name__ == "__main__":
    sys.exit(tyro.cli(Soak).run())
