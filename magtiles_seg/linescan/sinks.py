"""Where a web's defects go: files that survive a kill and a full disk, and a reject signal."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TextIO

from magtiles_seg.decision import fraction
from magtiles_seg.errors import ConfigError
from magtiles_seg.files import Lock
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.messages import COLUMNS, Arrivals, Found, Message, Numbering, SinkState
from magtiles_seg.linescan.report import Latencies

if TYPE_CHECKING:
    from magtiles_seg.linescan.sources import LineBlock

__all__ = [
    "CsvSink",
    "JsonLinesSink",
    "RecordFile",
    "RejectSignal",
    "Rotation",
    "Sink",
    "as_json",
    "first_json",
    "hold",
]


class Sink(Protocol):
    """Takes what an inspection finds, as it is found."""

    def lines(self, block: LineBlock) -> None:
        """Take lines that were handed to the model."""

    def write(self, found: WebDefect | Uninspected) -> None:
        """Take a defect that has ended, or an interval of lines without a verdict."""

    def close(self) -> None:
        """End the output. Closing twice is harmless."""


def as_json(found: Found) -> str:
    """Return one line of JSON: `{"kind": "defect", …}` or `{"kind": "uninspected", …}`."""
    kind = "defect" if isinstance(found, WebDefect) else "uninspected"
    return json.dumps({"kind": kind, **asdict(found)}, allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """When a file of records is put away and a new one begun.

    Attributes:
        most_bytes: It has this many bytes; None: any.
        most_s: It was begun this long ago; None: any time.

    Raises:
        ConfigError: A number is not above 0.
    """

    most_bytes: float | None = 100_000_000
    most_s: float | None = 86_400.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("most_bytes", "most_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value!r}; expected more than 0, or None for never")

    def due(self, size_bytes: int, age_s: float) -> bool:
        """Say whether a file has come so far."""
        too_big = self.most_bytes is not None and size_bytes >= self.most_bytes
        return too_big or (self.most_s is not None and age_s >= self.most_s)


_MOST_WAITING = 100_000  # findings, some 50 MB
_RETRY_S = 1.0
_LAST_TRY_S = 2.0  # at the end
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})  # Windows has one
_TAIL_BYTES = 1 << 20


class RecordFile:
    """Findings in one file that only grows, one line each.

    A file that is there is appended to: each line carries its `run`. A line goes to the operating
    system at once, so that a kill loses none; `sync` brings it to the disk. What a power failure
    or a kill left of a torn last line is cut off at the next start. While the disk is full, or
    away, findings wait in memory (100,000; later ones are then dropped and counted), and it is
    tried again every second; `state` says so. Where somebody removes the file, a new one is begun
    with the next finding. A file that has grown too large or old is renamed,
    `defects.jsonl` to `defects-<id of its first finding>.jsonl`.
    """

    suffix: ClassVar[str]

    def __init__(
        self,
        path: str | Path,
        *,
        run: str | None = None,
        rotation: Rotation | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Open the file, which is made with its folder, and mend its end.

        Args:
            path: Of the file.
            run: Identifier of the inspection, in each line; None: a new one.
            rotation: When a new file is begun; None: at 100 MB, and after a day.
            note: Told in a line what was mended or goes wrong.

        Raises:
            ConfigError: Another run is writing to it.
            OSError: It cannot be opened.
        """
        self.path = Path(path)
        self._rotation = Rotation() if rotation is None else rotation
        self._note = note or (lambda _: None)
        self._message = Numbering(run)
        self._waiting: deque[bytes] = deque()
        self._torn = False  # the first that waits is in the file in part
        self._delivered = self._dropped = 0
        self._error: OSError | None = None
        self._tried_s = -_RETRY_S
        self._lock = threading.Lock()  # held while the descriptor changes
        self._fd: int | None = None
        self._held: Lock | None = None
        self._first_id: str | None = None
        self._begun_s = time.monotonic()
        try:
            self._open()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._fail(error)

    @property
    def live(self) -> Path:
        """The file that is written to."""
        return self.path

    @property
    def state(self) -> SinkState:
        """How the file stands."""
        return SinkState(
            name=self.path.name,
            delivered=self._delivered,
            waiting=len(self._waiting),
            dropped=self._dropped,
            error=None if self._error is None else self._error.strerror or str(self._error),
        )

    def lines(self, block: LineBlock) -> None:
        """Lines are not written; what waits is tried again."""
        self._message.lines(block)
        self._go_on()

    def write(self, found: Found) -> None:
        """Write one line, through to the operating system, or keep it until the disk takes it."""
        message = self._message(found)
        if len(self._waiting) >= _MOST_WAITING:
            self._dropped += 1
        else:
            self._waiting.append(self.encode(message).encode())
            if self._first_id is None:
                self._first_id, self._begun_s = message.id, time.monotonic()
        self._go_on()

    def sync(self) -> bool:
        """Bring the file to the disk, from any thread.

        Returns:
            Whether nothing waits any more.

        Raises:
            OSError: The disk refuses.
        """
        with self._lock:
            fd = None if self._fd is None else os.dup(self._fd)
        if fd is not None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return not self._waiting

    def close(self) -> None:
        """Write what waits, and close the file.

        Raises:
            OSError: The disk has not taken everything.
        """
        until_s = time.monotonic() + _LAST_TRY_S
        while self._waiting and not self._flushed() and time.monotonic() < until_s:
            time.sleep(0.1)
        left, self._dropped = len(self._waiting), self._dropped + len(self._waiting)
        self._waiting.clear()
        with suppress(OSError):
            self._shut(cut=self._torn)
        self._torn = False
        if left and self._error is not None:
            text = f"{left} findings could not be written: {self._error.strerror}"
            raise OSError(self._error.errno, text, str(self.path))

    def encode(self, message: Message) -> str:
        """Return a message as a line, with its end."""
        raise NotImplementedError

    def head(self) -> str:
        """Return what every file begins with."""
        return ""

    def first_of(self, file: TextIO) -> Mapping[str, Any] | None:
        """Return a file's first finding, with `id` and `at` if it can be read; None: there is none.

        Raises:
            ValueError: The line is damaged.
        """
        raise NotImplementedError

    def seal(self) -> None:
        """Put the live file, closed and not empty, away under its first finding's id."""
        self.live.rename(self._free(f"{self.path.stem}-{self._first_id}", self.path.suffix))

    def _go_on(self) -> None:
        if self._error is not None and time.monotonic() - self._tried_s < _RETRY_S:
            return
        age_s = time.monotonic() - self._begun_s
        if self._first_id is None or not self._rotation.due(self._size(), age_s):
            if self._waiting:
                self._flushed()
        elif self._flushed():
            self._attempt(self._rotate)

    def _flushed(self) -> bool:
        return self._attempt(self._flush)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Do what the disk may refuse; tell when that begins and ends."""
        try:
            action()
        except OSError as error:
            self._fail(error)
            return False
        if self._error is not None:
            self._error = None
            self._note(f"{self.path}: is written again; {self._dropped} findings were dropped")
        return True

    def _fail(self, error: OSError) -> None:
        self._tried_s = time.monotonic()
        if self._error is None:
            self._note(f"{self.path}: {error.strerror}; findings are kept and tried again")
        self._error = error

    def _flush(self) -> None:
        gone = self._fd is not None and not self._is_there(self._fd)
        if gone:
            self._note(f"{self.live} was removed or renamed by somebody: a new one is begun")
            self._shut(cut=False)
            self._first_id = None
            if self._torn:  # its first part went with the file
                self._waiting.popleft()
                self._torn, self._dropped = False, self._dropped + 1
        while self._waiting:
            fd = self._open() if self._fd is None else self._fd
            line = self._waiting[0]
            done = os.write(fd, line)
            self._torn = done < len(line)
            if self._torn:  # the disk is full: the next try says so, or goes on here
                self._waiting[0] = line[done:]
            else:
                self._waiting.popleft()
                self._delivered += 1
        if gone:
            self._learn()

    def _is_there(self, fd: int) -> bool:
        """Tell whether what is written still lands in the live file, which somebody may remove."""
        try:
            return os.path.samestat(self.live.stat(), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        if self._first_id is not None:
            self._shut(cut=False)
            self.seal()
            self._first_id = None
            self._open()

    def _size(self) -> int:
        return 0 if self._fd is None else os.fstat(self._fd).st_size

    def _open(self) -> int:
        """Open the live file, hold it, mend its end, and return its descriptor."""
        self.live.parent.mkdir(parents=True, exist_ok=True)
        held = hold(self.live)
        try:
            fd = os.open(self.live, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        except BaseException:
            held.release()
            raise
        try:
            cut = _mend(fd)
            if cut:
                self._note(f"{self.live}: {cut} bytes of a torn last line were cut off")
            head = self.head().encode()
            if not os.fstat(fd).st_size and os.write(fd, head) < len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._learn()
        except BaseException:
            os.close(fd)
            held.release()
            raise
        with self._lock:
            self._fd, self._held = fd, held
        return fd

    def _learn(self) -> None:
        """Learn by which name the live file is to be put away, and since when it grows."""
        with self.live.open(encoding="utf-8", errors="replace", newline="") as file:
            try:
                first = self.first_of(file)
            except ValueError:
                first = {}
        if first is not None:  # version 0.1.0 wrote neither
            self._first_id = str(first.get("id") or f"before-{_stamp()}")
            age_s = time.time() - _seconds(first.get("at"))
            self._begun_s = time.monotonic() - age_s

    def _shut(self, *, cut: bool) -> None:
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if cut:
                _mend(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
            if self._held is not None:
                self._held.release()

    def _free(self, stem: str, suffix: str) -> Path:
        """Return a path in the folder that is not taken."""
        path, count = self.path.with_name(f"{stem}{suffix}"), 1
        while os.path.lexists(path):
            count += 1
            path = self.path.with_name(f"{stem}-{count}{suffix}")
        return path


class JsonLinesSink(RecordFile):
    """One JSON object per line: `{"kind": "defect", …}` or `{"kind": "uninspected", …}`."""

    def encode(self, message: Message) -> str:
        """Return every field of the finding."""
        return f"{message.to_json()}\n"

    def first_of(self, file: TextIO) -> Mapping[str, Any] | None:
        """Return the first line."""
        return first_json(file)


class CsvSink(RecordFile):
    """A CSV table: a header, then a row per defect or uninspected interval, told apart by `kind`.

    A file with another header, as of an older version, is put away under another name first.
    """

    def encode(self, message: Message) -> str:
        """Return one row."""
        return _csv_line(message.row())

    def head(self) -> str:
        """Return the names of the columns."""
        return _csv_line(dict(zip(COLUMNS, COLUMNS, strict=True)))

    def first_of(self, file: TextIO) -> Mapping[str, Any] | None:
        """Return the first row."""
        return next(csv.DictReader(file), None)

    def _open(self) -> int:
        if self.live.exists():
            with self.live.open("rb") as file:
                line = file.readline()
            if line.endswith(b"\n") and line != self.head().encode():
                aside = self._free(f"{self.path.stem}-before-{_stamp()}", self.path.suffix)
                self.live.rename(aside)
                self._note(f"{self.live} has other columns: it is now {aside.name}")
        return super()._open()


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
        self._arrivals = Arrivals()
        self.latencies = Latencies()

    def lines(self, block: LineBlock) -> None:
        """Note when these lines came."""
        self._arrivals.lines(block)

    def write(self, found: Found) -> None:
        """Call for a defect that is bad enough."""
        if isinstance(found, Uninspected):
            return
        if found.score < self._min_score or found.area_px < self._min_area_px:
            return
        self._callback(found)
        self.latencies.add(time.perf_counter() - self._arrivals.of(found))

    def close(self) -> None:
        """Nothing is held."""


def hold(path: Path) -> Lock:
    """Take the lock of a file or folder that this run writes to.

    It is a file beside, or in the folder: Windows would let nobody read a file that is locked
    itself.

    Raises:
        ConfigError: Another run holds it.
    """
    folder, name = (path, "run") if path.is_dir() else (path.parent, path.name)
    return Lock(
        folder / f".{name}.lock",
        taken=f"another run writes to {path} now: wait for it, or give this one another --out",
    )


def _stamp() -> str:
    """Return the time as a part of a file's name."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def _mend(fd: int) -> int:
    """Cut off what stands behind the last whole line; return how many bytes.

    Zeros are what a file system leaves of a block that was not written when the power failed.
    """
    size = os.fstat(fd).st_size
    start = max(0, size - _TAIL_BYTES)
    os.lseek(fd, start, os.SEEK_SET)
    tail = os.read(fd, size - start)
    whole = tail.split(b"\0", 1)[0]
    good = start + whole.rfind(b"\n") + 1
    if good < size:
        os.ftruncate(fd, good)
    return size - good


def first_json(file: TextIO) -> Mapping[str, Any] | None:
    """Return the object of a file's first line, empty where it is none; None: there is no line.

    Raises:
        ValueError: The line is no JSON.
    """
    line = file.readline()
    first = json.loads(line) if line else None
    return {} if line and not isinstance(first, dict) else first


def _seconds(at: object) -> float:
    """Return a time of a finding in s since 1970; now where it is none."""
    try:
        return datetime.fromisoformat(str(at)).timestamp()
    except ValueError:
        return time.time()


def _csv_line(row: dict[str, Any]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(row)
    return text.getvalue()
