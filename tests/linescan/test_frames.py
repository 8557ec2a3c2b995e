from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.linescan.frames import INVALID, FrameCounter, Place, usable


@dataclass
class Camera:
    """A counter of any range, started anywhere, that ticks once a frame."""

    low: int
    high: int
    value: int
    time: int = 1_000_000
    frame: int = 0

    def advance(self, frames: int, ticks_a_frame: int = 100) -> None:
        span = self.high - self.low + 1
        self.value = self.low + (self.value - self.low + frames) % span
        self.frame += frames
        self.time += frames * ticks_a_frame


ranges = st.sampled_from(
    [(low, 2**bits - 1 - top) for bits in (16, 32, 64) for low in (0, 1) for top in (0, 1)]
)


@settings(max_examples=300)
@given(data=st.data(), limits=ranges, timed=st.booleans(), known=st.booleans())
def test_frames_are_placed_where_they_were_over_gaps_duplicates_and_wraps(
    data: st.DataObject, limits: tuple[int, int], timed: bool, known: bool
) -> None:
    low, high = limits
    known = known or high % 2 == 0  # that the last number is not used cannot be guessed
    least = low if known else min(high, max(low, 2**16 if high > 2**16 else low))
    start = data.draw(st.integers(high - 3000, high) | st.integers(least, high))
    camera = Camera(low, high, start)
    counter = FrameCounter(low=low, high=high if known else 2**16 - 1)
    assert counter.place(camera.value, camera.time if timed else None) == Place(0)
    seen = [(camera.value, camera.time, 0)]
    most = 30_000 if timed else 1000
    steps = st.lists(st.sampled_from(["next", "next", "gap", "again", "late", "none"]), max_size=60)
    for step in data.draw(steps):
        if step in ("next", "gap"):
            camera.advance(1 if step == "next" else data.draw(st.integers(2, most)))
            time = camera.time if timed else None
            assert counter.place(camera.value, time) == Place(camera.frame)
            seen.append((camera.value, camera.time, camera.frame))
        elif step == "none":
            camera.advance(1)
            place = counter.place(None)
            assert place == Place(camera.frame, numbered=False)
        else:
            back = 1 if step == "again" else data.draw(st.integers(1, min(5, len(seen))))
            value, stamp, frame = seen[-back]
            if camera.frame - frame > 60:
                continue
            place = counter.place(value, stamp if timed else None)
            assert (place.position, place.kind) == (frame, "repeated")


@settings(max_examples=300)
@given(
    limits=ranges,
    run=st.integers(70, 30_000),
    lost=st.integers(0, 60),
    pause=st.integers(1, 50),
    clock=st.booleans(),
)
def test_restart_is_neither_a_wrap_nor_a_duplicate(
    limits: tuple[int, int], run: int, lost: int, pause: int, clock: bool
) -> None:
    low, high = limits
    camera = Camera(low, high, low)
    counter = FrameCounter(low=low, high=high)
    counter.place(camera.value, camera.time)
    camera.advance(1)
    counter.place(camera.value, camera.time)
    camera.advance(run)
    assert counter.place(camera.value, camera.time).position == run + 1
    camera.advance(1)
    counter.place(camera.value, camera.time)
    camera.value = low + lost
    camera.time = camera.time + 100 * pause if clock else 5000
    place = counter.place(camera.value, camera.time)
    assert place == Place(run + 3, "restarted")
    camera.advance(1)
    assert counter.place(camera.value, camera.time) == Place(run + 4)


@pytest.mark.parametrize("latest", [1000, 20_000, 40_000, 60_000])
def test_restart_without_time_stamps_is_known_by_its_first_numbers(latest: int) -> None:
    counter = FrameCounter(low=1)
    counter.place(latest)
    assert counter.place(3).kind == "restarted"
    assert counter.place(4) == Place(2)


def test_young_restart_is_told_by_its_time_stamp_alone() -> None:
    timed, blind = FrameCounter(low=1), FrameCounter(low=1)
    for number in range(1, 31):
        timed.place(number, 100 * number)
        blind.place(number)
    assert timed.place(1, 9000).kind == "restarted"
    assert blind.place(1).kind == "repeated"


@pytest.mark.parametrize("gap", [1, 2, 50, 565, 1000, 30_000])
def test_loss_across_the_wrap_is_a_gap(gap: int) -> None:
    counter = FrameCounter(low=1)
    for number in (65_500, 65_501):
        counter.place(number, 100 * number)
    after = (65_501 + gap - 1) % 65_535 + 1
    assert counter.place(after, 100 * (65_501 + gap)) == Place(1 + gap)


def test_silence_of_more_than_a_turn_with_a_jump_is_of_unknown_length() -> None:
    counter = FrameCounter(low=1)
    for number in (1, 2, 3):
        counter.place(number, 100 * number)
    assert counter.place(4, 10**9) == Place(3)  # the web stood still
    assert counter.place(90, 2 * 10**9).kind == "restarted"


def test_counter_wider_than_thought_goes_on() -> None:
    counter = FrameCounter(low=1)
    numbers = [65_534, 65_535, 65_536, 65_540, 2**32 - 1, 2**32]
    positions = [counter.place(number, 100 * number).position for number in numbers[:4]]
    assert positions == [0, 1, 2, 6]
    counter = FrameCounter(low=0)
    assert [counter.place(n).position for n in (2**32 - 2, 2**32 - 1, 2**32)] == [0, 1, 2]


def test_counter_that_uses_zero_shows_it() -> None:
    counter = FrameCounter(low=1)
    assert [counter.place(n).position for n in (65_534, 65_535, 0, 1)] == [0, 1, 2, 3]


def test_line_counter_with_partial_frames_and_gaps() -> None:
    counter = FrameCounter(high=2**32 - 1, step=256)
    numbers = [2**32 - 512, 2**32 - 256, 0, 100, 356, 1380]
    assert [counter.place(n).position for n in numbers] == [0, 256, 512, 612, 868, 1892]
    assert counter.place(1380).kind == "repeated"


def test_frames_without_number_follow_on() -> None:
    counter = FrameCounter(low=1)
    assert [counter.place(None).position for _ in range(3)] == [0, 1, 2]
    assert counter.place(None, skipped=4) == Place(7, numbered=False)
    assert counter.place(9) == Place(8)
    assert counter.place(None).position == 9
    assert counter.place(12) == Place(11)
    assert counter.place(None).position == 12
    assert counter.place(None).position == 13
    assert counter.place(13) == Place(14)  # the counter slept: no frame is left out for that


@pytest.mark.parametrize(
    ("raw", "low", "previous", "expected"),
    [
        (5, 1, 4, 5),
        (0, 1, None, None),  # GigE has no 0: there is no counter
        (0, 0, None, 0),  # USB and the emulator start with it
        (0, 0, 0, None),
        (0, 0, 65_535, 0),
        (INVALID, 0, 3, None),
    ],
)
def test_raw_value_that_is_no_number_is_none(
    raw: int, low: int, previous: int | None, expected: int | None
) -> None:
    assert usable(raw, low=low, previous=previous) == expected


@pytest.mark.endurance
def test_two_days_at_20_khz_stay_exact_in_flat_memory() -> None:
    frames = 2 * 86_400 * 20_000 // 256
    counter = FrameCounter(low=1)
    watched = frames - 100_000  # tracing is slow: the last frames show what a frame leaves behind
    for frame in range(frames):
        if frame == watched:
            tracemalloc.start()
        place = counter.place(frame % 65_535 + 1, 12_800_000 * frame)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert place == Place(frames - 1)
    assert kept < 10_000
