"""The demo in the browser: one tile, many tiles, a web of lines. Needs the extra `demo`.

Nothing comes from or goes to another machine: fonts are those of the reader's system, scripts are
Gradio's own, and its telemetry is off.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it when it is imported

import gradio as gr

from magtiles_seg.serve.demo_many import add_many_tab
from magtiles_seg.serve.demo_tile import Judge, add_tile_tab
from magtiles_seg.serve.demo_web import add_web_tab

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from magtiles_seg.infer.segmenter import Segmenter

__all__ = ["LAUNCH", "build", "create_app", "mount"]

PATH = "/demo"
_SESSIONS = 50  # results that are kept in memory at most, one a page
_CLEANED_S, _FILES_KEPT_S = 600, 3600
_ABOUT = (
    "<header><h1>Defects of magnetic tiles</h1>"
    "<p>Give it a picture of a tile: it marks the defects, measures them and says whether the tile "
    "passes.</p></header>"
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")

LAUNCH: dict[str, Any] = {
    "theme": gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=_FONTS,
        font_mono=("ui-monospace", "monospace"),
    ),
    "css_paths": [Path(__file__).with_name("demo.css")],
    "head": '<link rel="icon" href="data:,">',  # no request for an icon that is not there
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "show_error": False,
    "max_file_size": "64mb",
}
"""What `Blocks.launch` and `mount_gradio_app` take besides the page itself."""


def build(segmenter: Segmenter) -> gr.Blocks:
    """Return the demo's page.

    Args:
        segmenter: Model and thresholds to start from; stays the caller's.

    Example:
        >>> build(Segmenter()).launch(**LAUNCH)
    """
    judge = Judge(segmenter)
    with gr.Blocks(
        title="Defects of magnetic tiles",
        analytics_enabled=False,
        delete_cache=(_CLEANED_S, _FILES_KEPT_S),
        fill_width=True,
    ) as blocks:
        gr.HTML(_ABOUT)
        with gr.Tab("One tile"):
            controls = add_tile_tab(judge)
        with gr.Tab("Many tiles"):
            add_many_tab(judge, controls)
        with gr.Tab("Line scan"):
            add_web_tab(segmenter)
    blocks.state_session_capacity = _SESSIONS
    return blocks


def mount(app: Starlette, segmenter: Segmenter) -> Starlette:
    """Put the demo under `/demo` of an application, before that starts, and return it.

    Args:
        app: Its lifespan is wrapped, and its state survives.
        segmenter: Model and thresholds; stays the caller's.
    """
    mounted: Starlette = gr.mount_gradio_app(app, build(segmenter), path=PATH, **LAUNCH)
    return mounted


def create_app(segmenter: Segmenter) -> Starlette:
    """Return an application with the demo alone; `/` leads to it."""
    from starlette.applications import Starlette
    from starlette.responses import RedirectResponse
    from starlette.routing import Route

    def lead(_: object) -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    return mount(Starlette(routes=[Route("/", lead)]), segmenter)
