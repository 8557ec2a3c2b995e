"""The demo's second tab: many pictures, one table, a CSV to take away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from magtiles_seg.dataset.synthetic import DEFECTS, synthetic_tile
from magtiles_seg.demo.likeness import doubt_of
from magtiles_seg.demo.pictures import draw_numbered
from magtiles_seg.demo.tile import AT_ONCE, known_scale
from magtiles_seg.demo.words import (
    Answer,
    answer_counts,
    answer_table,
    answers_csv,
    notice_card,
    tile_card,
)
from magtiles_seg.errors import ImageError
from magtiles_seg.tile import TileResult

if TYPE_CHECKING:
    from magtiles_seg.demo.tile import Controls, Judge

MAX_PICTURES = 100
RUN_S = 120.0
"""How long one list is inspected; others wait meanwhile."""

_SYNTHETIC = "synthetic:"
_ASK_FILES = "() => `files:${Date.now()}`"
_ASK_SYNTHETIC = f"() => [null, false, `{_SYNTHETIC}${{Date.now()}}`]"
_ASK_AGAIN = "(asked) => `${asked.split(':')[0]}:${Date.now()}`"
_SAMPLES = 12
_DRAWN = 24


def add_many_tab(judge: Judge, controls: Controls) -> None:
    """Fill the tab; thresholds and scale are those of the first one."""
    gr.HTML(
        "<p>Thresholds and scale are those that the first tab shows when the pictures come.</p>"
    )
    files = gr.File(
        file_count="multiple",
        label=f"Pictures of tiles, up to {MAX_PICTURES}",
        height=130,
        elem_id="many",
    )
    with gr.Row():
        sample = gr.Button("Try twelve synthetic tiles", elem_id="sample")
        download = gr.DownloadButton(
            "Download CSV", variant="primary", interactive=False, elem_id="csv"
        )
    one_tile = gr.Checkbox(
        label="All of them show one tile, in different light: one verdict", elem_id="one-tile"
    )
    counts = gr.HTML(elem_id="counts")
    table = gr.HTML(elem_id="answers")
    gallery = gr.Gallery(
        label="What was found",
        columns=4,
        height="auto",
        object_fit="contain",
        format="jpeg",
        visible=False,
        interactive=False,
        elem_id="drawn",
    )
    asked = gr.Textbox(visible="hidden", elem_id="asked")
    shown = [counts, table, download, gallery]

    def run(
        paths: list[str] | None,
        of_one: bool,
        what: str | None,
        *sliders: Any,  # noqa: ANN401
    ) -> Iterator[list[Any]]:
        cache = download.GRADIO_CACHE
        given = _draw_samples(cache) if (what or "").startswith(_SYNTHETIC) else paths or []
        yield from _inspect(judge, given, sliders, cache, one_tile=of_one)

    # One function answers, by the state of the page at its start: what is asked meanwhile comes
    # after it. The events write in the browser alone what they ask, each time something new.
    gr.on([files.upload, files.clear, files.delete], None, None, asked, js=_ASK_FILES)
    sample.click(None, None, [files, one_tile, asked], js=_ASK_SYNTHETIC)
    one_tile.input(None, asked, asked, js=_ASK_AGAIN)
    asked.change(
        run,
        [files, one_tile, asked, *controls.inputs],
        shown,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
        concurrency_limit=AT_ONCE,
    )


def _inspect(
    judge: Judge,
    paths: list[str],
    sliders: tuple[Any, ...],
    cache: str,
    *,
    one_tile: bool = False,
) -> Iterator[list[Any]]:
    """Inspect one picture after the other and yield what the tab shows meanwhile."""
    threshold, reject_score, mm_per_px, *model = sliders
    nothing = [gr.DownloadButton(value=None, interactive=False), gr.Gallery(visible=False)]
    if not paths or len(paths) > MAX_PICTURES:
        text = f"Got {len(paths)}; expected up to {MAX_PICTURES}. More fit in the command line."
        yield [notice_card("Too many pictures", text) if paths else "", "", *nothing]
        return
    answers: list[Answer] = []
    end_s = time.monotonic() + RUN_S
    for path in paths:
        name = Path(path).name
        try:
            if time.monotonic() > end_s:
                raise ImageError(f"not inspected: the demo ends a list after {RUN_S:g} s")
            result = judge.inspect(path, threshold, reject_score, *model)
            answers.append(Answer(name=name, result=result, doubt=doubt_of(result.image)))
        except ImageError as error:
            answers.append(Answer(name=name, error=str(error)))
        yield [answer_counts(answers, len(paths)), answer_table(answers), *nothing]
    tile = _together(answers) if one_tile else None
    content = answers_csv(answers, known_scale(mm_per_px), tile=tile).encode()
    drawn = [
        (draw_numbered(one.result), one.name)
        for one in answers
        if one.result and one.result.defects
    ]
    counts = answer_counts(answers, len(paths))
    yield [
        _tile_verdict(answers, tile) + counts if one_tile else gr.skip(),
        gr.skip(),
        gr.DownloadButton(
            value=save_bytes_to_cache(content, "defects.csv", cache), interactive=True
        ),
        gr.Gallery(drawn[:_DRAWN], visible=bool(drawn)),
    ]


def _together(answers: list[Answer]) -> TileResult | None:
    """Return what all pictures say as one; None where one of them could not be read."""
    exposures = tuple(answer.result for answer in answers if answer.result)
    return TileResult(exposures=exposures) if len(exposures) == len(answers) else None


def _tile_verdict(answers: list[Answer], tile: TileResult | None) -> str:
    """Return the one verdict of all pictures as a card, or why there is none."""
    if tile is None:
        lost = sum(answer.result is None for answer in answers)
        return notice_card("No verdict", f"{lost} of the tile's pictures could not be read.")
    return tile_card(tile)


def _draw_samples(cache: str) -> list[str]:
    """Write some synthetic tiles, half of them sound, and return their paths."""
    import cv2

    paths = []
    for index in range(_SAMPLES):
        defect = DEFECTS[index // 2 % len(DEFECTS)] if index % 2 else None
        tile = synthetic_tile(40 + index, defect=defect, exposure=3)
        _, encoded = cv2.imencode(".png", tile.image)
        paths.append(save_bytes_to_cache(encoded.tobytes(), f"tile_{index + 1:02}.png", cache))
    return paths
