from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from bright_web import BrightBackend, Kept, make_web, specks

from magtiles_seg.errors import ConfigError, DataError, InferenceError
from magtiles_seg.linescan.plant.outbox import Limits, Outbox
from magtiles_seg.linescan.segmenter import WebDefect
from magtiles_seg.linescan.side_by_side import SideBySide
from magtiles_seg.linescan.sinks import RejectSignal, Sink
from magtiles_seg.linescan.sources import ArraySource, LineBlock, LineSource
from magtiles_seg.linescan.stream import StreamStatus, inspect


class Unplugged(ArraySource):
    """Breaks off after its blocks."""

    def __iter__(self) -> Iterator[LineBlock]:
        yield from super().__iter__()
        raise OSError(errno.ENODEV, "No such device")


def test_inspection_tells_every_sink_everything_and_closes_it() -> None:
    first, second = Kept(), Kept()
    sinks: list[Sink] = [first, second]
    report = inspect(ArraySource(specks(), block_rows=37), make_web(), sinks)
    for sink in (first, second):
        assert sink.defect_lines == list(range(10, 640, 64))
        assert (sink.gaps, sink.rows, sink.closed) == ([], 640, 1)
    assert (report.lines, report.uninspected_lines, report.defects) == (640, 0, 10)
    assert report.latency_p99_ms > 0


def test_full_queue_with_policy_block_loses_nothing() -> None:
    report = inspect(ArraySource(specks(), block_rows=5), make_web(), queue_blocks=1)
    assert (report.lines, report.dropped_lines) == (640, 0)


class Signalling(ArraySource):
    """Lets the model go on only when all blocks have been offered."""

    go: threading.Event

    def __iter__(self) -> Iterator[LineBlock]:
        self.go.clear()
        yield from super().__iter__()
        self.go.set()


def test_full_queue_with_policy_drop_reports_each_dropped_line() -> None:
    backend, sink = BrightBackend(), Kept()
    source = Signalling(specks(), block_rows=64)
    source.go = backend.go
    report = inspect(source, make_web(backend), [sink], queue_blocks=2, when_full="drop")
    assert report.dropped_lines == report.uninspected_lines > 200
    assert report.lines + report.dropped_lines == 640
    assert {reason for _, _, reason in sink.gaps} == {"dropped"}
    assert sink.gaps[-1][1] == 640  # even those at the end, after which no block comes
    assert len(sink.defect_lines) == report.lines / 64


class Recovering(ArraySource):
    """Offers six blocks while the model stands still, and the others when it has caught up."""

    go: threading.Event
    sink: Kept

    def __iter__(self) -> Iterator[LineBlock]:
        self.go.clear()
        for number, block in enumerate(super().__iter__()):
            if number == 6:
                self.go.set()
                seen = -1
                while seen != self.sink.rows:
                    seen = self.sink.rows
                    time.sleep(0.3)
            yield block


def test_lines_dropped_in_the_middle_of_a_web_are_not_told_as_lost() -> None:
    backend, sink = BrightBackend(), Kept()
    source = Recovering(specks(), block_rows=64)
    source.go, source.sink = backend.go, sink
    report = inspect(source, make_web(backend), [sink], queue_blocks=4, when_full="drop")
    assert [(end, reason) for _, end, reason in sink.gaps] == [(384, "dropped")]
    assert report.dropped_lines == report.uninspected_lines > 0
    assert report.lines + report.dropped_lines == 640


def test_source_that_breaks_off_is_an_error_after_everything_is_delivered() -> None:
    sink, web = Kept(), make_web()
    with pytest.raises(DataError, match=r"broke off after line 639: .*No such device"):
        inspect(Unplugged(specks()), web, [sink])
    assert sink.defect_lines == list(range(10, 640, 64))
    assert sink.gaps == [(640, None, "broken off")]
    assert sink.closed == 1
    assert web.report.lines == 640


@pytest.mark.parametrize("join", [lambda source: source, lambda source: SideBySide([source])])
def test_source_that_cannot_be_closed_ends_as_another(
    join: Callable[[LineSource], LineSource],
) -> None:
    class Lost(ArraySource):
        def close(self) -> None:
            raise OSError("the device is gone")

    sink = Kept()
    report = inspect(join(Lost(specks())), make_web(), [sink])
    assert report.whole
    assert len(sink.defect_lines) == 10
    assert sink.closed == 1


@pytest.mark.parametrize("join", [lambda source: source, lambda source: SideBySide([source])])
@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError("no cable"), "no cable"), (MemoryError(), "MemoryError"), (SystemExit(3), "3")],
)
def test_source_that_breaks_off_at_once_says_so(
    error: BaseException, said: str, join: Callable[[LineSource], LineSource]
) -> None:
    class Lost(ArraySource):
        def __iter__(self) -> Iterator[LineBlock]:
            raise error

    with pytest.raises(DataError, match=rf"broke off before its first line: .*{said}; what was"):
        inspect(join(Lost(specks())), make_web())


