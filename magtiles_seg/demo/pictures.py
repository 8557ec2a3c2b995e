"""The demo's pictures: numbered overlay, mask, heat map, and the web as it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from magtiles_seg.drawing import draw_heat, draw_mask, draw_numbered, draw_plain, hatch, plate
from magtiles_seg.labels import color_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from magtiles_seg.linescan.defects import Uninspected, WebDefect

_PENDING, _PENDING_RGB = "no verdict yet", (250, 204, 21)
_UNSEEN_RGB = (255, 0, 0)

__all__ = ["draw_heat", "draw_mask", "draw_numbered", "draw_plain", "draw_web"]


def draw_web(
    lines: NDArray[np.uint8],
    first_line: int,
    decided_line: int,
    defects: Sequence[WebDefect],
    *,
    labels: Sequence[str],
    length_px: int,
    uninspected: Sequence[Uninspected] = (),
) -> NDArray[np.uint8]:
    """Draw the latest stretch of a web as it runs from right to left, its defects framed.

    Args:
        lines: (n, W) uint8, the latest lines, n at most `length_px`.
        first_line: The web's number of the first of them.
        decided_line: Lines from this one on have no verdict yet: hatched, and said so.
        defects: What was found, all of the web in order, numbered from 1 as in the table.
        labels: Class names by index.
        length_px: Width of the picture.
        uninspected: Lines without a verdict, hatched in red.

    Returns:
        (W, `length_px`, 3) uint8 RGB: lines stand upright, the newest at the right.
    """
    drawn = np.full((lines.shape[1], length_px, 3), 235, dtype=np.uint8)
    drawn[:, : len(lines)] = lines.T[:, :, None]
    hatch(drawn[:, max(0, decided_line - first_line) : len(lines)], _PENDING_RGB, text=_PENDING)
    for gap in uninspected:
        end = first_line + len(lines) if gap.end_line is None else gap.end_line
        columns = slice(
            max(0, gap.first_line - first_line), max(0, min(end - first_line, len(lines)))
        )
        hatch(drawn[gap.x0_px : gap.x1_px, columns], _UNSEEN_RGB, text="not inspected")
    for number, one in enumerate(defects, start=1):
        x0, y0, x1, y1 = one.bbox_xyxy_px
        corners = (y0 - first_line - 4, x0 - 4), (y1 - first_line + 3, x1 + 3)
        if corners[1][0] >= 0:
            color = color_rgb(labels.index(one.label))
            cv2.rectangle(drawn, *corners, color, 3)
            plate(drawn, str(number), (corners[0][0], corners[0][1], corners[1][0]), color)
    return drawn
