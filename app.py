"""A hosted demo: Gradio's face over the server's own HTTP API. `pip install '.[demo]'; python app.py`"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import gradio as gr
import httpx
from PIL import Image

from nextscale.web.serve import example_photos, free_port


def restore(server: str, photo: str | None, factor: str, fidelity: float) -> tuple[str, Image.Image]:
    """The photograph and its result, for the slider.

    Raises:
        gr.Error: with the server's sentence.
    """
    if photo is None:
        raise gr.Error("Choose a photograph first.", print_exception=False)
    query: dict[str, Any] = {"scale": factor.removeprefix("x"), "fidelity": fidelity}
    with open(photo, "rb") as file:
        answer = httpx.post(f"{server}/api/upscale", params=query, files={"image": file}, timeout=3600)
    if answer.status_code != 200:
        raise gr.Error(answer.json()["error"], print_exception=False)
    return photo, Image.open(io.BytesIO(answer.content))


def build(server: str) -> gr.Interface:
    """The demo over a running server."""
    return gr.Interface(
        lambda *values: restore(server, *values),
        [
            gr.Image(type="filepath", image_mode=None, label="Photograph"),
            gr.Radio(["x1", "x2", "x4"], value="x4", label="Enlarge"),
            gr.Slider(0, 1, value=1, step=0.05, label="Fidelity"),
        ],
        gr.ImageSlider(format="png", label="Before and after"),
        title="nextscale",
        examples=[[str(path), "x4", 1] for path in example_photos()],
        cache_examples=False,
        flagging_mode="never",
        api_name=False,
        delete_cache=(600, 3600),
    )


def main() -> None:
    """Start the server on this machine alone, and the demo for everybody."""
    port = free_port("127.0.0.1", 0)
    call = [sys.executable, "-m", "nextscale", "serve", "--port", str(port), "--per-client", "20"]
    server = subprocess.Popen(call, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        if not server.stdout.readline():
            raise SystemExit(server.wait())
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        build(f"http://127.0.0.1:{port}").launch(server_name="0.0.0.0")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
