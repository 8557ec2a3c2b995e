"""How far a run has come, on the disk: so the next run knows from where on nobody looked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.files import write
from magtiles_seg.linescan.defects import Uninspected
from magtiles_seg.linescan.messages import SinkState
from magtiles_seg.linescan.sinks import hold
from magtiles_seg.names import timestamp

if TYPE_CHECKING:
    from magtiles_seg.linescan.sinks import RecordFile

_END = "end"  # the web came to its end: nothing is missing until the next run


class Journal:
    """Keeps `run.json` in the folder of the records, and finds what an earlier run left open.

    Every second it brings the records to the disk, and then writes up to which line they are
    complete. A run that is killed, or loses its power, so leaves a line behind which everything is
    unknown; `gap` is this interval, for the sinks of the next run.

    Attributes:
        gap: What no run has inspected since the earlier one; None: its web came to its end, or
            there was none.
    """

    def __init__(
        self,
        folder: str | Path,
        run: str,
        files: Sequence[RecordFile] = (),
        *,
        every_s: float = 1.0,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Read what the earlier run left; nothing is written before `begin`.

        Args:
            folder: Of the records; made if missing.
            run: Identifier of this run.
            files: Brought to the disk before a line counts as settled; may grow until `begin`.
            every_s: How often.
            note: Told in a line what goes wrong.

        Raises:
            ConfigError: Another run uses the folder.
            OSError: The folder cannot be used.
        """
        self._path, self._run, self._files = Path(folder) / "run.json", run, files
        self._note, self._every_s = note or (lambda _: None), every_s
        self._started, self._settled_line, self._at_end = timestamp(), 0, False
        self._written_line: int | None = None
        self._error: OSError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="journal", daemon=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = hold(self._path.parent)
        try:
            self.gap = self._left_open()
        except BaseException:
            self._lock.release()
            raise

    @property
    def state(self) -> SinkState:
        """How `run.json` stands."""
        error = None if self._error is None else self._error.strerror or str(self._error)
        return SinkState(name=self._path.name, delivered=0, waiting=0, dropped=0, error=error)

    def begin(self) -> None:
        """Begin, when every sink has been told of `gap`: the earlier run is then forgotten."""
        for left in self._path.parent.glob(".*.part.json"):  # of a kill
            left.unlink()
        self._save()
        self._thread.start()

    def settle(self, line: int | None) -> None:
        """Note that every finding which shows on lines before this one has been told the sinks.

        Args:
            line: That line; None: the web has come to its end.
        """
        if line is None:
            self._at_end = True
        else:
            self._settled_line = line

    def close(self, report: dict[str, Any] | None = None) -> None:
        """Write that the run has ended, and whether its web had.

        Args:
            report: The account of the web.
        """
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._save(ended=_END if self._at_end else "stopped", report=report)
        self._lock.release()

    def abandon(self) -> None:
        """Leave the folder as it was found: the run has not begun."""
        self._lock.release()

    def _keep(self) -> None:
        while not self._ended.wait(self._every_s):
            self._save()

    def _save(self, **more: Any) -> None:  # noqa: ANN401 - any JSON value
        """Bring the records to the disk, then say so; a full disk is tried again the next time."""
        try:
            line = self._settled_line  # before the files are looked at
            written = [file.sync() for file in self._files]  # every one, whatever the first says
            if all(written):
                self._written_line = line
            state: dict[str, Any] = {
                "run": self._run,
                "started": self._started,
                "alive": timestamp(),
            }
            state |= {"settled_line": self._written_line or 0, "ended": None, **more}
            write(self._path, json.dumps(state) + "\n", durable=True)
        except OSError as error:
            if self._error is None:
                self._note(f"{self._path}: {error.strerror}; tried again every second")
            self._error = error
        else:
            self._error = None

    def _left_open(self) -> Uninspected | None:
        """Return the interval since an earlier run that did not come to its web's end."""
        try:
            earlier = json.loads(self._path.read_text(encoding="utf-8"))
            if earlier["ended"] == _END:
                return None
            return Uninspected(
                first_line=int(earlier["settled_line"]),
                end_line=None,
                reason="not running",
                since=str(earlier["alive"]),
                until=self._started,
                after_run=str(earlier["run"]),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            self._note(f"{self._path} is damaged: how far an earlier run came is unknown")
            return Uninspected(
                first_line=0, end_line=None, reason="not running", until=self._started
            )
