"""The page in a real browser: upload, pictures that appear one by one, slider, download, errors, a telephone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import numpy as np
import pytest

from nextscale import UpscaleOptions
from nextscale import image as images
from nextscale.image import Picture
from nextscale.upscale.nextscale import NextScale
from tests.server import Server, running

pytest.importorskip("gradio", reason="the page needs the extra `web`")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)"),
]

WAIT = 120_000
"""Milliseconds; far more than needed, for machines with other work."""


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Server]:
    with running(model_folder) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(WAIT)
    page.goto(server.url)
    page.wait_for_selector("#start")
    yield page
    page.close()


def photo(path: Path, width: int = 90, height: int = 60) -> Path:
    down, across = np.mgrid[0:height, 0:width]
    images.write(path, Picture(np.stack([down * 4 % 256, across * 2 % 256, (down + across) % 256], 2).astype(np.uint8)))
    return path


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#photo input[type=file]", str(path))
    page.wait_for_selector("#photo img")


def restore(page: Page) -> None:
    page.click("#start")
    expect(page.locator("#status")).to_contain_text("Done in", timeout=WAIT)


def shown(page: Page, factor: str) -> list[str]:
    """Addresses of the two pictures in a factor's slider."""
    return [str(image.get_attribute("src")) for image in page.locator(f"#slider-{factor} img").all()]


def test_a_photo_goes_in_and_three_come_out_in_order(page: Page, tmp_path: Path) -> None:
    # What appears is noted inside the page, so that no moment is missed.
    page.evaluate(
        """() => { window.seen = [];
          new MutationObserver(() => {
            const text = document.querySelector('#status').innerText.split('\\n')[0];
            if (window.seen.at(-1) !== text) window.seen.push(text);
          }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    upload(page, photo(tmp_path / "a.png", 300, 60))
    restore(page)
    seen = page.evaluate("window.seen")
    ready = [text for text in seen if "is ready" in text]
    assert ready == ["x1 is ready ...", "x2 is ready ...", "x4 is ready ..."][: len(ready)]
    assert len(ready) >= 2
    assert any(text.startswith("Part ") for text in seen)
    for factor in ("x1", "x2", "x4"):
        page.get_by_role("tab", name=factor).click()
        page.wait_for_selector(f"#slider-{factor} img")
        before, after = shown(page, factor)
        assert before != after
        assert after.endswith(f"restored_{factor}.png")


def test_the_download_is_the_whole_picture(page: Page, model: NextScale, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    upload(page, path)
    restore(page)
    page.get_by_role("tab", name="x4").click()
    with page.expect_download() as download:
        page.click("#download-x4")
    assert download.value.suggested_filename == "restored_x4.png"
    download.value.save_as(tmp_path / "got.png")
    expected = model.upscale(path, UpscaleOptions(all_factors=True)).picture.rgb
    np.testing.assert_array_equal(images.read(tmp_path / "got.png").rgb, expected)


def test_dragging_the_line_uncovers_the_photo(page: Page, tmp_path: Path) -> None:
    upload(page, photo(tmp_path / "a.png"))
    restore(page)
    box = page.locator("#slider-x4 img").first.bounding_box()
    assert box is not None

    def clips() -> list[str]:
        script = (
            "[...document.querySelectorAll('#slider-x4 img')].map(i => getComputedStyle(i).clipPath + i.style.cssText)"
        )
        return list(page.evaluate(script))

    before = clips()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.85, middle, steps=8)
    page.mouse.up()
    page.wait_for_timeout(300)
    assert clips() != before


def test_the_confidence_overlay_comes_and_goes_with_its_legend(page: Page, tmp_path: Path) -> None:
    upload(page, photo(tmp_path / "a.png"))
    restore(page)
    expect(page.locator("#legend")).to_be_hidden()
    page.click("#guessed input")
    expect(page.locator("#legend")).to_contain_text("Pink")
    page.wait_for_selector("#slider-x4 img[src*=overlay]")
    page.click("#guessed input")
    expect(page.locator("#slider-x4 img[src*=overlay]")).to_have_count(0)
    expect(page.locator("#legend")).to_be_hidden()


def test_what_is_no_picture_is_a_sentence(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture at all")
    page.set_input_files("#photo input[type=file]", str(path))
    page.wait_for_timeout(500)
    page.click("#start")
    expect(page.get_by_text("This is not a picture")).to_be_visible(timeout=WAIT)
    expect(page.locator("#status")).to_contain_text("did not work")
    upload(page, photo(tmp_path / "b.png"))  # and the page goes on
    restore(page)


def test_without_a_photo_it_says_so(page: Page) -> None:
    page.click("#start")
    expect(page.get_by_text("Choose a photo first")).to_be_visible(timeout=WAIT)


def test_stop_ends_the_work_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    upload(page, photo(tmp_path / "large.png", 400, 450))
    page.click("#start")
    expect(page.locator("#status")).to_contain_text("Part ", timeout=WAIT)
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped")
    page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
    upload(page, photo(tmp_path / "small.png"))
    restore(page)
    page.get_by_role("tab", name="x1").click()
    assert shown(page, "x1")[1].endswith("restored_x1.png")


def test_it_fits_a_telephone(browser: Browser, server: Server, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.goto(server.url)
    upload(page, photo(tmp_path / "a.png"))
    restore(page)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    for part in ("#photo", "#start", "#status", "#slider-x4"):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    page.close()


def test_no_request_leaves_the_machine(browser: Browser, server: Server, tmp_path: Path) -> None:
    page = browser.new_page()
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
    page.goto(server.url)
    upload(page, photo(tmp_path / "a.png"))
    restore(page)
    page.close()
    assert {host for host in hosts if host} == {"127.0.0.1"}
