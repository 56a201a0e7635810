"""Our pages in headless Chromium: the fixtures `browser` and `visit`, and what tests ask of a page.

Debian's chromium is driven by playwright, which talks to it through a pipe and downloads nothing.
A module that names both fixtures as its own, and has a fixture `address`, can `visit` that page.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PHONE, SCREEN = 360, 1280  # px
WCAG_AA = 4.5  # contrast that text needs (WCAG 2.2, 1.4.3)

# Every piece of text that can be seen, with its colour and the first opaque colour behind it.
CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (s) => s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => [[r, .2126], [g, .7152], [b, .0722]]
    .reduce((sum, [value, weight]) => sum + weight * linear(value / 255), 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgb(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const colours = [rgb(getComputedStyle(element).color), behind(element)];
    const [low, high] = colours.map(luminance).sort((a, b) => a - b);
    const text = walker.currentNode.data.trim().slice(0, 40);
    found.push([text, (high + 0.05) / (low + 0.05), colours.flat().join(" ")]);
  }
  return found;
}"""
SIDEWAYS = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll"))
  .map((e) => e.outerHTML.slice(0, 80))"""


class Opened(NamedTuple):
    """A page, what it said on the console, and the addresses it asked for."""

    page: Page
    messages: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the module. Its absence is a skip, but a failure in CI."""
    program = shutil.which("chromium")
    if program is None:
        reason = "no chromium on the PATH; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(f"{reason} (CI is set: it must not be skipped)", pytrace=False)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[..., Opened]]:
    """Open the page anew: `visit(width=360, color_scheme="dark", java_script_enabled=False)`."""
    contexts = []

    def opened(*, width: int = SCREEN, **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        messages: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(f"error: {error}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return Opened(page, messages, requests)

    yield opened
    for context in contexts:
        context.close()


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
