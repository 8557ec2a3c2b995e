"""Several cameras side by side become one web: overlaps cut once, lines joined by their numbers.

Where neighbours see the same strip of the web, each gives up half of it, since lenses are worst at
their borders. A line is given on when every camera has delivered or lost it; where one has lost it,
only its columns are missing. All cameras have to count the same lines, from 0: start them
before the trigger that they share.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from magtiles_seg.decision import count
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.linescan.sources import LineBlock, LineSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POLL_S = 0.5
_GREY = 128  # filler before a camera's first line


class SideBySide:
    """Cameras side by side, from left to right, as one source.

    Example:
        >>> web = SideBySide([BaslerSource("left"), BaslerSource("right")], overlaps_px=[40])
    """

    def __init__(
        self,
        sources: Sequence[LineSource],
        *,
        overlaps_px: Sequence[int] = (0,),
        ahead_lines: int = 32_768,
        patience_s: float = 5.0,
    ) -> None:
        """Join sources.

        Args:
            sources: From left to right.
            overlaps_px: What neighbours both see, one number per seam, or one for all seams.
            ahead_lines: How far a camera may be ahead of another before it has to wait.
            patience_s: A camera that is so far behind and delivers nothing for so long is not
                waited for: its lines are missing until it has caught up.

        Raises:
            ConfigError: The overlaps do not fit the sources.
        """
        seams = len(sources) - 1
        overlaps = [count("overlap_px", one, least=0) for one in overlaps_px]
        overlaps = overlaps * seams if len(overlaps) == 1 else overlaps
        if not sources or len(overlaps) != seams:
            raise ConfigError(
                f"{len(overlaps)} overlaps are given for {len(sources)} sources side by side; "
                f"expected {max(0, seams)}, one per seam, or one for all"
            )
        self._patience_s = patience_s
        self._ahead_lines = count("ahead_lines", ahead_lines)
        self._changed = threading.Condition()
        self._lanes: list[_Lane] = []
        x0 = 0
        for index, source in enumerate(sources):
            left = overlaps[index - 1] - overlaps[index - 1] // 2 if index else 0
            right = overlaps[index] // 2 if index < seams else 0
            lane = _Lane(source, index, slice(left, source.width_px - right), x0)
            if lane.x1 <= x0:
                raise ConfigError(
                    f"source {index + 1} is {source.width_px} px wide and its overlaps take all of "
                    "it; expected smaller overlaps"
                )
            self._lanes.append(lane)
            x0 = lane.x1
        self.width_px, self._line, self._stopping = x0, 0, False

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield lines of the whole width as soon as all cameras have delivered or lost them.

        Raises:
            DataError: A camera broke off, or its counter restarted: nothing tells any more which of
                its lines lie beside which.
        """
        for lane in self._lanes:
            thread = threading.Thread(target=self._read, args=(lane,), daemon=True)
            lane.thread = thread
            thread.start()
        yield self._sign_of_life(0)  # the web begins here, even if no camera has its first lines
        while True:
            with self._changed:
                self._changed.wait_for(self._ready, _POLL_S)
                line, frontier = self._line, self._frontier()
                self._line = frontier
                failed = next((lane for lane in self._lanes if self._has_failed(lane)), None)
                ended = all(lane.ended for lane in self._lanes)
                pieces = [lane.until(frontier) for lane in self._lanes]
                self._changed.notify_all()
            yield from self._joined(line, frontier, pieces)
            if failed is not None:
                why = str(failed.error) or type(failed.error).__name__
                raise DataError(
                    f"source {failed.index + 1} of {len(self._lanes)} side by side: {why}"
                ) from failed.error
            if ended:
                return

    def close(self) -> None:
        """Free all cameras."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for lane in self._lanes:
            if lane.thread is None:
                lane.source.close()
            else:
                lane.thread.join(2 * _POLL_S)  # it closes its source itself

    def _read(self, lane: _Lane) -> None:
        """Take in one camera, and wait where it is too far ahead of another."""
        try:
            for block in lane.source:
                if block.gap == "restarted":
                    raise DataError(
                        "its counter began anew, so that its lines cannot be laid beside the "
                        "others' any more; start all cameras again"
                    )
                with self._changed:
                    lane.add(block, self._line)
                    self._changed.notify_all()
                    while not self._stopping and self._too_far(lane):
                        self._changed.wait(_POLL_S)
                    if self._stopping:
                        return
        except BaseException as error:  # SystemExit, too, is no end of the web
            lane.error = error
        finally:
            with self._changed:
                lane.ended = True
                self._changed.notify_all()
            with suppress(Exception):  # as of a device that is gone
                lane.source.close()

    def _too_far(self, lane: _Lane) -> bool:
        return lane.known_line - self._frontier() > self._ahead_lines

    def _frontier(self) -> int:
        """Return the line before which every camera's lines are known."""
        failed = [lane.known_line for lane in self._lanes if lane.error]
        running = [lane for lane in self._lanes if not lane.ended]
        first = max(lane.known_line for lane in self._lanes)
        waited_for = [lane for lane in running if not self._left_behind(lane, first)]
        known = [lane.known_line for lane in waited_for] or [first]
        return max(self._line, min([*known, *failed]))

    def _left_behind(self, lane: _Lane, first: int) -> bool:
        silent_s = time.perf_counter() - lane.heard_s
        return first - lane.known_line > self._ahead_lines and silent_s > self._patience_s

    def _ready(self) -> bool:
        ended = all(lane.ended for lane in self._lanes) or any(map(self._has_failed, self._lanes))
        return ended or self._frontier() > self._line

    def _has_failed(self, lane: _Lane) -> bool:
        """Return whether a camera broke off, and the others have brought what lies beside it."""
        return lane.error is not None and all(
            other.ended
            or other.known_line >= lane.known_line
            or time.perf_counter() - other.heard_s > self._patience_s
            for other in self._lanes
        )

    def _joined(
        self, line: int, frontier: int, pieces: list[list[LineBlock]]
    ) -> Iterator[LineBlock]:
        """Yield the lines up to the frontier, cut wherever another set of cameras has them.

        An empty block follows if none has come, or if the last lines are missing everywhere.
        """
        edges = {line, frontier}
        for blocks in pieces:
            for block in blocks:
                edges |= {block.start_line, block.start_line + len(block.rows)}
        cuts = sorted(edges)
        held: list[LineBlock | None] = []
        for first_line, end_line in pairwise(cuts):
            held = [_holding(blocks, first_line) for blocks in pieces]
            if any(held):
                yield self._row_of(held, first_line, end_line)
        if not any(held):
            yield self._sign_of_life(frontier)

    def _sign_of_life(self, line: int) -> LineBlock:
        return LineBlock(np.empty((0, self.width_px), np.uint8), line, time.perf_counter())

    def _row_of(
        self, held: Sequence[LineBlock | None], first_line: int, end_line: int
    ) -> LineBlock:
        rows = np.empty((end_line - first_line, self.width_px), np.uint8)
        missing: list[tuple[int, int]] = []
        for lane, block in zip(self._lanes, held, strict=True):
            part = rows[:, lane.x0 : lane.x1]
            if block is None:
                part[:] = lane.filler
                missing.append((lane.x0, lane.x1))
            else:
                top = first_line - block.start_line
                part[:] = block.rows[top : top + len(rows), lane.columns]
                lane.filler = part[-1].copy()
                shift = lane.x0 - lane.columns.start
                holes = [
                    (max(x0 + shift, lane.x0), min(x1 + shift, lane.x1)) for x0, x1 in block.missing
                ]
                missing += [(x0, x1) for x0, x1 in holes if x0 < x1]
        came = [block for block in held if block is not None]
        arrivals = [block.arrived_s for block in came if block.arrived_s is not None]
        return LineBlock(
            rows,
            first_line,
            max(arrivals, default=None),
            numbered=all(block.numbered for block in came),
            missing=tuple(missing),
        )


