"""The demo's first tab: one tile, its defects, and thresholds that act at once."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.demo.pictures import draw_heat, draw_mask, draw_numbered
from magtiles_seg.demo.words import defect_table, legend, notice_card, verdict_card
from magtiles_seg.errors import ImageError
from magtiles_seg.image import read_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.result import Segmentation

MAX_PIXELS = 4_000_000
"""A result stays in memory while its page is open: larger pictures belong to the service."""

AT_ONCE = 4
"""Calls of one function that run at the same time: a slow one does not hold up the next visitor."""

_EXAMPLE = "example:"  # key of an example's result, with its number
_SEEN = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # what browsers show of what is read
_EXAMPLES: tuple[tuple[str | None, int], ...] = (
    ("crack", 25),
    ("blowhole", 26),
    ("break", 25),
    ("fray", 22),
    ("uneven", 22),
    (None, 24),
)


@dataclass(frozen=True, eq=False)
class Controls:
    """The sliders that the tabs share."""

    threshold: gr.Slider
    reject_score: gr.Slider
    mm_per_px: gr.Number


class Judge:
    """A model and how the demo's sliders read its thresholds.

    Attributes:
        segmenter: The model; stays the caller's.
        results: What pages show.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        """Keep the Segmenter; it stays the caller's."""
        self.segmenter = segmenter
        self.results = Results()

    @cached_property
    def examples(self) -> list[tuple[NDArray[np.uint8], str]]:
        """Synthetic tiles and what was drawn on them."""
        drawn = (
            synthetic_tile(seed, defect=defect, exposure=3, size_hw=(300, 240))
            for defect, seed in _EXAMPLES
        )
        return [(tile.image, tile.label.replace("free", "sound")) for tile in drawn]

    @cached_property
    def answers(self) -> list[Segmentation]:
        """The results of the examples, as the model decides."""
        return [self.segmenter(image) for image, _ in self.examples]

    def result_of(self, key: str | None) -> Segmentation | None:
        """Return what a page shows, or None where it was dropped."""
        key = key or ""
        number = key.removeprefix(_EXAMPLE)
        if key == f"{_EXAMPLE}{number}" and number in map(str, range(len(self.answers))):
            return self.answers[int(number)]
        return self.results.get(key)

    def inspect(self, path: str, threshold: float, reject_score: float) -> Segmentation:
        """Segment a picture file.

        Raises:
            ImageError: It is none that can be segmented; the message names no path.
        """
        try:
            picture = read_image(path, max_pixels=MAX_PIXELS)
        except ImageError as error:
            raise ImageError(str(error).replace(f"'{path}'", "The file")) from error
        return self.decide(self.segmenter(picture), threshold, reject_score)

    def decide(self, result: Segmentation, threshold: float, reject_score: float) -> Segmentation:
        """Return what the sliders make of a result, with no new inference.

        A slider shows three digits: where it stands on the model's value, that value counts.
        """
        own = self.segmenter.decision
        changes = {
            "threshold": _exact(threshold, own.threshold),
            "reject_score": (limit := _exact(reject_score, own.reject_score)),
        }
        if own.review_score is not None:
            changes["review_score"] = min(own.review_score, limit)
        return result.redecide(**changes)


def add_controls(segmenter: Segmenter) -> Controls:
    """Add the sliders, set to the model's own thresholds."""
    own = segmenter.decision
    return Controls(
        gr.Slider(
            0.001,
            0.999,
            round(own.threshold, 3),
            step=0.001,
            label="Threshold",
            info="A pixel of at least this probability is defect.",
            elem_id="threshold",
        ),
        gr.Slider(
            0.001,
            0.999,
            round(own.reject_score, 3),
            step=0.001,
            label="Reject score",
            info="A tile whose surest spot scores at least this is rejected.",
            elem_id="reject-score",
        ),
        gr.Number(
            0, label="Scale in mm per pixel", info="0: unknown, sizes in pixels alone.", minimum=0
        ),
    )


def add_tile_tab(judge: Judge) -> Controls:
    """Fill the tab and return its controls."""
    first = judge.answers[0]
    with gr.Row(elem_classes="areas"):
        with gr.Column(elem_classes="given"):
            picture, gallery = _add_input(judge)
        with gr.Column(elem_classes="found"):
            shown = _add_answer(first)
        with gr.Column(elem_classes="tuned"):
            controls = add_controls(judge.segmenter)
        key = gr.Textbox(f"{_EXAMPLE}0", visible="hidden", elem_id="key")  # of what is shown
    _connect(judge, picture, gallery, controls, key, shown)
    return controls


def _add_input(judge: Judge) -> tuple[gr.Image, gr.Gallery]:
    """Add the place for a picture and the examples."""
    picture = gr.Image(
        judge.examples[0][0],
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        label="Picture of a tile: drop, choose or paste",
        height=250,
        buttons=[],
        elem_id="picture",
    )
    # The library's own door reads the file: Gradio's would fail on a bad one with words of its own,
    # and would hand over another picture than the one that was sent.
    picture.preprocess = _uploaded_path
    gallery = gr.Gallery(
        list(judge.examples),
        label="Or one of these synthetic tiles",
        columns=len(judge.examples),
        height="auto",
        allow_preview=False,
        object_fit="cover",
        format="jpeg",
        buttons=[],
        interactive=False,
        elem_id="examples",
    )
    return picture, gallery


