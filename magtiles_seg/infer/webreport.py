"""The account of a web: which lines have a verdict, which have none, and how long it took."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from magtiles_seg.infer.latency import LineLatency
from magtiles_seg.infer.webdefects import Reason, Uninspected

__all__ = ["Tally", "WebReport"]

_KEPT_INTERVALS = 1000


@dataclass(frozen=True, kw_only=True)
class WebReport:
    """What has happened on a web so far.

    Attributes:
        width_px: Of the web.
        lines: Lines with a verdict.
        pending_lines: Lines that came and wait for their halo.
        uninspected_lines: Lines without a verdict, for whatever reason.
        uninspected_mm: They along the web; None where the line pitch is unknown.
        dropped_lines: Those of them that a full queue dropped.
        repeated_lines: Lines that came again, or after their gap had been reported: left out.
        defects: How many have ended.
        open_defects: How many have not.
        model_s: Time spent in the model.
        bookkeeping_s: Time spent in everything else: cutting, joining, measuring.
        latency_p50_ms: Half of the lines had their verdict within this time of their arrival.
        latency_p99_ms: 99 % of the lines had.
        latency_max_ms: All lines had.
    """

    width_px: int
    lines: int
    pending_lines: int
    uninspected_lines: int
    uninspected_mm: float | None
    dropped_lines: int
    repeated_lines: int
    defects: int
    open_defects: int
    model_s: float
    bookkeeping_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    latency_max_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


class Tally:
    """Counts while a web passes.

    Attributes:
        intervals: The latest 1000 intervals of lines without a verdict.
        listeners: Called with each interval as soon as it is known.
    """

    def __init__(self, line_mm: float | None) -> None:
        self.intervals: deque[Uninspected] = deque(maxlen=_KEPT_INTERVALS)
        self.listeners: list[Callable[[Uninspected], None]] = []
        self.latency = LineLatency()
        self.lines = self.repeated = self.defects = 0
        self.model_s = self.all_s = 0.0
        self._uninspected = self._dropped = 0
        self._line_mm = line_mm

    def miss(self, first_line: int, end_line: int | None, reason: Reason) -> None:
        """Note that these lines will have no verdict, and tell who wants to know at once."""
        count = 0 if end_line is None else end_line - first_line
        if count == 0 and end_line is not None:
            return
        length_mm = None
        if self._line_mm is not None and end_line is not None:
            length_mm = count * self._line_mm
        missed = Uninspected(
            first_line=first_line, end_line=end_line, reason=reason, length_mm=length_mm
        )
        self._uninspected += count
        self._dropped += count if reason == "dropped" else 0
        self.intervals.append(missed)
        for listener in self.listeners:
            listener(missed)

    def report(self, width_px: int, *, pending_lines: int, open_defects: int) -> WebReport:
        """Return the account as it stands."""
        unseen_mm = None if self._line_mm is None else self._uninspected * self._line_mm
        return WebReport(
            width_px=width_px,
            lines=self.lines,
            pending_lines=pending_lines,
            uninspected_lines=self._uninspected,
            uninspected_mm=unseen_mm,
            dropped_lines=self._dropped,
            repeated_lines=self.repeated,
            defects=self.defects,
            open_defects=open_defects,
            model_s=self.model_s,
            bookkeeping_s=self.all_s - self.model_s,
            latency_p50_ms=1e3 * self.latency.quantile_s(0.5),
            latency_p99_ms=1e3 * self.latency.quantile_s(0.99),
            latency_max_ms=1e3 * self.latency.worst_s,
        )
