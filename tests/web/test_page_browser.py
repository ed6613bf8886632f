"""The page in a real browser: pictures come in and out, and are judged by mouse, keyboard, touch and screen reader."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
import pytest

from nextscale import UpscaleOptions
from nextscale import image as images
from nextscale.image import Picture
from nextscale.upscale.nextscale import NextScale
from nextscale.web.limits import Limits
from tests.conftest import restoring_model
from tests.server import Local, local, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)"),
]

expect.set_options(timeout=30_000)
WAIT = 120_000
"""Milliseconds; far more than needed, for machines with other work."""


FAULTS: list[str] = []
"""Errors of the page's script in this test."""


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    FAULTS.clear()
    yield
    assert FAULTS == []


@pytest.fixture(scope="module")
def server(model: NextScale, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with local(model, tmp_path_factory.mktemp("served"), Limits(upload_bytes=2_000_000)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser: Browser, server: Local, *, rate: float = 0.01, **more: Any) -> Page:
    """A page of a browser of its own; an error of its script fails the test.

    Args:
        rate: seconds a tile that the server believes in, so that no page asks first only because a machine is slow.
    """
    server.server.jobs.seconds_per_work = rate
    page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **more}).new_page()
    page.set_default_timeout(WAIT)
    page.on("pageerror", lambda error: FAULTS.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("[data-ready]")
    return page


@pytest.fixture
def page(browser: Browser, server: Local) -> Iterator[Page]:
    page = visit(browser, server)
    yield page
    page.context.close()


def photo(path: Path, width: int = 60, height: int = 40) -> Path:
    down, across = np.mgrid[0:height, 0:width]
    images.write(path, Picture(np.stack([down * 4 % 256, across * 2 % 256, (down + across) % 256], 2).astype(np.uint8)))
    return path


def put(page: Page, *paths: Path) -> None:
    page.set_input_files("#files", [str(path) for path in paths])


def done(page: Page) -> None:
    """Wait until the photograph in view is done."""
    page.wait_for_selector("#save[href]")
    expect(page.locator("#progress")).to_be_hidden(timeout=WAIT)


def pixels(page: Page) -> np.ndarray[Any, Any]:
    """What the viewer shows once it shows the same twice, .4 s apart: H W 3."""
    shown = b""
    for _ in range(100):
        page.wait_for_timeout(400)
        before, shown = shown, page.locator("#canvas").screenshot()
        if shown == before:
            return images.decode_bytes(shown).rgb.astype(np.int16)
    pytest.fail("the viewer does not come to rest")


def test_a_photograph_goes_in_and_comes_out_whole(page: Page, model: NextScale, tmp_path: Path) -> None:
    path = photo(tmp_path / "beach at noon.png")
    put(page, path)
    done(page)
    expect(page.locator("#title")).to_have_text("beach at noon.png · 240 × 160")
    expect(page.locator("#factors input:checked")).to_have_value("x4")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "beach at noon_x4.png"
    download.value.save_as(tmp_path / "got.png")
    expected = model.upscale(path, UpscaleOptions(scale=4.0)).picture.rgb
    np.testing.assert_array_equal(images.read(tmp_path / "got.png").rgb, expected)
    page.click("#factors label:has-text('x1')")
    page.select_option("#format", "jpg")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "beach at noon_x1.jpg"


def test_the_factors_appear_one_after_the_other(page: Page, tmp_path: Path) -> None:
    page.evaluate(
        """() => { window.seen = [];
          new MutationObserver(() => {
            const shown = document.querySelector('#factors input:checked')?.value;
            if (shown && window.seen.at(-1) !== shown) window.seen.push(shown);
          }).observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true}); }"""
    )
    put(page, photo(tmp_path / "a.png", 150, 120))
    expect(page.locator("#status")).to_contain_text("% ", timeout=WAIT)
    done(page)
    seen = page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert seen[-1] == "x4"
    assert len(seen) >= 2


def test_the_line_uncovers_the_photograph_by_mouse_and_keys(page: Page, tmp_path: Path) -> None:
    put(page, photo(tmp_path / "a.png"))
    done(page)
    line, stage = page.locator("#line"), page.locator("#stage").bounding_box()
    assert stage is not None
    middle = stage["y"] + stage["height"] / 2
    before = pixels(page)
    page.mouse.move(stage["x"] + stage["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.8, middle, steps=5)
    page.mouse.up()
    expect(line).to_have_attribute("aria-valuenow", "80")
    # Between the two places it is the photograph now, and left of them nothing has changed.
    changed = np.abs(pixels(page) - before).max(axis=(0, 2))
    width = len(changed)
    assert changed[round(width * 0.55) : round(width * 0.75)].max() > 20
    assert changed[: round(width * 0.4)].max() == 0
    page.locator("#stage").focus()
    before = pixels(page)
    page.keyboard.down("Space")  # as long as it is down, the photograph alone
    assert np.abs(pixels(page) - before)[100:-100, round(width * 0.85) : -20].max() > 20
    page.keyboard.up("Space")
    assert np.abs(pixels(page) - before)[100:-100, round(width * 0.85) : -20].max() == 0
    line.focus()
    page.keyboard.press("ArrowLeft")
    expect(line).to_have_attribute("aria-valuenow", "78")
    page.keyboard.press("Home")
    expect(line).to_have_attribute("aria-valuetext", "0 % before, 100 % after")
    page.keyboard.press("End")
    expect(line).to_have_attribute("aria-valuenow", "100")


def test_it_zooms_to_full_size_and_beyond_and_moves(page: Page, tmp_path: Path) -> None:
    put(page, photo(tmp_path / "a.png", 120, 90))
    done(page)
    percent, stage = page.locator("#percent"), page.locator("#stage").bounding_box()
    assert stage is not None
    fitted = percent.inner_text()
    page.click("#percent")
    expect(percent).to_have_text("100 %")
    page.mouse.move(stage["x"] + 200, stage["y"] + 200)
    page.mouse.wheel(0, -480)
    expect(percent).to_have_text("400 %")
    page.locator("#stage").focus()
    before = pixels(page)
    page.keyboard.press("ArrowDown")
    moved = pixels(page)
    assert np.abs(moved - before).max() > 20
    page.mouse.down()
    page.mouse.move(stage["x"] + 140, stage["y"] + 170, steps=4)
    page.mouse.up()
    # What was under the pointer has gone with it.
    np.testing.assert_allclose(pixels(page)[120:150, 180:220], moved[150:180, 240:280], atol=2)
    page.keyboard.press("0")
    expect(percent).to_have_text(fitted)
    page.click("#in")
    expect(percent).not_to_have_text(fitted)


def test_the_map_comes_and_goes_with_a_legend_in_words(page: Page, tmp_path: Path) -> None:
    put(page, photo(tmp_path / "a.png"))
    done(page)
    expect(page.locator("#note")).to_contain_text("Faces, text and numbers may be invented")
    expect(page.locator("#legend")).to_be_hidden()
    before = pixels(page)
    page.click("#overlay")
    expect(page.locator("#legend")).to_contain_text("Do not read faces, text or numbers")
    expect(page.locator("#overlay")).to_have_attribute("aria-pressed", "true")
    assert np.abs(pixels(page) - before).max() > 20
    page.click("#overlay")
    expect(page.locator("#legend")).to_be_hidden()
    np.testing.assert_array_equal(pixels(page), before)


def test_several_photographs_make_a_strip_and_a_zip(page: Page, tmp_path: Path) -> None:
    page.click("#open-options")
    page.click("#scale label:has-text('x1')")
    put(page, photo(tmp_path / "one.png"), photo(tmp_path / "two.png", 40, 60), photo(tmp_path / "three.png"))
    expect(page.locator("#strip button.done")).to_have_count(3, timeout=WAIT)
    page.click("#strip button >> nth=1")
    expect(page.locator("#title")).to_have_text("two.png · 40 × 60")
    with page.expect_download() as download:
        page.click("#zip")
    download.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(io.BytesIO((tmp_path / "all.zip").read_bytes())) as archive:
        assert archive.namelist() == ["one_x1.png", "two_x1.png", "three_x1.png"]


def test_a_stopped_photograph_keeps_what_it_has(page: Page, tmp_path: Path) -> None:
    put(page, photo(tmp_path / "large.png", 900, 900))  # not done before the click, however slow the browser is
    page.wait_for_selector("#line:not([hidden])")
    page.click("#stop")
    expect(page.locator("#note")).to_contain_text("Stopped at", timeout=WAIT)
    done(page)
    with page.expect_download() as download:
        page.click("#save")
    assert "_partial.png" in download.value.suggested_filename
    put(page, photo(tmp_path / "small.png"))  # a new one takes its place
    expect(page.locator("#title")).to_contain_text("small.png", timeout=WAIT)
    done(page)


def test_what_does_not_work_is_said_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")
    put(page, tmp_path / "broken.jpg")
    expect(page.locator("#failure")).to_contain_text("This is not a picture", timeout=WAIT)
    (tmp_path / "big.jpg").write_bytes(b"\0" * 2_500_000)
    put(page, tmp_path / "big.jpg")
    expect(page.locator("#failure")).to_contain_text("2.5 MB, and the limit is 2 MB", timeout=WAIT)
    put(page, photo(tmp_path / "good.png"))  # and the page goes on
    done(page)
    expect(page.locator("#tag-after")).to_have_class("tag on")
    (tmp_path / "letter.pdf").write_bytes(b"%PDF")
    put(page, tmp_path / "letter.pdf")
    expect(page.locator("#failure")).to_contain_text("This is not a photograph")
    expect(page.locator("#tag-after")).to_have_class("tag")
    expect(page.locator("#percent")).to_have_text("–")


@pytest.mark.parametrize(
    ("name", "value", "words"), [("cfg", "25", "Cfg must be in [0, 20]"), ("other", "0", "Scale must be above 0")]
)
def test_an_option_out_of_range_is_said_in_words(page: Page, tmp_path: Path, name: str, value: str, words: str) -> None:
    page.evaluate("([name, value]) => localStorage.setItem('settings', JSON.stringify({[name]: value}))", [name, value])
    page.reload()
    page.wait_for_selector("[data-ready]")
    put(page, photo(tmp_path / "a.png"))
    expect(page.locator("#failure-text")).to_contain_text(words)
    page.click("#open-options")
    page.click("#defaults")
    page.click("#again")
    done(page)


def test_a_file_that_has_gone_is_not_the_servers_fault(page: Page, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    put(page, path)
    done(page)
    path.unlink()
    page.click("#open-options")
    page.click("#again")
    expect(page.locator("#failure")).to_contain_text("The file cannot be read")


def test_a_result_that_has_gone_does_not_take_the_page_with_it(page: Page, server: Local, tmp_path: Path) -> None:
    put(page, photo(tmp_path / "a.png"))
    done(page)
    *_, job = server.server.jobs.jobs.values()
    server.server.jobs.remove(job)
    page.click("#save")
    page.wait_for_timeout(1000)
    assert page.url.rstrip("/") == server.url


def flat(path: Path, width: int, height: int) -> Path:
    """A large photograph that takes little room."""
    images.write(path, Picture(np.full((height, width, 3), 128, np.uint8)))
    return path


def test_twelve_megapixels_are_taken_after_a_word_about_the_time(
    browser: Browser, server: Local, tmp_path: Path
) -> None:
    page = visit(browser, server, rate=1.0)
    put(page, flat(tmp_path / "phone.jpg", 4000, 3000))
    rows = page.locator("#chooser-rows label")
    expect(rows).to_have_count(3, timeout=WAIT)
    expect(page.locator("#chooser-title")).to_have_text("12 megapixels")
    expect(rows.nth(2)).to_contain_text("16000 × 12000")
    assert all("about" in text for text in rows.all_inner_texts())
    rows.nth(0).click()
    page.click("#chooser button")
    page.wait_for_selector("#line:not([hidden])")
    page.click("#stop")
    expect(page.locator("#note")).to_contain_text("Stopped at", timeout=WAIT)
    page.context.close()


def test_of_48_megapixels_it_offers_what_fits(page: Page, tmp_path: Path) -> None:
    put(page, flat(tmp_path / "phone.jpg", 8000, 6000))
    rows = page.locator("#chooser-rows label")
    expect(rows).to_have_count(3, timeout=WAIT)
    expect(rows.nth(2)).to_contain_text("too large")
    expect(rows.nth(2).locator("input")).to_be_disabled()
    expect(rows.nth(1).locator("input")).to_be_checked()


def test_the_choice_stays_when_fast_makes_another_plan(browser: Browser, tmp_path: Path) -> None:
    with local(restoring_model(untrained=True), tmp_path / "served") as server:
        page = visit(browser, server, rate=1.0)
        put(page, flat(tmp_path / "phone.jpg", 4000, 3000))
        rows = page.locator("#chooser-rows label")
        expect(rows).to_have_count(3, timeout=WAIT)
        rows.nth(1).click()
        before = rows.all_inner_texts()
        page.check("#chooser-fast")
        expect(rows.nth(1)).not_to_have_text(before[1])
        expect(rows.nth(1).locator("input")).to_be_checked()
        page.context.close()


def test_options_reach_the_server_and_a_seed_only_where_it_does_something(
    page: Page, server: Local, tmp_path: Path
) -> None:
    put(page, photo(tmp_path / "a.png"))
    done(page)
    page.click("#open-options")
    page.click("summary")
    expect(page.locator("[name=seed]")).to_be_disabled()
    page.fill("[name=temperature]", "1")
    page.fill("[name=seed]", "7")
    page.click("#scale label:has-text('x2')")
    page.click("#again")
    expect(page.locator("#title")).to_contain_text("120 × 80", timeout=WAIT)
    *_, job = server.server.jobs.jobs.values()
    assert job.options == UpscaleOptions(scale=2, temperature=1, seed=7, confidence=True, all_factors=True)


def test_any_factor_will_do_and_options_stay_for_the_next_visit(page: Page, server: Local, tmp_path: Path) -> None:
    page.click("#open-options")
    page.click("summary")
    page.fill("[name=other]", "1.5")
    put(page, photo(tmp_path / "a.png"))
    done(page)
    expect(page.locator("#title")).to_have_text("a.png · 90 × 60")
    expect(page.locator("#save")).to_have_text("Save x1.5")
    expect(page.locator("#format")).to_contain_text("kB")
    page.click("#home")
    page.wait_for_selector("[data-ready]")
    expect(page.locator("#welcome")).to_be_visible()
    page.click("#open-options")
    expect(page.locator("[name=other]")).to_have_value("1.5")
    page.click("#defaults")
    expect(page.locator("[name=other]")).to_have_value("")
    assert server.url in page.url


def test_a_reload_keeps_the_results(page: Page, tmp_path: Path) -> None:
    put(page, photo(tmp_path / "a.png"))
    done(page)
    page.reload()
    done(page)
    expect(page.locator("#title")).to_have_text("a.png · 240 × 160")
    assert pixels(page).std() > 10


def test_the_keyboard_alone_will_do(page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        pytest.fail(f"Tab does not lead to {selector}")

    page.on("filechooser", lambda _: None)  # from now on: a listener that comes with the key may come after it
    tab_to("#files")
    tab_to("#examples button")
    page.keyboard.press("Enter")
    done(page)
    tab_to("#stage")
    page.keyboard.press("1")
    expect(page.locator("#percent")).to_have_text("100 %")
    tab_to("#line")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#line")).to_have_attribute("aria-valuenow", "52")
    tab_to("#factors input")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#factors input:checked")).to_have_value("x2")
    tab_to("#overlay")
    page.keyboard.press("Space")
    expect(page.locator("#legend")).to_be_visible()
    tab_to("#save")
    tab_to("#add")
    with page.expect_file_chooser():
        page.keyboard.press("Enter")


def test_it_fits_a_telephone(browser: Browser, server: Local, tmp_path: Path) -> None:
    page = visit(browser, server, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    put(page, photo(tmp_path / "a very long name of a photograph from a telephone.png"))
    done(page)
    page.tap("#overlay")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in ("#stage", "#factors", "#percent", "#overlay", "#save", "#legend", "#open-options"):
        box = page.locator(part).bounding_box()
        assert box is not None, part
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390, part
        assert box["y"] + box["height"] <= 844, part
        assert box["height"] >= 40, part
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["height"] > 450
    # A finger anywhere on a picture that fits moves the line.
    touch = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", 200), ("touchMove", 150), ("touchMove", 78)):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": 300}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#line")).to_have_attribute("aria-valuenow", "20")
    page.tap("#open-options")
    expect(page.locator("#again")).to_be_visible()
    page.context.close()


def test_a_tap_counts_right_after_a_fast_finger(browser: Browser, server: Local, tmp_path: Path) -> None:
    page = visit(browser, server, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    put(page, photo(tmp_path / "a.png"))
    done(page)
    touch = page.context.new_cdp_session(page)
    for _ in range(6):  # a browser that sees a fling swallows about every second one
        for kind, x in (("touchStart", 200), ("touchMove", 150), ("touchMove", 78)):
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": 250}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.tap("#open-options")
        expect(page.locator("#options")).to_be_visible()
        page.tap("#close-options")
        expect(page.locator("#options")).to_be_hidden()
    page.context.close()


def test_two_fingers_zoom(browser: Browser, server: Local, tmp_path: Path) -> None:
    page = visit(browser, server, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    put(page, photo(tmp_path / "a.png"))
    done(page)
    before = page.locator("#percent").inner_text()
    touch = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 120)):
        points = [{"x": 195 - apart, "y": 300, "id": 0}, {"x": 195 + apart, "y": 300, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(500)
    number = float(page.locator("#percent").inner_text().split()[0])
    assert number == pytest.approx(3 * float(before.split()[0]), rel=0.05)
    page.context.close()


def test_the_finger_that_stays_after_two_moves_no_line(browser: Browser, server: Local, tmp_path: Path) -> None:
    page = visit(browser, server, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    put(page, photo(tmp_path / "a.png"))
    done(page)
    touch = page.context.new_cdp_session(page)
    for places in ([100], [100, 300], [80, 320], [80], [60]):
        kind = "touchStart" if places in ([100], [100, 300]) else "touchMove" if places != [80] else "touchEnd"
        points = [{"x": x, "y": 300, "id": number} for number, x in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#line")).to_have_attribute("aria-valuenow", "50")
    page.context.close()


def test_options_cover_nothing_on_a_desk(page: Page) -> None:
    page.click("#open-options")
    panel, examples = page.locator("#options").bounding_box(), page.locator("#welcome").bounding_box()
    assert panel is not None
    assert examples is not None
    assert examples["x"] + examples["width"] <= panel["x"]
    page.click("summary:has-text('Keys')")
    expect(page.locator(".keys")).to_contain_text("the photograph as it was")


def test_it_fills_a_wide_screen(browser: Browser, server: Local, tmp_path: Path) -> None:
    page = visit(browser, server, viewport={"width": 2560, "height": 1300})
    put(page, photo(tmp_path / "a.png"))
    done(page)
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["width"] == 2560
    assert stage["height"] > 1100
    page.context.close()


def test_a_frame_of_many_tiles_loads_each_once(browser: Browser, server: Local, tmp_path: Path) -> None:
    side, name = 12 * 1024, "x1"
    shape = {"width": side, "height": side}
    view = {**shape, "levels": 5, "suffix": "png", "tile": 1024}
    result = {
        **shape, "formats": ["png"], "complete": True, "stored": True, "preview": 0, "bytes": 1, "view": view,
        "mean_error": None, "has_overlay": False,
    }  # fmt: skip
    job = {"id": "large", "state": "done", "share": 1, "error": None, "input": {**shape, "view": view}}
    page = browser.new_page(viewport={"width": 3200, "height": 3400}, device_scale_factor=2)
    page.route("**/api/jobs/large", lambda route: route.fulfill(json={**job, "results": {name: result}}))
    dot = photo(tmp_path / "dot.png", 2, 2).read_bytes()
    page.route("**/api/jobs/large/view/**", lambda route: route.fulfill(body=dot, content_type="image/png"))
    page.add_init_script(
        """sessionStorage.setItem('jobs', '[["large", "large.png"]]');
        window.made = 0;
        window.Image = class extends Image { constructor() { super(); window.made++; } };"""
    )
    page.goto(server.url)
    wait_until(lambda: page.evaluate("window.made") > 144)  # more than there is room for
    page.wait_for_timeout(1500)
    made = page.evaluate("window.made")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.made") == made  # it has come to rest
    assert made < 300, made
    page.close()


def test_no_request_leaves_the_machine(browser: Browser, server: Local, tmp_path: Path) -> None:
    page = browser.new_page()
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
    page.goto(server.url)
    page.wait_for_selector("[data-ready]")
    put(page, photo(tmp_path / "a.png"))
    done(page)
    page.goto(f"{server.url}/docs")
    page.close()
    assert {host for host in hosts if host} == {"127.0.0.1"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, server: Local, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the rules of axe-core need pip install axe-playwright-python"
    )
    page = visit(browser, server, color_scheme=scheme)

    def check(state: str) -> None:
        page.wait_for_timeout(300)
        results = axe.Axe().run(page)
        assert len(results.response["passes"]) > 15, state  # it did look
        assert results.violations_count == 0, f"{state}: {results.generate_report()}"

    check("empty")
    put(page, flat(tmp_path / "phone.jpg", 8000, 6000))
    page.wait_for_selector("#chooser:not([hidden])")
    check("choice")
    put(page, photo(tmp_path / "a.png", 300, 280))
    page.wait_for_selector("#line:not([hidden])")
    check("at work")  # it may have ended by now, which is as well
    put(page, photo(tmp_path / "b.png"))
    expect(page.locator("#title")).to_contain_text("b.png · 240", timeout=WAIT)
    done(page)
    page.click("#overlay")
    page.click("#open-options")
    page.click("summary")
    check("done, with map and options")
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")
    put(page, tmp_path / "broken.jpg")
    page.wait_for_selector("#failure:not([hidden])")
    check("failed")
    page.goto(f"{server.url}/docs")
    check("description")
    page.context.close()
