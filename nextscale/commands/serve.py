"""The `nextscale serve` command: plain settings; free of torch and Gradio until it runs."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from nextscale.console import say
from nextscale.errors import NextScaleError, OptionError
from nextscale.install import how_to_install
from nextscale.web.serve import credentials, example_photos, free_port

HOUR = 3600.0


@dataclass(frozen=True)
class Serve:
    """A page in the browser: drop a photo, watch it come. With an API for programs."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets the whole network in."""
    port: int = 7860
    """Port to listen on (0: any free one)."""
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    fp32: bool = False
    """Compute in float32 even where 16 bit is faster."""
    auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD")] = None
    """Ask for this name and password (other users of this machine see them in the list of processes;
    NEXTSCALE_AUTH in the environment does the same unseen)."""
    share: bool = False
    """Also open a public address through Gradio's servers, for a week."""
    max_mb: float = 30.0
    """Largest upload in megabytes."""
    max_pixels: int = 4_000_000
    """Largest picture that is taken."""
    waiting: int = 20
    """How many may wait in the queue."""

    def run(self) -> int:
        if not 0 <= self.port < 65536:
            raise OptionError(f"port must be 0 to 65535, got {self.port}")
        for name, value in (("max-mb", self.max_mb), ("max-pixels", self.max_pixels), ("waiting", self.waiting)):
            if value <= 0:
                raise OptionError(f"{name} must be above 0, got {value}")
        auth = credentials(self.auth or os.environ.get("NEXTSCALE_AUTH"))
        port = free_port(self.host, self.port)
        folder = Path(tempfile.mkdtemp(prefix="nextscale-"))
        # Gradio reads these when it is imported or builds a page; nothing of ours is to leave the machine.
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        signal.signal(signal.SIGTERM, _stop)
        ended = threading.Event()
        try:
            return self._serve(folder, port, auth, ended)
        finally:
            ended.set()
            shutil.rmtree(folder, ignore_errors=True)

    def _serve(self, folder: Path, port: int, auth: tuple[str, str] | None, ended: threading.Event) -> int:
        try:
            import gradio  # noqa: F401
            from starlette.middleware import Middleware
        except ImportError:
            raise NextScaleError(f"the page needs Gradio: {how_to_install('web')}") from None
        from nextscale.upscale.nextscale import NextScale
        from nextscale.web.page import CSS, Limits, Restorer, build, keep_swept
        from nextscale.web.uploads import NamelessUploads

        warnings.simplefilter("ignore")  # of Gradio's own making
        model = NextScale.from_pretrained(self.model, device=self.device, fp32=self.fp32)
        limits = Limits(pixels=self.max_pixels, result_pixels=16 * self.max_pixels, waiting=self.waiting)
        page = build(Restorer(model, folder, limits), example_photos())
        threading.Thread(target=keep_swept(folder, HOUR, 300.0, ended), daemon=True).start()
        _, url, shared = page.launch(
            server_name=self.host,
            server_port=port,
            auth=auth,
            share=self.share,
            max_file_size=int(self.max_mb * 1e6),
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            enable_monitoring=False,
            css=CSS,
            footer_links=["api"],
            app_kwargs={"middleware": [Middleware(NamelessUploads)]},
        )
        say(f"nextscale: open {shared or url} in a browser; Ctrl+C stops")
        try:
            ended.wait()
        finally:
            page.close(verbose=False)
        return 0


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt
