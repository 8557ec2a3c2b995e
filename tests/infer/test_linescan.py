from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, ImageError, InferenceError, ModelError
from magtiles_seg.infer.linescan import LineScanSegmenter, Uninspected, WebDefect
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.infer.strips import halo_px
from magtiles_seg.model.card import ModelCard
from magtiles_seg.result import Decision, Defect, Segmentation

Picture = NDArray[np.uint8]

STRIDE = 4
CARD = ModelCard(
    name="stub",
    architecture="stub",
    labels=("background", "dark", "grey", "light"),
    stride=STRIDE,
    receptive_field_px=2 * (34 + 2 * STRIDE) + 1,
)
HALO = halo_px(CARD)


class StubBackend:
    """A filter that sees 34 px and two cells of a grid of 4 px, and answers to the bit alike.

    What counts: the pixel, the largest pixel in its and the neighbouring cells, and the pixels 34
    above and below; outside the picture is black, below the stride's multiple the last row.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.fails_at = -1

    def infer(self, images: Picture) -> tuple[NDArray[np.float32], Picture]:
        self.shapes.append(images.shape)
        if len(self.shapes) == self.fails_at:
            raise InferenceError("out of memory")
        answers = [self._answer(image) for image in images]
        probability = np.stack([one for one, _ in answers])
        return probability, np.stack([other for _, other in answers])

    def _answer(self, image: Picture) -> tuple[NDArray[np.float32], Picture]:
        height, width = image.shape
        padding = [(0, -side % STRIDE) for side in image.shape]
        grey = np.pad(image, padding, mode="reflect")
        cells = grey.reshape(len(grey) // STRIDE, STRIDE, -1, STRIDE).max(axis=(1, 3))
        cells = np.asarray(cv2.dilate(cells, np.ones((3, 3), np.uint8), borderValue=0))
        near = np.kron(cells, np.ones((STRIDE, STRIDE), np.uint8))[:height, :width]
        far = np.pad(grey, [(34, 34), (0, 0)])
        far = np.maximum(far[:-68], far[68:])[:height, :width]
        mix = 12 * image.astype(np.int32) + 3 * near.astype(np.int32) + far
        return (mix / (16 * 255)).astype(np.float32), (1 + (image // 8) % 3).astype(np.uint8)

    def close(self) -> None: ...


def stub_segmenter(backend: StubBackend | None = None, **decision: float) -> Segmenter:
    fake = SimpleNamespace(
        backend=backend or StubBackend(),
        spec=SimpleNamespace(card=CARD),
        decision=Decision(**decision),  # type: ignore[arg-type]
    )
    return cast("Segmenter", fake)


def stub_web(width_px: int, **options: object) -> LineScanSegmenter:
    options.setdefault("segmenter", stub_segmenter())
    return LineScanSegmenter(width_px, **{"strip_rows": 16, **options})  # type: ignore[arg-type]


def run(web: LineScanSegmenter, picture: Picture, cuts: Sequence[int] = ()) -> list[WebDefect]:
    """Push a picture in blocks that end at `cuts`, and close the web."""
    edges = [0, *sorted(cuts), len(picture)]
    found = [defect for a, b in pairwise(edges) for defect in web.push(picture[a:b])]
    return found + web.close()


def whole(picture: Picture, segmenter: Segmenter) -> tuple[Defect, ...]:
    """Return what the picture gives when it is segmented as one."""
    missing = [(0, max(0, 32 - side)) for side in picture.shape]
    stack = np.pad(picture, missing, mode="reflect")[None]
    probability, classes = segmenter.backend.infer(stack)
    box = tuple(slice(0, side) for side in picture.shape)
    result = Segmentation.from_prediction(
        picture,
        probability[0][box],
        classes[0][box],
        decision=segmenter.decision,
        labels=segmenter.spec.card.labels,
    )
    return result.defects


def assert_equal_up_to_rounding(found: Sequence[WebDefect], expected: Sequence[Defect]) -> None:
    def key(one: Defect) -> tuple[object, ...]:
        return (one.bbox_xyxy_px, one.area_px, one.centroid_xy_px)

    assert len(found) == len(expected)
    for one, other in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
        assert one.bbox_xyxy_px == other.bbox_xyxy_px
        assert (one.area_px, one.label) == (other.area_px, other.label)
        assert one.centroid_xy_px == pytest.approx(other.centroid_xy_px, rel=1e-9)
        assert one.score == pytest.approx(other.score, rel=1e-6)
        # Two rectangles may be equally small: then only their area is one and the same.
        size, wanted = one.length_px * one.width_px, other.length_px * other.width_px
        assert size == pytest.approx(wanted, rel=1e-3)
        assert (one.first_line, one.last_line) == (one.bbox_xyxy_px[1], one.bbox_xyxy_px[3] - 1)
        assert one.complete


def spiral(height: int, width: int) -> Picture:
    """Return a spiral, one line and one gap of 3 px wide."""
    picture = np.zeros((height, width), np.uint8)
    for step, inset in enumerate(range(0, min(height, width) // 2 - 6, 6)):
        low, right, bottom = inset, width - 1 - inset, height - 1 - inset
        path = [(low - 6 if step else 0, low), (right, low), (right, bottom), (low, bottom)]
        path.append((low, low + 6))
        cv2.polylines(picture, [np.array(path, np.int32)], False, 255, 2)
    return picture


def random_web(seed: int) -> Picture:
    """Return a web with specks, crooked lines, rings, bars on its borders and spirals."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 260)), int(rng.integers(1, 70))
    web = rng.integers(0, 120, (height, width), np.uint8)
    for _ in range(rng.integers(0, 6)):
        points = rng.integers((0, 0), (width, height), (int(rng.integers(1, 6)), 2))
        grey = int(rng.integers(150, 256))
        kind = int(rng.integers(4))
        if kind == 0:
            cv2.polylines(web, [points.astype(np.int32)], False, grey, int(rng.integers(1, 4)))
        elif kind == 1:
            centre = (int(points[0, 0]), int(points[0, 1]))
            cv2.circle(web, centre, int(rng.integers(1, 40)), grey, 2)
        elif kind == 2:
            web[:, 0 if grey % 2 else -1] = grey
        elif min(height, width) > 20:
            web[:] = np.maximum(web, spiral(height, width))
    return web


