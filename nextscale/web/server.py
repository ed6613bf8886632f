"""The server of `nextscale serve`: an HTTP API for programs, and the page, which uses nothing else."""

from __future__ import annotations

import asyncio
import io
import json
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from nextscale import __version__
from nextscale.errors import NextScaleError, OptionError
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from nextscale.web.description import describe, page_of
from nextscale.web.guard import Guard, client_of, error_response, sentence
from nextscale.web.jobs import Job, Jobs
from nextscale.web.limits import Limits, RefusedError, options_of
from nextscale.web.uploads import receive
from nextscale.web.views import FORMATS, Format

STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
_BEAT_SECONDS: Final = 10.0
"""Between two signs of life of a quiet event stream."""
_EVENT_SECONDS: Final = 0.1
"""Least time between two events."""


class Server:
    """The routes over one queue of jobs.

    Args:
        folder: of uploads and results; must be there.
        examples: photographs that the page offers.
    """

    def __init__(self, model: NextScale, folder: Path, limits: Limits, examples: list[Path]) -> None:
        self.model, self.folder, self.limits = model, folder, limits
        self.jobs = Jobs(model, folder, limits)
        self.streams: dict[str, int] = {}
        self.files = {f"/static/{path.name}": path for path in STATIC.iterdir() if path.suffix in _TYPES}
        self.files |= {f"/examples/{path.name}": path for path in examples}
        self.examples = examples

    def app(self, *, hosts: Collection[str] = (), auth: tuple[str, str] | None = None) -> ASGIApp:
        """The ASGI application; see `Guard` for the arguments."""
        job = "/api/jobs/{id}"
        routes = [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/examples/{name}", self.static),
            Route("/healthz", self.healthz),
            Route("/docs", self.docs),
            Route("/openapi.json", self.openapi),
            Route("/api", self.about),
            Route("/api/plan", self.plan),
            Route("/api/upscale", self.upscale, methods=["POST"]),
            Route("/api/jobs", self.create, methods=["POST"]),
            Route("/api/zip", self.zip),
            Route(job, self.show, methods=["GET"]),
            Route(job, self.delete, methods=["DELETE"]),
            Route(f"{job}/events", self.events),
            Route(f"{job}/view/{{layer}}/{{tile}}", self.view),
            Route(f"{job}/{{file}}", self.file),
        ]
        handlers = {
            NextScaleError: _refuse,
            HTTPException: _no_route,
            FileNotFoundError: _gone,
            Exception: _apologize,
        }
        return Guard(
            Starlette(routes=routes, exception_handlers=cast(Any, handlers)), self.limits, hosts=hosts, auth=auth
        )

    def end(self) -> None:
        """Stop all work and answer who waits for it; at once, without waiting for a step to end."""
        self.jobs.end()

    def close(self) -> None:
        """End all work."""
        self.jobs.close()

    # -- the page and what it is made of -------------------------------------------------------------------------------

    async def page(self, _: Request) -> Response:
        return self._file("/static/index.html")

    async def static(self, request: Request) -> Response:
        return self._file(request.url.path)

    def _file(self, name: str) -> Response:
        path = self.files.get(name)
        if path is None:
            raise RefusedError(404, "there is nothing here")
        return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    async def healthz(self, _: Request) -> Response:
        """For a container's health check: whether the model's thread is alive."""
        alive = self.jobs.worker.is_alive()
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(describe(self.limits))

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(page_of(describe(self.limits)))

    async def about(self, _: Request) -> Response:
        """What this server can do, for the page."""
        limits, model = self.limits, self.model
        return JSONResponse(
            {
                "version": __version__,
                "factors": list(self.jobs.ladder.factors),
                "has_fast": _takes(model, UpscaleOptions(fast=True)),
                "has_denoise": _takes(model, UpscaleOptions(denoise=0.0)),
                "map": "expected error" if self.jobs.has_error else "confidence",
                "examples": [f"/examples/{path.name}" for path in self.examples],
                "limits": {
                    "upload_bytes": limits.upload_bytes,
                    "pixels": limits.pixels,
                    "result_pixels": limits.result_pixels,
                    "work": limits.work,
                    "per_client": limits.per_client,
                    "keep_seconds": limits.keep_seconds,
                },
            }
        )

    async def plan(self, request: Request) -> Response:
        """For a picture's width and height: which factors fit, and how long they would take."""
        fields = dict(request.query_params)
        try:
            size = int(fields.pop("width", "")), int(fields.pop("height", ""))
        except ValueError:
            raise OptionError("width and height must be whole numbers") from None
        if min(size) < 1 or max(size) > 10**6:
            raise OptionError("width and height must be from 1 to 1000000")
        asked = fields.pop("scale", None)
        rows = []
        for factor in [options_of({"scale": asked}).scale] if asked else self.jobs.ladder.factors:
            row: dict[str, Any] = {"factor": factor, "fits": True, "seconds": None, "error": None}
            try:
                work, _ = self.jobs.plan(size, options_of(fields | {"scale": str(factor)}))
                row["work"] = round(work, 2)
                if self.jobs.seconds_per_work is not None:
                    row["seconds"] = round(work * self.jobs.seconds_per_work, 1)
            except RefusedError as error:
                row |= {"fits": False, "error": sentence(str(error))}
            rows.append(row)
        return JSONResponse({"factors": rows})

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        job = await self._new_job(request)
        return JSONResponse(job.describe(), 201, {"Location": f"/api/jobs/{job.id}"})

    async def _new_job(self, request: Request) -> Job:
        client = client_of(request.scope)
        with self.jobs.reserve(client):
            folder = self.folder / secrets.token_hex(16)
            folder.mkdir()
            try:
                upload = await receive(request, folder / "input", self.limits)
                fields = upload.fields
                view = fields.pop("view", "") in ("1", "true")
                fields.pop("format", None)
                return await self.jobs.add(client, upload.name, folder, options_of(fields), wants_view=view)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def _job(self, name: str) -> Job:
        job = self.jobs.jobs.get(name)
        if job is None:
            raise RefusedError(404, "there is no such job (any more)")
        job.seen = time.monotonic()
        return job

    async def show(self, request: Request) -> Response:
        return JSONResponse(self._job(request.path_params["id"]).describe())

    async def delete(self, request: Request) -> Response:
        """Stop a job at its next step, or remove one that has ended."""
        job = self._job(request.path_params["id"])
        if job.has_ended:
            self.jobs.remove(job)
            return Response(status_code=204)
        self.jobs.stop(job)
        return JSONResponse(job.describe(), 202)

    async def events(self, request: Request) -> Response:
        job, client = self._job(request.path_params["id"]), client_of(request.scope)
        if self.streams.get(client, 0) >= self.limits.streams:
            raise RefusedError(429, f"{self.limits.streams} event streams at once are the limit; close one", retry=5)
        unbuffered = {"X-Accel-Buffering": "no"}  # by a proxy
        return StreamingResponse(self._events(job, client), media_type="text/event-stream", headers=unbuffered)

    async def _events(self, job: Job, client: str) -> AsyncIterator[str]:
        self.streams[client] = self.streams.get(client, 0) + 1
        try:
            with self._watch(job) as news:
                before: dict[str, Any] = {}
                while True:
                    news.clear()
                    now = job.describe()
                    if now != before:
                        yield f"event: {_kind(before, now)}\ndata: {json.dumps(now)}\n\n"
                        before = now
                    if now["state"] in ("done", "stopped", "failed") or self.jobs.closing:
                        return
                    try:
                        await asyncio.wait_for(news.wait(), _BEAT_SECONDS)
                        await asyncio.sleep(_EVENT_SECONDS)
                    except (asyncio.TimeoutError, TimeoutError):
                        yield ": still here\n\n"
        finally:
            self.streams[client] -= 1
            if not self.streams[client]:
                del self.streams[client]

    @contextmanager
    def _watch(self, job: Job) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job changes."""
        news, loop = asyncio.Event(), asyncio.get_running_loop()
        with self.jobs.watch(job, _teller(loop, news)):
            yield news

    async def upscale(self, request: Request) -> Response:
        """Restore one photograph and answer with it; the job ends when the client hangs up."""
        suffix = _format(request.query_params.get("format", "png"))
        job = await self._new_job(request)
        try:
            with self._watch(job) as news:
                while not job.has_ended:
                    news.clear()
                    if self.jobs.closing:
                        raise RefusedError(503, "the server is ending")
                    if await request.is_disconnected():
                        raise RefusedError(400, "the client has gone")
                    try:
                        await asyncio.wait_for(news.wait(), 0.5)
                    except (asyncio.TimeoutError, TimeoutError):
                        continue
        except BaseException:
            self.jobs.stop(job)
            raise
        if job.error is not None:
            raise RefusedError(500 if job.is_ours else 422, job.error.rstrip("."))
        if job.state != "done":
            raise RefusedError(503, "the job was stopped")
        return await self._result(job, f"x{job.options.scale:g}", suffix)

    async def file(self, request: Request) -> Response:
        """x4.png, expected-error.png, x4-overlay.png, x4-preview.jpg."""
        job, name = self._job(request.path_params["id"]), request.path_params["file"]
        if name == "expected-error.png":
            name = f"x{job.options.scale:g}-map.png"
        # Of the key only the job knows what it looks like: x2.5, x1e-05.
        found = re.fullmatch(r"(.+?)(?:-(map|overlay|preview))?\.(\w+)", name)
        if found is None or found[1] not in job.results:
            raise RefusedError(404, "there is nothing here")
        key, kind, suffix = found.groups()
        if kind == "preview":
            preview = job.previews.get(key)
            if preview is None:
                raise RefusedError(404, "there is no preview (any more)")
            return Response(preview, media_type="image/jpeg")
        if kind is not None:
            path = job.folder / f"{key}-{kind}.png"
            if suffix != "png" or not path.exists():
                raise RefusedError(404, "there is no map of this result; ask for it with confidence=true, without fast")
            return _send(path, "image/png")
        return await self._result(job, key, _format(suffix))

    async def _result(self, job: Job, key: str, suffix: Format) -> Response:
        if not job.results[key].stored:
            raise RefusedError(404, "this result is not ready")
        path = await self.jobs.file(job, key, suffix)
        media = {"jpg": "image/jpeg"}.get(suffix, f"image/{suffix}")
        return _send(path, media, job.file_name(key, suffix), fixed=False)

    async def view(self, request: Request) -> Response:
        """A tile of what the page shows: view/x4/LEVEL_COLUMN_ROW.jpg."""
        job, layer, tile = (request.path_params[name] for name in ("id", "layer", "tile"))
        found = self._job(job)
        if layer in ("original", *found.results) and re.fullmatch(r"\d{1,2}_\d{1,3}_\d{1,3}\.(jpg|png)", tile):
            path = found.folder / layer / tile
            if path.exists():
                media = "image/png" if tile.endswith("png") else "image/jpeg"
                return _send(path, media)
        raise RefusedError(404, "there is nothing here")

    async def zip(self, request: Request) -> Response:
        """The largest result of each of several jobs, under their files' names."""
        suffix = _format(request.query_params.get("format", "png"))
        entries: list[tuple[Path, str]] = []
        names: set[str] = set()
        for word in request.query_params.get("jobs", "").split(",")[:200]:
            job = self.jobs.jobs.get(word)
            if job is None:  # its time came; the others are still wanted
                continue
            job.seen = time.monotonic()
            stored = [key for key, result in job.results.items() if result.stored]
            if not stored:
                continue
            key = max(stored, key=lambda key: float(key[1:]))
            fits = suffix if suffix in job.results[key].formats else "png"
            name = first = job.file_name(key, fits)
            count = 1
            while name in names:
                count += 1
                name = f"{first.rpartition('.')[0]}_{count}.{fits}"
            names.add(name)
            entries.append((await self.jobs.file(job, key, fits), name))
        if not entries:
            raise RefusedError(404, "none of these jobs has a result")
        headers = {"Content-Disposition": 'attachment; filename="nextscale.zip"'}
        return StreamingResponse(_zip_pieces(entries), media_type="application/zip", headers=headers)


