"""Debian's Chromium for tests of pages, driven by playwright. One browser serves all tests of a file."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import WAIT

CHROMIUM = shutil.which("chromium")
# No sandbox: the tests may run as root. No network is needed, and /dev/shm may be small.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start a Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium (Debian: chromium)")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="chromium-") as home, sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS], timeout=WAIT * 1000, env={"HOME": home, "TZ": "UTC"}
        )
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opened(started: Any, url: str, **options: Any) -> Iterator[Any]:
    """Open a page in a context of its own. At the end, no error has happened in it, and nothing was refused.

    :param started: the browser.
    :param url: of the page.
    :param options: of the context, such as its ``viewport``.
    """
    context = started.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    try:
        context.set_default_timeout(WAIT * 1000)
        page = context.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.problems = problems
        page.goto(url)
        yield page
        assert problems == []
    finally:
        context.close()
