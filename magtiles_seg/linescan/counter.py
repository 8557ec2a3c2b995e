"""Unwraps a camera's frame counter: where a frame stands on the web, whatever the counter does.

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

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["INVALID", "FrameCounter", "Place", "usable"]

INVALID = 2**64 - 1
"""Pylon's and GenTL's mark of a number that is none."""

Kind: TypeAlias = Literal["new", "repeated", "restarted"]

_LATE = 64
_DOUBTFUL = 1024
_WIDTHS = (2**16 - 1, 2**32 - 1, 2**64 - 1)


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
