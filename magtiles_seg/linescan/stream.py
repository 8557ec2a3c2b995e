"""Inspects a source to its end: one thread takes lines in, this one answers, sinks are told."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from magtiles_seg.decision import count
from magtiles_seg.errors import ConfigError, DataError, MagtilesError
from magtiles_seg.infer.backends.vendor import first_line
from magtiles_seg.linescan.defects import Reason, Uninspected, WebDefect
from magtiles_seg.linescan.plant.outbox import Outbox
from magtiles_seg.linescan.report import WebReport
from magtiles_seg.linescan.segmenter import LineScanSegmenter
from magtiles_seg.linescan.sinks import Sink
from magtiles_seg.linescan.sources import LineBlock, LineSource

Policy: TypeAlias = Literal["block", "drop"]
POLICIES: tuple[Policy, ...] = ("block", "drop")

_POLL_S, _PATIENCE_S = 0.1, 5.0


@dataclass(frozen=True, kw_only=True)
class StreamStatus:
    """A moment of a running inspection.

    Attributes:
        report: The web's account so far.
        elapsed_s: Since the start.
        lines_per_s: Lines per second with a verdict, since the last status; over all at the end.
        queued_blocks: Blocks that wait.
        queue_blocks: How many may.
    """

    report: WebReport
    elapsed_s: float
    lines_per_s: float
    queued_blocks: int
    queue_blocks: int


def inspect(
    source: LineSource,
    web: LineScanSegmenter,
    sinks: Sequence[Sink] = (),
    *,
    queue_blocks: int = 64,
    when_full: Policy = "block",
    on_status: Callable[[StreamStatus], None] | None = None,
    status_every_s: float = 0.5,
    on_settled: Callable[[int | None], None] | None = None,
    stop: threading.Event | None = None,
) -> WebReport:
    """Inspect a source to its end, and close it, the web and the sinks.

    Whatever fails, all defects found before reach every sink that works, the lines without a
    verdict become an uninspected interval, and then the error is raised; `web.report` stays.

    Args:
        source: The camera or file; read in a thread of its own.
        web: Of the source's width; takes over from here.
        sinks: Told of defects, of uninspected lines, and of the lines themselves.
        queue_blocks: Blocks that may wait for the model.
        when_full: What happens when more come: `"block"`: the source waits; `"drop"`: they are
            dropped and count as uninspected, as a camera cannot wait.
        on_status: Called about every `status_every_s`, and at the end.
        status_every_s: See there.
        on_settled: Called with `web.settled_line` when all sinks have been told what there is, and
            with None when the web has come to its end.
        stop: Set from a signal handler or another thread, ends the inspection as soon as the block
            in work is done: open defects are delivered, lines that wait are uninspected.

    Raises:
        ConfigError: `when_full` or `queue_blocks` is invalid.
        DataError: The source broke off, or a sink failed.
        InferenceError: The model failed.
    """
    if when_full not in POLICIES:
        raise ConfigError(f"when_full is {when_full!r}; expected one of {', '.join(POLICIES)}")
    stop = threading.Event() if stop is None else stop
    on_settled = on_settled or (lambda _: None)
    intake = _Intake(source, count("queue_blocks", queue_blocks), stop, drop=when_full == "drop")
    delivery = _Delivery(sinks)
    web.notify(lambda missed: delivery.tell([missed]))
    meter = _Meter(web, intake, on_status, status_every_s)
    try:
        for block in intake:
            delivery.lines(block)
            delivery.tell(web.take(block))
            on_settled(web.settled_line)
            meter.show()
            delivery.check()
        if intake.error is not None:
            delivery.tell(web.skip(None, "broken off"))
        elif not intake.ended:
            intake.stop()
            _give_up(web, delivery, intake.end_line, "interrupted")
            delivery.tell(web.skip(None, "interrupted"))
    except BaseException:
        intake.stop()
        _give_up(web, delivery, intake.end_line)
        raise
    finally:
        intake.stop()
        delivery.tell(_closed(web))
        on_settled(web.settled_line)
        delivery.close()
        meter.show(last=True)
    if intake.error is None and intake.ended:
        on_settled(None)
    delivery.check()
    if intake.error is not None:
        where = f"after line {web.next_line - 1}" if web.next_line else "before its first line"
        raise DataError(
            f"the source broke off {where}: {first_line(intake.error)}; what was found before it "
            "is reported, later lines are not inspected; check the source, start again"
        ) from intake.error
    return web.report


def _give_up(
    web: LineScanSegmenter, delivery: _Delivery, end_line: int, reason: Reason = "failed"
) -> None:
    """Report the lines that came and will have no verdict."""
    if end_line <= web.next_line:
        return
    try:
        delivery.tell(web.skip(end_line, reason))
    except MagtilesError:  # the model fails on what was pending: now nothing is
        delivery.tell(web.skip(end_line, reason))


def _closed(web: LineScanSegmenter) -> list[WebDefect]:
    """Return the web's last defects, even if the model fails on its last lines."""
    try:
        return web.close()
    except MagtilesError:
        return web.close()


