"""`ParquetSink`: findings as Parquet files, each whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.files import staged
from magtiles_seg.linescan.messages import COLUMNS, Message, SinkState
from magtiles_seg.linescan.sinks import RecordFile, Rotation, first_json
from magtiles_seg.names import counted


class ParquetSink(RecordFile):
    """Parquet files `defects-<id of the first finding>.parquet`, each whole or not there.

    A Parquet file can be read only when its end is written. So findings are first lines of
    `defects.parquet.open`, JSON, as safe as those of `JsonLinesSink`; they become Parquet when the
    file is large or old enough, at the end, and at the next start if the run was killed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        run: str | None = None,
        rotation: Rotation | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Open as every file of records, and finish what a killed run left.

        Raises:
            BackendUnavailableError: pyarrow is not installed.
            ConfigError: Another run is writing to it.
            OSError: It cannot be opened.
        """
        _pyarrow()
        self._worker = ThreadPoolExecutor(1, "parquet")
        self._conversion: OSError | None = None
        self._closed = False
        super().__init__(path, run=run, rotation=rotation, note=note)
        for left in self.path.parent.glob(f".*.part{self.path.suffix}"):
            left.unlink()  # half of a file, from a kill: its lines are still there
        self._attempt(self._rotate)
        self._worker.submit(self._convert)

    @property
    def live(self) -> Path:
        """The lines that are to become Parquet."""
        return self.path.with_name(f"{self.path.name}.open")

    @property
    def state(self) -> SinkState:
        """How the file stands."""
        state = super().state
        if state.error is None and self._conversion is not None:
            return replace(state, error=self._conversion.strerror or str(self._conversion))
        return state

    def encode(self, message: Message) -> str:
        """Return the row as JSON."""
        return f"{json.dumps(message.row(), allow_nan=False)}\n"

    def first_of(self, file: TextIO) -> Mapping[str, Any] | None:
        """Return the first line."""
        return first_json(file)

    def seal(self) -> None:
        """Put the lines away; a thread makes Parquet of them while the inspection goes on."""
        done = f"{self.path.stem}-{self._first_id}{self.path.suffix}"
        self.live.rename(self._free(done, ".open"))
        self._worker.submit(self._convert)

    def close(self) -> None:
        """Write what waits, and make Parquet of it.

        Raises:
            OSError: The disk has not taken everything; the lines stay for the next start.
        """
        if self._closed:
            return
        self._closed = True
        try:
            super().close()
        finally:
            if self.live.exists() and self.live.stat().st_size:
                self.seal()
            self._worker.submit(self._convert)
            self._worker.shutdown()
            self.live.unlink(missing_ok=True)
        if self._conversion is not None:
            raise self._conversion

    def _convert(self) -> None:
        """Make Parquet of every file of lines that was put away; where it fails, next time."""
        try:
            for part in sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}.open")):
                done = part.with_suffix("")
                damaged = 0 if done.exists() else _write_parquet(part, done)
                if damaged:
                    self._note(f"{part}: {counted(damaged, 'damaged line')} not in {done.name}")
                    part.rename(part.with_suffix(".damaged"))
                else:  # also where a kill came after the Parquet file was whole
                    part.unlink()
        except OSError as error:
            self._conversion = error
            self._note(f"{self.path}: {error}; the lines are kept, and become Parquet later")
        else:
            self._conversion = None


def _pyarrow() -> Any:  # noqa: ANN401 - a package without types
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise BackendUnavailableError(
            f"Parquet needs pyarrow ({error}): pip install 'magtiles-seg[plant]'"
        ) from error
    return pa


_GROUP_ROWS = 50_000
_TEXTS = frozenset({"kind", "label", "reason", "id", "run", "at", "since", "until", "after_run"})
_WHOLE = frozenset({"area_px", "x0_px", "x1_px", "first_line", "last_line"})


def _write_parquet(lines: Path, path: Path) -> int:
    """Make a Parquet file, whole or not at all, of rows that are lines of JSON.

    Returns:
        How many lines are damaged and left out.

    Raises:
        OSError: The disk is full.
    """
    pa, damaged = _pyarrow(), 0
    schema = pa.schema([(name, _parquet_type(name)) for name in COLUMNS])
    with (
        lines.open(encoding="utf-8", errors="replace") as file,
        staged(path, durable=True) as fresh,
        pa.parquet.ParquetWriter(fresh, schema, compression="zstd") as writer,
    ):
        while group := list(islice(file, _GROUP_ROWS)):
            rows = [row for row in map(_parsed, group) if row is not None]
            damaged += len(group) - len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return damaged


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _parquet_type(name: str) -> Any:  # noqa: ANN401
    pa = _pyarrow()
    if name == "complete":
        return pa.bool_()
    return pa.string() if name in _TEXTS else pa.int64() if name in _WHOLE else pa.float64()
