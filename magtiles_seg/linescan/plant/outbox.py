"""`Outbox`: keeps findings for a receiver that may be gone, and delivers them in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from magtiles_seg.decision import count, fraction
from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.defects import WebDefect
from magtiles_seg.linescan.messages import Found, Message, Numbering, SinkState
from magtiles_seg.linescan.report import Latencies

if TYPE_CHECKING:
    from magtiles_seg.linescan.sources import LineBlock


class Door(Protocol):
    """A receiver, as the outbox's thread sees it. Whatever a call raises, it is tried again."""

    def connect(self) -> None:
        """Reach the receiver; called again after each failure, when `close` has been."""

    def check(self) -> None:
        """Raise if the receiver is known to be gone; called while there is nothing to send."""

    def send(self, message: Message) -> None:
        """Hand a message over and return when the receiver has confirmed it."""

    def close(self) -> None:
        """Leave the receiver. Closing twice is harmless."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an outbox sends, and what it holds.

    Attributes:
        most: Findings that may wait, besides the one in hand; of more, the oldest are dropped and
            counted.
        expires_s: A finding that has waited longer is dropped and counted; None: never.
        patience_s: How long the end waits for what has not been delivered.
        min_score: Defects of less are not sent; 0..1.
        min_area_px: Smaller defects are not sent.

    Raises:
        ConfigError: A value is out of its range.
    """

    most: int = 10_000
    expires_s: float | None = None
    patience_s: float = 5.0
    min_score: float = 0.0
    min_area_px: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        count("most", self.most)
        count("min_area_px", self.min_area_px)
        fraction("min_score", self.min_score)
        if self.expires_s is not None and not self.expires_s > 0:
            raise ConfigError(f"expires_s is {self.expires_s!r}; expected more than 0")
        if not 0 <= self.patience_s < float("inf"):
            raise ConfigError(f"patience_s is {self.patience_s!r}; expected 0 or more")


_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 5.0
_CHECK_S = 1.0


class Outbox:
    """A sink that a thread of its own empties into a door, so that the inspection never waits.

    Findings are handed over one at a time, in order, each until the door confirms it. When the
    connection breaks in between, the same message is sent again: with the same id, by which the
    receiver knows it.

    Attributes:
        latencies: From the arrival of a defect's last line to the receiver's confirmation.
    """

    def __init__(
        self,
        door: Door,
        *,
        name: str,
        run: str | None = None,
        limits: Limits | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Begin to deliver.

        Args:
            door: The receiver; the outbox's from here.
            name: Of the receiver, for messages; without secrets.
            run: Identifier of the inspection; None: a new one.
            limits: See there.
            note: Told in a line when the receiver goes and comes.
        """
        self.latencies = Latencies()
        self._door, self._name, self._limits = door, name, limits or Limits()
        self._note = note or (lambda _: None)
        self._message = Numbering(run)
        self._waiting: deque[Message] = deque()
        self._in_hand = self._delivered = self._dropped = 0
        self._error: str | None = None
        self._delay_s = _FIRST_DELAY_S
        self._connected = self._closing = self._closed = False
        self._changed = threading.Condition()
        self._given_up = threading.Event()
        self._ending: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name=f"to {name}", daemon=True)
        self._thread.start()

    @property
    def state(self) -> SinkState:
        """How the receiver stands."""
        measured = len(self.latencies) > 0
        return SinkState(
            name=self._name,
            delivered=self._delivered,
            waiting=len(self._waiting) + self._in_hand,
            dropped=self._dropped,
            error=self._error,
            latency_p50_ms=1e3 * self.latencies.quantile_s(0.5) if measured else None,
            latency_p99_ms=1e3 * self.latencies.quantile_s(0.99) if measured else None,
        )

    def lines(self, block: LineBlock) -> None:
        """Note when these lines came."""
        self._message.lines(block)

    def write(self, found: Found) -> None:
        """Take a finding; it is on its way when this returns.

        Raises:
            OSError: The outbox is closed.
        """
        if self._closed:
            raise OSError(f"{self._name} is closed: findings that come now are not delivered")
        message, limits = self._message(found), self._limits
        if isinstance(found, WebDefect) and (
            found.score < limits.min_score or found.area_px < limits.min_area_px
        ):
            return
        with self._changed:
            if len(self._waiting) >= limits.most:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(message)
            self._changed.notify()

    def finish(self) -> None:
        """Begin to close: nothing more comes. Of several, the patience so runs side by side."""
        if self._ending is None:
            self._ending = threading.Thread(target=self._finish, daemon=True)
            self._ending.start()

    def _finish(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self._limits.patience_s)
        self._given_up.set()
        self._thread.join(self._limits.patience_s)

    def close(self) -> None:
        """Wait until all is delivered, or patience ends; then leave.

        Raises:
            OSError: Something was not delivered.
        """
        if self._closed:
            return
        self._closed = True
        self.finish()
        assert self._ending is not None
        self._ending.join()
        left = len(self._waiting) + self._in_hand
        self._dropped, self._in_hand = self._dropped + left, 0
        self._waiting.clear()
        if left:
            why = self._error or f"the receiver took longer than {self._limits.patience_s:g} s"
            raise OSError(f"{left} findings were not delivered to {self._name}: {why}")

    def _run(self) -> None:
        while not self._given_up.is_set():
            message = self._take()
            if message is not None:
                self._deliver(message)
            elif self._closing:
                break
            else:
                self._attempt(self._door.check)
        with suppress(Exception):
            self._door.close()

    def _take(self) -> Message | None:
        """Return the next message, or None when none has come for a while."""
        with self._changed:
            if not self._waiting and not self._closing and self._connected:
                self._changed.wait(_CHECK_S)
            if not self._waiting:
                return None
            self._in_hand = 1
            return self._waiting.popleft()

    def _deliver(self, message: Message) -> None:
        """Send until it is confirmed, expired or given up."""
        while not self._expired(message):
            if self._attempt(lambda: self._door.send(message)):
                self._delivered += 1
                if message.kind == "defect":
                    self.latencies.add(time.perf_counter() - message.arrived_s)
                self._in_hand = 0
                return
            if self._given_up.is_set():  # stays in hand: it is counted as not delivered
                return
        self._dropped += 1
        self._in_hand = 0

    def _expired(self, message: Message) -> bool:
        most_s = self._limits.expires_s
        return most_s is not None and time.perf_counter() - message.arrived_s > most_s

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Connect if need be, and call; after a failure leave the receiver, and wait a while."""
        try:
            if not self._connected:
                self._door.connect()
                self._connected = True
            call()
        except Exception as error:  # libraries raise of all kinds; the next try is the answer
            self._fail(error)
            return False
        if self._error is not None:
            self._error, self._delay_s = None, _FIRST_DELAY_S
            self._note(f"{self._name}: is there again; {self._dropped} findings were dropped")
        return True

    def _fail(self, error: Exception) -> None:
        self._connected = False
        with suppress(Exception):
            self._door.close()
        if self._error is None:
            self._note(f"{self._name}: {error}; findings are kept and tried again")
        self._error = str(error) or type(error).__name__
        self._given_up.wait(self._delay_s)
        self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)