def _takes(model: NextScale, options: UpscaleOptions) -> bool:
    """Whether a model has what options ask for."""
    try:
        model.check(options)
    except OptionError:
        return False
    return True


def _teller(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> Callable[[], None]:
    """What sets an event of a loop from any thread."""

    def tell() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(news.set)

    return tell


def _kind(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The name of an event: what is new."""
    ends = {"done": "done", "failed": "error", "stopped": "stopped"}
    if now["state"] in ends:
        return ends[now["state"]]
    earlier = before.get("results", {})
    if any(result["complete"] and not earlier.get(key, result)["complete"] for key, result in now["results"].items()):
        return "ready"
    return "waiting" if now["state"] == "waiting" else "progress"


def _format(name: str) -> Format:
    suffix = {"jpeg": "jpg"}.get(name, name)
    if suffix not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, got {name[:40]!r}")
    return suffix


def _send(path: Path, media_type: str, name: str | None = None, *, fixed: bool = True) -> Response:
    """A job's file; `fixed`: browsers may keep it."""
    headers = {"Cache-Control": "private, max-age=3600"} if fixed else {}
    return FileResponse(path, 200, headers, media_type, filename=name, stat_result=path.stat())


class _Pipe(io.RawIOBase):
    """A file that only grows, and whose bytes are taken away as they come."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self.pieces)
        self.pieces.clear()
        return taken


def _zip_pieces(entries: list[tuple[Path, str]]) -> Iterator[bytes]:
    """A zip file, piece by piece: pictures are compressed already."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path, name in entries:
            entry = zipfile.ZipInfo(name, cast(Any, time.localtime()[:6]))
            entry.file_size = path.stat().st_size
            with archive.open(entry, "w") as target, path.open("rb") as source:
                while piece := source.read(1 << 20):
                    target.write(piece)
                    yield pipe.take()
    yield pipe.take()


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, RefusedError):
        return error_response(error)
    return error_response(RefusedError(422 if isinstance(error, OptionError) else 400, str(error)))


async def _no_route(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    texts = {404: "there is nothing here", 405: "this address does not take that method"}
    return error_response(RefusedError(status, texts.get(status, "the request cannot be read")))


async def _gone(_: Request, __: Exception) -> Response:
    """A job's file whose time came between the look for it and its sending."""
    return error_response(RefusedError(404, "it is not there any more"))


async def _apologize(_: Request, error: Exception) -> Response:
    return error_response(RefusedError(500, f"internal error ({type(error).__name__})"))
