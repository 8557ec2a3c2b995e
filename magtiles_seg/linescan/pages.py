"""Annotated pictures of a web: pages of lines with its defects framed and unseen lines tinted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from magtiles_seg.decision import count
from magtiles_seg.drawing import hatch, plate
from magtiles_seg.files import write
from magtiles_seg.labels import LABELS, color_rgb
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.messages import SinkState
from magtiles_seg.marking import encode_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from magtiles_seg.linescan.sources import LineBlock

_UNSEEN_RGB = (255, 0, 0)
_HELD_PAGES = 2


class WebPictures:
    """Writes a web page by page, `web_<first line>.png`.

    A page is written when two more have passed, so that defects of up to two pages are framed on
    all the pages that they touch; of a longer one the pages written before it ended lack the frame.
    Pages that a full disk does not take are left out and counted; the next one is tried again.
    """

    def __init__(
        self, directory: str | Path, *, page_rows: int = 4096, labels: tuple[str, ...] = LABELS
    ) -> None:
        """Make the folder.

        Args:
            directory: Where the pictures go.
            page_rows: Lines per picture.
            labels: Class names by index, for the colours.
        """
        self._page_rows, self._labels = count("page_rows", page_rows), labels
        self._folder = Path(directory)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pages: dict[int, NDArray[np.uint8]] = {}
        self._found: list[tuple[int, WebDefect | Uninspected]] = []
        self._told = 0
        self._written = self._lost = 0
        self._error: OSError | None = None

    @property
    def state(self) -> SinkState:
        """How the pictures stand; those are counted, no findings."""
        error = None if self._error is None else self._error.strerror or str(self._error)
        return SinkState(
            name=self._folder.name,
            delivered=self._written,
            waiting=0,
            dropped=self._lost,
            error=error,
        )

    def lines(self, block: LineBlock) -> None:
        """Take lines; pages that have passed are written."""
        done = 0
        while done < len(block.rows):
            page, offset = divmod(block.start_line + done, self._page_rows)
            take = min(len(block.rows) - done, self._page_rows - offset)
            if page not in self._pages:
                shape = (self._page_rows, block.rows.shape[1])
                self._pages[page] = np.zeros(shape, dtype=np.uint8)
            self._pages[page][offset : offset + take] = block.rows[done : done + take]
            done += take
            self._write_before(page - _HELD_PAGES)

    def write(self, found: WebDefect | Uninspected) -> None:
        """Take what is to be marked; a defect's number is the end of its id in the records."""
        self._told += 1
        self._found.append((self._told, found))

    def close(self) -> None:
        """Write the last pages.

        Raises:
            OSError: Some could not be written.
        """
        self._write_before(1 + max(self._pages, default=0))
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write_before(self, end: int) -> None:
        for page in sorted(number for number in self._pages if number < end):
            self._attempt(page, self._pages.pop(page))
            top = (page + 1) * self._page_rows
            self._found = [
                (number, one) for number, one in self._found if _end_line(one, top + 1) > top
            ]

    def _attempt(self, page: int, rows: NDArray[np.uint8]) -> None:
        try:
            self._write(page, rows)
        except OSError as error:
            self._error, self._lost = error, self._lost + 1
        else:
            self._error, self._written = None, self._written + 1

    def _write(self, page: int, rows: NDArray[np.uint8]) -> None:
        top = page * self._page_rows
        drawn = np.repeat(rows[:, :, None], 3, axis=2)
        for number, one in self._found:
            if isinstance(one, Uninspected):
                low = max(0, one.first_line - top)
                high = max(0, _end_line(one, top + self._page_rows) - top)
                text = f"{number}: not inspected"
                hatch(drawn[low:high, one.x0_px : one.x1_px], _UNSEEN_RGB, text=text)
                continue
            x0, y0, x1, y1 = one.bbox_xyxy_px
            corners = (x0 - 2, y0 - top - 2), (x1 + 1, y1 - top + 1)
            color = color_rgb(self._labels.index(one.label))
            cv2.rectangle(drawn, *corners, color, 1)
            if 0 <= y0 - top < self._page_rows:
                plate(drawn, str(number), (x0 - 2, y0 - top - 2, x1 + 1), color)
        write(self._folder / f"web_{top:09d}.png", encode_result(drawn))


def _end_line(one: WebDefect | Uninspected, unknown: int) -> int:
    if isinstance(one, WebDefect):
        return one.last_line + 1
    if one.reason == "restarted":  # behind it the web goes on
        return one.first_line + 1
    return unknown if one.end_line is None else one.end_line
