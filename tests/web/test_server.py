"""The server over HTTP: everyone gets their own picture, limits hold, strangers are refused, nothing stays behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import json
import re
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from nextscale import UpscaleOptions
from nextscale import image as images
from nextscale.image import Picture
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.run import Reveal
from nextscale.web.guard import HEADERS
from nextscale.web.jobs import Job, Jobs, State
from nextscale.web.limits import Limits
from tests.server import Local, local, wait_until

pytestmark = pytest.mark.integration

SMALL = Limits(pixels=200_000, result_pixels=3_000_000, upload_bytes=2_000_000, uploads=8)
WAIT = 120.0


@pytest.fixture(scope="module")
def server(model: NextScale, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with local(model, tmp_path_factory.mktemp("served"), SMALL) as server:
        yield server


@pytest.fixture
def client(server: Local) -> Iterator[httpx.Client]:
    with connect(server) as client:
        yield client


def connect(server: Local, address: str = "127.0.0.1", **more: Any) -> httpx.Client:
    """A client of its own address: the whole of 127.0.0.0/8 is this machine."""
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=server.url, transport=transport, timeout=WAIT, **more)


def photo(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return images.encode_bytes(Picture(pixels), ".png")


def form(data: bytes, name: str = "beach.png") -> dict[str, tuple[str, bytes]]:
    return {"image": (name, data)}


def submit(client: httpx.Client, data: bytes, **fields: str) -> dict[str, Any]:
    answer = client.post("/api/jobs", files=form(data), data=fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def finish(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    ends = ("done", "failed", "stopped")
    wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["state"] in ends, WAIT)
    return dict(client.get(f"/api/jobs/{job['id']}").json())


def error_of(answer: httpx.Response) -> str:
    text = str(answer.json()["error"])
    assert text.endswith(".")
    assert not re.search(r"Traceback|/tmp|--\w", text)
    return text


# -- what it gives -----------------------------------------------------------------------------------------------------


def test_eight_at_once_each_get_their_own_picture(server: Local, model: NextScale) -> None:
    photos = [photo(seed) for seed in range(8)]

    def call(number: int) -> bytes:
        with connect(server, f"127.0.0.{number + 2}") as client:
            answer = client.post("/api/upscale?scale=1", files=form(photos[number]))
            assert answer.status_code == 200, answer.text
            return answer.content

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(8)))
    for data, answer in zip(photos, answers, strict=True):
        expected = model.upscale(images.decode_bytes(data), UpscaleOptions(scale=1.0)).picture
        np.testing.assert_array_equal(images.decode_bytes(answer).rgb, expected.rgb)


def test_the_events_tell_of_every_stage_in_order(client: httpx.Client) -> None:
    job = submit(client, photo(1, (150, 40)), view="true")
    seen: list[tuple[str, dict[str, Any]]] = []
    with client.stream("GET", f"/api/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                seen.append((line.removeprefix("event: "), {}))
            elif line.startswith("data: "):
                seen[-1] = (seen[-1][0], json.loads(line.removeprefix("data: ")))
    assert seen[-1][0] == "done"
    shares = [data["share"] for _, data in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    done = [tuple(key for key, result in data["results"].items() if result["complete"]) for _, data in seen]
    stages = [row for i, row in enumerate(done) if i == 0 or row != done[i - 1]]
    assert stages == [("x1", "x2", "x4")[:n] for n in sorted({len(row) for row in done})]
    assert stages[-1] == ("x1", "x2", "x4")


def test_a_job_has_all_factors_in_three_formats_under_its_own_name(client: httpx.Client, model: NextScale) -> None:
    data = photo(2)
    job = finish(client, submit(client, data, confidence="true"))
    result = model.upscale(images.decode_bytes(data), UpscaleOptions(all_factors=True, confidence=True))
    for factor, expected in result.images.items():
        address = f"/api/jobs/{job['id']}/x{factor:g}"
        answer = client.get(f"{address}.png")
        assert f'filename="beach_x{factor:g}.png"' in answer.headers["content-disposition"]
        np.testing.assert_array_equal(images.decode_bytes(answer.content).rgb, expected.rgb)
        for suffix, kind in (("jpg", "JPEG"), ("webp", "WebP")):
            picture = images.decode_bytes(client.get(f"{address}.{suffix}").content)
            assert (picture.format, picture.size) == (kind, expected.size)
    answer = client.get(f"/api/jobs/{job['id']}/expected-error.png")
    np.testing.assert_array_equal(images.decode_bytes(answer.content).rgb[..., 0], result.maps[4.0])


def test_names_in_any_script_come_back(client: httpx.Client) -> None:
    job = submit_named(client, "../été 北京?.jpeg")
    finish(client, job)
    header = client.get(f"/api/jobs/{job['id']}/x1.png").headers["content-disposition"]
    assert quote("été 北京_x1.png") in header


def submit_named(client: httpx.Client, name: str) -> dict[str, Any]:
    answer = client.post("/api/jobs?scale=1", files=form(photo(3), name))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_no_name_of_a_client_reaches_the_disk(server: Local, client: httpx.Client) -> None:
    finish(client, submit_named(client, "very private name.png"))
    files = [path.name for path in server.folder.rglob("*")]
    assert "input" in files
    assert not any("private" in name for name in files)


def test_the_body_itself_will_do_and_any_factor_and_format(client: httpx.Client) -> None:
    answer = client.post("/api/upscale?scale=2.5&format=jpg", content=photo(4))
    picture = images.decode_bytes(answer.content)
    assert (picture.format, picture.size) == ("JPEG", (100, 75))


def test_the_addresses_of_a_tiny_factor_work(client: httpx.Client) -> None:
    job = finish(client, submit(client, photo(4), scale="1e-5", view="true", confidence="true"))
    here, (key,) = f"/api/jobs/{job['id']}", job["results"]
    suffix = job["results"][key]["view"]["suffix"]
    addresses = [job["results"][key]["url"], f"{here}/{key}.jpg", f"{here}/view/{key}/0_0_0.{suffix}"]
    for address in [*addresses, f"{here}/{key}-overlay.png", f"{here}/expected-error.png"]:
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert images.decode_bytes(answer.content).size == (1, 1)


def test_profile_and_sixteen_bits_survive(client: httpx.Client) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    data = images.encode_bytes(Picture(pixels, icc=profile), ".png")
    back = images.decode_bytes(client.post("/api/upscale?scale=1", files=form(data)).content)
    assert (back.bits, back.icc) == (16, profile)
    shown = client.post("/api/upscale?scale=1&format=webp", files=form(data))
    assert images.decode_bytes(shown.content).bits == 8


def test_transparency_is_kept_and_jpeg_refuses_it(client: httpx.Client) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    data = images.encode_bytes(Picture(pixels[..., :3], pixels[..., 3]), ".png")
    job = finish(client, submit(client, data, scale="1", view="true"))
    assert job["results"]["x1"]["formats"] == ["png", "webp"]
    assert images.decode_bytes(client.get(job["results"]["x1"]["url"]).content).alpha is not None
    answer = client.get(f"/api/jobs/{job['id']}/x1.jpg")
    assert answer.status_code == 422
    assert "transparency" in error_of(answer)


def test_a_view_has_tiles_at_every_size(client: httpx.Client) -> None:
    job = finish(client, submit(client, photo(5, (300, 20)), view="true", confidence="true"))
    view = job["results"]["x4"]["view"]
    assert (view["width"], view["height"], view["levels"]) == (1200, 80, 2)
    here = f"/api/jobs/{job['id']}"
    widths = {}
    for name in ("0_0_0", "0_1_0", "1_0_0"):
        answer = client.get(f"{here}/view/x4/{name}.{view['suffix']}")
        widths[name] = images.decode_bytes(answer.content).size[0]
    assert widths == {"0_0_0": 1024, "0_1_0": 176, "1_0_0": 600}
    assert client.get(f"{here}/view/original/0_0_0.png").status_code == 200
    assert client.get(f"{here}/x4-overlay.png").headers["content-type"] == "image/png"
    for wrong in ("x4/9_0_0.png", "..%2fx4/0_0_0.png", "x4/..%2f..%2finput", "x9/0_0_0.png"):
        assert client.get(f"{here}/view/{wrong}").status_code == 404


def test_several_results_come_as_one_zip(client: httpx.Client) -> None:
    jobs = [finish(client, submit(client, photo(seed), scale="1"))["id"] for seed in (6, 7)]
    answer = client.get(f"/api/zip?jobs={','.join(jobs)}")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["beach_x1.png", "beach_x1_2.png"]
        second = archive.read("beach_x1_2.png")
    assert second == client.get(f"/api/jobs/{jobs[1]}/x1.png").content
    assert client.get("/api/zip?jobs=none").status_code == 404
    client.delete(f"/api/jobs/{jobs[0]}")
    answer = client.get(f"/api/zip?jobs={','.join(jobs)}")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["beach_x1.png"]


def test_the_plan_says_what_fits_before_anything_is_sent(client: httpx.Client) -> None:
    rows = client.get("/api/plan?width=500&height=400").json()["factors"]
    assert [(row["factor"], row["fits"]) for row in rows] == [(1, True), (2, True), (4, False)]
    assert "3 megapixels" in rows[2]["error"]
    assert rows[0]["work"] < rows[1]["work"]
    assert client.get("/api/plan?width=0&height=5").status_code == 422


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "query", "status", "words"),
    [
        (b"no picture", "", 415, "This is not a picture"),
        (photo(0)[:200], "", 415, "truncated"),
        (photo(0, (600, 400)), "", 413, "0.2 megapixels"),
        (photo(0, (300, 300)), "?scale=8", 413, "choose a smaller factor"),
        (photo(0, (500, 400)), "?scale=2.05", 413, "choose x2 or a smaller picture"),
        (photo(0), "?fidelity=7", 422, "Fidelity must be in"),
        (photo(0), "?color=red", 422, "There is no option 'color'"),
        (photo(0), "?scale=nan", 422, "Scale must be a number"),
        (photo(0), "?seed=1.5", 422, "Seed must be a whole number"),
        (photo(0), f"?seed={'9' * 400}", 422, "Seed must be a whole number"),
        (photo(0), "?fast=perhaps", 422, "Fast must be true or false"),
        (photo(0), "?fast=true", 422, "leave out fast"),
        (photo(0), "?tile_batch=999", 422, "There is no option"),
        (photo(0), "?format=gif", 422, "Format must be one of"),
        (b"", "", 400, "No photograph came with it"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    client: httpx.Client, data: bytes, query: str, status: int, words: str
) -> None:
    answer = client.post(f"/api/upscale{query}", files=form(data))
    assert answer.status_code == status
    assert words in error_of(answer)


def test_an_upload_beyond_the_limit_is_refused(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:  # without a Content-Length
        for _ in range(40):
            yield b"\0" * 100_000

    assert client.post("/api/jobs", files=form(b"\0" * 2_500_000)).status_code == 413
    answer = client.post("/api/jobs", content=pieces())
    assert answer.status_code == 413
    assert "2 MB" in error_of(answer)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=a", b"--b\r\n\r\n"),
        ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"y" * 5000),
        ("multipart/form-data; boundary=a", b"--a\r\nX: " + b"y" * 100_000),
        ("application/x-www-form-urlencoded", b"image=1"),
    ],
)
def test_a_broken_form_is_a_sentence(client: httpx.Client, kind: str, body: bytes) -> None:
    answer = client.post("/api/jobs", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 415)
    error_of(answer)


def test_only_one_file_a_form(client: httpx.Client) -> None:
    answer = client.post("/api/jobs", files=[("image", ("a.png", photo(0))), ("image", ("b.png", photo(1)))])
    assert answer.status_code == 400
    assert "one photograph at a time" in error_of(answer).lower()


def test_refused_uploads_leave_nothing(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f", SMALL) as server, connect(server) as client:
        for data in (b"no picture", photo(0, (600, 400)), b"\0" * 2_500_000):
            assert client.post("/api/jobs", files=form(data)).status_code >= 400
        assert not list(server.folder.iterdir())


def raw(server: Local, data: bytes, seconds: float = 20.0) -> bytes:
    """What the server says to some bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line:
        line.sendall(data)
        said = b""
        while piece := line.recv(65536):
            said += piece
    return said


