"""The demo's third tab: a web passes under a line camera, its defects come as they end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from magtiles_seg.dataset.synthetic.web import synthetic_web
from magtiles_seg.demo.pictures import draw_web
from magtiles_seg.demo.tile import AT_ONCE, MAX_PIXELS
from magtiles_seg.demo.words import notice_card, web_cards, web_table
from magtiles_seg.errors import DataError
from magtiles_seg.image import MIN_SIDE_PX, read_image
from magtiles_seg.inputs import is_picture_name
from magtiles_seg.linescan.segmenter import LineScanSegmenter
from magtiles_seg.linescan.sources import VideoSource

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
    f"camera, no verdict yet. The web is synthetic, {_MM_PER_PX} mm per pixel, unless you give "
    "one: a tall picture, its lines from top to bottom, or a video whose frames follow each "
    "other.</p>"
)
_MAX_WIDTH_PX, _MAX_LINES = 2048, 100_000
RUN_S = 120.0
"""How long a web of one's own passes."""

_VIDEOS = {b"ftyp": 4, b"\x1aE\xdf\xa3": 0}  # MP4 and Matroska: what stands where in the file


def add_web_tab(segmenter: Segmenter) -> None:
    """Fill the tab."""
    gr.HTML(_ABOUT)
    with gr.Row(elem_classes="bar"):
        share = gr.Slider(0, 1, 0.3, step=0.05, label="Share of tiles with a defect", scale=3)
        start = gr.Button("Start the web", variant="primary", elem_id="start", min_width=120)
        stop = gr.Button("Stop", elem_id="stop", min_width=80)
    own = gr.File(label="A web of your own: picture, MP4 or MKV", height=140, elem_id="own-web")
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

    def run(fraction: float, path: str | None) -> Iterator[list[Any]]:
        yield from _pass(segmenter, fraction, path)

    running = start.click(
        run,
        [share, own],
        [cards, picture, table],
        show_progress="hidden",
        concurrency_limit=AT_ONCE,
        api_visibility="private",
    )
    stop.click(None, cancels=[running], api_visibility="private")


def _pass(
    segmenter: Segmenter, defect_fraction: float, path: str | None = None
) -> Iterator[list[Any]]:
    """Let a web pass, block by block, and yield what the tab shows.

    Args:
        segmenter: The model.
        defect_fraction: Share of the tiles of the synthetic web that have a defect.
        path: An uploaded picture or video, in place of the synthetic web.
    """
    try:
        if path is None:
            yield from _show_web(segmenter, _synthetic(defect_fraction), _WIDTH_PX, _MM_PER_PX)
        elif is_picture_name(path):
            picture = read_image(path, max_pixels=MAX_PIXELS)
            _check_width(picture.shape[1])
            yield from _show_web(segmenter, [picture], picture.shape[1], None)
        else:
            with closing(_open_video(path)) as video:
                frames = (block.rows for block in video)
                yield from _show_web(segmenter, frames, video.width_px, None)
    except DataError as error:
        text = str(error).replace(f"'{path}'", "The file").replace(str(path), "The file")
        yield [notice_card("No web", text), gr.Image(visible=False), ""]


def _show_web(
    segmenter: Segmenter,
    pictures: Iterable[NDArray[np.uint8]],
    width_px: int,
    mm_per_px: float | None,
) -> Iterator[list[Any]]:
    """Inspect the lines of pictures that follow each other, (n, `width_px`) uint8 each."""
    web = LineScanSegmenter(width_px, segmenter, mm_per_px=mm_per_px, strip_rows=_STRIP_ROWS)
    labels = segmenter.spec.card.labels
    found: list[WebDefect] = []
    window = np.empty((0, width_px), dtype=np.uint8)
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
            web_cards(web.report, web.next_line, mm_per_px, seconds),
            gr.Image(picture, visible=True),
            web_table(found, labels),
        ]

    for block in _blocks(pictures):
        found += web.push(block)
        window = np.concatenate([window, block])[-_SHOWN_LINES:]
        yield show()
        if web.next_line >= _MAX_LINES or time.perf_counter() - began_s > RUN_S:
            break
    found += web.close()
    yield show()


def _synthetic(defect_fraction: float) -> Iterator[NDArray[np.uint8]]:
    drawn = synthetic_web(
        _WIDTH_PX, seed=secrets.randbelow(1000), defect_fraction=defect_fraction, distinct=8
    )
    return (rows.image for rows in islice(drawn, _TILE_ROWS))


def _open_video(path: str) -> VideoSource:
    """Open an uploaded video.

    Only what begins as an MP4 or Matroska file is handed to the decoder: it would also take
    playlists, which name other files of the server.

    Raises:
        DataError: It is none of both, cannot be read, or its frames are too large.
    """
    import cv2

    with Path(path).open("rb") as file:
        head = file.read(16)
    if not any(head[start:].startswith(mark) for mark, start in _VIDEOS.items()):
        raise DataError("The file is neither a picture nor a video; expected PNG, JPEG, MP4 or MKV")
    looked_at = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    opened = looked_at.isOpened()
    size = [int(looked_at.get(side)) for side in (3, 4)]  # its width and height
    looked_at.release()
    if not opened:
        raise DataError("The file is no video that can be read: it is damaged, or cut off")
    if not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise DataError(
            f"The file has frames of {size[0]} x {size[1]} px; expected a video of at most "
            f"{MAX_PIXELS:,} px a frame"
        )
    _check_width(size[0])
    return VideoSource(path)


def _check_width(width_px: int) -> None:
    if not MIN_SIDE_PX <= width_px <= _MAX_WIDTH_PX:
        raise DataError(
            f"The file is {width_px} px wide; expected {MIN_SIDE_PX} to {_MAX_WIDTH_PX} px a line"
        )


def _blocks(pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    for picture in pictures:
        for line in range(0, len(picture), _BLOCK_LINES):
            yield picture[line : line + _BLOCK_LINES]
