"""The account of a web: which lines have a verdict, which have none, and how long each waited."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from magtiles_seg.linescan.defects import Reason, Uninspected

_STEP = math.log(1.05)  # width of a class
_SHORTEST_S = 1e-6


class Latencies:
    """Times, counted in classes of 5 %: quantiles are right to that, and memory is bounded.

    Attributes:
        worst_s: The longest of all.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.worst_s = 0.0

    def add(self, latency_s: float, count: int = 1) -> None:
        """Count one time, `count` times over."""
        latency_s = max(_SHORTEST_S, latency_s)
        self._counts[math.ceil(math.log(latency_s) / _STEP)] += count
        self.worst_s = max(self.worst_s, latency_s)

    def __len__(self) -> int:
        """How many times were counted."""
        return sum(self._counts.values())

    def quantile_s(self, share: float) -> float:
        """Return the time that a share (0..1) of all did not exceed; 0 where there are none."""
        wanted, seen = share * len(self), 0
        for key in sorted(self._counts):
            seen += self._counts[key]
            if seen >= wanted:
                return min(self.worst_s, math.exp(key * _STEP))
        return 0.0


class LineLatency(Latencies):
    """Times from a line's arrival to its verdict, over all lines."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[tuple[int, float]] = deque()  # end line, arrival in s

    def arrive(self, end_line: int, time_s: float) -> None:
        """Note that the lines before `end_line` that had not come before came at `time_s`."""
        self._waiting.append((end_line, time_s))

    def decide(self, first_line: int, end_line: int, time_s: float) -> None:
        """Note that the lines from `first_line` to `end_line` had their verdict at `time_s`."""
        while self._waiting and first_line < end_line:
            end, arrived_s = self._waiting[0]
            count = min(end, end_line) - first_line
            if count > 0:
                self.add(time_s - arrived_s, count)
                first_line += count
            if end <= end_line:
                self._waiting.popleft()

    def forget(self, end_line: int) -> None:
        """Note that the lines before `end_line` will have no verdict."""
        while self._waiting and self._waiting[0][0] <= end_line:
            self._waiting.popleft()


class Silence:
    """How long no line came, by what a source says: a web may stand still.

    Attributes:
        present_s: Since the latest line, at the latest block, which may have been empty.
        longest_s: The longest of all.
    """

    def __init__(self) -> None:
        self.present_s = self.longest_s = 0.0
        self._latest_s: float | None = None

    def hear(self, arrived_s: float, *, lines: int) -> None:
        """Note that a block of so many lines came, by `time.perf_counter`."""
        if self._latest_s is None:
            self._latest_s = arrived_s
        since_s = max(0.0, arrived_s - self._latest_s)
        self.longest_s = max(self.longest_s, since_s)
        self.present_s = 0.0 if lines else since_s
        if lines:
            self._latest_s = arrived_s


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
        partial_lines: Lines with a verdict on part of their width: one of several cameras lost
            them.
        restarts: How often a camera's counter began anew; an unknown number of lines is missing at
            each, which `uninspected_lines` cannot count.
        unnumbered_lines: Lines to which their camera gave no number: losses before them would not
            have been noticed.
        repeated_lines: Lines that came again, or after their gap had been reported: left out.
        defects: How many have ended.
        open_defects: How many have not.
        model_s: Time spent in the model.
        bookkeeping_s: Time spent in everything else: cutting, joining, measuring.
        latency_p50_ms: Half of the lines had their verdict within this time of their arrival.
        latency_p99_ms: 99 % of the lines had.
        latency_max_ms: All lines had.
        silence_s: For how long no line has come now, by the source's latest sign of life.
        longest_silence_s: The longest time without a line: a web may stand still.
        passed_share: Share of the web that the Segmenter's screen passed on to its model, in
            [0, 1]; None without a screen.
    """

    width_px: int
    lines: int
    pending_lines: int
    uninspected_lines: int
    uninspected_mm: float | None
    dropped_lines: int
    partial_lines: int
    restarts: int
    unnumbered_lines: int
    repeated_lines: int
    defects: int
    open_defects: int
    model_s: float
    bookkeeping_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    silence_s: float
    longest_silence_s: float
    passed_share: float | None = None

    @property
    def whole(self) -> bool:
        """Whether every line has a verdict on its whole width."""
        return not (self.uninspected_lines or self.partial_lines or self.restarts)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


class WebCounts:
    """Counts while a web passes.

    Attributes:
        intervals: The latest 1000 intervals of lines without a verdict.
        listeners: Called with each interval as soon as it is known.
    """

    def __init__(self, line_mm: float | None) -> None:
        self.intervals: deque[Uninspected] = deque(maxlen=_KEPT_INTERVALS)
        self.listeners: list[Callable[[Uninspected], None]] = []
        self.latency = LineLatency()
        self.lines = self.repeated = self.defects = self.unnumbered = 0
        self.silence = Silence()
        self.model_s = self.all_s = 0.0
        self._uninspected = self._dropped = self._partial = self._restarts = 0
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
        self._restarts += reason == "restarted"
        self._tell(missed)

    def miss_part(self, first_line: int, end_line: int, columns: Sequence[tuple[int, int]]) -> None:
        """Note that columns (x0, x1) of these lines will have no verdict."""
        self._partial += end_line - first_line
        length_mm = None if self._line_mm is None else (end_line - first_line) * self._line_mm
        for x0_px, x1_px in columns:
            self._tell(
                Uninspected(
                    first_line=first_line,
                    end_line=end_line,
                    reason="lost",
                    length_mm=length_mm,
                    x0_px=x0_px,
                    x1_px=x1_px,
                )
            )

    def _tell(self, missed: Uninspected) -> None:
        self.intervals.append(missed)
        for listener in self.listeners:
            listener(missed)

    def report(
        self,
        width_px: int,
        *,
        pending_lines: int,
        open_defects: int,
        passed_share: float | None = None,
    ) -> WebReport:
        """Return the account as it stands."""
        unseen_mm = None if self._line_mm is None else self._uninspected * self._line_mm
        return WebReport(
            width_px=width_px,
            lines=self.lines,
            pending_lines=pending_lines,
            uninspected_lines=self._uninspected,
            uninspected_mm=unseen_mm,
            dropped_lines=self._dropped,
            partial_lines=self._partial,
            restarts=self._restarts,
            unnumbered_lines=self.unnumbered,
            repeated_lines=self.repeated,
            defects=self.defects,
            open_defects=open_defects,
            model_s=self.model_s,
            bookkeeping_s=self.all_s - self.model_s,
            latency_p50_ms=1e3 * self.latency.quantile_s(0.5),
            latency_p99_ms=1e3 * self.latency.quantile_s(0.99),
            latency_max_ms=1e3 * self.latency.worst_s,
            silence_s=self.silence.present_s,
            longest_silence_s=self.silence.longest_s,
            passed_share=passed_share,
        )
