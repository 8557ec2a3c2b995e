"""The demo's pictures: numbered overlay, mask, heat map, and the web as it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from magtiles_seg.drawing import draw_heat, draw_mask, draw_numbered
from magtiles_seg.labels import color_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from magtiles_seg.linescan.defects import WebDefect

__all__ = ["draw_heat", "draw_mask", "draw_numbered", "draw_web"]


def draw_web(
    lines: NDArray[np.uint8],
    first_line: int,
    decided_line: int,
    defects: Sequence[WebDefect],
    *,
    labels: Sequence[str],
    length_px: int,
) -> NDArray[np.uint8]:
    """Draw the latest stretch of a web as it runs from right to left, its defects framed.

    Args:
        lines: (n, W) uint8, the latest lines, n at most `length_px`.
        first_line: The web's number of the first of them.
        decided_line: Lines from this one on have no verdict yet and are shaded.
        defects: What was found, in web coordinates.
        labels: Class names by index.
        length_px: Width of the picture.

    Returns:
        (W, `length_px`, 3) uint8 RGB: lines stand upright, the newest at the right.
    """
    drawn = np.full((lines.shape[1], length_px, 3), 235, dtype=np.uint8)
    drawn[:, : len(lines)] = lines.T[:, :, None]
    shaded = drawn[:, max(0, decided_line - first_line) : len(lines)]
    shaded[:] = (shaded * _PENDING_SHADE).astype(np.uint8)
    for one in defects:
        x0, y0, x1, y1 = one.bbox_xyxy_px
        corners = (y0 - first_line - 4, x0 - 4), (y1 - first_line + 3, x1 + 3)
        if corners[1][0] >= 0:
            cv2.rectangle(drawn, *corners, color_rgb(labels.index(one.label)), 3)
    return drawn
