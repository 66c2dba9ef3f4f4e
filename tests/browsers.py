"""A real browser for the tests of pages; they skip where no Chromium is installed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 360, "height": 700}


def skip_without_chromium() -> None:
    """Skip a module of tests; $PH2P_REQUIRE_CHROMIUM makes that an error."""
    if not os.environ.get("PH2P_REQUIRE_CHROMIUM"):
        if not CHROMIUM:
            pytest.skip("no Chromium is installed", allow_module_level=True)
        pytest.importorskip("playwright")


@contextmanager
def opened() -> Iterator:
    """A browser that runs until the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A page that was opened from its file, and all that went wrong or out."""

    def __init__(self, context, page: Path, anchor: str = "") -> None:
        self.errors, self.requests = [], []
        self.tab = context.new_page()
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(page.as_uri() + anchor)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)

    def fits(self) -> bool:
        return self.tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    def shoot(self, name: str) -> None:
        """A picture of the page in $PH2P_SCREENSHOTS, where that is given."""
        if shots := os.environ.get("PH2P_SCREENSHOTS"):
            self.tab.screenshot(path=f"{shots}/{name}.png", full_page=True)
