from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from bright_web import BrightBackend, Kept, make_web, specks
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stub_web import Picture, random_web, run, stub_web

from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.side_by_side import SideBySide
from magtiles_seg.linescan.sources import ArraySource, LineBlock
from magtiles_seg.linescan.stream import StreamStatus, inspect


class Camera:
    """Columns of a web in blocks that end at `cuts`; lines of `lost` blocks do not come."""

    def __init__(
        self, picture: Picture, cuts: list[int] | None = None, lost: tuple[int, ...] = ()
    ) -> None:
        self._picture, self._lost = picture, lost
        self._edges = sorted({0, *(cuts or []), len(picture)})
        self.closed = 0

    @property
    def width_px(self) -> int:
        return int(self._picture.shape[1])

    def __iter__(self) -> Iterator[LineBlock]:
        for index, (start, end) in enumerate(pairwise(self._edges)):
            if index in self._lost:
                yield LineBlock(self._picture[:0], end)
            else:
                yield LineBlock(self._picture[start:end].copy(), start)

    def close(self) -> None:
        self.closed += 1


def overlapping(picture: Picture, seams: list[int], overlaps: list[int]) -> list[Picture]:
    """Cut a web's columns at the seams, and let neighbours both see the overlaps."""
    edges = [0, *seams, picture.shape[1]]
    parts = []
    for index, (x0, x1) in enumerate(pairwise(edges)):
        left = overlaps[index - 1] - overlaps[index - 1] // 2 if index else 0
        right = overlaps[index] // 2 if index < len(seams) else 0
        part = picture[:, max(0, x0 - left) : x1 + right].copy()
        parts.append(np.pad(part, ((0, 0), (max(0, left - x0), 0))))
        if index < len(seams):
            missing = max(0, x1 + right - picture.shape[1])
            parts[-1] = np.pad(parts[-1], ((0, 0), (0, missing)))
    return parts


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_cameras_side_by_side_give_the_one_camera_web(data: st.DataObject, seed: int) -> None:
    picture = random_web(seed)
    height, width = picture.shape
    seams = sorted(data.draw(st.sets(st.integers(1, max(1, width - 1)), max_size=3)))
    seams = [seam for seam in seams if seam < width]
    overlaps = [data.draw(st.integers(0, 9)) for _ in seams]
    cuts = st.lists(st.integers(0, height), max_size=6)
    cameras = [Camera(part, data.draw(cuts)) for part in overlapping(picture, seams, overlaps)]
    ahead = data.draw(st.sampled_from([1, 50, 32_768]))
    source = SideBySide(cameras, overlaps_px=overlaps or [0], ahead_lines=ahead)
    sink = Kept()
    report = inspect(source, stub_web(width, mm_per_px=0.1), [sink])
    assert sink.found == run(stub_web(width, mm_per_px=0.1), picture)
    assert report.whole
    assert [camera.closed for camera in cameras] == [1] * len(cameras)


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_lost_frames_of_one_camera_leave_only_its_width_uninspected(
    data: st.DataObject, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    picture: Picture = np.where(rng.random((200, 40)) < 0.1, 255, 0).astype(np.uint8)
    edges = [0, *sorted(data.draw(st.sets(st.integers(1, 39), min_size=1, max_size=2))), 40]
    cuts = [sorted(data.draw(st.sets(st.integers(1, 199), max_size=5))) for _ in edges[1:]]
    lost = [tuple(data.draw(st.sets(st.integers(0, 6), max_size=2))) for _ in edges[1:]]
    unseen = np.zeros(picture.shape, np.bool_)
    cameras = []
    for (x0, x1), ends, gone in zip(pairwise(edges), cuts, lost, strict=True):
        cameras.append(Camera(picture[:, x0:x1].copy(), ends, gone))
        for index, (start, end) in enumerate(pairwise([0, *ends, 200])):
            unseen[start:end, x0:x1] |= index in gone
    sink, settled = Kept(), []
    report = inspect(
        SideBySide(cameras),
        make_web(),
        [sink],
        on_settled=lambda line: settled.append((line, len(sink.found))),
    )
    for line, told_then in settled:
        assert line is None or all(one.first_line >= line for one in sink.found[told_then:])
    told = np.zeros(picture.shape, np.bool_)
    for gap in sink.found:
        if isinstance(gap, Uninspected):
            told[gap.first_line : gap.end_line, gap.x0_px : gap.x1_px] = True
    assert (told == unseen).all()
    full, part = unseen.all(axis=1), unseen.any(axis=1)
    assert report.uninspected_lines == full.sum()
    assert report.partial_lines == (part & ~full).sum()
    seen = np.where(unseen, 0, picture)
    found = [one for one in sink.found if isinstance(one, WebDefect)]
    assert_same_but_for_completeness(found, seen, unseen)


def assert_same_but_for_completeness(
    found: list[WebDefect], seen: Picture, unseen: NDArray[np.bool_]
) -> None:
    """Hold the list against the connected regions of what was seen."""
    import cv2

    count, drawn, stats, _ = cv2.connectedComponentsWithStats(seen, connectivity=8)
    near = cv2.dilate(unseen.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    expected = []
    for part in range(1, count):
        x, y, width, height, area = stats[part].tolist()
        complete = not near[drawn == part].any()
        expected.append(((x, y, x + width, y + height), area, complete))
    got = [(one.bbox_xyxy_px, one.area_px, one.complete) for one in found]
    assert sorted(got) == sorted(expected)


def test_defect_across_the_seam_is_one() -> None:
    picture = np.zeros((64, 40), np.uint8)
    picture[20:24, 10:30] = 255
    cameras = [Camera(picture[:, :24].copy()), Camera(picture[:, 16:].copy())]
    sink = Kept()
    inspect(SideBySide(cameras, overlaps_px=[8]), make_web(), [sink])
    (defect,) = sink.found
    assert isinstance(defect, WebDefect)
    assert (defect.bbox_xyxy_px, defect.area_px) == ((10, 20, 30, 24), 80)


class Dying(Camera):
    def __iter__(self) -> Iterator[LineBlock]:
        yield from super().__iter__()
        raise OSError("cable")


class Late(Camera):
    """Begins after its neighbour."""

    def __iter__(self) -> Iterator[LineBlock]:
        time.sleep(0.3)
        yield from super().__iter__()


class Silent(Camera):
    """Delivers its blocks when told to, the last one late."""

    def __iter__(self) -> Iterator[LineBlock]:
        *blocks, last = list(super().__iter__())
        yield from blocks
        time.sleep(0.6)
        yield last


def test_camera_that_breaks_off_ends_the_web_behind_what_all_delivered() -> None:
    picture = specks(320)
    cameras = [Camera(picture[:, :20].copy()), Dying(picture[:128, 20:].copy())]
    sink = Kept()
    web = make_web()
    with pytest.raises(DataError, match="source 2 of 2 side by side: cable"):
        inspect(SideBySide(cameras), web, [sink])
    assert sink.defect_lines == [10, 74]
    assert sink.gaps == [(128, None, "broken off")]


def test_camera_that_breaks_off_is_told_once_its_slower_neighbour_has_caught_up() -> None:
    picture = specks(320)
    cameras = [Late(picture[:, :20].copy()), Dying(picture[:128, 20:].copy())]
    sink = Kept()
    with pytest.raises(DataError, match="source 2 of 2 side by side: cable"):
        inspect(SideBySide(cameras), make_web(), [sink])
    assert sink.defect_lines == [10, 74]


def test_camera_that_breaks_off_is_told_although_its_neighbour_is_silent() -> None:
    picture = specks(320)
    cameras = [Silent(picture[:, :20].copy(), cuts=[64]), Dying(picture[:128, 20:].copy())]
    sink = Kept()
    with pytest.raises(DataError, match="source 2 of 2 side by side: cable"):
        inspect(SideBySide(cameras, patience_s=0.05), make_web(), [sink])
    assert sink.defect_lines == [10]


def test_silent_camera_is_left_behind_and_taken_up_again() -> None:
    picture = specks(640)
    left = Camera(picture[:, :20].copy(), list(range(0, 640, 64)))
    right = Silent(picture[:, 20:].copy(), [64, 512])
    sink = Kept()
    source = SideBySide([left, right], ahead_lines=100, patience_s=0.1)
    report = inspect(source, make_web(), [sink])
    assert sink.defect_lines == list(range(10, 640, 64))
    assert report.partial_lines > 0
    assert report.lines == 640


def test_restart_of_one_of_several_cameras_is_an_error() -> None:
    class Restarting(Camera):
        def __iter__(self) -> Iterator[LineBlock]:
            yield LineBlock(self._picture[:10], 0)
            yield LineBlock(self._picture[10:20], 10, gap="restarted")

    picture = specks(64)
    cameras = [Camera(picture[:, :20].copy()), Restarting(picture[:, 20:].copy())]
    with pytest.raises(DataError, match="its counter began anew"):
        inspect(SideBySide(cameras), make_web(BrightBackend()))


@pytest.mark.parametrize(
    ("widths", "overlaps", "reason"),
    [
        ([20, 20, 20], [4, 4, 4], "3 overlaps are given for 3 sources"),
        ([20, 20], [50], "overlaps take all"),
        ([20, 20], [-1], "overlap_px"),
        ([], [0], "0 sources"),
    ],
)
def test_overlaps_that_do_not_fit_are_config_error(
    widths: list[int], overlaps: list[int], reason: str
) -> None:
    sources = [ArraySource(np.zeros((4, width), np.uint8)) for width in widths]
    with pytest.raises(ConfigError, match=reason):
        SideBySide(sources, overlaps_px=overlaps)


class Standing(Camera):
    """Delivers its lines, and then gives signs of life: the web stands still."""

    def __iter__(self) -> Iterator[LineBlock]:
        yield from super().__iter__()
        while not self.closed:
            yield LineBlock(self._picture[:0], len(self._picture))
            time.sleep(0.01)


def test_stop_of_a_web_that_stands_delivers_what_is_open_and_frees_all_cameras() -> None:
    picture = np.zeros((100, 40), np.uint8)
    picture[70:, 18:22] = 255  # across the seam, and not at its end
    cameras = [Standing(picture[:, :20].copy()), Standing(picture[:, 20:].copy())]
    sink, stop = Kept(), threading.Event()

    def stop_at_the_end(status: StreamStatus) -> None:
        if status.report.pending_lines + status.report.lines == 100:
            stop.set()

    report = inspect(
        SideBySide(cameras),
        make_web(),
        [sink],
        stop=stop,
        on_status=stop_at_the_end,
        status_every_s=0.01,
    )
    (defect,) = (one for one in sink.found if isinstance(one, WebDefect))
    assert (defect.first_line, defect.last_line, defect.complete) == (70, 99, False)
    assert (sink.gaps, report.lines) == ([(100, None, "interrupted")], 100)
    assert [camera.closed for camera in cameras] == [1, 1]
