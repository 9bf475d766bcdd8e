"""The page as a browser shows it: phone and desktop, light and dark, on paper."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lessen.core.record import Run
from lessen.report import html
from tests.report_browser import CHROMIUM, Browser
from tests.report_fixture import make_run

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
SIZES = {"phone": (360, 780), "desktop": (1400, 900)}
LUMINANCE = "(() => { const c = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g); return +c[0] + +c[1] + +c[2] })()"
TEXTS = """[...document.querySelectorAll("svg text")].map(t => t.getBoundingClientRect()).filter(r => r.width)
    .map(r => [r.left, r.right, r.height])"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in ("full", "empty")}
    paths["full"].write_text(html(make_run()))
    paths["empty"].write_text(html(Run()))
    return paths


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def complaints(browser: Browser) -> list[str]:
    """Whatever the page said on the console, and every request beyond the page itself."""
    said = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    return [str(e["params"]) for e in said] + [url for url in requests[1:] if not url.startswith("data:")]


@pytest.mark.parametrize("name", ["full", "empty"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", SIZES)
def test_page_fits_and_is_quiet(browser, pages, name, device, scheme):
    width, height = SIZES[device]
    browser.open(pages[name].as_uri(), width, height, scheme)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    assert complaints(browser) == []
    bright = browser.evaluate(LUMINANCE)
    assert bright > 3 * 230 if scheme == "light" else bright < 3 * 40


@pytest.mark.parametrize("device", SIZES)
def test_plots_are_legible_and_one_of_each_is_shown(browser, pages, device):
    """9 px is the line height of about 8 px letters, the smallest that tick labels may come down to."""
    width, height = SIZES[device]
    browser.open(pages["full"].as_uri(), width, height, "dark")
    texts = browser.evaluate(TEXTS)
    assert len(texts) > 50
    assert all(left >= 0 and right <= width and tall >= 9 for left, right, tall in texts)
    assert browser.evaluate("[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width).length") == 3


def test_plots_take_the_colours_of_the_scheme(browser, pages):
    colours = []
    for scheme in ("light", "dark"):
        browser.open(pages["full"].as_uri(), 1400, 900, scheme)
        colours.append(browser.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
    assert colours[0] != colours[1]


def test_paper_is_white_in_the_dark(browser, pages):
    browser.open(pages["full"].as_uri(), 760, 1000, "dark")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.evaluate(LUMINANCE) == 3 * 255
    browser.call("Emulation.setEmulatedMedia", media="")