def test_restart_with_the_first_lines_is_counted_once() -> None:
    class Restarted(ArraySource):
        def __iter__(self) -> Iterator[LineBlock]:
            yield LineBlock(specks(), 0, gap="restarted")

    sink = Kept()
    assert inspect(Restarted(specks()), make_web(), [sink]).restarts == 1
    assert len(sink.gaps) == 1


def test_full_disk_stops_with_an_error_and_the_other_sinks_have_everything() -> None:
    full, other, web = Kept(fails_at=3), Kept(), make_web()
    with pytest.raises(DataError, match=r"Kept failed: .*No space left on device"):
        inspect(ArraySource(specks(64 * 200), block_rows=64), web, [full, other], queue_blocks=2)
    assert full.defect_lines == [10, 74]
    report = web.report
    came = report.lines + report.uninspected_lines
    assert len(other.defect_lines) == report.lines // 64 >= 3
    assert {reason for _, _, reason in other.gaps} == {"failed"}
    assert other.gaps[-1][1] == came < 64 * 200
    assert other.closed == 1


def test_every_sink_that_fails_at_the_end_is_told() -> None:
    class Gone(Kept):
        def close(self) -> None:
            raise OSError(f"{len(self.defect_lines)} findings were not delivered to {id(self)}")

    sinks = Gone(), Kept(), Gone()
    with pytest.raises(DataError) as raised:
        inspect(ArraySource(specks()), make_web(), sinks)
    for sink in (sinks[0], sinks[2]):
        assert f"Gone failed: 10 findings were not delivered to {id(sink)}; " in str(raised.value)


def test_receivers_that_are_gone_are_waited_for_side_by_side() -> None:
    class Gone:
        def connect(self) -> None:
            raise OSError("not there")

        check = send = close = None

    patience_s = 1.0
    doors = [
        Outbox(Gone(), name=name, limits=Limits(patience_s=patience_s))  # type: ignore[arg-type]
        for name in "abcd"
    ]
    began_s = time.perf_counter()
    with pytest.raises(DataError) as raised:
        inspect(ArraySource(specks()), make_web(), doors)
    assert time.perf_counter() - began_s < 3 * patience_s
    for name in "abcd":
        assert f"10 findings were not delivered to {name}: not there" in str(raised.value)


def test_source_that_blocks_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    patience_s = 1.0
    monkeypatch.setattr("magtiles_seg.linescan.stream._PATIENCE_S", patience_s)
    go_on, stop = threading.Event(), threading.Event()

    class Blocked(ArraySource):
        def __iter__(self) -> Iterator[LineBlock]:
            yield from super().__iter__()
            stop.set()
            go_on.wait()

    began_s = time.perf_counter()
    inspect(Blocked(specks()), make_web(), stop=stop)
    go_on.set()
    assert time.perf_counter() - began_s < 1.9 * patience_s


def test_failing_model_stops_with_its_error_and_reports_what_is_missing() -> None:
    backend, sink = BrightBackend(), Kept()
    backend.fails_at = 5
    web = make_web(backend)
    with pytest.raises(InferenceError, match="out of memory"):
        inspect(ArraySource(specks(), block_rows=64), web, [sink])
    report = web.report
    assert sink.defect_lines[0] == 10
    assert report.lines == 64
    assert sink.gaps[0][0] == 64
    edges = [gap[:2] for gap in sink.gaps]
    assert all(one[1] == other[0] for one, other in pairwise(edges))


def test_status_tells_pace_queue_and_defects() -> None:
    told: list[StreamStatus] = []
    inspect(
        ArraySource(specks(), block_rows=64), make_web(), on_status=told.append, status_every_s=0
    )
    assert len(told) >= 10
    assert told[-1].report.defects == 10
    assert told[-1].lines_per_s == pytest.approx(640 / told[-1].elapsed_s)
    assert told[-1].queue_blocks == 64


def test_reject_signal_measures_from_the_last_line_to_the_call() -> None:
    called: list[int] = []
    gate = RejectSignal(lambda defect: called.append(defect.first_line), min_area_px=2)
    inspect(ArraySource(specks(), block_rows=37), make_web(), [gate])
    assert called == list(range(10, 640, 64))
    assert len(gate.latencies) == 10
    assert 0 < gate.latencies.quantile_s(0.5) <= gate.latencies.worst_s < 60


def test_reject_signal_lets_slight_defects_pass() -> None:
    called: list[WebDefect] = []
    inspect(ArraySource(specks()), make_web(), [RejectSignal(called.append, min_area_px=3)])
    assert called == []


def test_unknown_policy_is_config_error() -> None:
    source: LineSource = ArraySource(specks())
    with pytest.raises(ConfigError, match="when_full is 'wait'"):
        inspect(source, make_web(), when_full="wait")  # type: ignore[arg-type]
