"""Where lines come from: arrays, folders and videos as though a line camera delivered them."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, SupportsIndex

import numpy as np

from magtiles_seg.decision import count, fraction
from magtiles_seg.errors import ConfigError, DataError, ImageError
from magtiles_seg.image import read_image
from magtiles_seg.inputs import Survey, find_pictures
from magtiles_seg.linescan.defects import Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_LINES = 2**62


@dataclass(frozen=True, eq=False)
class LineBlock:
    """Lines as they come from a camera.

    Attributes:
        rows: (n, W) uint8; nobody else writes to it.
        start_line: The camera's number of the first row, whether or not every line has come.
        arrived_s: When they came, by `time.perf_counter`; None: when they are first seen.
        gap: Why lines before this block are missing, if they are; `"restarted"`: an unknown number
            is missing, whatever `start_line` says.
        numbered: False: the camera gave no number, and losses before this block go unnoticed.
        missing: Columns (x0, x1) of these lines that did not come, in px; their values are filler.

    A block without lines says that its source lives, and that all lines before `start_line` have
    come or are missing.
    """

    rows: NDArray[np.uint8]
    start_line: int
    arrived_s: float | None = None
    gap: Reason = "lost"
    numbered: bool = True
    missing: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Make the number Python's own: those of NumPy wrap round at their type's end."""
        object.__setattr__(self, "start_line", line_number("start_line", self.start_line))


def line_number(name: str, value: SupportsIndex) -> int:
    """Return the number of a line as Python's own.

    Raises:
        ConfigError: It is no whole number, or one that no camera reaches.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = _MOST_LINES
    if not -_MOST_LINES < number < _MOST_LINES:
        raise ConfigError(f"{name} is {value!r}; expected a whole number, below 2**62")
    return number


def frame(block: LineBlock, *, lines: int) -> Iterator[LineBlock]:
    """Yield what came of a frame that should have had `lines` lines, and an empty block behind it.

    The empty block is there if lines are missing: so they are known to be, even if nothing follows.
    """
    yield block
    if len(block.rows) < lines:
        yield LineBlock(block.rows[:0], block.start_line + lines, block.arrived_s)


class LineSource(Protocol):
    """Delivers a web's lines, once, in the order of their arrival."""

    @property
    def width_px(self) -> int:
        """Pixels per line."""

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield blocks until the web ends.

        Raises:
            DataError: The source broke off; what it yielded before stays good.
        """

    def close(self) -> None:
        """Free the camera or file. Closing twice is harmless."""


class ArraySource:
    """Lines from memory: one array, or any iterable of blocks."""

    def __init__(
        self, rows: NDArray[np.uint8] | Iterable[NDArray[np.uint8]], *, block_rows: int = 256
    ) -> None:
        """Wrap lines.

        Args:
            rows: (H, W) uint8, or an iterable of (n, W) uint8 blocks, which may be endless.
            block_rows: Lines per block where one array is given.

        Raises:
            DataError: The iterable is empty.
            ImageError: The array, or the first block, is not (n, W) uint8.
        """
        step = count("block_rows", block_rows)
        if isinstance(rows, np.ndarray):
            self.width_px = _width_px(rows)
            blocks = (rows[at : at + step] for at in range(0, len(rows), step))
            self._blocks: Iterator[NDArray[np.uint8]] = iter(blocks)
        else:
            self._blocks = iter(rows)
            first = next(self._blocks, None)
            if first is None:
                raise DataError("the source has no lines; expected at least one block")
            self.width_px = _width_px(first)
            self._blocks = itertools.chain([first], self._blocks)

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield the blocks, numbered on."""
        line = 0
        for rows in self._blocks:
            yield LineBlock(rows, line, time.perf_counter())
            line += len(rows)

    def close(self) -> None:
        """Nothing is held."""


