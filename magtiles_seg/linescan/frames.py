"""From a camera's frames to the lines of a web: checked, placed by number, silence noticed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from magtiles_seg.errors import DataError
from magtiles_seg.linescan.counter import FrameCounter, usable
from magtiles_seg.linescan.sources import LineBlock, frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Frame", "Places", "blocks_of", "check_height", "check_width", "lines_of"]

_CONTRADICTION = (
    "; so it is not known where a line begins: turn off chunk data and line padding at the camera, "
    "or choose a width that is a multiple of 8"
)


def lines_of(
    data: NDArray[np.uint8], *, line_bytes: int, height: int, padding: int, below: int
) -> NDArray[np.uint8]:
    """Return a frame's lines, (height, line_bytes) uint8, as a view.

    Args:
        data: (n,) uint8, the buffer.
        line_bytes: Bytes per line, without padding.
        height: Lines of the frame.
        padding: Bytes behind each line; of a buffer without them they have been cut off.
        below: Padding behind the last line: in bytes by the standard (GenTL), in lines by some.

    Raises:
        DataError: The buffer does not hold that many bytes: where a line begins is not known.
    """
    if data.size == line_bytes * height:
        return data.reshape(height, line_bytes)
    pitch = line_bytes + padding
    needed = pitch * height
    if min(padding, below) < 0 or data.size not in (needed, needed + below, needed + below * pitch):
        raise DataError(
            f"the frame has {data.size} bytes; expected {needed + below} for {height} lines of "
            f"{line_bytes} bytes with {padding} bytes of padding each and {below} below"
            + _CONTRADICTION
        )
    return data[:needed].reshape(height, pitch)[:, :line_bytes]


@dataclass(frozen=True, eq=False)
class Frame:
    """What came: (n, W) rows, the raw frame number, and what else tells its place."""

    rows: NDArray[np.uint8]
    number: int
    arrived_s: float
    time: int | None = None
    skipped: int = 0
    chunk: tuple[str, int] | None = None


class Places:
    """Gives each frame of a camera its line, by its number or what stands in for it."""

    def __init__(self, rows: int, *, low: int, counter: FrameCounter) -> None:
        self._rows, self._low, self._counter = rows, low, counter
        self._raw: int | None = None
        self._by_number = False
        self._chunk = ""
        self._offset, self._unit = 0, rows
        self.next_line = 0

    def block(self, got: Frame) -> LineBlock:
        """Return a frame as a block of lines."""
        number = self._number(got)  # may put another counter in place
        place = self._counter.place(number, got.time, skipped=got.skipped)
        line = self._offset + place.position * self._unit
        self.next_line = max(self.next_line, line + self._rows)
        return LineBlock(
            got.rows,
            line,
            got.arrived_s,
            gap="restarted" if place.kind == "restarted" else "lost",
            numbered=place.numbered,
        )

    def _number(self, got: Frame) -> int | None:
        number = usable(got.number, low=self._low, previous=self._raw)
        self._raw = got.number
        self._by_number = self._by_number or bool(number)
        if number is not None or self._by_number or got.chunk is None:
            return number
        name, value = got.chunk
        if name != self._chunk:
            lines = "Line" in name
            self._chunk, self._offset = name, self.next_line
            self._unit = 1 if lines else self._rows
            step = self._rows if lines else 1
            self._counter = FrameCounter(high=2**32 - 1, step=step)
        return value


def blocks_of(
    fetch: Callable[[], Frame | None],
    places: Places,
    *,
    rows: int,
    width_px: int,
    frames: int | None,
    silence_s: float,
) -> Iterator[LineBlock]:
    """Yield frames as they come, and an empty block whenever none has come for a while.

    Raises:
        DataError: None has come for longer than `silence_s`.
    """
    silent_s = 0.0
    while frames is None or places.next_line < frames * rows:
        began_s = time.perf_counter()
        got = fetch()
        if got is not None:
            silent_s = 0.0
            yield from frame(places.block(got), lines=rows)
            continue
        now_s = time.perf_counter()
        silent_s += now_s - began_s
        if silent_s > silence_s:
            raise DataError(
                f"no frame came for {silent_s:.1f} s; a web that may stand still needs a longer "
                "limit: timeout_s, or --timeout-s inf"
            )
        yield LineBlock(np.empty((0, width_px), np.uint8), places.next_line, now_s)


def check_height(got: int, most: int) -> None:
    """Check a frame's lines; fewer are the end of a page, and a gap.

    Raises:
        DataError: There are more than the camera was set up for.
    """
    if got > most:
        raise DataError(
            f"the camera delivered a frame of {got} lines, and {most} lines when it was opened: "
            "leave its height alone while it runs, or start again"
        )


def check_width(got_px: int, expected_px: int) -> None:
    """Check the width of a frame.

    Raises:
        DataError: It is another one than the camera was set up for.
    """
    if got_px != expected_px:
        raise DataError(
            f"the camera delivered lines of {got_px} px, and {expected_px} px when it was opened: "
            "leave its width alone while it runs, or start again"
        )
