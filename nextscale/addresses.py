"""Addresses of files elsewhere, such as https://... and s3://...: what they look like, and what is said of them."""

from __future__ import annotations

import re

# One letter before the colon is a drive of Windows.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_address(name: str) -> bool:
    """Whether a name is an address such as https://..., s3://... or file://..."""
    return bool(_ADDRESS.match(name))


def shown(address: str) -> str:
    """An address without what may be secret: its query, and a name and password before its host."""
    return re.sub(r"^([^:/]+://)[^/@]*@", r"\1", address.partition("?")[0])


def store_reason(address: str, error: Exception) -> str:
    """In one line without secrets, why a store did not give what is at an address; every store has its own errors."""
    text = (str(error) or type(error).__name__).replace(address, shown(address))
    return " ".join(text.split())[:160]
