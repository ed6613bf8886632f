"""What the page's server needs before it starts: a password, a port, example photographs. Torch-free."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from nextscale.errors import NextScaleError, OptionError


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
