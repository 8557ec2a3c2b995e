"""How long each line waits for its verdict: quantiles over all lines in bounded memory."""

from __future__ import annotations

import math
from collections import Counter, deque

__all__ = ["Latencies", "LineLatency"]

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
