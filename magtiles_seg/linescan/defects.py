"""What a line-scan inspection reports: defects in web coordinates, and lines nobody looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from magtiles_seg.regions import Defect, measures

if TYPE_CHECKING:
    from magtiles_seg.linescan.components import Region

Reason: TypeAlias = Literal[
    "lost", "dropped", "failed", "restarted", "broken off", "interrupted", "not running"
]


@dataclass(frozen=True, kw_only=True)
class WebDefect(Defect):
    """One defect of a web, over however many blocks it ran; y counts the web's lines.

    All measures of `Defect` hold, with `bbox_xyxy_px` and `centroid_xy_px` in web coordinates.
    Measures in mm take `mm_per_px` across the web and the line pitch along it.

    Attributes:
        first_line: Number of its first line.
        last_line: Number of its last line, inclusive.
        complete: False where it borders lines that were not inspected: it may be larger.
    """

    first_line: int
    last_line: int
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class Uninspected:
    """Lines of the web that have no verdict.

    Attributes:
        first_line: The first of them.
        end_line: The line after the last of them; None: unknown, the source broke off or restarted.
        reason: `"lost"`: never came, or too late; `"dropped"`: the queue was full; `"failed"`: the
            model or a sink failed; `"restarted"`: the camera's counter began anew, so that it is
            not known how many are missing, and the lines behind are numbered on; `"broken off"`:
            the source ended with an error; `"interrupted"`: the inspection was told to stop; `"not
            running"`: an earlier run did not come to its web's end, and nobody looked until this
            one began.
        length_mm: Along the web; None where the line pitch or the end is unknown.
        x0_px: Where across the web they have no verdict.
        x1_px: Where that ends; None: at the web's other border.
        since: Of `"not running"`: the last sign of life of the earlier run, UTC.
        until: Of `"not running"`: the start of this run, UTC.
        after_run: Of `"not running"`: the earlier run, whose lines `first_line` counts.
    """

    first_line: int
    end_line: int | None
    reason: Reason
    length_mm: float | None = None
    x0_px: int = 0
    x1_px: int | None = None
    since: str | None = None
    until: str | None = None
    after_run: str | None = None

    @property
    def lines(self) -> int:
        """How many lines, 0 where the end is unknown."""
        return 0 if self.end_line is None else self.end_line - self.first_line


def measure(
    region: Region,
    labels: Sequence[str],
    *,
    mm_per_px: float | None = None,
    line_mm: float | None = None,
) -> WebDefect:
    """Return a region as a defect.

    In mm the smallest rectangle is another one where pixels are not square.

    Args:
        region: A region that has ended.
        labels: Class names by index.
        mm_per_px: Size of a pixel across the web, in mm; None: unknown.
        line_mm: Line pitch in mm; None: unknown.
    """
    top = int(region.hull[:, 1].min())
    fields = measures(
        region.area_px,
        region.sum_x2,
        region.sum_y,
        region.class_sums,
        region.hull - (0, top),
        top,
        labels=labels,
        scale_mm=(mm_per_px, line_mm),
    )
    last_line = fields["bbox_xyxy_px"][3] - 1
    return WebDefect(first_line=top, last_line=last_line, complete=region.complete, **fields)