def test_random_cuts_of_random_webs_give_one_and_the_same_list() -> None:
    rng = np.random.default_rng(1)
    found_any = 0
    for seed in range(100):
        picture = random_web(seed)
        reference = run(stub_web(picture.shape[1], mm_per_px=0.1), picture)
        found_any += bool(reference)
        for _ in range(10):
            cuts = rng.integers(0, len(picture) + 1, rng.integers(0, 30)).tolist()
            assert run(stub_web(picture.shape[1], mm_per_px=0.1), picture, cuts) == reference
    assert found_any > 60


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), strip_rows=st.integers(1, 64), min_area_px=st.integers(1, 9))
def test_web_in_strips_equals_the_whole_picture(
    seed: int, strip_rows: int, min_area_px: int
) -> None:
    picture = random_web(seed)
    segmenter = stub_segmenter(min_area_px=min_area_px)
    web = stub_web(picture.shape[1], strip_rows=strip_rows, segmenter=segmenter)
    assert_equal_up_to_rounding(
        run(web, picture, range(0, len(picture), 7)), whole(picture, segmenter)
    )


def u_shape(height: int = 300, width: int = 40) -> Picture:
    picture = np.zeros((height, width), np.uint8)
    picture[10:-10, [8, 9, 30, 31]] = 255
    picture[-12:-10, 8:32] = 255
    return picture


@pytest.mark.parametrize("drawn", [u_shape(), u_shape()[::-1], spiral(300, 60)])
def test_shape_over_many_strips_that_merges_late_is_one_defect(drawn: Picture) -> None:
    picture: Picture = np.ascontiguousarray(drawn)
    found = run(stub_web(picture.shape[1]), picture, range(300))
    (defect,) = found
    (expected,) = whole(picture, stub_segmenter())
    assert (defect.area_px, defect.bbox_xyxy_px) == (expected.area_px, expected.bbox_xyxy_px)


@pytest.mark.parametrize("row", [15, 16, 31, 32, 47, 48])
def test_defect_on_a_strips_border_is_found_once(row: int) -> None:
    picture = np.zeros((100, 50), np.uint8)
    picture[row, 20], picture[row + 1, 21] = 255, 255  # touches by a corner only
    (defect,) = run(stub_web(50), picture)
    assert (defect.area_px, defect.first_line, defect.last_line) == (2, row, row + 1)


def test_batches_give_the_same_list_and_fewer_calls() -> None:
    picture = random_web(4)
    picture = np.vstack([picture] * 4)
    alone, together = StubBackend(), StubBackend()
    lists = [
        run(stub_web(picture.shape[1], segmenter=stub_segmenter(backend), batch=size), picture)
        for backend, size in ((alone, 1), (together, 4))
    ]
    assert lists[0] == lists[1]
    assert len(together.shapes) < len(alone.shapes) / 2
    assert max(shape[0] for shape in together.shapes) == 4


