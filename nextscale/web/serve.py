"""What the server needs around its application: a port, a folder of its own, a patient protocol. Torch-free."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nextscale.errors import NextScaleError, OptionError

_BEAT_SECONDS: Final = 60.0
_DEAD_SECONDS: Final = 600.0
"""A server's folder that shows no sign of life for so long belongs to one that was killed."""


def credentials(text: str | None) -> tuple[str, str] | None:
    """NAME:PASSWORD -> both.

    Raises:
        OptionError: one of them is missing.
    """
    if text is None:
        return None
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise OptionError("auth must be USER:PASSWORD")
    return name, password


def check_proxies(names: Iterable[str]) -> None:
    """Refuse what is no address or network of a proxy: uvicorn takes any text, and then believes nobody.

    Raises:
        OptionError: naming it.
    """
    parts = [part.strip() for name in names for part in name.split(",")]
    for part in parts if parts != ["*"] else ():
        try:
            ipaddress.ip_network(part)
        except ValueError:
            raise OptionError(
                f"proxy must be an address (10.0.0.1), a network (10.0.0.0/8) or * alone, got {part!r}"
            ) from None


def check_hosts(names: Iterable[str]) -> None:
    """Refuse what no browser sends as the name of a server, such as one with a port or of two words.

    Raises:
        OptionError: naming it.
    """
    for name in names:
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", name, re.ASCII | re.IGNORECASE):
            raise OptionError(f"allow-host must be a name such as photos.example.org, without a port, got {name!r}")


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0.

    Raises:
        NextScaleError: it is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        why = error.strerror or str(error)
        raise NextScaleError(f"cannot listen on {host}:{port} ({why}); choose another --port or --host") from None


def example_photos() -> list[Path]:
    """The example photographs: in the package, or in the checkout beside it."""
    here = Path(__file__).parents[1]
    for folder in (here / "examples", here.parent / "examples"):
        if folder.is_dir():
            return sorted(folder.glob("*.jpg"))
    return []


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder that this user alone can read, gone afterwards; those of servers that were killed go at the start.

    Raises:
        NextScaleError: there is no room for it.
    """
    try:
        shared = _shared_folder()
        sweep(shared, time.time() - _DEAD_SECONDS)
        folder = shared / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise NextScaleError(f"no folder for uploads ({error.strerror}); set TMPDIR to another place") from None
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            os.utime(folder)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield folder
    finally:
        ended.set()
        shutil.rmtree(folder, ignore_errors=True)


def _shared_folder() -> Path:
    """The folder of all servers of this user, or a fresh one where somebody else has made it."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"nextscale-{user}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        own = stat.S_ISDIR(status.st_mode) and (sys.platform == "win32" or status.st_uid == user)
        if not own or (sys.platform != "win32" and status.st_mode & 0o077):
            return Path(tempfile.mkdtemp(prefix="nextscale-"))
    return folder


def sweep(folder: Path, before: float) -> int:
    """Remove the folders inside a folder that were last touched before a time; how many."""
    removed = 0
    for inside in folder.iterdir():
        try:
            if inside.is_dir() and not inside.is_symlink() and inside.stat().st_mtime < before:
                shutil.rmtree(inside, ignore_errors=True)
                removed += 1
        except FileNotFoundError:  # another server was faster
            continue
    return removed


def patient(seconds: float) -> type[Any]:
    """uvicorn's HTTP/1.1 protocol, closing connections that do not send whole headers within some seconds."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._unwatch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def _watch(self) -> None:
            """Wait for headers unless a request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._give_up)

        def _unwatch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            if not self.transport.is_closing():
                self.transport.close()

    return Patient


def listen(
    app: Any,
    host: str,
    port: int,
    *,
    stall: float,
    proxies: str,
    ready: Callable[[], None],
    ending: Callable[[], None],
) -> None:
    """Serve an ASGI application until SIGINT or SIGTERM.

    Args:
        stall: seconds for a request's headers.
        proxies: addresses, with commas between, whose X-Forwarded-For is believed; empty: nobody's.
        ready: called when it listens.
        ending: called when it begins to end, so that those who wait for something get an answer.
    """
    import uvicorn

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

        async def shutdown(self, sockets: Any = None) -> None:
            # What is cut off from here on is cut off on purpose, and no fault of the application.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
            ending()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=patient(stall),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        limit_concurrency=256,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
    )
    Announcing(config).run()
