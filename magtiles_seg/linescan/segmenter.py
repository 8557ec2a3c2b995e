"""`LineScanSegmenter`: inspects an endless web that comes in blocks of lines, each defect once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from magtiles_seg.decision import count, scale
from magtiles_seg.errors import ConfigError, ImageError, InferenceError
from magtiles_seg.image import pad_to_min_side
from magtiles_seg.infer.screen import ScreenedBackend
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.linescan.components import Hole, OpenRegions, Region, without_holes
from magtiles_seg.linescan.defects import Reason, Uninspected, WebDefect, measure
from magtiles_seg.linescan.report import WebCounts, WebReport
from magtiles_seg.linescan.sources import LineBlock, line_number
from magtiles_seg.linescan.strips import Strip, StripCutter, halo_px, round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LineScanSegmenter", "Uninspected", "WebDefect", "WebReport"]

_MOST_REPEATED = 65_536
"""More lines in a row that came before are no late frames: nothing new would ever be inspected."""

Watcher: TypeAlias = Callable[
    [int, "NDArray[np.uint8]", "NDArray[np.float32]", "NDArray[np.uint8]"], object
]
"""Told (first line, pixels, probability, classes) of a strip's core."""

_ROUNDING = 1e-5  # a runtime's sigmoid may overshoot by this much


