"""The browser that tests drive: the Chromium that is installed, and the screens they look at.

MAGTILES_ARTEFACTS names the folder of the screenshots; they show synthetic tiles alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_CHROMIUM = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
SCREENS = {"laptop": (1366, 768), "phone": (390, 844)}
PATIENCE_MS = 60_000

_ARTEFACTS = Path(os.environ.get("MAGTILES_ARTEFACTS", "test-results"))
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, without a window and with a camera that shows a test picture."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield opened
        opened.close()


def new_page(browser: Browser, screen: str = "laptop", scheme: str = "light") -> Page:
    """Open an empty page of one of the SCREENS."""
    width, height = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    return page


def keep(page: Page, name: str) -> None:
    """Keep a screenshot, and see that nothing lies beyond the screen's right edge."""
    page.wait_for_timeout(500)
    _ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=_ARTEFACTS / f"{name}.png", full_page=True)
    beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(beyond) == 0


def tab_to(page: Page, selector: str, most: int = 60) -> None:
    """Press the tabulator until an element has the focus, which must then be seen."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            seen = page.evaluate(
                "() => { const style = getComputedStyle(document.activeElement);"
                " return style.outlineStyle != 'none' || style.boxShadow != 'none'; }"
            )
            assert seen, f"{selector} has the focus, and nothing shows it"
            return
    raise AssertionError(f"{selector} is not reached by {most} presses of the tabulator")
