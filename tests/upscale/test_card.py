"""A saved model tells what it is; a hub gets all of it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nextscale.errors import ModelError
from nextscale.upscale.card import CardFacts, model_card
from nextscale.upscale.nextscale import NextScale

FACTS = CardFacts(
    title="A test",
    data="Forty drawings, CC0.",
    licence="Apache-2.0",
    metrics={"val": {"x4": {"PSNR-Y": 25.2, "LPIPS": 0.481}, "x1": {"PSNR-Y": 30.0}}},
)


def test_saving_writes_a_card_and_loading_keeps_its_facts(model: NextScale, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "one", facts=FACTS)
    text = (folder / "model_card.md").read_text(encoding="utf-8")
    for part in (
        "Forty drawings, CC0.",
        "license: apache-2.0",
        "Intended use",
        "## Limits",
        "| val | x4 | 25.2 | 0.481 |",
    ):
        assert part in text
    assert "| val | x1 | 30 |  |" in text
    again = NextScale.from_pretrained(folder, device="cpu", fp32=True)
    assert again.facts == FACTS
    other = again.save_pretrained(tmp_path / "two")
    assert (other / "model_card.md").read_bytes() == (folder / "model_card.md").read_bytes()


def test_what_is_unknown_is_said_to_be() -> None:
    text = model_card(CardFacts(), {"parameters": "1"})
    assert text.count("Not stated by whoever saved this model.") == 2
    assert "Not measured." in text
    assert "license:" not in text


@pytest.mark.parametrize("text", ["[]", "{", '{"colour": 1}', '{"metrics": {"a": {"b": {"c": "x"}}}}'])
def test_damaged_facts_are_one_line(model: NextScale, tmp_path: Path, text: str) -> None:
    folder = model.save_pretrained(tmp_path)
    (folder / "card.json").write_text(text)
    with pytest.raises(ModelError, match=r"card\.json: not the facts of a model card"):
        NextScale.from_pretrained(folder, device="cpu", fp32=True)


def test_the_shipped_card_states_data_licence_and_numbers() -> None:
    facts = NextScale.from_pretrained("tiny", device="cpu", fp32=True).facts
    assert facts.licence == "Apache-2.0"
    assert facts.data
    assert {factor for factors in facts.metrics.values() for factor in factors} == {"x1", "x2", "x4"}


class Hub(ThreadingHTTPServer):
    """What huggingface_hub needs of a hub to commit files: all go inline, none to a store for large ones."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.refuse = refuse
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """The answers of that hub."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def reply(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({"error": "no such page"}, 404)

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
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.server.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            self.reply({"commitUrl": f"{self.server.url}/ann/model/commit/1", "commitOid": "1", "success": True})
        else:
            self.reply({"errors": [], "warnings": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    yield hub
    hub.shutdown()
    hub.server_close()


def test_a_hub_gets_the_whole_model_and_its_card(hub: Hub, model: NextScale, tmp_path: Path) -> None:
    address = model.push_to_hub("ann/model", private=True, token="hf_test", facts=FACTS)
    assert address.endswith("/ann/model/commit/1")
    assert "private" in json.dumps(hub.created[0])
    expected = model.save_pretrained(tmp_path, facts=FACTS)
    assert hub.files == {path.name: path.read_bytes() for path in expected.iterdir()} | {
        "README.md": (expected / "model_card.md").read_bytes()
    }
    # What arrived is the model.
    for name, data in hub.files.items():
        (tmp_path / "back" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(data)
    back = NextScale.from_pretrained(tmp_path / "back", device="cpu", fp32=True)
    assert back.config == model.config


def test_a_refusal_is_one_line(hub: Hub, model: NextScale) -> None:
    hub.refuse = True
    with pytest.raises(ModelError, match=r"ann/model: the hub did not take it .*check name") as caught:
        model.push_to_hub("ann/model", token="hf_test")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="the hub did not take it"):
        model.push_to_hub("no such name/at/all", token="hf_test")
