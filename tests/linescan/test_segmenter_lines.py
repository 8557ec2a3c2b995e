"""Lines that are missing, doubled or late; rows and options that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stub_web import (
    Picture,
    StubBackend,
    random_web,
    run,
    stub_segmenter,
    stub_web,
)

from magtiles_seg.errors import ConfigError, ImageError, InferenceError, ModelError
from magtiles_seg.linescan.segmenter import Uninspected
from magtiles_seg.linescan.strips import halo_px
from magtiles_seg.model.card import ModelCard


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


def test_defect_behind_a_gap_is_incomplete_only_where_it_borders_it() -> None:
    picture = np.zeros((60, 40), np.uint8)
    picture[:3, 5:8] = picture[8:11, 5:8] = 255  # both within the first strip
    web = stub_web(40)
    web.push(np.zeros((20, 40), np.uint8), 0)
    found = web.push(picture, 30) + web.close()
    assert [(one.first_line, one.complete) for one in found] == [(30, False), (38, True)]


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


@settings(max_examples=60)
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


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_number_of_few_bits_that_wraps_is_an_error_at_once_and_the_right_one_goes_on(
    kind: type[np.integer[Any]],
) -> None:
    web = stub_web(40)
    top, late = 1 + int(np.iinfo(kind).max), np.zeros((10, 40), np.uint8)
    web.push(np.zeros((100, 40), np.uint8), kind(top - 40))
    with pytest.raises(ConfigError, match=f"line {top + 60} is expected.*adding 2.*at each wrap"):
        web.push(late, kind(int(np.iinfo(kind).min) + 75))  # 15 lines are lost besides
    assert web.report.repeated_lines == 0
    web.push(late, top + 75)
    web.push(late, kind(top - 20))
    assert (web.report.repeated_lines, web.report.uninspected_lines) == (10, 15)


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
    with pytest.raises(InferenceError, match="web is closed"):
        web.skip(None, "lost")


LABELS = len(stub_segmenter().spec.card.labels)


@pytest.mark.parametrize(
    ("probability", "label", "message"),
    [
        (np.nan, 1, "probabilities up to nan"),
        (1.01, 1, "probabilities up to 1.0"),
        (0.5, 0, r"classes 0\.\.0"),
        (0.5, LABELS, rf"classes {LABELS}\.\.{LABELS}; expected 0\.\.1 and 1\.\.{LABELS - 1}"),
    ],
)
def test_answer_that_no_model_may_give_is_an_inference_error(
    monkeypatch: pytest.MonkeyPatch, probability: float, label: int, message: str
) -> None:
    backend = StubBackend()
    shape = (1, 60, 40)
    answer = (np.full(shape, probability, np.float32), np.full(shape, label, np.uint8))
    monkeypatch.setattr(backend, "infer", lambda _: answer)
    web = stub_web(40, segmenter=stub_segmenter(backend))
    with pytest.raises(InferenceError, match=message):
        web.push(bar_web())


@pytest.mark.parametrize("option", [{"strip_rows": 0}, {"batch": 0}, {"mm_per_px": -1.0}])
def test_option_of_no_sense_is_config_error(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        stub_web(40, **option)


def test_model_that_does_not_say_how_far_it_sees_is_model_error() -> None:
    card = ModelCard(name="old", architecture="nano", labels=("background", "dark"), stride=4)
    with pytest.raises(ModelError, match="receptive_field_px is 0"):
        halo_px(card)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int64, np.uint64])
def test_number_of_a_numpy_type_is_that_line_and_does_not_wrap_round(kind: type) -> None:
    picture, begin = bar_web(), 65_400
    given, plain = stub_web(40), stub_web(40)
    found = given.push(picture[:80], kind(begin)) + given.push(picture[80:], kind(begin + 80))
    same = plain.push(picture[:80], begin) + plain.push(picture[80:], begin + 80)
    assert found + given.close() == same + plain.close() != []
    assert given.report.lines == 200
    assert type(given.next_line) is type(given.report.repeated_lines) is int


@pytest.mark.parametrize("line", [1.0, float("nan"), "7", 2**62, -(2**62)])
def test_number_that_is_no_line_is_refused_and_nothing_is_taken(line: object) -> None:
    web = stub_web(40)
    with pytest.raises(ConfigError, match=r"start_line is .*expected a whole number"):
        web.push(bar_web(), line)  # type: ignore[arg-type]
    assert (web.next_line, web.report.pending_lines) == (0, 0)


@pytest.mark.parametrize("end_line", [5, -1, float("nan")])
def test_skip_to_a_line_that_has_come_is_refused(end_line: int) -> None:
    web = stub_web(40)
    web.push(bar_web())
    with pytest.raises(ConfigError, match="end_line is"):
        web.skip(end_line, "lost")
    assert (web.next_line, web.report.uninspected_lines, web.uninspected) == (200, 0, ())


def test_listener_that_fails_is_told_of_a_gap_once() -> None:
    def fail(_: Uninspected) -> None:
        raise OSError("full")

    web = stub_web(40)
    web.notify(fail)
    picture = bar_web()
    web.push(picture[:90], 0)
    with pytest.raises(OSError, match="full"):
        web.push(picture[120:], 120)
    web.push(picture[120:], 120)
    web.close()
    assert (web.report.uninspected_lines, web.report.lines) == (30, 170)


def test_time_of_what_a_skip_decides_is_not_the_models_alone() -> None:
    web = stub_web(40)
    web.push(bar_web())
    web.skip(None, "broken off")
    assert web.report.bookkeeping_s > 0
