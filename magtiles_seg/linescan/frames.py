"""From a camera's frames to the lines of a web: checked, placed by number, silence noticed.

`FrameCounter` unwraps a camera's counter, whatever it does:

| camera | counts |
|---|---|
| Basler, GigE | 1 to 65,535, then 1 again; with extended ids 1 to 2^64 - 2 |
| Basler, USB | 0 to 2^64 - 2 |
| Basler, any | 0 where it has no counter, 2^64 - 1 where the number is invalid |
| GenTL | `BUFFER_INFO_FRAMEID`, 64 bits wide, of which GigE producers may use 16 |

Source: Basler, pylon C API, `PylonGrabResult_t`; EMVA, GenTL 1.5.

How a number is read, with `ahead` = how far it lies before the latest one, in frames, modulo the
counter's range, and the camera's time stamp where there is one:

- the next number: the next frame;
- up to 64 back: a frame that came again or late; with a time stamp newer than the latest, or older
  than the first one's: the counter restarted;
- more than half the range ahead, or ahead with an older time stamp: the counter restarted;
- ahead over the end of the range: a wrap with loss, if the time passed suffices for so many frames
  at twice the fastest pace seen, else a restart. Without time stamps: a restart if the number is
  one of the first 64 and more than 1,024 frames would be missing;
- ahead after so long a silence that whole turns of the counter may be missing: as a restart;
- otherwise ahead: the frames between are lost.

After a restart frames are placed on behind the latest one, and it is said that an unknown number is
missing. One thing cannot be told: a restart within the first 64 frames of a camera without time
stamps counts as repetition until the number has passed the latest one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from magtiles_seg.errors import DataError
from magtiles_seg.linescan.sources import LineBlock, frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

INVALID = 2**64 - 1
"""Pylon's and GenTL's mark of a number that is none."""

Kind: TypeAlias = Literal["new", "repeated", "restarted"]

_LATE = 64
_DOUBTFUL = 1024
_WIDTHS = (2**16 - 1, 2**32 - 1, 2**64 - 1)

_CONTRADICTION = (
    "; so it is not known where a line begins: turn off chunk data and line padding at the camera, "
    "or choose a width that is a multiple of 8"
)


@dataclass(frozen=True)
class Place:
    """Where a frame stands.

    Attributes:
        position: In the counter's units from the first frame, which stands at 0.
        kind: `"new"`; `"repeated"`: it came before, or its loss has been noticed; `"restarted"`: an
            unknown number of frames is missing before it.
        numbered: False: it had no number, so that losses before it go unnoticed.
    """

    position: int
    kind: Kind = "new"
    numbered: bool = True


def usable(raw: int, *, low: int, previous: int | None) -> int | None:
    """Return a counter's raw value, or None where it is no number.

    Args:
        raw: As the driver gives it.
        low: The least number that the counter is known to use: 0 counts only where this is 0.
        previous: The raw value before; a second 0 in a row shows that there is no counter.
    """
    if raw == INVALID or (raw == 0 and (low > 0 or previous == 0)):
        return None
    return raw


class FrameCounter:
    """Places frames by a counter of any range; memory is constant.

    Example:
        >>> counter = FrameCounter(low=1)
        >>> [counter.place(number).position for number in (65534, 65535, 1, 4)]
        [0, 1, 2, 5]
    """

    def __init__(self, *, low: int = 0, high: int = _WIDTHS[0], step: int = 1) -> None:
        """Start before the first frame.

        Args:
            low: The least number that the counter uses.
            high: The greatest, as far as is known; a number above it shows a counter of 32 or 64
                bits.
            step: By how much it grows a frame: 1, or a frame's lines where it counts lines.
        """
        self._low, self._high, self._step = low, high, step
        self._value: int | None = None
        self._time: int | None = None
        self._first_time: int | None = None  # of this run of the counter
        self._shortest: int | None = None  # time between neighbouring frames
        self._position = -step
        self._anchor = -step  # position of the latest frame that had a number
        self._unnumbered = False

    @property
    def _range(self) -> int:
        return self._high - self._low + 1

    def place(self, value: int | None, time: int | None = None, *, skipped: int = 0) -> Place:
        """Return where the next frame that came stands.

        Args:
            value: Its number; None: it has none, and stands behind the latest one.
            time: The camera's time stamp, in any unit; None: unknown.
            skipped: Frames before one without number that the driver says it has left out.
        """
        if value is None:
            self._position += self._step * (1 + skipped)
            self._unnumbered = True
            return Place(self._position, numbered=False)
        self._widen(value)
        if self._value is None:
            return self._advance(value, time, self._position + self._step, "new")
        ahead = (value - self._value) % self._range
        kind = self._kind(value, self._value, ahead, time)
        if kind == "repeated":
            return Place(self._anchor - (-ahead) % self._range, kind)
        position = self._anchor + ahead
        if kind == "restarted":
            position = self._position + self._step
        elif self._unnumbered:  # frames without number stand in between
            position = max(position, self._position + self._step)
        self._measure(ahead, time)
        return self._advance(value, time, position, kind)

    def _widen(self, value: int) -> None:
        self._low = min(self._low, value)
        if value > self._high:
            self._high = next(width for width in _WIDTHS if value <= width)

    def _advance(self, value: int, time: int | None, position: int, kind: Kind) -> Place:
        if kind == "restarted" or self._value is None:
            self._first_time = time
        self._value, self._time = value, time
        self._position = self._anchor = position
        self._unnumbered = False
        return Place(position, kind)

    def _measure(self, ahead: int, time: int | None) -> None:
        passed = self._passed(time)
        if ahead == self._step and passed is not None and passed > 0:
            self._shortest = passed if self._shortest is None else min(self._shortest, passed)

    def _passed(self, time: int | None) -> int | None:
        return None if time is None or self._time is None else time - self._time

    def _kind(self, value: int, latest: int, ahead: int, time: int | None) -> Kind:
        passed = self._passed(time)
        if (-ahead) % self._range <= min(_LATE * self._step, self._range // 4):
            return "restarted" if self._is_fresh(passed, time) else "repeated"
        if ahead == self._step:
            return "new"
        if ahead > self._range // 2 or (passed is not None and passed < 0):
            return "restarted"
        possible = self._wrapped(value, ahead, passed) if value < latest else True
        return "new" if possible and not self._turned(passed) else "restarted"

    def _is_fresh(self, passed: int | None, time: int | None) -> bool:
        """Tell whether a time stamp is none that came before: newer, or of a clock begun anew."""
        anew = time is not None and self._first_time is not None and time < self._first_time
        return anew or (passed is not None and passed > 0)

    def _wrapped(self, value: int, ahead: int, passed: int | None) -> bool:
        """Tell whether a number below the latest is a wrap and not a restart."""
        if passed is None:
            first = value - self._low < _LATE * self._step
            return not (first and ahead > _DOUBTFUL * self._step)
        return self._shortest is None or 2 * passed * self._step >= ahead * self._shortest

    def _turned(self, passed: int | None) -> bool:
        """Tell whether the counter had time for a whole turn."""
        if passed is None or self._shortest is None:
            return False
        return passed * self._step >= self._range * self._shortest


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