def test_stalled_requests_time_out(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f", Limits(stall_seconds=0.5)) as server:
        host = f"Host: 127.0.0.1:{server.port}\r\n".encode()
        body = raw(server, b"POST /api/jobs HTTP/1.1\r\n" + host + b"Content-Length: 1000\r\n\r\nabc")
        assert b" 408 " in body
        assert b"stalled" in body
        assert raw(server, b"GET / HT") == b""
        assert raw(server, b"") == b""
        assert not list(server.folder.iterdir())


def test_a_crawling_upload_times_out(model: NextScale, tmp_path: Path) -> None:
    limits = Limits(stall_seconds=0.4, slowest_bytes=10_000_000)
    with local(model, tmp_path / "f", limits) as server, connect(server) as client:

        def pieces() -> Iterator[bytes]:
            for _ in range(30):
                time.sleep(0.1)
                yield b"\0"

        answer = client.post("/api/jobs", content=pieces())
        assert answer.status_code == 408
        assert "too slow" in error_of(answer)


def test_a_full_queue_and_a_full_share_are_told_apart(model: NextScale, tmp_path: Path) -> None:
    limits = Limits(waiting=3, per_client=2, active=1)
    with local(model, tmp_path / "f", limits) as server:
        large = photo(0, (500, 500))
        with (
            connect(server, "127.0.0.1") as one,
            connect(server, "127.0.0.2") as two,
            connect(server, "127.0.0.3") as three,
        ):
            first = submit(one, large)
            wait_until(lambda: one.get(f"/api/jobs/{first['id']}").json()["state"] == "running")
            submit(one, large)
            answer = one.post("/api/jobs", files=form(large))
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
            assert "2 photographs at once" in error_of(answer)
            places = [submit(client, photo(1))["place"] for client in (two, three)]
            # Each of the others' first photograph comes before the first client's second.
            assert places == [1, 2]
            answer = two.post("/api/jobs", files=form(large))
            assert answer.status_code == 503
            assert "queue is full" in error_of(answer)


def test_a_small_photograph_overtakes_a_large_one(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f") as server, connect(server) as one, connect(server, "127.0.0.2") as two:
        large = submit(one, photo(0, (600, 900)))
        wait_until(lambda: one.get(f"/api/jobs/{large['id']}").json()["share"] > 0)
        assert two.post("/api/upscale?scale=1", files=form(photo(1))).status_code == 200
        assert one.get(f"/api/jobs/{large['id']}").json()["state"] == "running"


def test_jobs_share_the_model_by_the_pictures_that_they_hold(server: Local, client: httpx.Client) -> None:
    first = server.server.jobs.jobs[submit(client, photo(0), scale="2.05")["id"]]
    with connect(server, "127.0.0.2") as other:
        second = server.server.jobs.jobs[submit(other, photo(0), scale="2.05")["id"]]
    assert (first.pixels, second.pixels) == (160 * 120,) * 2  # x4 comes first
    for room, may in ((2 * 160 * 120, True), (2 * 160 * 120 - 1, False)):
        queue = SimpleNamespace(active=[first], limits=Limits(result_pixels=room))
        assert Jobs._may_begin(cast(Any, queue), second) is may


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_stopped_job_keeps_what_it_has_and_can_be_removed(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f") as server, connect(server) as client:
        job = submit(client, photo(0, (300, 300)), view="true")
        here = f"/api/jobs/{job['id']}"
        wait_until(lambda: client.get(here).json()["results"]["x4"]["preview"] > 0)
        assert client.get(f"{here}/x4-preview.jpg").headers["content-type"] == "image/jpeg"
        assert client.delete(here).status_code == 202
        ended = finish(client, job)
        assert ended["state"] == "stopped"
        assert 0 < ended["share"] < 1
        result = ended["results"]["x4"]
        assert (result["stored"], result["complete"]) == (True, False)
        answer = client.get(result["url"])
        assert 'filename="beach_x4_partial.png"' in answer.headers["content-disposition"]
        assert images.decode_bytes(answer.content).size == (1200, 1200)
        assert client.delete(here).status_code == 204
        assert client.get(here).status_code == 404
        assert not list(server.folder.iterdir())


def test_a_result_that_cannot_be_stored_stops_the_model_before_the_job_ends(
    model: NextScale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local(model, tmp_path / "f") as server, connect(server) as client:
        jobs, keys, ends = server.server.jobs, list[str](), list[tuple[str, bool, bool]]()
        take, end = jobs._take, jobs._end

        def full(_: Job, key: str, __: Reveal) -> None:
            keys.append(key)
            raise OSError(28, "No space left on device")

        def take_and_save(job: Job, reveal: Reveal) -> None:
            take(job, reveal)
            jobs.saver.submit(lambda: None).result()

        def watched_end(job: Job, state: State, error: str | None = None) -> None:
            ends.append((state, job in jobs.active, job.folder.exists()))
            end(job, state, error)

        for name, fake in (("_save", full), ("_take", take_and_save), ("_end", watched_end)):
            monkeypatch.setattr(jobs, name, fake)
        job = finish(client, submit(client, photo(0, (150, 40)), scale="8"))
        assert job["state"] == "failed"
        assert "disk is full" in job["error"]
        assert keys == ["x1"]
        assert ends == [("stopped", False, True)]  # once, off the model
        assert 0 < job["share"] < 1
        answer = client.post("/api/upscale?scale=1", files=form(photo(1)))
        assert (answer.status_code, "disk is full" in answer.json()["error"]) == (500, True)  # no other option helps


def test_a_job_that_nobody_watches_ends(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f", Limits(gone_seconds=0.3)) as server, connect(server) as client:
        job = submit(client, photo(0, (900, 900)))
        wait_until(lambda: server.server.jobs.jobs[job["id"]].state == "stopped")
        # One that is watched goes on.
        job = submit(client, photo(0, (150, 40)))
        with client.stream("GET", f"/api/jobs/{job['id']}/events") as stream:
            assert "event: done" in list(stream.iter_lines())


def test_hanging_up_ends_the_work(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f") as server:
        with connect(server) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/api/upscale", files=form(photo(0, (900, 900))), timeout=1.0)
        (job,) = server.server.jobs.jobs.values()
        wait_until(lambda: job.state == "stopped")


def test_results_go_after_their_time_and_when_there_are_too_many(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f", Limits(keep_bytes=1)) as server, connect(server) as client:
        job = submit(client, photo(0), scale="1")
        wait_until(lambda: job["id"] not in server.server.jobs.jobs)
        assert not list(server.folder.iterdir())
    with local(model, tmp_path / "g") as server, connect(server) as client:
        job = finish(client, submit(client, photo(0), scale="1"))
        server.server.jobs.tidy(time.monotonic() + 3500)
        assert client.get(job["results"]["x1"]["url"]).status_code == 200
        server.server.jobs.tidy(time.monotonic() + 3700)
        assert client.get(job["results"]["x1"]["url"]).status_code == 404
        assert not list(server.folder.iterdir())


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("127.0.0.1:7860", True),
        ("localhost", True),
        ("[::1]:7860", True),
        ("192.168.1.20:7860", True),  # no site can make a browser send an address that is not ours
        ("photos.example", True),  # named by --allow-host
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_it_goes_by_its_own_names_alone(model: NextScale, host: str, fine: bool) -> None:
    assert asyncio.run(ask_guard(Limits(), {"host": host}, hosts=["photos.example"])) == (200 if fine else 403)
    assert model


async def ask_guard(limits: Limits, headers: dict[str, str], method: str = "GET", **guard: Any) -> int:
    """The status that the guard gives to a request, before any route."""
    from nextscale.web.guard import Guard

    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        del scope, receive

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "headers": lines, "client": ("9.9.9.9", 1)}
    await Guard(app, limits, **guard)(scope, receive, send)
    found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= found.items()
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({}, True),  # no browser
        ({"origin": "http://127.0.0.1:7860"}, True),
        ({"origin": "https://photos.example"}, True),  # behind a proxy that ends TLS
        ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "http://localhost"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
    ],
)
def test_other_sites_send_nothing(headers: dict[str, str], fine: bool) -> None:
    given = {"host": "127.0.0.1:7860"} | headers
    for method in ("POST", "DELETE"):
        assert asyncio.run(ask_guard(Limits(), given, method, hosts=["photos.example"])) == (200 if fine else 403)


def test_every_answer_has_the_headers_of_safety(client: httpx.Client) -> None:
    for path in ("/", "/static/page.js", "/docs", "/api", "/nothing", "/api/jobs/none", "/static/../server.py"):
        answer = client.get(path)
        assert HEADERS.items() <= {name: answer.headers.get(name) for name in HEADERS}.items()
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_passwords_are_asked_for_and_cannot_be_guessed_quickly(model: NextScale, tmp_path: Path) -> None:
    with local(model, tmp_path / "f", auth=("ann", "a:b")) as server:
        with connect(server) as client:
            answer = client.get("/api")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")
            assert client.get("/healthz").status_code == 200
            assert client.get("/api", auth=("ann", "a:b")).status_code == 200
            wrong = [client.get("/api", auth=("ann", str(number))).status_code for number in range(7)]
            assert wrong == [401] * 5 + [429] * 2
            assert client.get("/api", auth=("ann", "a:b")).status_code == 429  # also the right one, for a minute
        with connect(server, "127.0.0.9") as other:
            assert other.get("/api", auth=("ann", "a:b")).status_code == 200


def test_the_wrong_passwords_are_forgotten_after_a_minute() -> None:
    from nextscale.web.guard import Logins
    from nextscale.web.limits import RefusedError

    logins = Logins(("ann", "b"), 2)
    for now in (0.0, 1.0):
        with pytest.raises(RefusedError, match="needed"):
            logins.check("x", "Basic %%%", now)
    with pytest.raises(RefusedError, match="too many"):
        logins.check("x", "Basic YW5uOmI=", 50.0)
    logins.check("x", "Basic YW5uOmI=", 61.5)


def test_nothing_that_a_client_sends_makes_a_request_leave(server: Local, client: httpx.Client) -> None:
    asked: list[Any] = []
    listening = True

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if listening and event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
            asked.append(details[1] if event == "socket.connect" else details[0])

    sys.addaudithook(hook)
    lure = "http://lure.example/a.png"
    client.post("/api/upscale?scale=1", files=form(photo(8), lure))
    client.post("/api/upscale", data={"image": lure})
    client.post("/api/upscale", json={"path": lure, "url": lure, "orig_name": lure})
    client.post(f"/api/upscale?url={lure}", content=lure.encode())
    client.post("/api/upscale", content=f'<svg xmlns="a"><image href="{lure}"/></svg>'.encode())
    client.get(f"/api/jobs/{quote(lure, safe='')}")
    client.get(f"/gradio_api/proxy={lure}")
    client.get("/", headers={"X-Forwarded-For": "lure.example", "X-Forwarded-Host": "lure.example"})
    listening = False
    assert asked  # the hook works: it saw our own connections
    assert {address[:2] if isinstance(address, tuple) else address for address in asked} <= {
        ("127.0.0.1", server.port),
        "127.0.0.1",
    }


def test_a_mistake_of_ours_is_one_plain_sentence(
    model: NextScale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("see /secret/place")

    with local(model, tmp_path / "f") as server, connect(server) as client:
        wait_until(lambda: server.server.jobs.seconds_per_work is not None)
        monkeypatch.setattr(server.server.jobs, "_start", broken)
        answer = client.post("/api/upscale", files=form(photo(0)))
        assert answer.status_code == 500
        assert error_of(answer) == "Internal error (RuntimeError); try other options."
        monkeypatch.setattr(server.server.jobs, "add", broken)
        answer = client.post("/api/upscale", files=form(photo(0)))
        assert (answer.status_code, error_of(answer)) == (500, "Internal error (RuntimeError).")


# -- what it says of itself --------------------------------------------------------------------------------------------


def test_the_description_names_every_address(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = {
        "/api/upscale",
        "/api/jobs",
        "/api/jobs/{id}",
        "/api/jobs/{id}/events",
        "/api/zip",
        "/api/plan",
        "/healthz",
    }
    assert routes <= set(document["paths"])
    fields = document["paths"]["/api/upscale"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "scale", "fidelity", "denoise", "fast", "seed"} <= set(fields["properties"])
    page = client.get("/docs").text
    assert all(path.replace("{", "{") in page for path in routes)
    assert not re.search(r'(?:src|href)="(?!/)', page)


def test_the_page_is_small_and_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    text = client.get("/").text
    addresses = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
    about = client.get("/api").json()
    sizes = {address: len(client.get(address).content) for address in [*addresses, *about["examples"]]}
    assert len(sizes) == 8
    assert len(text) + sum(sizes.values()) < 100_000
    for address in addresses:
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", client.get(address).text)
    assert "http" not in text


def test_five_examples_are_shipped_with_their_licenses() -> None:
    from nextscale.web.serve import example_photos

    names = [path.name for path in example_photos()]
    assert len(names) == 5
    licenses = (Path(__file__).parents[2] / "examples" / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in licenses for name in names)
