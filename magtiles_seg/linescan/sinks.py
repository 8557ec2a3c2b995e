"""Where a web's defects go: JSON lines, CSV, a reject signal."""

from __future__ import annotations

import csv
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from magtiles_seg.decision import fraction
from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.report import Latencies

if TYPE_CHECKING:
    from magtiles_seg.linescan.sources import LineBlock

__all__ = ["CsvSink", "JsonLinesSink", "RejectSignal", "Sink", "as_json"]


class Sink(Protocol):
    """Takes what an inspection finds, as it is found."""

    def lines(self, block: LineBlock) -> None:
        """Take lines that were handed to the model."""

    def write(self, found: WebDefect | Uninspected) -> None:
        """Take a defect that has ended, or an interval of lines without a verdict."""

    def close(self) -> None:
        """End the output. Closing twice is harmless."""


def as_json(found: WebDefect | Uninspected) -> str:
    """Return one line of JSON: `{"kind": "defect", …}` or `{"kind": "uninspected", …}`."""
    kind = "defect" if isinstance(found, WebDefect) else "uninspected"
    return json.dumps({"kind": kind, **asdict(found)}, allow_nan=False)


class JsonLinesSink:
    """One JSON object per line: `{"kind": "defect", …}` or `{"kind": "uninspected", …}`."""

    def __init__(self, target: str | Path | TextIO) -> None:
        """Open a file (its folder is made), or take an open text stream, which stays open."""
        self._owned = isinstance(target, str | Path)
        self._file = _created(Path(target)) if isinstance(target, str | Path) else target

    def lines(self, block: LineBlock) -> None:
        """Lines are not written."""

    def write(self, found: WebDefect | Uninspected) -> None:
        """Write one line, through to the operating system."""
        self._file.write(f"{as_json(found)}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._owned:
            self._file.close()


_COLUMNS = (
    "kind", "label", "score", "area_px", "x0_px", "x1_px", "first_line", "last_line",
    "centroid_x_px", "centroid_y_px", "length_px", "width_px", "area_mm2", "length_mm", "width_mm",
    "complete", "reason",
)  # fmt: skip


class CsvSink:
    """A CSV table: a row per defect and per uninspected interval, told apart by `kind`."""

    def __init__(self, path: str | Path) -> None:
        """Create the file and its folder."""
        self._file = _created(Path(path))
        self._rows = csv.DictWriter(
            self._file, _COLUMNS, extrasaction="ignore", lineterminator="\n"
        )
        self._rows.writeheader()

    def lines(self, block: LineBlock) -> None:
        """Lines are not written."""

    def write(self, found: WebDefect | Uninspected) -> None:
        """Write one row, through to the operating system."""
        row = asdict(found)
        if isinstance(found, WebDefect):
            row |= {**found.row(), "kind": "defect"}
        else:
            last = None if found.end_line is None else found.end_line - 1
            row |= {"kind": "uninspected", "last_line": last}
        self._rows.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RejectSignal:
    """Calls a function for each defect that is bad enough, and measures how late it comes.

    Attributes:
        latencies: From the arrival of a defect's last line to the return of the call.
    """

    def __init__(
        self, callback: Callable[[WebDefect], None], *, min_score: float = 0.0, min_area_px: int = 1
    ) -> None:
        """Wrap a callback.

        Args:
            callback: Called in the inspecting thread: hand over quickly.
            min_score: Defects of less are let pass; 0..1.
            min_area_px: Smaller defects are let pass.

        Raises:
            ConfigError: `min_score` is out of range.
        """
        self._callback, self._min_area_px = callback, min_area_px
        self._min_score = fraction("min_score", min_score)
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=_ARRIVALS)
        self.latencies = Latencies()

    def lines(self, block: LineBlock) -> None:
        """Note when these lines came."""
        arrived_s = time.perf_counter() if block.arrived_s is None else block.arrived_s
        self._arrivals.append((block.start_line + len(block.rows), arrived_s))

    def write(self, found: WebDefect | Uninspected) -> None:
        """Call for a defect that is bad enough."""
        if isinstance(found, Uninspected):
            return
        if found.score < self._min_score or found.area_px < self._min_area_px:
            return
        self._callback(found)
        now_s = time.perf_counter()
        came = (arrived_s for end, arrived_s in self._arrivals if end > found.last_line)
        self.latencies.add(now_s - next(came, now_s))

    def close(self) -> None:
        """Nothing is held."""


_ARRIVALS = 4096  # blocks whose times are kept


def _created(path: Path) -> TextIO:
    """Open a file to be written anew, and hold it as long as it is open.

    Raises:
        ConfigError: Another run is writing to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8", newline="")  # "w" would empty another run's file
    try:
        _hold(file, path)
        file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file


def _hold(file: TextIO, path: Path) -> None:
    """Lock a file, where the system and the disk know locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another run writes to {path} now: wait for it, or give this one another --out"
        ) from None
    except OSError:  # some network disks have none
        return
