"""What `magtiles-seg stream` does: opens the source and the sinks, shows the pace."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.outputs import Outputs, stoppable
from magtiles_seg.linescan.report import WebReport
from magtiles_seg.linescan.segmenter import LineScanSegmenter
from magtiles_seg.linescan.sinks import as_json
from magtiles_seg.linescan.sources import ArraySource, FolderSource, LineSource, Replay, VideoSource
from magtiles_seg.linescan.stream import StreamStatus, inspect
from magtiles_seg.progress import live, note

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magtiles_seg.dataset.synthetic.web import WebRows
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.linescan.sources import LineBlock

__all__ = ["open_source", "stream"]

_VIDEOS = frozenset({".avi", ".mkv", ".mov", ".mp4"})


def open_source(word: str) -> LineSource:
    """Return the source that a word means: `basler:`, `genicam:`, `synthetic:`, a video, pictures.

    Raises:
        ConfigError: The options after `synthetic:` have no sense.
        DataError, FileNotFoundError, BackendUnavailableError: It cannot be opened.
    """
    kind, colon, rest = word.partition(":")
    if colon and kind in ("basler", "genicam"):
        from magtiles_seg.linescan.cameras import BaslerSource, GenicamSource

        return BaslerSource(rest or None) if kind == "basler" else GenicamSource(rest)
    if colon and kind == "synthetic":
        return _synthetic(word)
    if Path(word).suffix.lower() in _VIDEOS:
        return VideoSource(word)
    return FolderSource(word, note=note)


def stream(
    segmenter: Segmenter, arguments: argparse.Namespace, *, tell: Callable[[str], None]
) -> bool:
    """Inspect the source that the arguments name.

    Args:
        segmenter: Model and thresholds.
        arguments: Of the verb `stream`.
        tell: Prints a line.

    Returns:
        True if there was no defect and every line was inspected.
    """
    source: LineSource = open_source(arguments.source)
    if arguments.line_rate:
        source = Replay(source, line_rate_hz=arguments.line_rate)
    web = LineScanSegmenter(
        source.width_px,
        segmenter,
        mm_per_px=arguments.mm_per_px,
        line_mm=arguments.line_mm,
        strip_rows=arguments.strip_rows,
        batch=arguments.batch,
    )
    labels, teller = segmenter.spec.card.labels, _Teller(tell, in_json=arguments.json)
    with stoppable() as stop, live() as show:  # from before the records are begun
        outputs = Outputs(arguments, labels=labels, note=note, printer=teller)

        def on_status(status: StreamStatus) -> None:
            outputs.show(status)
            show("  ".join([pace(status), *(f"ALARM {line}" for line in outputs.alarms())]))

        try:
            report = inspect(
                source,
                web,
                outputs.sinks,
                queue_blocks=arguments.queue,
                when_full=arguments.when_full,
                on_status=on_status,
                on_settled=outputs.settle,
                stop=stop,
            )
        finally:
            outputs.end(web.report)
        if arguments.json:
            tell(json.dumps({"kind": "report", **outputs.account(report)}))
        else:
            tell(summary(report))
            for line in outputs.alarms():
                tell(line)
    return not report.defects and not report.uninspected_lines


def pace(status: StreamStatus) -> str:
    """Return one line on a running inspection."""
    report = status.report
    return (
        f"{status.lines_per_s:,.0f} lines/s  "
        f"{status.lines_per_s * report.width_px / 1e6:.1f} MPix/s  "
        f"queue {status.queued_blocks}/{status.queue_blocks}  "
        f"{report.defects} defects  {_unseen(report)} uninspected  "
        f"p99 {report.latency_p99_ms:.0f} ms"
    )


def summary(report: WebReport) -> str:
    """Return what an inspection came to, in two lines."""
    share = report.bookkeeping_s / report.model_s if report.model_s else 0.0
    return (
        f"{report.lines} lines inspected, {report.defects} defects, "
        f"{_unseen(report)} uninspected ({report.dropped_lines} lines dropped), "
        f"{report.repeated_lines} lines repeated\n"
        f"row to verdict: {report.latency_p50_ms:.0f} ms (median), {report.latency_p99_ms:.0f} ms "
        f"(p99); bookkeeping {share:.1%} of the model's time"
    )


def _unseen(report: WebReport) -> str:
    if report.uninspected_mm is None:
        return f"{report.uninspected_lines} lines"
    return f"{report.uninspected_mm:.1f} mm"


class _Teller:
    """Prints what is found, as JSON or in words."""

    def __init__(self, tell: Callable[[str], None], *, in_json: bool) -> None:
        self._tell, self._in_json = tell, in_json

    def lines(self, block: LineBlock) -> None:
        """Lines are not printed."""

    def write(self, found: WebDefect | Uninspected) -> None:
        """Print one line."""
        if self._in_json:
            self._tell(as_json(found))
        elif isinstance(found, WebDefect):
            size = f"{found.length_px:.0f} x {found.width_px:.0f} px"
            if found.length_mm is not None and found.width_mm is not None:
                size += f" ({found.length_mm:.2f} x {found.width_mm:.2f} mm)"
            where = f"lines {found.first_line}-{found.last_line}, x {found.centroid_xy_px[0]:.0f}"
            self._tell(f"{found.label} {found.score:.2f} at {where}: {size}")
        else:
            end = "the end" if found.end_line is None else str(found.end_line - 1)
            self._tell(f"uninspected lines {found.first_line}-{end}: {found.reason}")

    def close(self) -> None:
        """Nothing is held."""


def _synthetic(source: str) -> LineSource:
    from magtiles_seg.dataset.synthetic import read_source
    from magtiles_seg.dataset.synthetic.web import synthetic_web

    options = read_source(source, tiles=1000, width=2048, seed=0)
    drawn = synthetic_web(options["width"], seed=options["seed"])
    first = next(drawn)
    rows = max(1, options["tiles"] // first.tiles)
    return ArraySource(_images(first, islice(drawn, rows - 1)))


def _images(first: WebRows, rest: Iterator[WebRows]) -> Iterator[NDArray[np.uint8]]:
    yield first.image
    for rows in rest:
        yield rows.image
