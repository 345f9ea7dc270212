"""A real Chromium that opens pages from disk, and notes their errors and requests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[object]:
    """The browser. Without one the test is skipped, in CI it fails."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        if os.environ.get("ACDC_CI"):
            pytest.fail("no chromium on PATH")
        pytest.skip("no chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, path: Path, width: int = 1300, height: int = 950, scheme: str = "light") -> Iterator[object]:
    """A drawn page. At the end it must have logged nothing and requested nothing but its file."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=20_000)
    yield page
    page.close()
    assert said == []
    assert asked == [path.absolute().as_uri()]