def test_real_model_in_strips_equals_the_whole_picture(model: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 10), np.uint8)
    picture = cv2.resize(coarse, (75, 523), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    with Segmenter(model, threads=1) as segmenter:
        web = LineScanSegmenter(75, segmenter, strip_rows=64)
        found = run(web, picture, range(0, 523, 50))
        expected = segmenter(picture).defects
    assert len(expected) > 3
    assert web.report.lines == 523
    assert_equal_up_to_rounding(found, expected)


def test_memory_on_an_endless_defect_stays_flat() -> None:
    rows = np.zeros((400, 40), np.uint8)
    rows[:, 10:20] = 255
    web = stub_web(40, strip_rows=64)
    points = []
    for _ in range(30):
        assert web.push(rows) == []
        (region,) = web._regions._open
        points.append(len(region.hull))
    assert max(points) <= 2 * 41
    (defect,) = web.close()
    assert (defect.length_px, defect.width_px) == (30 * 400, 10)


def test_defect_far_down_the_web_is_measured_as_at_its_start() -> None:
    picture = random_web(8)
    near, far = (
        web.push(picture, start) + web.close()
        for web, start in ((stub_web(picture.shape[1]), 0), (stub_web(picture.shape[1]), 2**40))
    )
    assert near
    for one, other in zip(near, far, strict=True):
        assert (other.length_px, other.width_px) == (one.length_px, one.width_px)
        assert other.first_line - 2**40 == one.first_line
        assert other.centroid_xy_px[1] - 2**40 == pytest.approx(one.centroid_xy_px[1], abs=1e-3)


def test_line_pitch_stretches_the_measures_in_mm_only() -> None:
    picture = np.zeros((60, 40), np.uint8)
    picture[20:30, 10:14] = 255
    (defect,) = run(stub_web(40, mm_per_px=0.5, line_mm=0.1), picture)
    assert (defect.length_px, defect.width_px) == (10, 4)
    assert defect.length_mm == pytest.approx(2)
    assert defect.width_mm == pytest.approx(1)
    assert defect.area_mm2 == pytest.approx(40 * 0.5 * 0.1)


def bar_web() -> Picture:
    picture = np.zeros((200, 40), np.uint8)
    picture[:, 10:14] = 255
    return picture


def test_gap_is_an_uninspected_interval_and_parts_the_defects() -> None:
    told: list[Uninspected] = []
    web = stub_web(40, mm_per_px=0.1)
    web.notify(told.append)
    picture = bar_web()
    found = [*web.push(picture[:90], 0), *web.push(picture[120:], 120), *web.close()]
    assert [(one.first_line, one.last_line, one.complete) for one in found] == [
        (0, 89, False),
        (120, 199, False),
    ]
    (gap,) = web.uninspected
    assert (gap.first_line, gap.end_line, gap.lines, gap.reason) == (90, 120, 30, "lost")
    assert gap.length_mm == pytest.approx(3.0)
    assert told == [gap]
    report = web.report
    assert (report.lines, report.uninspected_lines) == (170, 30)
    assert report.uninspected_mm == pytest.approx(3.0)


def test_piece_behind_a_gap_is_inspected_as_a_picture_of_its_own() -> None:
    picture = random_web(8)
    web = stub_web(picture.shape[1])
    start = web.push(picture, 0) + web.push(picture, len(picture) + 13)
    second = [one for one in start + web.close() if one.first_line >= len(picture)]
    alone = run(stub_web(picture.shape[1]), picture)
    assert alone
    moved = [one.first_line - len(picture) - 13 for one in second]
    assert (moved, [one.area_px for one in second]) == (
        [one.first_line for one in alone],
        [one.area_px for one in alone],
    )


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 90)), min_size=1, max_size=8),
)
def test_every_line_is_inspected_or_reported_and_none_twice(
    blocks: list[tuple[int, int]],
) -> None:
    web = stub_web(6)
    for start, rows in blocks:
        web.push(np.zeros((rows, 6), np.uint8), start)
    web.close()
    first = blocks[0][0]
    end = max([first, *(start + rows for start, rows in blocks)], default=0)
    end = max(end, *(start for start, _ in blocks))
    report = web.report
    assert report.lines + report.uninspected_lines == end - first
    came = sum(rows for _, rows in blocks)
    assert report.lines + report.repeated_lines == came
    edges = [(gap.first_line, gap.end_line) for gap in web.uninspected]
    assert edges == sorted(edges)


