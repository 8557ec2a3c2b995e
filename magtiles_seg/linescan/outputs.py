"""What `magtiles-seg stream` writes and tells: records, doors, metrics, alarms, a clean stop."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.journal import Journal
from magtiles_seg.linescan.messages import SinkState
from magtiles_seg.linescan.parquet import ParquetSink
from magtiles_seg.linescan.sinks import (
    CsvSink,
    JsonLinesSink,
    RecordFile,
    Rotation,
    Sink,
)
from magtiles_seg.names import as_line, new_run, without_secrets
from magtiles_seg.signals import handled

if TYPE_CHECKING:
    from types import FrameType

    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.linescan.pages import WebPictures
    from magtiles_seg.linescan.plant.metrics import StreamMetrics
    from magtiles_seg.linescan.plant.outbox import Outbox
    from magtiles_seg.linescan.report import WebReport
    from magtiles_seg.linescan.review import WebReview
    from magtiles_seg.linescan.stream import StreamStatus

FORMATS: dict[str, type[RecordFile]] = {
    "jsonl": JsonLinesSink,
    "csv": CsvSink,
    "parquet": ParquetSink,
}


class Outputs:
    """Everything that a stream's findings go to, by the arguments of the verb.

    Attributes:
        run: Identifier of this run.
        sinks: To be told; the interval since an earlier run has been.
        review: Keeps crops for a person to look at; None: nobody asked for it.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        *,
        segmenter: Segmenter,
        note: Callable[[str], None],
        printer: Sink,
    ) -> None:
        """Open them all, and tell them what nobody has inspected since an earlier run.

        Args:
            arguments: Of the verb `stream`.
            segmenter: Model and thresholds.
            note: Told in a line what is mended or goes wrong.
            printer: Prints what is found.

        Raises:
            ConfigError: An option or address is not understood, or another run uses the folder.
            BackendUnavailableError: A package is not installed.
            OSError: A file cannot be opened.
        """
        self.run = new_run()
        self.sinks: list[Sink] = [printer]
        self._records: list[RecordFile] = []
        self._doors: list[Outbox] = []
        self._journal: Journal | None = None
        self._pictures: WebPictures | None = None
        self._metrics: StreamMetrics | None = None
        self.review: WebReview | None = None
        try:
            self._open(arguments, segmenter.spec.card.labels, note)
            self._open_review(arguments, segmenter, note)
        except BaseException:
            self._abandon()
            raise

    def settle(self, line: int | None) -> None:
        """Note up to which line every finding has been told the sinks; None: the web has ended."""
        if self._journal is not None:
            self._journal.settle(line)

    def show(self, status: StreamStatus) -> None:
        """Give the status to the metrics."""
        if self._metrics is not None:
            self._metrics.show(status)

    def states(self) -> list[SinkState]:
        """Return how the records and the doors stand."""
        sinks = (*self._records, self._journal, self._pictures, *self._doors, self.review)
        return [sink.state for sink in sinks if sink is not None]

    def alarms(self) -> list[str]:
        """Return a line for each that is not well, or has lost something."""
        return [state.alarm for state in self.states() if state.alarm is not None]

    def account(self, report: WebReport) -> dict[str, Any]:
        """Return a report of the whole: of the web, and of each sink."""
        sinks = [state.to_dict() for state in self.states()]
        return {**report.to_dict(), "run": self.run, "sinks": sinks}

    def end(self, report: WebReport) -> None:
        """Write how the run ended, when the sinks are closed."""
        if self.review is not None:
            self.review.close()
        if self._journal is not None:
            self._journal.close(self.account(report))

    def _open(
        self, arguments: argparse.Namespace, labels: tuple[str, ...], note: Callable[[str], None]
    ) -> None:
        if arguments.out is None:
            for option in ("pictures", "records", "rotate-mb", "rotate-h"):
                given = getattr(arguments, option.replace("-", "_"))
                if given is not None and given is not False:  # 0 is given, too
                    raise ConfigError(f"--{option} needs a folder to write to: add --out DIR")
        if arguments.out is not None:
            self._open_folder(arguments, labels, note)
        for address in arguments.to:
            from magtiles_seg.linescan.plant.address import open_door

            self._doors.append(open_door(address, run=self.run, labels=labels, note=note))
        self.sinks += self._doors
        if arguments.metrics_port is not None:
            from magtiles_seg.linescan.plant.metrics import StreamMetrics

            host, port = arguments.metrics_port
            self._metrics = StreamMetrics(port, host=host, states=self.states)
            self.sinks.append(self._metrics)
            shown = f"[{host}]" if ":" in host else host
            note(f"metrics at http://{shown}:{self._metrics.port}/metrics")
        if self._journal is not None:
            if self._journal.gap is not None:
                for sink in self.sinks:
                    sink.write(self._journal.gap)
            self._journal.begin()

    def _open_review(
        self, arguments: argparse.Namespace, segmenter: Segmenter, note: Callable[[str], None]
    ) -> None:
        if arguments.review is None:
            return
        from magtiles_seg.linescan.review import WebReview

        source = as_line(without_secrets(" ".join(arguments.source)))
        self.review = WebReview(arguments.review, segmenter, source=source, run=self.run, note=note)

    def _open_folder(
        self, arguments: argparse.Namespace, labels: tuple[str, ...], note: Callable[[str], None]
    ) -> None:
        rotation = _rotation(arguments)
        kinds = _formats("jsonl,csv" if arguments.records is None else arguments.records)
        self._journal = Journal(arguments.out, self.run, self._records, note=note)
        for suffix in kinds:
            path = arguments.out / f"defects.{suffix}"
            file = FORMATS[suffix](path, run=self.run, rotation=rotation, note=note)
            self._records.append(file)
            self.sinks.append(file)
        if arguments.pictures:
            from magtiles_seg.linescan.pages import WebPictures

            folder = arguments.out / f"pictures-{self.run}"
            self._pictures = WebPictures(folder, labels=labels)
            self.sinks.append(self._pictures)

    def _abandon(self) -> None:
        for sink in self.sinks:
            with suppress(Exception):  # the error that is under way says more
                sink.close()
        if self._journal is not None:
            self._journal.abandon()


def _rotation(arguments: argparse.Namespace) -> Rotation:
    size = 100.0 if arguments.rotate_mb is None else arguments.rotate_mb
    hours = 24.0 if arguments.rotate_h is None else arguments.rotate_h
    for option, value in (("--rotate-mb", size), ("--rotate-h", hours)):
        if not value >= 0:  # NaN is not, either
            raise ConfigError(f"{option} is {value}; expected more than 0, or 0 for never")
    return Rotation(most_bytes=1e6 * size or None, most_s=3600 * hours or None)


def _formats(words: str) -> Sequence[str]:
    kinds = list(dict.fromkeys(word.strip() for word in words.split(",")))
    unknown = [kind for kind in kinds if kind not in FORMATS]
    if unknown:
        raise ConfigError(
            f"--records names {', '.join(map(repr, unknown))}; "
            f"expected some of {', '.join(FORMATS)}"
        )
    return kinds


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set; behind the block, the signal acts as before.

    A second signal acts at once.
    """
    stop, caught = threading.Event(), list[int]()

    def catch(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        stop.set()

    with handled(catch, once=True):
        yield stop
    if caught:
        sys.stdout.flush()
        signal.raise_signal(caught[0])
