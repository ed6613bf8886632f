"""Sharing a model: to a hub and back, and the hub's own errors in one line each."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelHubMixin

from nextscale.errors import ModelError
from nextscale.model.tokenizer import Tokenizer
from nextscale.upscale.card import CardFacts
from nextscale.upscale.nextscale import NextScale

pytestmark = pytest.mark.integration

FACTS = CardFacts(title="A drawing model", data="Forty drawings, CC0.", license="Apache-2.0")
SHA = {"main": "a" * 40, "v1": "b" * 40}

PULL_REQUEST = {
    "num": 7, "title": "A nextscale model", "isPullRequest": True, "status": "open", "events": [],
    "createdAt": "2026-01-01T00:00:00.000Z", "changes": {"base": "main"}, "filesWithConflicts": [],
    "repo": {"name": "ann/model", "type": "model"}, "author": {"name": "ann"},
}  # fmt: skip


class Hub(ThreadingHTTPServer):
    """What huggingface_hub needs of a hub to commit files and to fetch them; all files are small."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.refuse = False
        self.token: str | None = None
        """What a request must carry."""
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.commits: list[tuple[str, str]] = []
        """Path of the request and message of every commit."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """The answers of that hub."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, parts = self.server, self.path.split("?")[0].split("/")
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.reply({"error": "Invalid username or password."}, 401)
        elif parts[-2] == "discussions":
            self.reply(PULL_REQUEST)
        elif "ann/model" not in self.path:
            self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif parts[-2] in ("revision", "tree") and parts[-1] not in {*SHA, *SHA.values()}:
            self.reply({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        elif parts[-2] == "revision":
            sha = SHA.get(parts[-1], parts[-1])
            self.reply({"id": "ann/model", "sha": sha, "siblings": [{"rfilename": name} for name in hub.files]})
        elif parts[-2] == "tree":
            rows = [{"type": "file", "path": n, "size": len(d), "oid": "1" * 40} for n, d in hub.files.items()]
            self.reply(rows)
        elif "resolve" in parts and parts[-1] in hub.files:
            if self.command == "GET":
                hub.fetched.append(parts[-1])
            commit = SHA.get(parts[-2], parts[-2])
            data = hub.files[parts[-1]]
            self.reply(data, X_Repo_Commit=commit, ETag=f'"{abs(hash(data)):040x}"')
        else:
            self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")

    def do_POST(self) -> None:
        body = b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuse:
            self.reply({"error": "not you"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.reply({"url": f"{self.server.url}/ann/model", "id": "1", "name": "ann/model"})
        elif self.path.endswith("/discussions"):
            self.reply(PULL_REQUEST)
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.server.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "header":
                    self.server.commits.append((self.path, row["value"]["summary"]))
            answer = {"commitUrl": f"{self.server.url}/ann/model/commit/1", "commitOid": "1", "success": True}
            self.reply(answer | {"pullRequestUrl": f"{self.server.url}/ann/model/discussions/1"})
        else:
            self.reply({"errors": [], "warnings": []})


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment variable HF_ENDPOINT does before the library is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Older versions (0.30) hold a name of their own for it.
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()
    point_at(hub.url, monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def full(hub: Hub, model_folder: Path) -> Hub:
    """A hub that holds the model."""
    hub.files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    return hub


def load(name: str = "ann/model", **how: Any) -> NextScale:
    return NextScale.from_pretrained(name, device="cpu", fp32=True, **how)


def refused(**how: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(**how)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_mixin_is_the_plain_one() -> None:
    assert issubclass(NextScale, ModelHubMixin)
    assert issubclass(NextScale, torch.nn.Module)


def test_a_model_goes_to_a_hub_and_comes_back_with_its_card(hub: Hub, model: NextScale, tmp_path: Path) -> None:
    address = model.push_to_hub("ann/model", private=True, token="hf_test", facts=FACTS)
    assert address.endswith("/ann/model/commit/1")
    assert "private" in json.dumps(hub.created[0])
    expected = model.save_pretrained(tmp_path / "here", facts=FACTS)
    assert hub.files == {path.name: path.read_bytes() for path in expected.iterdir()}
    back = load()
    assert back.config == model.config
    assert back.facts == FACTS
    assert sorted(hub.fetched) == ["README.md", "card.json", "config.json", "model.safetensors"]
    again = back.save_pretrained(tmp_path / "again")
    assert (again / "README.md").read_bytes() == hub.files["README.md"]
    assert "pipeline_tag: image-to-image" in str(model.generate_model_card(facts=FACTS))


def test_a_commit_has_its_message_branch_and_pull_request(hub: Hub, model: NextScale, tmp_path: Path) -> None:
    model.push_to_hub("ann/model", commit_message="Better eyes", branch="v1", token="hf_test")
    model.push_to_hub("ann/model", create_pr=True, token="hf_test")
    (first, said), (second, _) = hub.commits
    assert said == "Better eyes"
    assert "/commit/v1" in first
    assert "refs%2Fpr%2F7" in second or "create_pr=1" in second  # by the library's version
    hub.commits.clear()
    saved = model.save_pretrained(tmp_path / "m", push_to_hub=True, repo_id="ann/model", token="hf_test", facts=FACTS)
    assert len(hub.commits) == 1
    assert hub.files["card.json"] == (saved / "card.json").read_bytes()


def test_the_cache_serves_later_loads_and_offline_ones(full: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "elsewhere"
    assert "not" in refused(local_files_only=True, cache_dir=cache)  # nothing is there yet
    load(cache_dir=cache)
    assert cache.is_dir()
    count = len(full.fetched)
    load(cache_dir=cache, local_files_only=True)
    assert len(full.fetched) == count
    load(cache_dir=cache, force_download=True)
    assert len(full.fetched) == 2 * count
    full.token = "hf_only_me"  # from now on the hub says no: the cache still serves
    load(cache_dir=cache, local_files_only=True)


@pytest.mark.usefixtures("full")
def test_a_revision_is_asked_for(tmp_path: Path) -> None:
    load(revision="v1", cache_dir=tmp_path)
    assert [path.name for path in tmp_path.rglob("snapshots/*")] == [SHA["v1"]]
    assert "the hub does not give it (Revision Not Found" in refused(revision="v9")


def test_a_token_opens_what_is_private(full: Hub) -> None:
    full.token = "hf_secret"
    reason = refused(token=False)
    assert "ann/model: no such folder, and the hub does not give it" in reason
    assert load(token="hf_secret").config.transformer.depth == 2


def test_a_tokenizer_comes_from_a_hub_too(full: Hub) -> None:
    assert full.files
    assert Tokenizer.from_pretrained("ann/model").config.codebook_size == 64


def test_the_hubs_refusals_are_one_line(hub: Hub, model: NextScale) -> None:
    assert "nobody/nothing: no such folder, and the hub does not give it (Repo" in refused(name="nobody/nothing")
    hub.refuse = True
    with pytest.raises(ModelError, match=r"ann/model: the hub did not take it .*check name") as caught:
        model.push_to_hub("ann/model", token="hf_test")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="the hub did not take it"):
        model.push_to_hub("no such name/at/all", token="hf_test")


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, model: NextScale, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    assert hub.files == {}
    assert "the hub does not give it" in refused()
    with pytest.raises(ModelError, match="the hub did not take it"):
        model.push_to_hub("ann/model", token="hf_test")


def test_a_disk_that_is_full_is_not_blamed_on_the_hub(
    hub: Hub, model: NextScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ModelError("here: the model could not be written (No space left on device)")

    monkeypatch.setattr("nextscale.upscale.nextscale.save_folder", full)
    with pytest.raises(ModelError, match=r"^here: the model could not be written"):
        model.push_to_hub("ann/model", token="hf_test")
    assert hub.files == {}
