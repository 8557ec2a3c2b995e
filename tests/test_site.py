"""The documentation site, built as `make docs` builds it: a warning is an error."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from screens import CHROMIUM

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_site_has_every_page_and_no_link_out_of_it_to_a_file(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        html = site / page.relative_to(DOCS).with_suffix(".html")
        assert html.exists(), page
        assert 'href="../../README' not in html.read_text(encoding="utf-8")


def test_command_line_page_shows_the_help_of_every_verb(site: Path) -> None:
    from magtiles_seg.cli import build_parser

    text = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    verbs = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for verb in verbs or ():
        assert f"magtiles-seg {verb}" in text


def test_reference_shows_what_the_package_exports(site: Path) -> None:
    text = (site / "reference" / "library.html").read_text(encoding="utf-8")
    for name in ("segment", "Segmenter", "Segmentation", "LineScanSegmenter", "ParityError"):
        assert f'id="magtiles_seg.{name}"' in text or f".{name}" in text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_search_leads_a_newcomer_to_the_page(site: Path, browser: Any) -> None:  # noqa: ANN401
    page = browser.new_page()
    for words, title in {
        "own data": "Your own data",
        "threshold": "Segment your first tile",
        "browser": "In the browser, without a server",
        "docker": "Deploy it",
        "camera": "Inspect a web under a line camera",
    }.items():
        page.goto(f"{site.as_uri()}/search.html?q={words.replace(' ', '+')}")
        page.get_by_text("Search finished").wait_for(timeout=60_000)
        found = [text.strip() for text in page.locator("#search-results li > a").all_inner_texts()]
        assert title in found[:5], (words, found[:5])
    page.close()


def test_results_show_what_the_files_of_figures_hold() -> None:
    tables = runpy.run_path(str(DOCS / "tables.py"))
    text = tables["PAGE"].read_text(encoding="utf-8")
    begun = text.count("<!-- figures: ") + text.count("<!-- compared: ")
    assert begun == text.count("<!-- end -->") > 0
    assert tables["fill"](text) == text, "run `python docs/tables.py`"
