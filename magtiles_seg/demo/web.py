"""The demo's third tab: a web of tiles passes under a line camera, its defects come as they end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.demo.pictures import draw_web
from magtiles_seg.demo.tile import AT_ONCE
from magtiles_seg.demo.words import web_cards, web_table
from magtiles_seg.linescan.segmenter import LineScanSegmenter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.linescan.defects import WebDefect

_WIDTH_PX, _TILE_ROWS, _BLOCK_LINES, _STRIP_ROWS = 452, 15, 75, 256
_SHOWN_LINES = 1800
_MM_PER_PX = 0.1
_ABOUT = (
    f"<p>A line camera sees one line of {_WIDTH_PX} pixels at a time; the web has no end. It is "
    "cut into strips, and defects that cross a cut come out once and whole. Hatched: seen by the "
    f"camera, no verdict yet. The web is synthetic, {_MM_PER_PX} mm per pixel.</p>"
)


def add_web_tab(segmenter: Segmenter) -> None:
    """Fill the tab."""
    gr.HTML(_ABOUT)
    with gr.Row(elem_classes="bar"):
        share = gr.Slider(0, 1, 0.3, step=0.05, label="Share of tiles with a defect", scale=3)
        start = gr.Button("Start the web", variant="primary", elem_id="start", min_width=120)
        stop = gr.Button("Stop", elem_id="stop", min_width=80)
    cards = gr.HTML(elem_id="web-cards")
    picture = gr.Image(
        label="The web, moving to the left",
        format="jpeg",
        interactive=False,
        buttons=["fullscreen"],
        elem_id="web",
        visible=False,
    )
    table = gr.HTML(elem_id="web-defects")

    def run(fraction: float) -> Iterator[list[Any]]:
        yield from _pass(segmenter, fraction)

    running = start.click(
        run,
        share,
        [cards, picture, table],
        show_progress="hidden",
        concurrency_limit=AT_ONCE,
        api_visibility="private",
    )
    stop.click(None, cancels=[running], api_visibility="private")


def _pass(segmenter: Segmenter, defect_fraction: float) -> Iterator[list[Any]]:
    """Let a web pass, block by block, and yield what the tab shows."""
    web = LineScanSegmenter(_WIDTH_PX, segmenter, mm_per_px=_MM_PER_PX, strip_rows=_STRIP_ROWS)
    labels = segmenter.spec.card.labels
    drawn = synthetic_web(
        _WIDTH_PX, seed=secrets.randbelow(1000), defect_fraction=defect_fraction, distinct=8
    )
    found: list[WebDefect] = []
    window = np.empty((0, _WIDTH_PX), dtype=np.uint8)
    began_s = time.perf_counter()

    def show() -> list[Any]:
        first_line = web.next_line - len(window)
        picture = draw_web(
            window,
            first_line,
            web.next_line - web.report.pending_lines,
            found,
            labels=labels,
            length_px=_SHOWN_LINES,
            uninspected=web.uninspected,
        )
        seconds = time.perf_counter() - began_s
        return [
            web_cards(web.report, web.next_line, _MM_PER_PX, seconds),
            gr.Image(picture, visible=True),
            web_table(found, labels),
        ]

    for block in _blocks(islice((rows.image for rows in drawn), _TILE_ROWS)):
        found += web.push(block)
        window = np.concatenate([window, block])[-_SHOWN_LINES:]
        yield show()
    found += web.close()
    yield show()


def _blocks(pictures: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    for picture in pictures:
        for line in range(0, len(picture), _BLOCK_LINES):
            yield picture[line : line + _BLOCK_LINES]
