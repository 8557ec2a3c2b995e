"""What `magtiles-seg stream` does: opens the source and the sinks, shows the pace."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.outputs import Outputs, stoppable
from magtiles_seg.linescan.report import WebReport
from magtiles_seg.linescan.segmenter import LineScanSegmenter
from magtiles_seg.linescan.side_by_side import SideBySide
from magtiles_seg.linescan.sinks import as_json
from magtiles_seg.linescan.sources import ArraySource, FolderSource, LineSource, Replay, VideoSource
from magtiles_seg.linescan.stream import StreamStatus, inspect
from magtiles_seg.names import counted, is_address
from magtiles_seg.progress import live, note

if TYPE_CHECKING:
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.linescan.sources import LineBlock

_VIDEOS = frozenset({".avi", ".mkv", ".mov", ".mp4"})


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """How a camera is set up.

    Attributes:
        settings: Its settings file.
        features: What is set after it, by name.
        timeout_s: How long it may be silent; None: by its trigger, see `BaslerSource`.
    """

    settings: Path | None = None
    features: Mapping[str, str | float | int] = field(default_factory=dict)
    timeout_s: float | None = None


def open_source(word: str, camera: CameraOptions | None = None) -> LineSource:
    """Return the source that a word means: `basler:`, `genicam:`, `synthetic:`, a video, pictures.

    Args:
        word: As in `basler:SERIAL`, `genicam:FILE.cti#1`, or a path.
        camera: How it is set up if it is one; None: as it is.

    Raises:
        ConfigError: The options after `synthetic:` are invalid, or there are options for a camera
            and the source is none.
        DataError, OSError, BackendUnavailableError: It cannot be opened.
    """
    kind, colon, rest = word.partition(":")
    if colon and kind in ("basler", "genicam"):
        return _camera(kind, rest, camera or CameraOptions())
    if camera is not None and camera != CameraOptions():
        raise ConfigError(
            f"{word} is no camera, and options for one are given (--camera-file, --feature, "
            "--width and the like): leave them out, or name basler:[SERIAL] or genicam:FILE.cti"
        )
    if colon and kind == "synthetic":
        return _synthetic(word)
    if Path(word).suffix.lower() in _VIDEOS and not is_address(word):
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
    source = _source(arguments)
    printer = StandardOutput(tell, in_json=arguments.json)
    with stoppable() as stop, live() as show:  # from before the records are begun
        try:
            web = _web(source.width_px, segmenter, arguments)
            outputs = Outputs(arguments, segmenter=segmenter, note=note, printer=printer)
            if outputs.review is not None:
                web.watch(outputs.review.look)
        except BaseException:
            source.close()
            raise

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
        for line in _ending(report, outputs, in_json=arguments.json):
            tell(line)
    return not report.defects and report.whole


def _web(width_px: int, segmenter: Segmenter, arguments: argparse.Namespace) -> LineScanSegmenter:
    return LineScanSegmenter(
        width_px,
        segmenter,
        mm_per_px=arguments.mm_per_px,
        line_mm=arguments.line_mm,
        strip_rows=arguments.strip_rows,
        batch=arguments.batch,
    )


def _ending(report: WebReport, outputs: Outputs, *, in_json: bool) -> list[str]:
    """Return the lines that close an inspection."""
    if in_json:
        return [json.dumps({"kind": "report", **outputs.account(report)})]
    return [summary(report), *outputs.alarms()]


def _source(arguments: argparse.Namespace) -> LineSource:
    """Return the web's one source: a camera or file, or several side by side.

    Raises:
        ConfigError: There are overlaps and one source, or settings files for other than one or all.
    """
    words = arguments.source
    files = arguments.camera_file or [None]
    if len(files) not in (1, len(words)):
        raise ConfigError(
            f"{len(files)} settings files are given for {len(words)} sources; expected one for "
            "all, or one each"
        )
    files = files * len(words) if len(files) == 1 else files
    if arguments.overlap_px and len(words) == 1:
        raise ConfigError("--overlap-px needs several sources side by side; one is given")
    sources: list[LineSource] = []
    try:
        for word, file in zip(words, files, strict=True):
            sources.append(_one_source(word, file, arguments))
        if len(sources) == 1:
            return sources[0]
        return SideBySide(sources, overlaps_px=arguments.overlap_px or [0])
    except BaseException:
        for source in sources:
            source.close()
        raise


def _one_source(word: str, file: Path | None, arguments: argparse.Namespace) -> LineSource:
    features = {
        name: value
        for name, value in (
            ("pixel-format", arguments.pixel_format),
            ("width", arguments.width),
            ("height", arguments.height),
            ("exposure-us", arguments.exposure_us),
            ("trigger", arguments.trigger),
        )
        if value is not None
    }
    if arguments.line_rate and _is_camera(word):
        features["line-rate"] = arguments.line_rate
    features |= dict(arguments.feature or [])
    options = CameraOptions(settings=file, features=features, timeout_s=arguments.timeout_s)
    source = open_source(word, options)
    if arguments.line_rate and not _is_camera(word):
        return Replay(source, line_rate_hz=arguments.line_rate)
    return source


def _is_camera(word: str) -> bool:
    return word.startswith(("basler:", "genicam:"))


def _camera(kind: str, rest: str, options: CameraOptions) -> LineSource:
    from magtiles_seg.linescan.cameras import BaslerSource, GenicamSource

    if kind == "basler":
        return BaslerSource(
            rest or None,
            settings=options.settings,
            features=options.features,
            timeout_s=options.timeout_s,
        )
    producer, mark, number = rest.rpartition("#")
    if not (mark and number.isdecimal()):
        producer, number = rest, "0"
    return GenicamSource(
        producer,
        device=int(number),
        settings=options.settings,
        features=options.features,
        timeout_s=options.timeout_s,
    )


def pace(status: StreamStatus) -> str:
    """Return one line on a running inspection."""
    report = status.report
    return (
        f"{status.lines_per_s:,.0f} lines/s  "
        f"{status.lines_per_s * report.width_px / 1e6:.1f} MPix/s  "
        f"queue {status.queued_blocks}/{status.queue_blocks}  "
        f"{counted(report.defects, 'defect')}  {_unseen(report)} uninspected  "
        f"p99 {report.latency_p99_ms:.0f} ms"
        + (f"  web stands for {report.silence_s:.0f} s" if report.silence_s >= 1 else "")
    )


def summary(report: WebReport) -> str:
    """Return what an inspection came to, in two lines."""
    share = report.bookkeeping_s / report.model_s if report.model_s else 0.0
    return (
        f"{counted(report.lines, 'line')} inspected, {counted(report.defects, 'defect')}, "
        f"{_unseen(report)} uninspected ({counted(report.dropped_lines, 'line')} dropped), "
        f"{counted(report.repeated_lines, 'line')} repeated\n"
        f"{_doubts(report)}"
        f"row to verdict: {report.latency_p50_ms:.0f} ms (median), {report.latency_p99_ms:.0f} ms "
        f"(p99); bookkeeping {share:.1%} of the model's time"
    )


def _doubts(report: WebReport) -> str:
    """Return lines on what else the account has to say, if anything."""
    told = []
    if report.partial_lines:
        told.append(f"{counted(report.partial_lines, 'line')} inspected on part of their width")
    if report.restarts:
        told.append(
            f"{counted(report.restarts, 'restart')} of the camera: an unknown number of lines "
            "missing"
        )
    if report.unnumbered_lines:
        told.append(
            f"{counted(report.unnumbered_lines, 'line')} without a number: losses go unnoticed "
            "there"
        )
    if report.passed_share is not None:
        told.append(f"{report.passed_share:.1%} of the web passed on by the screen")
    if report.longest_silence_s >= 1:
        told.append(f"the web stood for up to {report.longest_silence_s:.0f} s")
    return "".join(f"{line}\n" for line in told)


def _unseen(report: WebReport) -> str:
    if report.uninspected_mm is None:
        return counted(report.uninspected_lines, "line")
    return f"{report.uninspected_mm:.1f} mm"


class StandardOutput:
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
            part = "" if found.x1_px is None else f", x {found.x0_px}-{found.x1_px - 1}"
            if found.reason == "restarted":
                end = "?"
            self._tell(f"uninspected lines {found.first_line}-{end}{part}: {found.reason}")

    def close(self) -> None:
        """Nothing is held."""


def _synthetic(source: str) -> LineSource:
    from magtiles_seg.dataset.synthetic import read_source
    from magtiles_seg.dataset.synthetic.web import synthetic_web

    options = read_source(source, tiles=1000, width=2048, seed=0)
    drawn = synthetic_web(options["width"], seed=options["seed"])
    first = next(drawn)
    rows = max(1, options["tiles"] // first.tiles)
    return ArraySource(one.image for one in chain([first], islice(drawn, rows - 1)))
