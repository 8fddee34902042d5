"""The browser that opens Prefect's UI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.waiting import PATIENCE

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
APPEARS_WITHIN = 1_000 * PATIENCE
"""Milliseconds in which what a test looks for must be there."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser; skip the test if there is none, and in CI fail it."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is missing: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    expect.set_options(timeout=APPEARS_WITHIN)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=APPEARS_WITHIN)
        yield browser
        browser.close()


def new_page(browser: Browser, width: int, height: int) -> Page:
    """Open an empty page of so many pixels."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(APPEARS_WITHIN)
    return page
