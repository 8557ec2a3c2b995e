"""The demo's pictures: numbered overlay, mask, heat map, and the web as it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from magtiles_seg.labels import color_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from magtiles_seg.linescan.defects import WebDefect
    from magtiles_seg.result import Segmentation

_SIDE_PX = 900  # what a small tile is enlarged to, so that outlines and numbers stay fine
_NUMBERED = 30  # more numbers hide the picture
_TINT = 0.35
_PENDING_SHADE = 0.45
_FONT = cv2.FONT_HERSHEY_DUPLEX


def draw_numbered(result: Segmentation) -> NDArray[np.uint8]:
    """Draw the defects on the picture: tinted, outlined, numbered as in the table.

    Returns:
        (f H, f W, 3) uint8 RGB, enlarged by a whole factor f where the picture is small.
    """
    factor = _factor(result.mask.shape)
    drawn = _enlarged(result.overlay(_TINT), factor, cv2.INTER_LINEAR)
    classes = _enlarged(result.classes, factor, cv2.INTER_NEAREST)
    thickness = max(1, factor // 2)
    for index in np.unique(classes[classes > 0]):
        outlines, _ = cv2.findContours(
            (classes == index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(drawn, outlines, -1, color_rgb(int(index)), thickness)
    for number, defect in enumerate(result.defects[:_NUMBERED], start=1):
        x0, y0, x1, _ = (factor * side for side in defect.bbox_xyxy_px)
        _draw_number(drawn, str(number), (x0, y0, x1), result.labels.index(defect.label))
    return drawn


def draw_plain(result: Segmentation) -> NDArray[np.uint8]:
    """Return the picture itself as large as `draw_numbered` draws it: (f H, f W, 3) uint8 RGB."""
    grey = np.repeat(result.image[:, :, None], 3, axis=2)
    return _enlarged(grey, _factor(result.mask.shape), cv2.INTER_LINEAR)


def draw_mask(result: Segmentation) -> NDArray[np.uint8]:
    """Return the mask as a picture, (H, W) uint8: 0 sound, 255 defect."""
    return result.mask * np.uint8(255)


def draw_heat(result: Segmentation) -> NDArray[np.uint8]:
    """Return the probability as colours from black (0) to pale yellow (1): (H, W, 3) uint8 RGB."""
    levels = np.rint(result.probability * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), dtype=np.uint8)


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


def _factor(shape_hw: tuple[int, ...]) -> int:
    return min(4, max(1, _SIDE_PX // max(shape_hw)))


def _enlarged(picture: NDArray[np.uint8], factor: int, how: int) -> NDArray[np.uint8]:
    if factor == 1:
        return picture.copy()
    enlarged = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=how)
    return np.asarray(enlarged, dtype=np.uint8)


def _draw_number(
    drawn: NDArray[np.uint8], number: str, place_px: tuple[int, int, int], class_index: int
) -> None:
    """Write a number on its class's colour, above the defect, or inside where there is no room."""
    left, top, right = place_px
    (width, height), _ = cv2.getTextSize(number, _FONT, 0.7, 1)
    width, height = width + 10, height + 10
    x = int(np.clip((left + right - width) // 2, 0, max(0, drawn.shape[1] - width)))
    y = top - height - 6 if top - height - 6 >= 0 else top + 6
    cv2.rectangle(drawn, (x, y), (x + width, y + height), color_rgb(class_index), cv2.FILLED)
    cv2.putText(drawn, number, (x + 5, y + height - 5), _FONT, 0.7, (0, 0, 0), 1, cv2.LINE_AA)
