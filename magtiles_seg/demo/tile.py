"""The demo's first tab: one tile, its defects, and thresholds that act at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache

from magtiles_seg.dataset.synthetic import SyntheticTile, synthetic_tile
from magtiles_seg.decision import scale
from magtiles_seg.demo.likeness import doubt_of
from magtiles_seg.demo.models import Models, Results, describe
from magtiles_seg.demo.pictures import draw_heat, draw_mask, draw_numbered, draw_plain
from magtiles_seg.demo.words import (
    Answer,
    about_model,
    answers_csv,
    defect_table,
    doubt_card,
    legend,
    model_line,
    notice_card,
    result_json,
    verdict_card,
)
from magtiles_seg.errors import ConfigError, ImageError
from magtiles_seg.image import read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.result import Segmentation

MAX_PIXELS = 4_000_000
"""A result stays in memory while its page is open: larger pictures belong to the service."""

AT_ONCE = 4
"""Calls of one function that run at the same time: a slow one does not hold up the next visitor."""

_AS_GIVEN = gr.skip()  # the page shows the very file
_MARGIN_PX = 24  # round an example's defect
_SHOWN = 7  # outputs of an answer: card, overlay, mask, heat, table, two files
_EXAMPLE = "example:"  # key of an example's result, with its number
_FILE, _NONE, _MODEL = "file", "none", "model"  # what else a page asks
_SEND_FILE = (  # no other picture than one that was uploaded, and that once
    "(sent, asked, answered, ...rest) => "
    f"[asked !== answered && `${{asked}}`.startsWith('{_FILE}:') ? sent : null, "
    "asked, answered, ...rest]"
)
_SHOW_DRAWN = (  # what an answer shows in place of the picture, unless another was given since
    "(drawn, drawn_for, asked) => drawn_for === asked ? drawn : {__type__: 'update'}"
)
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
    """What the tabs share: sliders, and the choice of a model where there are several."""

    threshold: gr.Slider
    reject_score: gr.Slider
    mm_per_px: gr.Number
    model: gr.Dropdown | None

    @property
    def inputs(self) -> list[Any]:
        """What every call is given: threshold, reject score, scale and, if any, the choice."""
        shared = [self.threshold, self.reject_score, self.mm_per_px]
        return shared if self.model is None else [*shared, self.model]


class Judge:
    """A model and how the demo's sliders read its thresholds.

    Attributes:
        models: Those that can be chosen.
        results: What pages show.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        """Keep the Segmenter; it stays the caller's."""
        self.models = Models(segmenter)
        self.results = Results()

    @property
    def segmenter(self) -> Segmenter:
        """The model that is used where none is chosen."""
        return self.models.first

    @cached_property
    def _tiles(self) -> list[SyntheticTile]:
        return [
            synthetic_tile(seed, defect=defect, exposure=3, size_hw=(300, 240))
            for defect, seed in _EXAMPLES
        ]

    @property
    def examples(self) -> list[tuple[NDArray[np.uint8], str]]:
        """Synthetic tiles and what was drawn on them."""
        return [(tile.image, tile.label.replace("free", "sound")) for tile in self._tiles]

    @property
    def thumbnails(self) -> list[tuple[NDArray[np.uint8], str]]:
        """The part of each example in which its defect lies, and what was drawn."""
        return [
            (_round_the_defect(tile.image, tile.mask), label)
            for tile, (_, label) in zip(self._tiles, self.examples, strict=True)
        ]

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

    def segment(self, path: str, model: str | None = None) -> Segmentation:
        """Segment a picture file; the model's own thresholds decide.

        Raises:
            ImageError: It is none that can be segmented; the message names no path.
        """
        try:
            picture = read_image(path, max_pixels=MAX_PIXELS)
        except ImageError as error:
            raise ImageError(str(error).replace(f"'{path}'", "The file")) from error
        return self.models.get(model)(picture)

    def inspect(
        self, path: str, threshold: float, reject_score: float, model: str | None = None
    ) -> Segmentation:
        """Segment a picture file and decide as the sliders say.

        Raises:
            ImageError: It is none that can be segmented; the message names no path.
        """
        return self.decide(self.segment(path, model), threshold, reject_score, model)

    def decide(
        self,
        result: Segmentation,
        threshold: float,
        reject_score: float,
        model: str | None = None,
    ) -> Segmentation:
        """Return what the sliders make of a result, with no new inference.

        A slider shows three digits: where it stands on the model's value, that value counts.
        """
        own = self.models.get(model).decision
        changes = {"threshold": _exact(threshold, own.threshold)}
        limit = _exact(reject_score, own.reject_score)
        if limit != own.reject_score:  # which would also hold for tiles of several pictures
            changes["reject_score"] = limit
        if own.review_score is not None:
            changes["review_score"] = min(own.review_score, limit)
        return result.redecide(**changes)