class LineScanSegmenter:
    """Finds each defect of a web once, in web coordinates, whatever blocks the lines come in.

    The web is cut at fixed lines into strips with a halo as wide as the network sees. However the
    same lines are cut into blocks, the defects are the same to the last bit, and they are those of
    the whole web as one picture, save for the runtime's rounding: pixels whose probability lies
    within some 1e-5 of the threshold, and sizes within 1e-3 of their value. With `batch` above 1
    the runtime may round by the number of strips it had at once; then that holds for cuts as well.
    With `Segmenter(flips=True)` it is each strip that is turned, and not the whole web: they differ
    where its height is no multiple of the model's stride.

    Not for use from several threads at once. Memory is bounded by strip size and open defects.

    Example:
        >>> web = LineScanSegmenter(width_px=2048, mm_per_px=0.05)
        >>> for rows in camera:
        ...     for defect in web.push(rows):
        ...         print(defect.label, defect.first_line, defect.length_mm)
        >>> last = web.close()
    """

    def __init__(
        self,
        width_px: int,
        segmenter: Segmenter | None = None,
        *,
        mm_per_px: float | None = None,
        line_mm: float | None = None,
        strip_rows: int = 1024,
        batch: int = 1,
    ) -> None:
        """Prepare for a web.

        Args:
            width_px: Pixels per line.
            segmenter: Model and thresholds; stays the caller's. None: the bundled model.
            mm_per_px: Size of a pixel across the web, for measures in mm; None: unknown.
            line_mm: Line pitch by the encoder, in mm; None: as `mm_per_px`.
            strip_rows: Lines per strip, rounded up to the model's stride. More cost less in halo,
                fewer answer earlier.
            batch: Most strips in one inference, taken together when one block completes several.

        Raises:
            ConfigError: A number is invalid.
            ModelError: The model does not say how far it sees.
            FileNotFoundError: There is no bundled model.
            TypeError: `segmenter` is a path.
        """
        if isinstance(segmenter, str | os.PathLike):
            raise TypeError(f"segmenter is {segmenter!r}; expected a Segmenter: Segmenter(that)")
        self._width_px = count("width_px", width_px)
        self._batch = count("batch", batch)
        rows = count("strip_rows", strip_rows)
        self._mm_per_px = scale(mm_per_px)
        self._line_mm = self._mm_per_px if line_mm is None else scale(line_mm, "line_mm")
        self._is_owned = segmenter is None
        self._segmenter = Segmenter() if segmenter is None else segmenter
        card, decision = self._segmenter.spec.card, self._segmenter.decision
        self._labels, self._threshold = card.labels, decision.threshold
        self._cutter = StripCutter(width_px, round_up(rows, card.stride), halo_px(card))
        self._regions = OpenRegions(width_px, len(card.labels), decision.min_area_px)
        self._counts = WebCounts(self._line_mm)
        self._cells = self._passed_cells = 0
        self._finished: list[WebDefect] = []
        self._next_line: int | None = None
        self._repeated_in_a_row = 0
        self._holes: list[Hole] = []
        self._watcher: Watcher | None = None
        self._closed = False

    @property
    def next_line(self) -> int:
        """Number of the line that is expected next."""
        return self._next_line or 0

    @property
    def settled_line(self) -> int:
        """All that the lines before this one show has been given out: no open defect has any."""
        first_line = self._regions.first_line
        undecided_line = self._cutter.undecided_line
        return undecided_line if first_line is None else min(first_line, undecided_line)

    @property
    def uninspected(self) -> tuple[Uninspected, ...]:
        """Intervals of lines without a verdict, the latest 1000; totals stand in `report`."""
        return tuple(self._counts.intervals)

    @property
    def report(self) -> WebReport:
        """What has happened so far."""
        pending = self._cutter.end_line - self._cutter.undecided_line
        return self._counts.report(
            self._width_px,
            pending_lines=pending,
            open_defects=len(self._regions),
            passed_share=self._passed_share,
        )

    @property
    def _passed_share(self) -> float | None:
        """Share of the web's cells that the screen passed on; None without one."""
        if not isinstance(self._segmenter.backend, ScreenedBackend):
            return None
        return self._passed_cells / max(1, self._cells)

    def notify(self, listener: Callable[[Uninspected], None]) -> None:
        """Call a function with each interval of lines without a verdict, as soon as it is known."""
        self._counts.listeners.append(listener)

    def watch(self, watcher: Watcher) -> None:
        """Call a function with each strip's core and its answer, as soon as it is there.

        Args:
            watcher: Gets the web line of the first row, then (H, W) each: pixels uint8, probability
                float32 and the likeliest class of defect uint8; to be read alone, and copied where
                they are to be kept.
        """
        self._watcher = watcher

    def push(
        self,
        rows: NDArray[np.uint8],
        start_line: int | np.integer[Any] | None = None,
        *,
        arrived_s: float | None = None,
        gap: Reason = "lost",
    ) -> list[WebDefect]:
        """Take the next lines and return the defects that they show to have ended.

        Args:
            rows: (n, W) uint8, any n; copied.
            start_line: The camera's number of the first row; None: the line that is expected next.
                Lines that are skipped become an uninspected interval; lines that came before, or
                whose gap has been reported, are left out and counted.
            arrived_s: When they came, by `time.perf_counter`; None: now.
            gap: Why lines before this block are missing, if they are.

        Raises:
            ConfigError: `start_line` is no whole number, or a NumPy integer that has wrapped: it is
                more than half its range below the line that is expected.
            ImageError: The rows are not (n, W) uint8.
            InferenceError: The web is closed; or the model failed: the lines without a verdict are
                then an uninspected interval, and the next call goes on behind them; or nothing but
                old lines has come for long: the camera's counter has started anew.
        """
        line = self.next_line if start_line is None else start_line
        if isinstance(line, np.integer):
            self._check_wrap(line)
        return self.take(LineBlock(rows, line_number("start_line", line), arrived_s, gap))

    def take(self, block: LineBlock) -> list[WebDefect]:
        """Take a source's block: as `push`, with all that a `LineBlock` says.

        Raises:
            ImageError, InferenceError: As `push`.
        """
        began_s = time.perf_counter()
        self._check_open()
        self._check_rows(block.rows)
        rows, line = block.rows, block.start_line
        try:
            if self._next_line is None:
                self._begin(line, after_gap=False)
            if line > self.next_line:
                self._skip(line, "lost" if block.gap == "restarted" else block.gap)
            if block.gap == "restarted":
                self._skip(None, "restarted")
            repeated = min(len(rows), self.next_line - line)
            self._counts.repeated += repeated
            self._check_counter(repeated, len(rows))
            arrived_s = began_s if block.arrived_s is None else block.arrived_s
            self._counts.silence.hear(arrived_s, lines=len(rows))
            self._note(block, repeated)
            self._take(rows[repeated:], arrived_s)
        finally:
            self._counts.all_s += time.perf_counter() - began_s
        return self._give_out()

    def skip(self, end_line: int | None, reason: Reason) -> list[WebDefect]:
        """Declare the lines from the expected one up to `end_line` uninspected.

        Args:
            end_line: The line after the last of them; None: unknown, the source broke off.
            reason: Why.

        Returns:
            The defects that end here.

        Raises:
            ConfigError: The line has come already, or is no whole number.
            InferenceError: As `push`.
        """
        self._check_open()
        if end_line is not None:
            end_line = line_number("end_line", end_line)
            if end_line < self.next_line:
                raise ConfigError(
                    f"end_line is {end_line}; expected at least {self.next_line}, the line that is "
                    "expected next: those before it have come"
                )
        began_s = time.perf_counter()
        try:
            self._skip(end_line, reason)
        finally:
            self._counts.all_s += time.perf_counter() - began_s
        return self._give_out()

    def close(self) -> list[WebDefect]:
        """End the web and return the rest of its defects; closing twice is harmless."""
        if not self._closed:
            began_s = time.perf_counter()
            try:
                self._flush(complete=True)
            finally:
                self._closed = True
                self._counts.all_s += time.perf_counter() - began_s
                if self._is_owned:
                    self._segmenter.close()
        return self._give_out()

    def __reduce__(self) -> str:
        """Refuse to be pickled or copied: the web's open defects would then be reported twice."""
        raise TypeError(
            "a LineScanSegmenter cannot be pickled or copied: it holds a web that is under way; "
            "send the width and the Segmenter, and make one on the other side"
        )

    def _begin(self, line: int, *, after_gap: bool) -> None:
        self._next_line = line
        self._cutter.start(line)
        self._regions.start(after_gap=after_gap)

    def _note(self, block: LineBlock, repeated: int) -> None:
        """Note what the block says of its new lines, before a strip is cut from them."""
        new = len(block.rows) - repeated
        if not block.numbered:
            self._counts.unnumbered += new
        if block.missing and new:
            end_line = self.next_line + new
            self._counts.miss_part(self.next_line, end_line, block.missing)
            self._holes += [Hole(self.next_line, end_line, *columns) for columns in block.missing]

    def _take(self, rows: NDArray[np.uint8], arrived_s: float) -> None:
        if not len(rows):
            return
        end_line = self.next_line + len(rows)
        self._counts.latency.arrive(end_line, arrived_s)
        self._inspect(self._cutter.push(rows), end_line)
        self._next_line = end_line

    def _flush(self, *, complete: bool) -> None:
        self._inspect(self._cutter.finish(), self.next_line)
        self._collect(self._regions.finish(complete=complete))

    def _skip(self, end_line: int | None, reason: Reason) -> None:
        first_line = self.next_line
        self._flush(complete=False)
        self._begin(first_line if end_line is None else end_line, after_gap=True)
        self._counts.miss(first_line, end_line, reason)  # last: a listener may raise

    def _inspect(self, strips: Iterable[Strip], end_line: int) -> None:
        """Decide on strips; where one fails, give up the lines from there to `end_line`."""
        group: list[Strip] = []
        try:
            for strip in strips:
                if group and strip.pixels.shape != group[0].pixels.shape:
                    self._decide(group)
                group.append(strip)
                if len(group) == self._batch:
                    self._decide(group)
            if group:
                self._decide(group)
        except BaseException:
            first_line = group[0].first_line if group else self._cutter.undecided_line
            self._collect(self._regions.finish(complete=False))
            self._counts.latency.forget(end_line)
            self._begin(end_line, after_gap=True)
            self._counts.miss(first_line, end_line, "failed")
            raise

    def _decide(self, group: list[Strip]) -> None:
        """Run the model on strips of one shape, join their regions, and empty the group."""
        probability, classes = self._infer(group)
        for index, strip in enumerate(list(group)):
            core = slice(strip.offset, strip.offset + strip.rows)
            self._join(strip, probability[index, core], classes[index, core])
            group.pop(0)

    def _infer(self, group: list[Strip]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        stack = np.stack([strip.pixels for strip in group])
        _, height, width = stack.shape
        stack = pad_to_min_side(stack)
        backend = self._segmenter.backend
        began_s = time.perf_counter()
        if isinstance(backend, ScreenedBackend):
            probability, classes, passed = backend.infer_and_tell(stack)
            self._count_cells(group, passed, backend.screen.card.stride)
        else:
            probability, classes = backend.infer(stack)
        self._counts.model_s += time.perf_counter() - began_s
        return probability[:, :height, :width], classes[:, :height, :width]

    def _count_cells(
        self, group: list[Strip], passed: list[NDArray[np.bool_]], cell_px: int
    ) -> None:
        """Count the cells of the strips' cores: those of a halo belong to the strip beside it."""
        for strip, cells in zip(group, passed, strict=True):
            end = -(-(strip.offset + strip.rows) // cell_px)
            core = cells[strip.offset // cell_px : end]
            self._cells += core.size
            self._passed_cells += int(np.count_nonzero(core))

    def _join(
        self, strip: Strip, probability: NDArray[np.float32], classes: NDArray[np.uint8]
    ) -> None:
        self._check_answer(probability, classes)
        first_line = strip.first_line
        self._holes = [hole for hole in self._holes if hole.end_line >= first_line]
        probability, beside = without_holes(probability, first_line, self._holes)
        self._collect(
            self._regions.add(first_line, probability, classes, self._threshold, beside=beside)
        )
        if self._watcher is not None:
            core = strip.pixels[strip.offset : strip.offset + strip.rows]
            self._watcher(first_line, core, probability, classes)
        self._counts.lines += strip.rows
        end_line = strip.first_line + strip.rows
        self._counts.latency.decide(strip.first_line, end_line, time.perf_counter())

    def _collect(self, regions: Iterable[Region]) -> None:
        for region in regions:
            defect = measure(region, self._labels, mm_per_px=self._mm_per_px, line_mm=self._line_mm)
            self._finished.append(defect)
            self._counts.defects += 1

    def _give_out(self) -> list[WebDefect]:
        given, self._finished = self._finished, []
        return given

    def _check_open(self) -> None:
        if self._closed:
            raise InferenceError("the web is closed: make a new LineScanSegmenter")

    def _check_wrap(self, line: np.integer[Any]) -> None:
        bits = 8 * line.itemsize
        if self.next_line - int(line) > 2 ** (bits - 1):
            raise ConfigError(
                f"start_line is {line}, and line {self.next_line} is expected: a counter of {bits} "
                f"bits that has wrapped; count in a Python int, adding 2**{bits} at each wrap"
            )

    def _check_counter(self, repeated: int, rows: int) -> None:
        self._repeated_in_a_row = self._repeated_in_a_row + repeated if repeated == rows else 0
        if self._repeated_in_a_row > _MOST_REPEATED:
            raise InferenceError(
                f"the last {self._repeated_in_a_row} lines all carry numbers below "
                f"{self.next_line}, which have been inspected; the camera's line counter seems to "
                "have started anew: close this web and make a new LineScanSegmenter"
            )

    def _check_rows(self, rows: object) -> None:
        if not isinstance(rows, np.ndarray):
            raise TypeError(f"rows is a {type(rows).__name__}; expected a uint8 array (n, W)")
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != self._width_px:
            raise ImageError(
                f"rows is {rows.dtype} {rows.shape}; expected uint8 (n, {self._width_px}), the "
                "width that LineScanSegmenter was made for; make one for this camera's width, and "
                "let the camera deliver Mono8"
            )

    def _check_answer(self, probability: NDArray[np.float32], classes: NDArray[np.uint8]) -> None:
        highest = float(probability.max())  # NaN where there is one
        least, most = int(classes.min()), int(classes.max())
        if not 0 <= highest <= 1 + _ROUNDING or least < 1 or most >= len(self._labels):
            raise InferenceError(
                f"the model answered probabilities up to {highest} and classes {least}..{most}; "
                f"expected 0..1 and 1..{len(self._labels) - 1}; check the model"
            )
