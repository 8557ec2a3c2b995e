"""Pages that a newcomer opens beside the demo, on a laptop's and a phone's screen.

docs/design.md lists the first things that are tried; tests/test_pages.py holds that list.
"""
# ruff: noqa: ANN401

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("playwright")

from playwright.sync_api import expect
from screens import NEEDS_CHROMIUM, keep, new_page, tab_to

from magtiles_seg import cli

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that `evaluate --out` writes about synthetic tiles."""
    folder = tmp_path_factory.mktemp("evaluated")
    tiles, out = str(folder / "tiles"), str(folder / "out")
    assert cli.main(["data", "synth", tiles, "--tiles", "6", "--seed", "2"]) == 0
    assert cli.main(["evaluate", tiles, "--out", out]) == 0
    return next(Path(out).glob("*.html"))


def test_page_of_the_service_by_keyboard_sends_a_picture_and_shows_the_answer(
    browser: Any, server_class: Any, tmp_path: Path, screen: str
) -> None:
    assert cli.main(["data", "synth", str(tmp_path), "--tiles", "2", "--seed", "3"]) == 0
    picture = next(tmp_path.glob("MT_Blowhole/Imgs/*.jpg"))
    with server_class() as server:
        while httpx.get(f"{server.url}/readyz").status_code != 200:
            time.sleep(0.1)
        page = new_page(browser, screen)
        page.goto(server.url)
        keep(page, f"serve_first_{screen}")
        page.goto(f"{server.url}/docs")
        page.get_by_label("Picture").set_input_files(picture)
        tab_to(page, "form button")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("200")
        expect(page.locator("#overlay")).to_be_visible()
        expect(page.locator("#answer")).to_contain_text('"reject"')
        keep(page, f"serve_docs_{screen}")
        page.close()


def test_page_of_an_evaluation_fits_the_screen_and_shows_its_charts(
    browser: Any, evaluated: Path, screen: str
) -> None:
    page = new_page(browser, screen)
    page.goto(evaluated.as_uri())
    sizes = page.locator("img").evaluate_all("(all) => all.map((image) => image.naturalWidth)")
    assert len(sizes) > 3
    assert all(sizes)
    keep(page, f"evaluate_{screen}")
    page.close()
