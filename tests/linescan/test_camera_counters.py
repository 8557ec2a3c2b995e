"""A camera's counter against the web: no line is unjudged without being reported."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import islice

import cv2
import numpy as np
import pytest
from bright_web import Kept, Picture, make_web
from fake_pylon import Shot, fake_pylon
from numpy.typing import NDArray

from magtiles_seg.errors import DataError
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.linescan.cameras import BaslerSource
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.report import WebReport
from magtiles_seg.linescan.segmenter import LineScanSegmenter
from magtiles_seg.linescan.stream import inspect

WIDTH, TICKS = 40, 1000
NO_NUMBER = 2**64 - 1


class GigECamera:
    """Frames of a web with BlockIDs from 1 to 65,535, some failed, lost, doubled or unnumbered.

    Attributes:
        unseen: (lines,) bool, what failed or was lost.
    """

    def __init__(
        self,
        picture: Picture,
        *,
        height: int = 1,
        first: int = 1,
        faults: float = 0.01,
        timed: bool = True,
        seed: int = 0,
    ) -> None:
        self.picture, self.height, self.first = picture, height, first
        self.timed = timed
        frames = len(picture) // height
        rng = np.random.default_rng(seed)
        kinds = ["good", "failed", "lost", "doubled", "unnumbered"]
        weights = [1 - 4 * faults, faults, faults, faults, faults]
        self.faults = rng.choice(kinds, frames, p=weights)
        for start in rng.integers(1, frames, 3 if faults else 0):
            self.faults[start : start + int(rng.integers(1, max(2, frames // 50)))] = "lost"
        self.faults[0] = self.faults[-1] = "good"
        after_loss = np.flatnonzero(np.isin(self.faults[:-1], ["lost"])) + 1
        unclear = after_loss[self.faults[after_loss] == "unnumbered"]
        self.faults[unclear] = "good"  # whose loss before it nothing could tell
        self.unseen = np.repeat(np.isin(self.faults, ["failed", "lost"]), height)

    def __call__(self) -> Iterator[Shot | None]:
        for frame, fault in enumerate(self.faults.tolist()):
            if fault == "lost":
                continue
            top = frame * self.height
            rows = None if fault == "failed" else self.picture[top : top + self.height]
            number = (self.first + frame - 1) % 65_535 + 1
            time = TICKS * (frame + 7) if self.timed else 0
            shot = {"rows": rows, "time": time, "number": number}
            if fault == "unnumbered":
                shot["number"] = NO_NUMBER
            yield shot
            if fault == "doubled":
                yield shot

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> BaslerSource:
        module = fake_pylon(self, width=WIDTH, height=self.height)
        monkeypatch.setitem(sys.modules, "pypylon.pylon", module)
        return BaslerSource(frames=len(self.faults))


def bright_picture(lines: int, seed: int = 0) -> Picture:
    """Return a web with some 200 specks and bars a thousand lines."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((lines, WIDTH), np.uint8)
    for _ in range(lines // 20):
        x, y = int(rng.integers(0, WIDTH)), int(rng.integers(0, lines))
        picture[y : y + int(rng.integers(1, 30)), x : x + int(rng.integers(1, 5))] = 255
    return picture


def unseen_lines(found: list[WebDefect | Uninspected], lines: int) -> NDArray[np.bool_]:
    told = np.zeros(lines, np.bool_)
    for gap in found:
        if isinstance(gap, Uninspected):
            assert not told[gap.first_line : gap.end_line].any()
            told[gap.first_line : gap.end_line] = True
    return told


def assert_undisturbed_but_for(camera: GigECamera, sink: Kept, report: WebReport) -> None:
    """Hold the list against the connected regions of the whole web less the lines reported."""
    lines = len(camera.picture)
    told = unseen_lines(sink.found, lines)
    assert (told == camera.unseen).all()
    assert (report.lines, report.uninspected_lines) == ((~told).sum(), told.sum())
    assert (report.restarts, report.partial_lines) == (0, 0)
    doubled = int((camera.faults == "doubled").sum()) * camera.height
    assert report.repeated_lines == doubled
    seen = np.where(told[:, None], 0, camera.picture)
    _, _, stats, _ = cv2.connectedComponentsWithStats(seen, connectivity=8, ltype=cv2.CV_32S)
    x, y, width, height, area = stats[1:].T
    expected = np.stack([x, y, x + width, y + height, area], axis=1)
    got = [(*one.bbox_xyxy_px, one.area_px) for one in sink.found if isinstance(one, WebDefect)]
    assert sorted(got) == sorted(map(tuple, expected.tolist()))


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("height", [1, 8])
def test_defects_over_a_wrap_are_the_undisturbed_webs_less_what_is_reported(
    monkeypatch: pytest.MonkeyPatch, height: int, timed: bool
) -> None:
    camera = GigECamera(bright_picture(4000), height=height, first=65_400, timed=timed)
    sink = Kept()
    report = inspect(camera.connect(monkeypatch), make_web(), [sink])
    assert_undisturbed_but_for(camera, sink, report)
    assert report.unnumbered_lines == int((camera.faults == "unnumbered").sum()) * height


@pytest.mark.endurance
def test_200_000_frames_over_three_wraps_lose_nothing_silently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = GigECamera(bright_picture(200_000), first=1, seed=3)
    sink = Kept()
    report = inspect(camera.connect(monkeypatch), make_web(), [sink])
    assert_undisturbed_but_for(camera, sink, report)


def test_real_model_over_a_wrap_gives_the_pieces_between_the_gaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 8), np.uint8)
    picture = cv2.resize(coarse, (WIDTH, 600), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    camera = GigECamera(picture, first=65_300, faults=0.002)
    sink = Kept()
    with Segmenter(threads=1, threshold=0.3) as segmenter:
        web = LineScanSegmenter(WIDTH, segmenter, strip_rows=64)
        report = inspect(camera.connect(monkeypatch), web, [sink])
        told = unseen_lines(sink.found, 600)
        alone = LineScanSegmenter(WIDTH, segmenter, strip_rows=64)
        edges = np.flatnonzero(np.diff(told, prepend=True, append=True))
        expected = []
        for start, end in edges.reshape(-1, 2).tolist():
            expected += alone.push(picture[start:end], start)
        expected += alone.close()
    assert (told == camera.unseen).all()
    assert told.any()
    found = [one for one in sink.found if isinstance(one, WebDefect)]
    assert len(found) > 3
    assert found == expected
    assert report.lines == int((~told).sum())


def shots(*numbers: int, height: int = 4, **more: object) -> Iterator[Shot]:
    """Yield frames with these numbers, each filled with its place in the row, from 1."""
    for index, number in enumerate(numbers, 1):
        rows = np.full((height, WIDTH), index, np.uint8)
        yield {"rows": rows, "number": number, "time": TICKS * index, **more}


def source(
    monkeypatch: pytest.MonkeyPatch, frames: list[Shot | None], **options: object
) -> BaslerSource:
    timeout_s = options.pop("timeout_s", None)
    module = fake_pylon(lambda: iter(frames), width=WIDTH, height=4, **options)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pypylon.pylon", module)
    return BaslerSource(timeout_s=timeout_s)  # type: ignore[arg-type]


def lines(camera: BaslerSource, count: int) -> list[tuple[int, str, bool]]:
    return [(one.start_line, one.gap, one.numbered) for one in islice(camera, count)]


def test_camera_that_restarts_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = list(shots(40_000, 40_001, 1, 2))
    assert lines(source(monkeypatch, [*frames]), 4) == [
        (0, "lost", True),
        (4, "lost", True),
        (8, "restarted", True),
        (12, "lost", True),
    ]


def test_restart_stands_in_the_report_even_if_its_frame_is_dropped() -> None:
    import threading

    from bright_web import BrightBackend

    from magtiles_seg.linescan.sources import LineBlock

    backend = BrightBackend()
    backend.go.clear()

    class Restarting:
        width_px = WIDTH

        def __iter__(self) -> Iterator[LineBlock]:
            rows = np.zeros((64, WIDTH), np.uint8)
            for index in range(10):
                yield LineBlock(rows, 64 * index, gap="restarted" if index == 7 else "lost")
                if index == 6:
                    threading.Timer(0.2, backend.go.set).start()

        def close(self) -> None: ...

    sink = Kept()
    report = inspect(Restarting(), make_web(backend), [sink], queue_blocks=2, when_full="drop")
    assert report.restarts == 1
    assert not report.whole
    assert (448, None, "restarted") in sink.gaps
    assert report.lines + report.dropped_lines == 640
    assert report.dropped_lines == report.uninspected_lines > 0


@pytest.mark.parametrize("raw", [0, NO_NUMBER])
def test_camera_without_counter_counts_by_arrival_and_says_so(
    monkeypatch: pytest.MonkeyPatch, raw: int
) -> None:
    frames = [*shots(raw, raw), *shots(raw, skipped=2)]
    assert lines(source(monkeypatch, [*frames]), 3) == [
        (0, "lost", False),
        (4, "lost", False),
        (16, "lost", False),
    ]


def test_emulator_and_usb_count_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = source(monkeypatch, [*shots(0, 1, 3)], device="BaslerUsb")
    assert [line for line, _, _ in lines(camera, 3)] == [0, 4, 12]
    camera = source(monkeypatch, [*shots(0, 0, 0)], device="BaslerUsb")
    assert lines(camera, 3) == [(0, "lost", True), (4, "lost", False), (8, "lost", False)]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("ChunkFramecounter", (7, 8, 10), [0, 4, 12]),
        ("ChunkLineTriggerCounter", (100, 104, 110), [0, 4, 10]),
        ("ChunkFrameID", (2**32 - 1, 0, 2), [0, 4, 12]),
    ],
)
def test_counter_in_the_chunk_data_stands_in_for_a_missing_number(
    monkeypatch: pytest.MonkeyPatch, name: str, values: tuple[int, ...], expected: list[int]
) -> None:
    frames = [
        shot | {"chunk": {name: value}} for shot, value in zip(shots(0, 0, 0), values, strict=True)
    ]
    assert lines(source(monkeypatch, [*frames]), 3) == [(one, "lost", True) for one in expected]


