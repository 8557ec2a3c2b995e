"""What sinks deliver: a finding with its run and number, how late it is, and how a sink stands."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.names import new_run, timestamp

if TYPE_CHECKING:
    from magtiles_seg.linescan.sources import LineBlock

Found: TypeAlias = WebDefect | Uninspected

COLUMNS = (
    "kind", "label", "score", "area_px", "x0_px", "x1_px", "first_line", "last_line",
    "centroid_x_px", "centroid_y_px", "length_px", "width_px", "area_mm2", "length_mm", "width_mm",
    "complete", "reason", "id", "run", "at", "since", "until", "after_run",
)  # fmt: skip
"""Columns of a finding in CSV and Parquet; a row leaves out what its kind lacks."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A finding on its way to a receiver.

    Attributes:
        run: Of the inspection.
        number: Counts the run's findings from 1; the same in every sink.
        at: When it was found, UTC.
        found: The defect or interval.
        arrived_s: When its last line came, by `time.perf_counter`.
    """

    run: str
    number: int
    at: str
    found: Found
    arrived_s: float

    @property
    def id(self) -> str:
        """Unique over all runs: by it a receiver tells what it has had before."""
        return f"{self.run}-{self.number:08d}"

    @property
    def kind(self) -> str:
        """`"defect"` or `"uninspected"`."""
        return "defect" if isinstance(self.found, WebDefect) else "uninspected"

    def to_json(self) -> str:
        """Return one line of JSON with every field."""
        head = {"kind": self.kind, "id": self.id, "run": self.run, "at": self.at}
        return json.dumps({**head, **asdict(self.found)}, allow_nan=False)

    def row(self) -> dict[str, Any]:
        """Return the columns that it fills, by `COLUMNS`."""
        values = {**asdict(self.found), "id": self.id, "run": self.run, "at": self.at}
        values["kind"] = self.kind
        if isinstance(self.found, WebDefect):
            values |= self.found.row()
        elif self.found.end_line is not None:
            values["last_line"] = self.found.end_line - 1
        return {name: values[name] for name in COLUMNS if name in values}


_ARRIVALS = 4096  # blocks whose times are kept


class Arrivals:
    """When lines came."""

    def __init__(self) -> None:
        self._ends: deque[tuple[int, float]] = deque(maxlen=_ARRIVALS)  # end line, time in s

    def lines(self, block: LineBlock) -> None:
        """Note when these lines came."""
        arrived_s = time.perf_counter() if block.arrived_s is None else block.arrived_s
        self._ends.append((block.start_line + len(block.rows), arrived_s))

    def of(self, found: Found) -> float:
        """Return when the last line of a finding came, by `time.perf_counter`; unknown: now."""
        line = found.last_line if isinstance(found, WebDefect) else found.first_line
        came = (arrived_s for end, arrived_s in self._ends if end > line)
        return next(came, time.perf_counter())


class Numbering:
    """Makes messages of what one sink is told. Sinks of one run number alike: all are told all."""

    def __init__(self, run: str | None) -> None:
        """Start at 1.

        Args:
            run: Of the inspection; None: one of its own.
        """
        self._run = new_run() if run is None else run
        self._count = 0
        self._arrivals = Arrivals()
        self.lines = self._arrivals.lines

    def __call__(self, found: Found) -> Message:
        """Return the next message."""
        self._count += 1
        arrived_s = self._arrivals.of(found)
        return Message(
            run=self._run, number=self._count, at=timestamp(), found=found, arrived_s=arrived_s
        )


@dataclass(frozen=True, kw_only=True)
class SinkState:
    """How a sink stands that goes on when its disk is full or its receiver is gone.

    Attributes:
        name: File or address, without secrets.
        delivered: Findings that the file holds, or whose receipt was confirmed.
        waiting: Findings that wait for the disk or the receiver.
        dropped: Findings that are lost: too many waited, or they waited too long.
        error: What is wrong now; None: nothing.
        latency_p50_ms: Half of the findings were confirmed within this time of the arrival of
            their last line; None: not measured.
        latency_p99_ms: 99 % were.
    """

    name: str
    delivered: int
    waiting: int
    dropped: int
    error: str | None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None

    @property
    def alarm(self) -> str | None:
        """One line where something is wrong or was lost."""
        if self.error is None and not self.dropped:
            return None
        counts = f"{self.waiting} waiting, {self.dropped} dropped"
        return f"{self.name}: {self.error or 'works again'} ({counts})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)