class _Intake:
    """Reads a source in a thread and holds what waits for the model.

    Attributes:
        end_line: The line after the last one that came.
        error: Why the source broke off, if it did.
        ended: Whether all that the source gave has been taken.
    """

    def __init__(
        self, source: LineSource, blocks: int, ending: threading.Event, *, drop: bool
    ) -> None:
        self.end_line, self.ended = 0, False
        self.error: BaseException | None = None
        self.blocks = blocks
        self._source, self._ending, self._drop = source, ending, drop
        self._queue: queue.Queue[LineBlock | None] = queue.Queue(blocks)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="line-source", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many blocks wait."""
        return self._queue.qsize()

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield the blocks until the source ends, or `ending` is set."""
        while not self._ending.is_set():
            try:
                block = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if block is None:
                self.ended = True
                return
            yield block

    def stop(self) -> None:
        """Take no more; a source that blocks is left to itself."""
        patience_s = 0.0 if self._stopping.is_set() else _PATIENCE_S
        self._stopping.set()
        self._thread.join(patience_s)

    def _read(self) -> None:
        dropping, started = False, False
        try:
            for block in self._source:
                if not started:  # the web begins here, even if this very block is dropped
                    begin = replace(block, rows=block.rows[:0], gap="lost")
                    started = self._put(begin, drop=False)
                if self._stopping.is_set():
                    break
                arrived_s = time.perf_counter() if block.arrived_s is None else block.arrived_s
                block = replace(block, arrived_s=arrived_s)
                if block.gap == "restarted":  # never dropped: nothing else would tell of it
                    gap: Reason = "dropped" if dropping else "lost"
                    for why in (gap, block.gap):
                        self._put(replace(block, rows=block.rows[:0], gap=why), drop=False)
                    dropping, block = False, replace(block, gap="lost")
                gap = "dropped" if dropping else block.gap
                dropping = not self._put(replace(block, gap=gap), self._drop)
                self.end_line = max(self.end_line, block.start_line + len(block.rows))
        except BaseException as error:  # SystemExit, too, is no end of the web
            self.error = error
        finally:
            with suppress(Exception):  # a device that is gone, too, must not keep the end back
                self._source.close()
            if dropping:
                nothing = np.empty((0, self._source.width_px), dtype=np.uint8)
                self._put(LineBlock(nothing, self.end_line, gap="dropped"), drop=False)
            self._put(None, drop=False)

    def _put(self, block: LineBlock | None, drop: bool) -> bool:
        """Queue a block, or return False: there is no room, or nobody takes it any more."""
        while not self._stopping.is_set():
            try:
                self._queue.put(block, block=not drop, timeout=_POLL_S)
            except queue.Full:
                if drop:
                    return False
            else:
                return True
        return False


class _Delivery:
    """Tells every sink that works; those that fail are told no more, and `check` raises why."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)
        self._failed: list[tuple[Sink, Exception]] = []

    def lines(self, block: LineBlock) -> None:
        """Hand lines on."""
        self._each(lambda sink: sink.lines(block))

    def tell(self, found: Sequence[WebDefect | Uninspected]) -> None:
        """Hand on what was found."""
        for one in found:
            self._each(partial(_write, one))

    def close(self) -> None:
        """Close all sinks that work; receivers that are gone are waited for side by side."""
        for sink in self._sinks:
            if isinstance(sink, Outbox):
                sink.finish()
        self._each(lambda sink: sink.close())

    def check(self) -> None:
        """Raise DataError if sinks have failed."""
        if self._failed:
            told = "; ".join(
                f"{type(sink).__name__} failed: {first_line(error)}" for sink, error in self._failed
            )
            raise DataError(
                f"{told}; what was found before is in it, and the other sinks have everything; "
                "free the disk or mend the receiver, and start again"
            ) from self._failed[0][1]

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self._failed.append((sink, error))


def _write(found: WebDefect | Uninspected, sink: Sink) -> None:
    sink.write(found)


class _Meter:
    """Calls back with the state of an inspection, not too often."""

    def __init__(
        self,
        web: LineScanSegmenter,
        intake: _Intake,
        on_status: Callable[[StreamStatus], None] | None,
        every_s: float,
    ) -> None:
        self._web, self._intake, self._on_status = web, intake, on_status
        self._every_s = every_s
        self._began_s = self._shown_s = time.perf_counter()
        self._shown_lines = 0

    def show(self, *, last: bool = False) -> None:
        """Call back if it is time."""
        now_s = time.perf_counter()
        if self._on_status is None or (now_s - self._shown_s < self._every_s and not last):
            return
        report = self._web.report
        lines, since_s = report.lines - self._shown_lines, now_s - self._shown_s
        if last:
            lines, since_s = report.lines, now_s - self._began_s
        self._shown_lines, self._shown_s = report.lines, now_s
        self._on_status(
            StreamStatus(
                report=report,
                elapsed_s=now_s - self._began_s,
                lines_per_s=lines / max(since_s, 1e-9),
                queued_blocks=self._intake.waiting,
                queue_blocks=self._intake.blocks,
            )
        )
