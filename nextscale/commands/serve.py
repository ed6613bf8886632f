"""The `nextscale serve` command: plain settings; free of torch and of the server until it runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Annotated

import tyro

from nextscale.console import say
from nextscale.errors import NextScaleError, OptionError
from nextscale.install import how_to_install
from nextscale.web.serve import check_hosts, check_proxies, credentials, example_photos, free_port, listen, own_folder

MOST = 1e15
"""No limit is as large: it would be no number once it is counted in bytes or milliseconds."""


@dataclass(frozen=True)
class Serve:
    """A page in the browser: drop a photo, watch it come. With an HTTP API for programs."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets the whole network in."""
    port: int = 7860
    """Port to listen on (0: any free one)."""
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    fp32: bool = False
    """Compute in float32 even where 16 bit is faster."""
    auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD")] = None
    """Ask for this name and password (other users of this machine see them in the list of processes;
    NEXTSCALE_AUTH in the environment does the same unseen)."""
    allow_host: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    """A name that browsers know this server by, as of a reverse proxy (its addresses and localhost always work)."""
    proxy: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="ADDRESS")] = ()
    """Address of a reverse proxy, or its network, which says whom a request comes from (X-Forwarded-For)."""
    max_mb: float = 64.0
    """Largest upload in megabytes."""
    max_pixels: int = 51_000_000
    """Largest picture that is taken."""
    max_result_pixels: int = 205_000_000
    """Largest result."""
    max_tiles: float = 6000.0
    """Most work of one picture, in tiles at the largest factor."""
    waiting: int = 20
    """How many may wait in the queue."""
    per_client: int = 10
    """How many of one client may be in work or wait."""
    keep_minutes: float = 60.0
    """How long uploads and results stay."""

    def run(self) -> int:
        if not 0 <= self.port < 65536:
            raise OptionError(f"port must be 0 to 65535, got {self.port}")
        for name in ("max_mb", "max_pixels", "max_result_pixels", "max_tiles", "waiting", "per_client", "keep_minutes"):
            if not 0 < getattr(self, name) < MOST:
                allowed = f"above 0 and below {MOST:g}"
                raise OptionError(f"{name.replace('_', '-')} must be {allowed}, got {getattr(self, name)}")
        check_proxies(self.proxy)
        check_hosts(self.allow_host)
        auth = credentials(self.auth or os.environ.get("NEXTSCALE_AUTH"))
        port = free_port(self.host, self.port)
        try:
            import python_multipart  # noqa: F401
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError:
            raise NextScaleError(f"the page needs an extra: {how_to_install('web')}") from None
        from nextscale.upscale.nextscale import NextScale
        from nextscale.web.limits import Limits
        from nextscale.web.server import Server

        limits = Limits(
            upload_bytes=int(self.max_mb * 1e6),
            pixels=self.max_pixels,
            result_pixels=self.max_result_pixels,
            work=self.max_tiles,
            waiting=self.waiting,
            per_client=self.per_client,
            keep_seconds=60 * self.keep_minutes,
        )
        model = NextScale.from_pretrained(self.model, device=self.device, fp32=self.fp32)
        shown = "127.0.0.1" if self.host in ("0.0.0.0", "::") else f"[{self.host}]" if ":" in self.host else self.host
        machine = socket.gethostname()
        with own_folder() as folder:
            server = Server(model, folder, limits, example_photos())
            app = server.app(hosts=(machine, f"{machine}.local", self.host, *self.allow_host), auth=auth)
            try:
                listen(
                    app,
                    self.host,
                    port,
                    stall=limits.stall_seconds,
                    proxies=",".join(self.proxy),
                    ready=lambda: say(f"nextscale: open http://{shown}:{port} in a browser; Ctrl+C stops"),
                    ending=server.end,
                )
            except KeyboardInterrupt:  # uvicorn ends, then raises the signal again
                pass
            finally:
                server.close()
        return 0
