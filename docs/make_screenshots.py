"""Draw the screenshots of docs/web.md: python docs/make_screenshots.py (needs the extras web and dev, and Chromium)."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
WAIT = 900_000
"""Milliseconds, on a machine with other work."""


def visit(browser: Browser, url: str, jobs: list[list[str]] | None = None, **more: Any) -> Page:
    """The page, with results that the server has already."""
    page = browser.new_context(**more).new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    if jobs is not None:
        page.evaluate("jobs => sessionStorage.setItem('jobs', jobs)", json.dumps(jobs))
        page.reload()
        page.wait_for_selector("#save[href]")
    page.wait_for_selector("[data-ready]")
    return page


def begin(page: Page, *names: str) -> None:
    """Give it photographs; on a slow machine it asks first."""
    page.set_input_files("#files", [str(EXAMPLES / f"{name}.jpg") for name in names])
    page.wait_for_selector("#chooser:not([hidden]), #line:not([hidden])")
    if page.locator("#chooser").is_visible():
        page.click("#chooser button")
        page.wait_for_selector("#line:not([hidden])")


def done(page: Page) -> None:
    """Wait for the photograph in view."""
    page.wait_for_selector("#save[href]")
    expect(page.locator("#progress")).to_be_hidden(timeout=WAIT)


def shoot(page: Page, name: str, width: int) -> None:
    """Write what the page shows as a JPEG of a width."""
    page.wait_for_timeout(700)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    size = (width, round(image.height * width / image.width))
    image.resize(size, Image.Resampling.LANCZOS).save(HERE / f"{name}.jpg", quality=82, optimize=True)


def draw(browser: Browser, url: str) -> None:
    """Every state of the page."""
    page = visit(browser, url, viewport=DESK)
    shoot(page, "page_empty", 1200)
    begin(page, "chelsea")
    shoot(page, "page_work", 1000)
    done(page)
    page.click("#open-options")
    page.check("[name=fast]")  # the pictures are the same, and nobody sees the map here
    begin(page, "coffee", "astronaut")
    expect(page.locator("#strip .done")).to_have_count(3, timeout=WAIT)
    page.uncheck("[name=fast]")
    page.click("#strip button >> nth=1")
    shoot(page, "page_options", 1000)
    jobs = json.loads(page.evaluate("sessionStorage.getItem('jobs')"))
    with tempfile.TemporaryDirectory() as folder:
        twelve, broken = Path(folder, "IMG_2041.jpg"), Path(folder, "holiday.heic")
        down, across = np.mgrid[0:3000, 0:4000]
        Image.fromarray(np.stack([down // 20, across // 24, (down + across) // 40], 2).astype(np.uint8)).save(twelve)
        broken.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
        page.click("#close-options")
        page.set_input_files("#files", [str(twelve)])
        page.wait_for_selector("#chooser:not([hidden])")
        shoot(page, "page_choice", 1000)
        page.set_input_files("#files", [str(broken)])
        page.wait_for_selector("#failure:not([hidden])")
        shoot(page, "page_failed", 1000)
    dark = visit(browser, url, jobs[:1], viewport=DESK, color_scheme="dark")
    dark.click("#overlay")
    shoot(dark, "page_map", 1200)
    phone: dict[str, Any] = {"viewport": PHONE, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
    shoot(visit(browser, url, **phone), "page_phone_empty", 440)
    page = visit(browser, url, jobs[:1], **phone)
    shoot(page, "page_phone", 440)
    page.tap("#overlay")
    shoot(page, "page_phone_map", 440)


def main() -> None:
    """Start a server with the shipped model, and draw."""
    call = [sys.executable, "-m", "nextscale", "serve", "--port", "0"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout is not None
        try:
            found = re.search(r"open (http://\S+)", server.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            draw(driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"]), found[1])
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
