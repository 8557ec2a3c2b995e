"""What a request must stay within before any work is done for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from starlette.types import Scope

from magtiles_seg.serve.problems import Problem

STOP_RESERVE_S = 1.5
"""Seconds before the end of a shutdown at which the last answers are made."""

_SAFETY = 0.8  # share of `timeout_s` that a foreseen answer may take: what is foreseen is not sure
_MEMORY = 0.9  # weight of the past in what an inference takes
_LONGEST_RETRY_S = 15
_PATIENCE_S = 5.0  # at the door, with the body unread: cheaper than to refuse and be asked again
_PARKED = 512  # requests at the door
_SLOW_UPLOAD_S = 1.0  # after which an upload gives way where all places are taken

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)


def format_of(data: bytes) -> str | None:
    """Return a picture file's format by its first bytes, by Pillow's name, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _SIGNATURES if data.startswith(start)), None)


def check_format(data: bytes, allowed: frozenset[str]) -> None:
    """Refuse what is of no allowed format.

    Raises:
        Problem: 415, or 400 for an empty file.
    """
    if not data:
        raise Problem(400, "the file in the field 'image' is empty; send a picture")
    if format_of(data) not in allowed:
        raise Problem(415, f"the file in the field 'image' is none of {', '.join(sorted(allowed))}")


class Refused(Problem):
    """503: the request was not let in. Nothing was computed for it."""

    def __init__(self, why: str, wait_s: int) -> None:
        message = f"{why}; try again in {wait_s} s"
        super().__init__(503, message, headers={"Retry-After": str(wait_s)})


class Expired(Problem):
    """503: the request was let in, and its time is over. Nothing more is computed for it."""


@dataclass(eq=False)
class Place:
    """What one request takes up.

    Attributes:
        pixels: Still to be computed for it.
        held_bytes: Of its body, in memory.
        outcome: What will be counted: `answered`, `left` where the client has gone, or `expired`.
        reading_since: When its upload began, by `time.monotonic`; None before and after it.
        gives_way: Done when a slow upload must leave its place to another request.
    """

    pixels: int = 0
    held_bytes: int = 0
    outcome: str = "answered"
    reading_since: float | None = None
    gives_way: asyncio.Future[None] | None = None


