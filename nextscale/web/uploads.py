"""Reads one photograph and its options from a request, in pieces, to a file of our own name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from nextscale.web.limits import Limits, RefusedError

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # its warnings are our refusals

_FIELD_BYTES: Final = 1000
_FIELDS: Final = 30
_FORM_BYTES: Final = 64_000
"""What the boundaries and fields of a form may add to its file."""


@dataclass
class Upload:
    """What came with a request."""

    size: int = 0
    """Bytes of the photograph."""
    name: str = ""
    """What the client calls it; kept in memory alone."""
    fields: dict[str, str] = field(default_factory=dict)


async def receive(request: Request, target: Path, limits: Limits) -> Upload:
    """Store the photograph of a request: a form with one file, or the body itself.

    Raises:
        RefusedError: the body is too large, stalls, is no form, or holds no file.
    """
    kind, settings = parse_options_header(request.headers.get("content-type", ""))
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.upload_bytes + _FORM_BYTES:
        raise _too_large(limits)
    upload = Upload(fields=dict(request.query_params))
    with target.open("xb") as file:
        if kind == b"multipart/form-data":
            form = _Form(settings.get(b"boundary", b""), file, upload, limits)
            try:
                async for piece in _pieces(request, limits):
                    form.parser.write(piece)
                form.parser.finalize()
            except FormParserError:
                raise RefusedError(400, "the form cannot be read; send multipart/form-data with one file") from None
        elif kind == b"application/x-www-form-urlencoded":
            how = "as a form (curl -F image=@photo.jpg), or as the body with its type (-H Content-Type:image/jpeg)"
            raise RefusedError(415, f"send the photograph {how}")
        else:
            async for piece in _pieces(request, limits):
                _add(file, piece, upload, limits)
    if not upload.size:
        raise RefusedError(400, "no photograph came with it; send one as the field image, or as the body itself")
    return upload


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, f"the upload is over the limit of {limits.upload_bytes / 1e6:g} MB; send a smaller file")


def _add(file: IO[bytes], piece: bytes, upload: Upload, limits: Limits) -> None:
    upload.size += len(piece)
    if upload.size > limits.upload_bytes:
        raise _too_large(limits)
    file.write(piece)


async def _pieces(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """The body's pieces, as long as they come fast enough.

    Raises:
        RefusedError: the body stalls, crawls or goes beyond the limit.
    """
    started, total = time.monotonic(), 0
    stream = request.stream()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream), limits.stall_seconds)
        except StopAsyncIteration:
            return
        except ClientDisconnect:
            raise RefusedError(400, "the upload broke off") from None
        except (asyncio.TimeoutError, TimeoutError):
            raise RefusedError(408, "the upload stalled; send it again") from None
        total += len(piece)
        if total > limits.upload_bytes + _FORM_BYTES:
            raise _too_large(limits)
        if time.monotonic() - started > limits.stall_seconds + total / limits.slowest_bytes:
            raise RefusedError(408, "the upload is too slow; send it again over a better line")
        yield piece


class _Form:
    """Takes the parts of a form: its only file to the disk, its fields into memory."""

    def __init__(self, boundary: bytes, file: IO[bytes], upload: Upload, limits: Limits) -> None:
        self.file, self.upload, self.limits = file, upload, limits
        self.header, self.value = bytearray(), bytearray()
        self.headers: dict[bytes, bytes] = {}
        self.field: str | None = None
        self.text = bytearray()
        self.files = 0
        if not boundary:
            raise RefusedError(
                400, "the form names no boundary; let your program set the header Content-Type by itself"
            )
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self.headers.clear,
                "on_header_field": lambda data, start, end: self.header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self.value.extend(data[start:end]),
                "on_header_end": self.header_end,
                "on_headers_finished": self.headers_finished,
                "on_part_data": self.part_data,
                "on_part_end": self.part_end,
            },
        )

    def header_end(self) -> None:
        self.headers[bytes(self.header).lower()] = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def headers_finished(self) -> None:
        _, settings = parse_options_header(self.headers.get(b"content-disposition", b""))
        self.text.clear()
        if b"filename" in settings:
            self.field = None
            self.files += 1
            if self.files > 1:
                raise RefusedError(400, "one photograph at a time; send the others in requests of their own")
            self.upload.name = settings[b"filename"].decode("utf-8", "replace")
        else:
            self.field = settings.get(b"name", b"").decode("utf-8", "replace")[:40]
            if len(self.upload.fields) >= _FIELDS:
                raise RefusedError(400, f"the form has more than {_FIELDS} fields")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self.field is None:
            _add(self.file, data[start:end], self.upload, self.limits)
        elif len(self.text) + end - start > _FIELD_BYTES:
            raise RefusedError(400, f"the field {self.field!r} is longer than {_FIELD_BYTES} bytes")
        else:
            self.text.extend(data[start:end])

    def part_end(self) -> None:
        if self.field is not None:
            self.upload.fields[self.field] = self.text.decode("utf-8", "replace")
