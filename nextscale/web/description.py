"""The description of the HTTP API: OpenAPI for programs, and a plain page of it for people."""

from __future__ import annotations

import dataclasses
import html
import json
from typing import Any, Final, get_args, get_type_hints

from nextscale import __version__
from nextscale.upscale.options import UpscaleOptions
from nextscale.web.limits import Limits, option_names

_OPTIONS: Final = {
    "scale": "Enlargement: 1, 2, 4, or any number above 0.",
    "confidence": "Give the map of the expected error, too.",
    "fidelity": "1: close to the photograph. 0: as the codes alone describe it.",
    "denoise": "1 removes noise, 0 keeps grain. Of models that have learned it.",
    "fast": "The restorer alone: a fraction of the time, without a map.",
    "seed": "Of the draws at a temperature above 0.",
    "temperature": "0: the likeliest details. 1: drawn as the model has learned them.",
    "top_k": "Draw among the k likeliest alone (0: all).",
    "top_p": "Draw among the likeliest of this total probability alone (0: all).",
    "cfg": "Guidance towards the input class (0: off); doubles the work.",
    "input_class": "degraded: blurred, noisy or compressed. clean: only small.",
    "color_fix": "How the photograph's colors are kept.",
}


def _schema(name: str) -> dict[str, Any]:
    kind = get_type_hints(UpscaleOptions)[name]
    default = next(field.default for field in dataclasses.fields(UpscaleOptions) if field.name == name)
    kinds = {bool: "boolean", int: "integer", float: "number"}
    shape = {"type": kinds[kind]} if kind in kinds else {"type": "string", "enum": list(get_args(kind))}
    return {**shape, "default": default, "description": _OPTIONS[name]}


def _answer(text: str, *kinds: str) -> dict[str, Any]:
    return {"description": text, **({"content": {kind: {} for kind in kinds}} if kinds else {})}


_JSON: Final = "application/json"
_PICTURES: Final = ("image/png", "image/jpeg", "image/webp")


def describe(limits: Limits) -> dict[str, Any]:
    """The OpenAPI document of a server with these limits."""
    title = {"title": "nextscale", "version": __version__}
    return {"openapi": "3.1.0", "info": title, "paths": {**_uploads(limits), **_jobs(limits), **_others()}}


def _operation(text: str, answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"summary": text, "responses": answers, **more}


def _parameter(name: str, place: str, text: str) -> dict[str, Any]:
    needed = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, "description": text, "schema": {"type": "string"}, **needed}