def test_triggered_camera_may_be_silent_and_shows_that_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames: list[Shot | None] = [*shots(1), None, None, *shots(2)]
    camera = source(monkeypatch, frames, TriggerMode="On")
    assert camera._silence_s == math.inf
    blocks = list(islice(camera, 4))
    assert [(one.start_line, len(one.rows)) for one in blocks] == [(0, 4), (4, 0), (4, 0), (4, 4)]


def test_silence_beyond_the_limit_is_an_error_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = source(monkeypatch, [*shots(1), None, None], timeout_s=1e-9)
    with pytest.raises(DataError, match=r"no frame came for .* --timeout-s inf"):
        list(camera)
    assert source(monkeypatch, [])._silence_s == 5


def test_unplugged_camera_is_noticed_however_long_it_may_be_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = source(monkeypatch, [*shots(1), None], TriggerMode="On", removed=True)
    with pytest.raises(DataError, match="has been unplugged"):
        list(camera)


def test_silence_stands_in_the_report_and_is_no_line() -> None:
    from magtiles_seg.linescan.sources import LineBlock

    web = make_web()
    rows = np.zeros((20, WIDTH), np.uint8)
    web.take(LineBlock(rows, 0, 100.0))
    web.take(LineBlock(rows[:0], 20, 130.0))
    assert (web.report.silence_s, web.report.longest_silence_s) == (30, 30)
    web.take(LineBlock(rows, 20, 131.0))
    web.take(LineBlock(rows, 40, 132.0))
    report = web.report
    assert (report.silence_s, report.longest_silence_s, report.uninspected_lines) == (0, 31, 0)
