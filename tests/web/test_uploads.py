"""No name that a client gave reaches the disk, and no byte of a file changes."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.web.uploads import NamelessUploads, Renamer

PART = b'--B0\r\nContent-Disposition: form-data; name="files"; filename=%s\r\nContent-Type: image/png\r\n\r\n%s\r\n'


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


@given(
    names=st.lists(
        st.sampled_from([b'"a b.JPG"', b'"../../etc/passwd"', b"bare.png", b'"quo\\"te.tif"', b'""']), min_size=1
    ),
    content=st.binary(max_size=60).filter(lambda data: b"--B0" not in data),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_names_go_and_files_stay_however_the_body_is_cut(names: list[bytes], content: bytes, cuts: list[int]) -> None:
    inside = content + b'filename="mine.jpg"' + content
    if b"--B0" in inside:
        return
    body = b"".join(PART % (name, inside) for name in names) + b"--B0--\r\n"
    renamer = Renamer(b"B0")
    parts = pieces(body, cuts)
    out = b"".join(renamer.feed(part, last=i == len(parts) - 1) for i, part in enumerate(parts))
    expected = []
    for name in names:
        suffix = name.strip(b'"').rpartition(b".")[2].lower()
        kept = b"." + suffix if suffix in (b"jpg", b"png", b"tif") else b""
        expected.append(PART % (b'"photograph' + kept + b'"', inside))
    assert out == b"".join(expected) + b"--B0--\r\n"


def test_headers_without_an_end_are_refused() -> None:
    renamer = Renamer(b"B0")
    with pytest.raises(ValueError, match="do not end"):
        renamer.feed(b"--B0\r\n" + b"x" * 20_000, last=False)


def through(content_type: bytes, body: bytes) -> bytes:
    """What an application behind the middleware receives."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, send
        seen.append((await receive())["body"])

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "headers": [(b"content-type", content_type)]}
    asyncio.run(NamelessUploads(app)(scope, receive, None))  # type: ignore[arg-type]
    return bytes(seen[0])


def test_forms_are_renamed_and_everything_else_passes() -> None:
    body = PART % (b'"secret.png"', b"data") + b"--B0--\r\n"
    assert b"secret" not in through(b"multipart/form-data; boundary=B0", body)
    assert through(b"application/json", body) == body