def _uploads(limits: Limits) -> dict[str, Any]:
    """What takes a photograph."""
    refusals = {
        "400": _answer("The request cannot be read.", _JSON),
        "408": _answer("The upload stalled.", _JSON),
        "413": _answer("The photograph, its result or the work is over a limit.", _JSON),
        "415": _answer("This is not a picture that can be read.", _JSON),
        "422": _answer("An option is unknown or out of range.", _JSON),
        "429": _answer("This client has its share of the queue; see Retry-After.", _JSON),
        "500": _answer("The server failed, as where its disk is full.", _JSON),
        "503": _answer("The queue is full; see Retry-After.", _JSON),
    }
    image = {"image": {"type": "string", "format": "binary", "description": "The photograph."}}
    fields = {"type": "object", "properties": image | {name: _schema(name) for name in option_names()}}
    body = {
        "required": True,
        "description": f"A form with one file, or the file as the body; at most {limits.upload_bytes / 1e6:g} MB. "
        "Options are fields of the form or of the query.",
        "content": {
            "multipart/form-data": {"schema": fields | {"required": ["image"]}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
    wait = _operation(
        "Restore a photograph and wait for it",
        {"200": _answer("The picture.", *_PICTURES), **refusals},
        parameters=[_parameter("format", "query", "png, jpg or webp.")],
        requestBody=body,
    )
    queue = _operation(
        "Queue a photograph",
        {"201": _answer("The job: its id, state, place and results.", _JSON), **refusals},
        requestBody=body,
    )
    return {"/api/upscale": {"post": wait}, "/api/jobs": {"post": queue}}


def _jobs(limits: Limits) -> dict[str, Any]:
    """What is asked of a job."""
    job = [_parameter("id", "path", "As in the answer to POST /api/jobs.")]
    file = [_parameter("factor", "path", "x1, x2, x4."), _parameter("format", "path", "png, jpg or webp.")]
    texts = {
        "get": ("A job", {"200": _answer("The job.", _JSON)}),
        "delete": (
            "Stop a job, which keeps what it has; or remove an ended one",
            {"202": _answer("It stops at its next step.", _JSON), "204": _answer("It is gone.")},
        ),
        "events": (
            "What happens to a job, as server-sent events: waiting, progress, ready (a factor), done, stopped, error. "
            f"The data is the job. One that nobody watches for {limits.gone_seconds:g} s ends",
            {"200": _answer("Events until it ends.", "text/event-stream")},
        ),
        "file": ("A result: x1.png, x2.jpg, x4.webp", {"200": _answer("The picture.", *_PICTURES)}),
        "map": (
            "By how many levels of 255 each pixel of the largest result may be off; asked for by confidence=true",
            {"200": _answer("A gray PNG.", "image/png")},
        ),
    }
    missing = {"404": _answer("There is no such job or result (any more).", _JSON)}
    made = {
        name: _operation(text, answers | missing, parameters=job + (file if name == "file" else []))
        for name, (text, answers) in texts.items()
    }
    return {
        "/api/jobs/{id}": {"get": made["get"], "delete": made["delete"]},
        "/api/jobs/{id}/events": {"get": made["events"]},
        "/api/jobs/{id}/{factor}.{format}": {"get": made["file"]},
        "/api/jobs/{id}/expected-error.png": {"get": made["map"]},
    }


def _others() -> dict[str, Any]:
    chosen = [_parameter("jobs", "query", "Their ids, with commas between."), _parameter("format", "query", "png, ...")]
    archive = _operation(
        "The largest results of several jobs", {"200": _answer("A zip file.", "application/zip")}, parameters=chosen
    )
    plan = _operation(
        "Which factors fit a picture, and about how long they take",
        {"200": _answer("A row for each factor.", _JSON)},
        parameters=[_parameter(name, "query", "In pixels.") for name in ("width", "height")],
    )
    return {
        "/api/zip": {"get": archive},
        "/api/plan": {"get": plan},
        "/api": {"get": _operation("What this server can do", {"200": _answer("Its limits.", _JSON)})},
        "/healthz": {
            "get": _operation("Whether it works", {"200": _answer("It does."), "503": _answer("It does not.")})
        },
    }


def page_of(document: dict[str, Any]) -> str:
    """An OpenAPI document as a page."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<section><h2><code><b>{method.upper()}</b> {_text(path)}</code></h2>")
            parts.append(f"<p>{_text(operation['summary'])}.</p>")
            for parameter in operation.get("parameters", []):
                parts.append(f"<p><code>{_text(parameter['name'])}</code> {_text(parameter['description'])}</p>")
            if "requestBody" in operation:
                body = operation["requestBody"]
                fields = body["content"]["multipart/form-data"]["schema"]["properties"]
                parts.append(f"<p>{_text(body['description'])}</p><details><summary>Fields</summary><table>")
                parts += [_row(name, field) for name, field in fields.items()]
                parts.append("</table></details>")
            codes = " ".join(
                f"{code} {_text(answer['description'])}" for code, answer in operation["responses"].items()
            )
            parts.append(f'<p class="quiet">{codes}</p></section>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>nextscale: the HTTP API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/static/style.css"><link rel="icon" href="/static/icon.svg"></head>'
        '<body class="prose"><main><h1>The HTTP API</h1>'
        "<pre><code>curl -f -F image=@photo.jpg "
        "'http://127.0.0.1:7860/api/upscale?scale=4' -o photo_x4.png</code></pre>"
        '<p>For programs: <a href="/openapi.json">openapi.json</a>. Every refusal is '
        f"<code>{_text(json.dumps({'error': 'A sentence.'}))}</code>.</p>{''.join(parts)}</main></body></html>"
    )


def _row(name: str, field: dict[str, Any]) -> str:
    kind = " | ".join(field["enum"]) if "enum" in field else field["type"]
    default = f" ({_text(json.dumps(field['default']))})" if "default" in field else ""
    cells = f"<td>{_text(kind)}{default}</td><td>{_text(field['description'])}</td>"
    return f"<tr><th><code>{_text(name)}</code></th>{cells}</tr>"


def _text(text: str) -> str:
    return html.escape(str(text))