class Gate:
    """Lets requests in, as many as can be answered in time.

    Attributes:
        accepted: Requests let in, less those that were refused after their upload.
        answered: Of these, those that got an answer of their own, an error of theirs included.
        expired: Of these, those whose time was over.
        left: Of these, those whose client left.
        refused: Requests that were told to come again.
        end_at: When the service ends, by `time.monotonic`; None while that is not known.
    """

    def __init__(
        self,
        most: int,
        *,
        streams: int = 1,
        timeout_s: float = 30.0,
        stop_s: float = 7.0,
        max_held_bytes: int = 256_000_000,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Make an open one.

        Args:
            most: Requests inside at once.
            streams: Inferences at once.
            timeout_s: Longest time from an upload to its answer.
            stop_s: Time from SIGTERM to the end. What is let in must fit into it.
            max_held_bytes: Most bytes of uploads in memory.
            count: Called with `answered`, `expired`, `left`, or `refused: why` of each request.
        """
        self._most = most
        self._streams = streams
        self._timeout_s = timeout_s
        self._stop_s = stop_s
        self._max_held_bytes = max_held_bytes
        self._count = count
        self._places: set[Place] = set()
        self._seconds = self._pixels = 0.0  # of the latest inferences
        self._typical_px = 0.0
        self._promised_s, self._promised_at = 0.0, time.monotonic()
        self._parked: deque[asyncio.Future[None]] = deque()
        self.accepted = self.answered = self.expired = self.left = self.refused = 0
        self.end_at: float | None = None

    @property
    def inside(self) -> int:
        """Requests that are being read, computed or answered."""
        return len(self._places)

    @property
    def wait_s(self) -> float:
        """Seconds that a new picture would wait for the model."""
        return self.seconds(sum(place.pixels for place in self._places)) / self._streams

    def seconds(self, pixels: float) -> float:
        """Return how long an inference on so many pixels takes; 0 as long as none was measured."""
        return pixels * self._seconds / self._pixels if self._pixels else 0.0

    def measured(self, pixels: int, seconds: float) -> None:
        """Note how long an inference on so many pixels took."""
        self._pixels = _MEMORY * self._pixels + pixels
        self._seconds = _MEMORY * self._seconds + seconds

    async def room(self) -> None:
        """Wait for the model to be less busy, before the request's body is read.

        So long as the answer may still come within the time that a request has; a little where not
        even that can be foreseen. Returns in any case; `entered` tells whether there is room.
        """
        late = self._lateness(None, self._typical_px) is not None
        if not late or self.end_at is not None or len(self._parked) >= _PARKED:
            return
        before_s = self.seconds(self._typical_px) * len(self._parked) / self._streams
        most_s = _SAFETY * self._timeout_s
        hopeless = self.wait_s + before_s + self.seconds(self._typical_px) > most_s
        turn = asyncio.get_running_loop().create_future()
        self._parked.append(turn)
        try:
            await asyncio.wait({turn}, timeout=min(_PATIENCE_S, most_s) if hopeless else most_s)
        finally:
            with suppress(ValueError):
                self._parked.remove(turn)

    def end(self, at: float) -> None:
        """Let in only what will be answered before this time, by `time.monotonic`."""
        self.end_at = at
        while self._parked:
            self._parked.popleft().set_result(None)

    def _call_next(self) -> None:
        if self._parked and self._lateness(None, self._typical_px) is None:
            self._parked.popleft().set_result(None)

    @contextmanager
    def entered(self) -> Iterator[Place]:
        """Hold a place.

        Raises:
            Refused: All places are taken, or a picture would be answered too late.
        """
        if self.inside >= self._most and not self._end_slowest_upload():
            raise self._refusal("in flight", f"{self.inside} requests are being worked on")
        place = Place()
        self._check_time(place, self._typical_px)
        self._places.add(place)
        self.accepted += 1
        try:
            yield place
        except Refused:
            self.accepted -= 1
            place.outcome = "refused"
            raise
        except (Expired, asyncio.CancelledError):
            place.outcome = "expired"
            raise
        finally:
            self._places.discard(place)
            self._leave(place.outcome)

    @contextmanager
    def reading(self, place: Place) -> Iterator[asyncio.Future[None]]:
        """Give a future that is done when this upload, a slow one, must leave its place."""
        place.gives_way = asyncio.get_running_loop().create_future()
        place.reading_since = time.monotonic()
        try:
            yield place.gives_way
        finally:
            place.reading_since = None

    def _end_slowest_upload(self) -> bool:
        """Free the place of the upload that has taken the longest, if any is slow."""
        began = {
            place: place.reading_since
            for place in self._places
            if place.reading_since is not None and place.gives_way is not None
        }
        slowest = min(began, key=lambda place: began[place], default=None)
        if slowest is None or time.monotonic() - began[slowest] < _SLOW_UPLOAD_S:
            return False
        assert slowest.gives_way is not None
        slowest.gives_way.set_result(None)
        slowest.reading_since = None
        self._places.discard(slowest)
        return True

    def _leave(self, outcome: str) -> None:
        self._call_next()
        if outcome != "refused":
            setattr(self, outcome, getattr(self, outcome) + 1)
            self._count(outcome)

    def hold(self, place: Place, size: int) -> None:
        """Note that so many bytes more of a request are in memory.

        Raises:
            Refused: All requests together hold too much.
        """
        place.held_bytes += size
        if sum(each.held_bytes for each in self._places) > self._max_held_bytes:
            raise self._refusal("memory", "too many uploads arrive at once")

    def expect(self, place: Place, pictures: int) -> None:
        """Take up the time of so many pictures whose size is not yet known.

        Raises:
            Refused: They would be answered too late.
        """
        self._take(place, round(pictures * self._typical_px))

    def admit(self, place: Place, sizes: list[int]) -> None:
        """Take up the time of pictures of so many pixels each.

        Raises:
            Refused: They would be answered too late.
        """
        for size in sizes:
            self._typical_px += 0.1 * (size - self._typical_px) if self._typical_px else size
        self._take(place, sum(sizes))

    def _take(self, place: Place, pixels: int) -> None:
        if pixels > place.pixels:  # who came later does not make this one late
            place.pixels = 0
            self._check_time(place, pixels)
        place.pixels = pixels
        self._call_next()

    def computed(self, place: Place) -> None:
        """Note that nothing is left to compute for a request."""
        place.pixels = 0
        self._call_next()

    def in_time(self, pixels: int, deadline: float) -> bool:
        """Return whether an inference that begins now may still be of use.

        Args:
            pixels: Of the picture.
            deadline: When nobody waits any more, by `time.monotonic`.
        """
        ends = [deadline] if self.end_at is None else [deadline, self.end_at]
        return time.monotonic() + self.seconds(pixels) / 2 < min(ends)

    def _check_time(self, place: Place, pixels: float) -> None:
        late = self._lateness(place, pixels)
        if late is not None:
            raise self._refusal(*late, pixels)

    def _lateness(self, place: Place | None, pixels: float) -> tuple[str, str] | None:
        """Return why pictures of so many pixels would come too late, in a word and in a text."""
        busy = sum(1 for other in self._places if other.pixels and other is not place)
        ready_s = self.wait_s + self.seconds(pixels)
        if self.end_at is not None and ready_s > self.end_at - time.monotonic():
            return "ending", "the service is about to end"
        # Two pictures per inference keep the model at work, however long each takes.
        fits_stop = busy < 2 * self._streams or ready_s <= self._stop_s - STOP_RESERVE_S
        if busy and not (fits_stop and ready_s <= _SAFETY * self._timeout_s):
            return "too late", f"an answer would take {ready_s:.0f} s"
        return None

    def _refusal(self, why: str, text: str, pixels: float = 0.0) -> Refused:
        """Return a refusal that names a time at which there should be a place.

        Each refused client is given a time of its own, one picture after the other's: told the
        same, they would all come back at once.
        """
        now = time.monotonic()
        promised_s = max(0.0, self._promised_s - (now - self._promised_at))
        promised_s += self.seconds(pixels or self._typical_px) / self._streams
        self._promised_s, self._promised_at = min(promised_s, _LONGEST_RETRY_S), now
        self.refused += 1
        self._count(f"refused: {why}")
        return Refused(text, math.ceil(max(1.0, self._promised_s)))


MAX_HEAD_BYTES = 65_536
"""Largest request line and header fields together."""

_MAX_FIELDS = 200
_MAX_TARGET = 8_192
_CLOSE = {"Connection": "close"}


def head_trouble(scope: Scope) -> Problem | None:
    """Return why a request's head is refused, or None. `guard` ends those that never end."""
    target = len(scope["raw_path"] or b"") + len(scope["query_string"])
    if target > _MAX_TARGET:
        message = f"the address has {target:,} bytes; expected at most {_MAX_TARGET:,}"
        return Problem(414, message, headers=_CLOSE)
    fields = scope["headers"]
    size = target + sum(len(name) + len(value) + 4 for name, value in fields)
    if size > MAX_HEAD_BYTES or len(fields) > _MAX_FIELDS:
        return head_too_large()
    return None


def head_too_large() -> Problem:
    """Return the answer to a head beyond the limits."""
    message = f"expected at most {_MAX_FIELDS} header fields and {MAX_HEAD_BYTES:,} bytes of them"
    return Problem(431, message, headers=_CLOSE)