def known_scale(mm_per_px: float | None) -> float | None:
    """Return the scale, or None: it is unknown, or out of its range, which a message says."""
    try:
        return scale(mm_per_px or None, "Scale")
    except ConfigError as error:
        gr.Warning(str(error))
        return None


def add_controls(models: Models) -> Controls:
    """Add the sliders, set to the model's own thresholds, and the choice of several models."""
    own = models.first.decision
    choice = None
    if len(models.names) > 1:
        choice = gr.Dropdown(list(models.names), value=models.names[0], label="Model")
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
        gr.Number(0, label="Scale in mm per pixel", info="0: unknown, sizes in pixels alone."),
        choice,
    )


def add_tile_tab(judge: Judge) -> Controls:
    """Fill the tab and return its controls."""
    first = judge.answers[0]
    with gr.Row(elem_classes="areas"):
        with gr.Column(elem_classes="given"):
            picture, gallery = _add_input(judge)
        with gr.Column(elem_classes="found"):
            card, overlay = _add_verdict(first)
        with gr.Column(elem_classes="tuned"):
            controls = add_controls(judge.models)
        with gr.Column(elem_classes="rest"):
            shown = [
                card,
                overlay,
                *_add_measures(first),
                *_add_downloads(first, picture.GRADIO_CACHE),
            ]
            said = gr.HTML(model_line(describe(judge.segmenter)), elem_id="model")
        key = gr.Textbox(f"{_EXAMPLE}0", visible="hidden", elem_id="key")  # of what is shown
    gr.HTML(about_model(judge.models.names[0], first.labels))
    acts = _Acts(judge, picture.GRADIO_CACHE)
    _connect(acts, picture, gallery, controls, key, shown, said)
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
    gallery = gr.Gallery(
        judge.thumbnails,
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


def _add_verdict(first: Segmentation) -> tuple[gr.HTML, gr.ImageSlider]:
    """Add verdict and picture, before and after, showing a first result."""
    card = gr.HTML(_card(first), elem_id="verdict")
    overlay = gr.ImageSlider(
        (draw_plain(first), draw_numbered(first)),
        label="Defects: move the line to see the picture without them",
        format="jpeg",
        slider_position=0,
        elem_id="overlay",
        max_height=430,
        **_output(),
    )
    gr.HTML(legend(first.labels))
    return card, overlay


def _add_measures(first: Segmentation) -> list[Any]:
    """Add mask, probability and table."""
    listed = gr.HTML(defect_table(first, None), elem_id="defects")
    with gr.Row(elem_classes="pair"):
        small = _output(height=220, min_width=120)
        masked = gr.Image(draw_mask(first), label="Mask", format="png", elem_id="mask", **small)
        heated = gr.Image(
            draw_heat(first), label="Probability", format="png", elem_id="heat", **small
        )
    return [masked, heated, listed]


def _add_downloads(first: Segmentation, cache: str) -> list[Any]:
    """Add the buttons that hand the answer over as files."""
    with gr.Row(elem_classes="downloads"):
        return [
            gr.DownloadButton(f"Download {kind}", value=path, size="sm")
            for kind, path in zip(("JSON", "CSV"), _files(first, None, cache), strict=True)
        ]


class _Acts:
    """What the events of the tab do, and the values of what shows it."""

    def __init__(self, judge: Judge, cache: str) -> None:
        self._judge, self._cache = judge, cache

    def answer(
        self,
        sent: dict[str, Any] | None,
        asked: str | None,
        answered: str | None,
        key: str | None,
        threshold: float,
        reject: float,
        mm: float | None,
        model: str | None = None,
    ) -> list[Any]:
        """Answer what the page asks; where it asked nothing since, a slider moved: decide anew."""
        same = [gr.skip(), gr.skip()]
        if asked == answered:
            decided = self._move(key, threshold, reject, mm, model)
            return [gr.skip(), *same, gr.skip(), *decided, gr.skip(), *same]
        what = (asked or "").rpartition(":")[0]
        if what == _FILE:
            said = self._upload(sent, threshold, reject, mm, model)
        elif what.startswith(_EXAMPLE):
            said = self._pick(what, threshold, reject, mm, model)
        elif what == _MODEL:
            return [asked, *same, *self._choose(key, mm, model)]
        else:
            said = [_AS_GIVEN, *self._clear()]  # empty, or the next one is on its way
        drawn, *rest = said
        return [asked, gr.skip() if drawn is _AS_GIVEN else asked, drawn, *rest, *same]

    @staticmethod
    def pick(event: gr.SelectData) -> str:
        """Return what the page asks after a click on an example."""
        index = event.index if isinstance(event.index, int) else -1
        return f"{_EXAMPLE}{index}:{token_hex(4)}"

    def _clear(self) -> list[Any]:
        """Forget the picture."""
        return ["", *self._say("Waiting", "Drop a picture of a tile, or pick an example."), ""]

    def _upload(
        self,
        sent: dict[str, Any] | None,
        threshold: float,
        reject: float,
        mm: float | None,
        model: str | None,
    ) -> list[Any]:
        """Inspect a picture."""
        if sent is None:
            return [_AS_GIVEN, *self._clear()]
        path = str(sent["path"])
        began_s = time.perf_counter()
        try:
            raw = self._judge.segment(path, model)
        except ImageError as error:
            return [None, "", *self._say("No picture", str(error)), ""]
        line = model_line(describe(self._judge.models.get(model), time.perf_counter() - began_s))
        seen = _AS_GIVEN if Path(path).suffix.lower() in _SEEN else raw.image
        result = self._judge.decide(raw, threshold, reject, model)
        return [seen, self._judge.results.keep(raw), *self._show(result, mm), line]

    def _pick(
        self, key: str, threshold: float, reject: float, mm: float | None, model: str | None
    ) -> list[Any]:
        """Take an example."""
        raw = self._judge.result_of(key)
        if raw is None:
            return [None, "", *self._say("No example", "Pick one of those that are shown."), ""]
        answered, line = _again(self._judge, raw, model)
        if answered is not raw:
            key = self._judge.results.keep(answered)
        result = self._judge.decide(answered, threshold, reject, model)
        return [raw.image, key, *self._show(result, mm), line]

    def _move(
        self,
        key: str | None,
        threshold: float,
        reject: float,
        mm: float | None,
        model: str | None,
    ) -> list[Any]:
        """Decide anew."""
        if not key:  # no picture yet
            return [gr.skip() for _ in range(_SHOWN)]
        raw = self._judge.result_of(key)
        if raw is None:
            return self._say("Waited too long", "The result was dropped: give the picture again.")
        return self._show(self._judge.decide(raw, threshold, reject, model), mm)

    def _choose(self, key: str | None, mm: float | None, model: str | None) -> list[Any]:
        """Answer by another model, by its own thresholds."""
        own = self._judge.models.get(model).decision
        sliders = [round(own.threshold, 3), round(own.reject_score, 3)]
        raw = self._judge.result_of(key)
        if raw is None:
            return [*self._clear(), *sliders]
        answered, line = _again(self._judge, raw, model)
        return [self._judge.results.keep(answered), *self._show(answered, mm), line, *sliders]

    def _show(self, result: Segmentation, mm_per_px: float | None) -> list[Any]:
        mm_per_px = known_scale(mm_per_px)
        files = _files(result, mm_per_px, self._cache)
        return [
            _card(result),
            (draw_plain(result), draw_numbered(result)),
            draw_mask(result),
            draw_heat(result),
            defect_table(result, mm_per_px),
            *(gr.DownloadButton(value=path, interactive=True) for path in files),
        ]

    @staticmethod
    def _say(title: str, text: str) -> list[Any]:
        no_file = [gr.DownloadButton(value=None, interactive=False) for _ in range(2)]
        return [notice_card(title, text), None, None, None, "", *no_file]


def _connect(
    acts: _Acts,
    picture: gr.Image,
    gallery: gr.Gallery,
    controls: Controls,
    key: gr.Textbox,
    shown: list[Any],
    said: gr.HTML,
) -> None:
    """Let the events of the tab act."""
    sliders = [controls.threshold, controls.reject_score, controls.mm_per_px]
    asked, answered = (
        gr.Textbox(visible="hidden", elem_id=name) for name in ("asked-tile", "answered-tile")
    )
    # One function answers, by the state of the page at its start: what is asked meanwhile comes
    # after it. The events only write what they ask, each time something new.
    picture.upload(None, None, asked, js=_ask(_FILE))
    picture.clear(None, None, asked, js=_ask(_NONE))
    gallery.select(acts.pick, None, asked, show_progress="hidden", api_visibility="private")
    if controls.model is not None:
        # Its `input` also comes when the keyboard's focus passes by.
        controls.model.change(None, None, asked, js=_ask(_MODEL))
    drawn_for = gr.Textbox(visible="hidden")
    drawn = gr.Image(visible="hidden", format="png")
    acting = gr.on(
        [asked.change, *(slider.change for slider in sliders)],  # "Reset" is no input
        acts.answer,
        [picture, asked, answered, key, *controls.inputs],
        [answered, drawn_for, drawn, key, *shown, said, *sliders[:2]],
        js=_SEND_FILE,
        # Without this Gradio decodes the file: it would fail on a bad one with words of its own,
        # and hand over another picture than the one that was sent.
        preprocess=False,
        show_progress="minimal",
        show_progress_on=shown[1],
        trigger_mode="always_last",
        concurrency_limit=AT_ONCE,
        api_visibility="private",
    )
    acting.then(None, [drawn, drawn_for, asked], picture, js=_SHOW_DRAWN)


def _ask(what: str) -> str:
    """Return the script by which a page asks for something, in words that it has not used yet."""
    return f"() => `{what}:${{Date.now()}}`"


def _again(judge: Judge, raw: Segmentation, model: str | None) -> tuple[Segmentation, str]:
    """Return a model's answer to the picture of a result, which may be its own, and what it is."""
    segmenter = judge.models.get(model)
    if raw.model.get("sha256") == segmenter.spec.sha256:
        return raw, model_line(describe(segmenter))
    began_s = time.perf_counter()
    answered = segmenter(raw.image)
    return answered, model_line(describe(segmenter, time.perf_counter() - began_s))


def _card(result: Segmentation) -> str:
    return verdict_card(result) + doubt_card(doubt_of(result.image))


def _files(result: Segmentation, mm_per_px: float | None, cache: str) -> list[str]:
    """Write the answer as JSON and as CSV, and return the paths."""
    answer = Answer(name="picture", result=result, doubt=doubt_of(result.image))
    table = answers_csv([answer], mm_per_px)
    return [
        save_bytes_to_cache(result_json(result, mm_per_px).encode(), "result.json", cache),
        save_bytes_to_cache(table.encode(), "defects.csv", cache),
    ]


def _round_the_defect(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the square of a picture in which its defect lies; all of a picture without one."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return image
    side = 2 * _MARGIN_PX + max(int(np.ptp(rows)), int(np.ptp(columns)))
    side = min(side, *image.shape)
    middles = (int(rows.min() + rows.max()) // 2, int(columns.min() + columns.max()) // 2)
    y, x = (
        int(np.clip(middle - side // 2, 0, length - side))
        for middle, length in zip(middles, image.shape, strict=True)
    )
    return image[y : y + side, x : x + side]


def _exact(shown: float, own: float) -> float:
    return own if shown == round(own, 3) else float(shown)


def _output(**options: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"interactive": False, "buttons": ["fullscreen", "download"], **options}