class _Lane:
    """One camera of several: its columns, and what of it waits for the others.

    Attributes:
        columns: What of its own columns the web takes.
        x0: Where they lie across the web.
        known_line: All lines before it came or are lost.
        filler: (w,) uint8 of its latest line, or grey: what the model sees where lines are missing.
    """

    def __init__(self, source: LineSource, index: int, columns: slice, x0: int) -> None:
        self.source, self.index, self.columns, self.x0 = source, index, columns, x0
        self.x1 = x0 + max(0, columns.stop - columns.start)
        self.filler: NDArray[np.uint8] = np.full(self.x1 - x0, _GREY, np.uint8)
        self.known_line = 0
        self.heard_s = time.perf_counter()
        self.ended = False
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self._blocks: deque[LineBlock] = deque()

    def add(self, block: LineBlock, given_line: int) -> None:
        """Take a block; lines that came before, or were not waited for, are left out."""
        if len(block.rows):
            self.heard_s = time.perf_counter()
        late = max(0, max(self.known_line, given_line) - block.start_line)
        end_line = block.start_line + len(block.rows)
        if late < len(block.rows):
            self._blocks.append(_cut(block, late, len(block.rows)))
        self.known_line = max(self.known_line, end_line)

    def until(self, line: int) -> list[LineBlock]:
        """Give out what lies before a line."""
        given = []
        while self._blocks and self._blocks[0].start_line < line:
            block = self._blocks.popleft()
            rows = line - block.start_line
            given.append(_cut(block, 0, rows))
            if rows < len(block.rows):
                self._blocks.appendleft(_cut(block, rows, len(block.rows)))
        return given


def _cut(block: LineBlock, first: int, end: int) -> LineBlock:
    return LineBlock(
        block.rows[first:end],
        block.start_line + first,
        block.arrived_s,
        numbered=block.numbered,
        missing=block.missing,
    )


def _holding(blocks: Sequence[LineBlock], line: int) -> LineBlock | None:
    """Return the block that has a line."""
    return next(
        (one for one in blocks if one.start_line <= line < one.start_line + len(one.rows)), None
    )