def test_duplicate_lines_are_left_out_and_counted() -> None:
    picture = random_web(8)
    web = stub_web(picture.shape[1])
    found = [
        *web.push(picture[:50], 0),
        *web.push(picture[30:80], 30),
        *web.push(picture[10:20], 10),
        *web.push(picture[80:], 80),
        *web.close(),
    ]
    assert found == run(stub_web(picture.shape[1]), picture)
    assert (web.report.repeated_lines, web.report.uninspected_lines) == (30, 0)


def test_late_block_does_not_undo_its_gap() -> None:
    web = stub_web(40)
    picture = bar_web()
    for start, end in ((0, 50), (100, 200), (50, 100)):
        web.push(picture[start:end], start)
    assert [gap.lines for gap in web.uninspected] == [50]
    assert web.report.repeated_lines == 50


def test_counter_that_starts_anew_is_an_error_and_not_endless_repetition() -> None:
    web = stub_web(40)
    web.push(np.zeros((400, 40), np.uint8), start_line=1_000_000)
    again = np.zeros((30_000, 40), np.uint8)
    web.push(again, start_line=0)
    web.push(np.zeros((1, 40), np.uint8), start_line=1_000_400)
    web.push(again, start_line=0)
    web.push(again, start_line=30_000)
    with pytest.raises(InferenceError, match="line counter seems to have started anew"):
        web.push(again, start_line=60_000)


def test_failing_model_leaves_an_interval_and_the_web_goes_on() -> None:
    backend = StubBackend()
    web = stub_web(40, segmenter=stub_segmenter(backend))
    picture = np.zeros((400, 40), np.uint8)
    picture[2:6, 5:9] = picture[350:354, 5:9] = 255
    backend.fails_at = 4
    with pytest.raises(InferenceError, match="out of memory"):
        web.push(picture[:200], 0)
    assert [(gap.first_line, gap.end_line, gap.reason) for gap in web.uninspected] == [
        (48, 200, "failed")
    ]
    found = web.push(picture[200:], 200) + web.close()
    assert [one.first_line for one in found] == [2, 350]
    assert web.report.lines == 400 - 152


def test_source_that_broke_off_leaves_an_open_interval() -> None:
    web = stub_web(40)
    web.push(bar_web(), 0)
    (defect,) = web.skip(None, "broken off")
    (gap,) = web.uninspected
    assert (gap.first_line, gap.end_line, gap.lines, defect.complete) == (200, None, 0, False)


def test_push_copies_the_rows() -> None:
    rows = bar_web()[:20].copy()
    web = stub_web(40)
    web.push(rows)
    rows[:] = 0
    (defect,) = web.close()
    assert defect.area_px == 80


def test_latency_counts_from_arrival_to_verdict() -> None:
    import time

    web = stub_web(40)
    web.push(bar_web(), arrived_s=time.perf_counter() - 2.0)
    web.close()
    report = web.report
    assert 2000 <= report.latency_p50_ms <= report.latency_p99_ms <= report.latency_max_ms < 4000
    assert report.model_s > 0
    assert 0 < report.bookkeeping_s < 2


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 39), np.uint8),
        np.zeros((3, 40), np.uint16),
        np.zeros(40, np.uint8),
        np.zeros((1, 3, 40), np.uint8),
    ],
)
def test_rows_that_do_not_fit_are_an_image_error(rows: NDArray[np.generic]) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \(n, 40\)"):
        stub_web(40).push(rows)  # type: ignore[arg-type]


def test_rows_that_are_no_array_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="rows is a list"):
        stub_web(4).push([[1, 2, 3, 4]])  # type: ignore[arg-type]


def test_closed_web_refuses_rows_and_closes_twice() -> None:
    web = stub_web(40)
    web.push(bar_web())
    assert len(web.close()) == 1
    assert web.close() == []
    with pytest.raises(InferenceError, match="web is closed"):
        web.push(bar_web())


def test_answer_that_is_not_a_number_is_an_inference_error(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = StubBackend()
    answer = (np.full((1, 60, 40), np.nan, np.float32), np.ones((1, 60, 40), np.uint8))
    monkeypatch.setattr(backend, "infer", lambda _: answer)
    web = stub_web(40, segmenter=stub_segmenter(backend))
    with pytest.raises(InferenceError, match="probabilities up to nan"):
        web.push(bar_web())


@pytest.mark.parametrize("option", [{"strip_rows": 0}, {"batch": 0}, {"mm_per_px": -1.0}])
def test_option_of_no_sense_is_config_error(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        stub_web(40, **option)


def test_model_that_does_not_say_how_far_it_sees_is_model_error() -> None:
    card = ModelCard(name="old", architecture="nano", labels=("background", "dark"), stride=4)
    with pytest.raises(ModelError, match="receptive_field_px is 0"):
        halo_px(card)