def _add_answer(first: Segmentation) -> list[Any]:
    """Add verdict, pictures and table, showing a first result."""
    verdict, numbered, mask, heat, table = _show(first, None)
    card = gr.HTML(verdict, elem_id="verdict")
    overlay = gr.Image(
        numbered, label="Defects", format="jpeg", elem_id="overlay", **_output(height=430)
    )
    gr.HTML(legend(first.labels))
    listed = gr.HTML(table, elem_id="defects")
    with gr.Row(elem_classes="pair"):
        small = _output(height=220, min_width=120)
        masked = gr.Image(mask, label="Mask", format="png", elem_id="mask", **small)
        heated = gr.Image(heat, label="Probability", format="png", elem_id="heat", **small)
    return [card, overlay, masked, heated, listed]


def _connect(
    judge: Judge,
    picture: gr.Image,
    gallery: gr.Gallery,
    controls: Controls,
    key: gr.Textbox,
    shown: list[Any],
) -> None:
    """Let the events of the tab act."""

    def clear() -> list[Any]:  # takes no picture: Gradio may still send the one that was removed
        return ["", *_clear("Waiting", "Drop a picture of a tile, or pick an example.")]

    def upload(path: str | None, threshold: float, reject: float, mm: float | None) -> list[Any]:
        if path is None:
            return [None, *clear()]
        try:
            result = judge.inspect(path, threshold, reject)
        except ImageError as error:
            return [None, "", *_clear("No picture", str(error))]
        seen = gr.skip() if Path(path).suffix.lower() in _SEEN else result.image
        return [seen, judge.results.keep(result), *_show(result, mm)]

    def pick(event: gr.SelectData, threshold: float, reject: float, mm: float | None) -> list[Any]:
        index = event.index if isinstance(event.index, int) else -1
        chosen = f"{_EXAMPLE}{index}"
        result = judge.result_of(chosen)
        if result is None:
            return [None, "", *_clear("No example", "Pick one of those that are shown.")]
        return [result.image, chosen, *_show(judge.decide(result, threshold, reject), mm)]

    def move(key: str | None, threshold: float, reject: float, mm: float | None) -> list[Any]:
        if not key:  # no picture yet
            return [gr.skip() for _ in shown]
        result = judge.result_of(key)
        if result is None:
            return _clear("Waited too long", "The result was dropped: give the picture again.")
        return _show(judge.decide(result, threshold, reject), mm)

    sliders = [controls.threshold, controls.reject_score, controls.mm_per_px]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress_on": shown[1]}
    quiet["concurrency_limit"] = AT_ONCE
    picture.upload(upload, [picture, *sliders], [picture, key, *shown], **quiet)
    picture.clear(clear, None, [key, *shown], **quiet)
    gallery.select(pick, sliders, [picture, key, *shown], **quiet)
    gr.on(
        [slider.input for slider in sliders],
        move,
        [key, *sliders],
        shown,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=AT_ONCE,
        api_visibility="private",
    )


def _show(result: Segmentation, mm_per_px: float | None) -> list[Any]:
    return [
        verdict_card(result),
        draw_numbered(result),
        draw_mask(result),
        draw_heat(result),
        defect_table(result, mm_per_px or None),
    ]


def _clear(title: str, text: str) -> list[Any]:
    return [notice_card(title, text), None, None, None, ""]


def _uploaded_path(payload: Any) -> str | None:  # noqa: ANN401  (one of Gradio's data classes)
    return None if payload is None else str(payload.path)


def _exact(shown: float, own: float) -> float:
    return own if shown == round(own, 3) else float(shown)


def _output(**options: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"interactive": False, "buttons": ["fullscreen", "download"], **options}


_BYTES = 400_000_000
_KEPT_S = 1800.0


class Results:
    """Results by keys that nobody can guess; a page holds the key of what it shows."""

    def __init__(self, max_bytes: int = _BYTES, kept_s: float = _KEPT_S) -> None:
        """Start with none.

        Args:
            max_bytes: Of all results' arrays.
            kept_s: How long a result stays that nobody asks for.
        """
        self._max_bytes, self._kept_s = max_bytes, kept_s
        self._results: OrderedDict[str, tuple[float, Segmentation]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, result: Segmentation) -> str:
        """Keep a result and return its key."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._results[key] = (time.monotonic(), result)
            self._bytes += _size(result)
            self._drop()
        return key

    def get(self, key: str) -> Segmentation | None:
        """Return the result of a key, or None where it is gone."""
        with self._lock:
            self._drop()
            if key not in self._results:
                return None
            _, result = self._results[key]
            self._results[key] = (time.monotonic(), result)
            self._results.move_to_end(key)
            return result

    def _drop(self) -> None:
        latest = time.monotonic() - self._kept_s
        while self._results:
            used_s, result = next(iter(self._results.values()))
            if used_s >= latest and self._bytes <= self._max_bytes:
                return
            self._results.popitem(last=False)
            self._bytes -= _size(result)


def _size(result: Segmentation) -> int:
    arrays = (result.image, result.probability, result.classes, result.mask)
    return sum(array.nbytes for array in arrays) + result.image.nbytes  # and one that it hides
