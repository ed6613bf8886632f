"""Who may ask what: Host and Origin, the password, and the headers of every answer. An ASGI layer around the server."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import logging
import re
import time
from collections import deque
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextscale.web.limits import Limits, RefusedError

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OPEN: Final = ("/healthz",)
"""What is answered without a password."""
_MOST_CLIENTS: Final = 10_000
log = logging.getLogger("nextscale.web")


def error_response(error: RefusedError) -> Response:
    """A refusal as clients get it."""
    headers = {} if error.retry is None else {"Retry-After": str(error.retry)}
    return JSONResponse({"error": sentence(str(error))}, error.status, headers)


def sentence(text: str) -> str:
    """An error's line as a sentence; options are fields here, not words of a command line."""
    plain = re.sub(r"(?<!\S)--(?=\w)", "", text)
    return f"{plain[:1].upper()}{plain[1:]}."


def client_of(scope: Scope) -> str:
    """Whom a request comes from: an address, or the network that one IPv6 customer has."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Logins:
    """Counts wrong passwords, and refuses clients with too many in a minute."""

    def __init__(self, auth: tuple[str, str], most: int) -> None:
        self.expected = ":".join(auth).encode()
        self.most = most
        self.wrong: dict[str, deque[float]] = {}

    def check(self, client: str, header: str, now: float) -> None:
        """Raises RefusedError (401 or 429) unless the header carries the right name and password."""
        tries = self.wrong.get(client, deque())
        while tries and now - tries[0] > 60:
            tries.popleft()
        if len(tries) >= self.most:
            raise RefusedError(429, "too many wrong passwords; wait a minute", retry=60)
        kind, _, value = header.partition(" ")
        try:
            given = base64.b64decode(value, validate=True) if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        if hmac.compare_digest(given, self.expected):
            self.wrong.pop(client, None)
            return
        if header:
            tries.append(now)
            self.wrong[client] = tries
            while len(self.wrong) > _MOST_CLIENTS:
                del self.wrong[next(iter(self.wrong))]
        raise RefusedError(401, "a name and a password are needed")


class Guard:
    """Refuses what is not for this server, and adds the headers of safety to every answer.

    Args:
        hosts: names that the server goes by, beside localhost and its addresses.
        auth: name and password that every request must carry.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, *, hosts: Collection[str] = (), auth: tuple[str, str] | None = None
    ) -> None:
        self.app = app
        self.hosts = {"localhost", *(name.lower() for name in hosts)}
        self.logins = None if auth is None else Logins(auth, limits.logins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered = False

        async def guarded(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            self._check(scope)
            await self.app(scope, receive, guarded)
        except RefusedError as error:
            response = error_response(error)
            if error.status == 401:
                response.headers["WWW-Authenticate"] = 'Basic realm="nextscale", charset="UTF-8"'
            await response(scope, receive, guarded)
        except Exception:
            log.exception("a request failed")
            if not answered:  # what has begun is broken off
                raise

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise RefusedError(403, "this server does not go by that name; start it with --allow-host NAME")
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and not self._same_site(origin, host):
                raise RefusedError(403, "requests from other sites are not taken")
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                raise RefusedError(403, "requests from other sites are not taken")
        if self.logins is not None and scope["path"] not in OPEN:
            self.logins.check(client_of(scope), headers.get("authorization", ""), time.monotonic())

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. An address always does: no other site can make a browser send it."""
        name = _host_name(host)
        if name is None:
            return False
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _same_site(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        name = _host_name(parts.netloc)
        # A proxy may talk to us by another name than the one that browsers know it by.
        return parts.netloc.lower() == host.lower() or (name is not None and name in self.hosts - {"localhost"})


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None where there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