class FolderSource(ArraySource):
    """Pictures of a folder, file or glob, in the natural order of their names: 1, 2, 10."""

    def __init__(self, path: str | Path, *, note: Callable[[str], None] | None = None) -> None:
        """Find the pictures; each is read when its turn comes.

        Args:
            path: Folder, file or glob.
            note: Told what is left out, such as results of an earlier run.

        Raises:
            DataError: There is no picture, a folder cannot be listed, or (while it is read) one has
                another width.
            ImageError: The first is no picture.
        """
        survey = Survey()
        self._pictures = list(find_pictures([str(path)], survey))
        if survey.unlisted:
            raise DataError(f"{'; '.join(survey.problems())}; a web must be whole")
        if note is not None:
            for line in survey.lines():
                note(line)
        super().__init__(self._read())

    def _read(self) -> Iterator[NDArray[np.uint8]]:
        width_px = None
        for picture in self._pictures:
            rows = read_image(picture)
            width_px = width_px or rows.shape[1]
            if rows.shape[1] != width_px:
                raise DataError(
                    f"{picture} is {rows.shape[1]} px wide; expected {width_px} px as the first "
                    "picture of this web; keep one camera's pictures in a folder"
                )
            yield rows


class VideoSource(ArraySource):
    """Frames of a video file, in grey, one below the other."""

    def __init__(self, path: str | Path) -> None:
        """Open a video.

        Raises:
            OSError: There is no such file, or it may not be read.
            DataError: It is no video that OpenCV can read.
        """
        import cv2

        if Path(path).is_fifo():  # to open one waits for ever, and is deaf to Ctrl+C
            raise DataError(f"{path} is a pipe; expected a video file: write it to a file first")
        Path(path).open("rb").close()  # OpenCV does not say why a file cannot be read
        self._path = path
        self._video = cv2.VideoCapture(str(path))
        if not self._video.isOpened():
            raise DataError(f"{path} is no video that OpenCV can read; expected AVI, MP4 or MKV")
        super().__init__(self._read())

    def _read(self) -> Iterator[NDArray[np.uint8]]:
        import cv2

        promised = self._video.get(cv2.CAP_PROP_FRAME_COUNT)
        for number in itertools.count():
            good, frame = self._video.read()
            if not good:
                _check_frames(self._path, number, promised)
                return
            grey = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            yield np.asarray(grey, dtype=np.uint8)

    def close(self) -> None:
        """Close the file."""
        self._video.release()


def _check_frames(path: str | Path, frames: int, promised: float) -> None:
    """Check that a video gave the frames that its head promises.

    A decoder ends early, or leaves out what it cannot decode, without a word. Some containers know
    the number of their frames but roughly.

    Raises:
        DataError: Frames are missing.
    """
    if frames < 0.99 * promised - 1:
        raise DataError(
            f"{path} is damaged: {frames} frames can be read; expected {promised:.0f}, as its head "
            "says: lines are missing, and where is unknown; copy it again"
        )


class Replay:
    """Another source at a camera's pace, with a camera's faults.

    Example:
        >>> camera = Replay(FolderSource("web/"), line_rate_hz=20_000, lost_fraction=0.001)
    """

    def __init__(
        self,
        source: LineSource,
        *,
        line_rate_hz: float = 0.0,
        jitter: float = 0.0,
        lost_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Wrap a source.

        Args:
            source: Where the lines come from.
            line_rate_hz: Lines per second; 0: as fast as they are taken.
            jitter: How far a block may come too early or too late, as a share of its own time.
            lost_fraction: Share of the blocks that end early: their later lines are lost.
            seed: Decides jitter and losses.

        Raises:
            ConfigError: A number is invalid.
        """
        if not 0 <= line_rate_hz < float("inf"):
            raise ConfigError(f"line_rate_hz is {line_rate_hz!r}; expected 0 or more")
        self.width_px = source.width_px
        self._source, self._line_rate_hz = source, line_rate_hz
        self._jitter = fraction("jitter", jitter)
        self._lost_fraction = fraction("lost_fraction", lost_fraction)
        self._rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[LineBlock]:
        """Yield the source's blocks when their time has come, some of them cut short."""
        due_s = time.perf_counter()
        for block in self._source:
            rows = block.rows
            if self._rng.random() < self._lost_fraction:
                rows = rows[: self._rng.integers(0, len(rows) + 1)]
            if self._line_rate_hz:
                lasts_s = len(block.rows) / self._line_rate_hz
                due_s += lasts_s
                late_s = lasts_s * self._jitter * self._rng.uniform(-1, 1)
                time.sleep(max(0.0, due_s + late_s - time.perf_counter()))
            late = replace(block, rows=rows, arrived_s=time.perf_counter())
            yield from frame(late, lines=len(block.rows))

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _width_px(rows: NDArray[np.uint8]) -> int:
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2:
        got = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ImageError(f"the lines are {got}; expected a uint8 array (n, W), grey")
    return int(rows.shape[1])
