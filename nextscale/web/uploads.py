"""Uploads lose the name that the client gave them, before anything is written to disk."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Callable[[Message], Awaitable[None]]], Awaitable[None]]

_BOUNDARY = re.compile(rb'boundary="?([^";,\s]+)', re.IGNORECASE)
_NAME = re.compile(rb'filename\*?=("(?:[^"\\]|\\.)*"|[^;\r\n]*)', re.IGNORECASE)
_SUFFIX = re.compile(rb"\.([A-Za-z0-9]{1,5})\"?$")
_MOST_HEADERS = 16_384
"""Bytes of a part's headers; longer ones belong to no browser."""


class Renamer:
    """A multipart/form-data body in chunks of any size, with the names of all its files replaced.

    Only the headers of parts are touched: they begin at a boundary, which never occurs inside a file.
    """

    def __init__(self, boundary: bytes) -> None:
        self.marker = b"--" + boundary
        self.held = b""
        self.inside_headers = False

    def feed(self, chunk: bytes, *, last: bool) -> bytes:
        """What can be passed on of everything so far; at the end, the rest.

        Raises:
            ValueError: a part's headers do not end.
        """
        self.held += chunk
        out = []
        while True:
            if self.inside_headers:
                end = self.held.find(b"\r\n\r\n")
                if end < 0:
                    if len(self.held) > _MOST_HEADERS:
                        raise ValueError("the headers of an upload do not end")
                    break
                out.append(_NAME.sub(_nameless, self.held[:end]))
                self.held, self.inside_headers = self.held[end:], False
            place = self.held.find(self.marker)
            if place < 0:
                keep = 0 if last else len(self.marker) - 1
                cut = max(0, len(self.held) - keep)
                out.append(self.held[:cut])
                self.held = self.held[cut:]
                break
            cut = place + len(self.marker)
            out.append(self.held[:cut])
            self.held, self.inside_headers = self.held[cut:], True
        if last:
            out.append(self.held)
            self.held = b""
        return b"".join(out)


def _nameless(found: re.Match[bytes]) -> bytes:
    suffix = _SUFFIX.search(found[1])
    return b'filename="photograph' + (b"." + suffix[1].lower() if suffix else b"") + b'"'


class NamelessUploads:
    """ASGI middleware: files of every upload are called `photograph` and their suffix."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Callable[[Message], Awaitable[None]]) -> None:
        """Pass the request on, its body rewritten where that is a form with files."""
        kind = dict(scope.get("headers") or []).get(b"content-type", b"")
        found = _BOUNDARY.search(kind) if kind.lower().startswith(b"multipart/form-data") else None
        if scope["type"] != "http" or found is None:
            await self.app(scope, receive, send)
            return
        renamer = Renamer(found[1])

        async def renamed() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                body = renamer.feed(message.get("body", b""), last=not message.get("more_body", False))
                message = {**message, "body": body}
            return message

        await self.app(scope, renamed, send)
