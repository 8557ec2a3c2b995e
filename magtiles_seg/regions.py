"""Connected regions and their measures: of a picture, and of each strip of a web.

All measures of shape come from the mask's horizontal runs: they are few, they carry area, centroid
and extent, and their ends are all that a rotated rectangle needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_GROUPS = 64


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One connected region of defect pixels (8-connectivity), measured.

    Attributes:
        label: Class with the largest summed probability over the region.
        score: Mean probability over the region, 0..1.
        area_px: Number of pixels.
        bbox_xyxy_px: Left, top, right, bottom, the last two exclusive: `image[y0:y1, x0:x1]`.
        centroid_xy_px: Mean pixel position; the centre of the first pixel is (0, 0).
        length_px: Longer side of the smallest rotated rectangle round the pixels, which count as
            squares: one pixel is 1 x 1.
        width_px: Its shorter side.
        area_mm2: Area in mm², None where the scale is unknown.
        length_mm: Longer side in mm, or None.
        width_mm: Shorter side in mm, or None.
    """

    label: str
    score: float
    area_px: int
    bbox_xyxy_px: tuple[int, int, int, int]
    centroid_xy_px: tuple[float, float]
    length_px: float
    width_px: float
    area_mm2: float | None = None
    length_mm: float | None = None
    width_mm: float | None = None

    def row(self) -> dict[str, str | float | None]:
        """Return the defect as one row of a table, a number a column, by `DEFECT_COLUMNS`."""
        x0, y0, x1, y1 = self.bbox_xyxy_px
        x, y = self.centroid_xy_px
        where: dict[str, float] = {"x0_px": x0, "y0_px": y0, "x1_px": x1, "y1_px": y1}
        where |= {"centroid_x_px": x, "centroid_y_px": y}
        return {
            name: where[name] if name in where else getattr(self, name) for name in DEFECT_COLUMNS
        }


DEFECT_COLUMNS = (
    "label", "score", "area_px", "x0_px", "y0_px", "x1_px", "y1_px", "centroid_x_px",
    "centroid_y_px", "length_px", "width_px", "area_mm2", "length_mm", "width_mm",
)  # fmt: skip
"""Columns of a defect in CSV and Parquet; `Defect` says what they mean."""


def top_values(probability: NDArray[np.float32], k: int, margin_px: int = 0) -> NDArray[np.float32]:
    """Return the k largest values in no order, or all of them where there are fewer.

    Args:
        probability: (H, W) float32, not empty.
        k: How many values.
        margin_px: Width of the margin along the border that is left out, at most a quarter of the
            height or width.
    """
    height, width = probability.shape
    y, x = min(margin_px, height // 4), min(margin_px, width // 4)
    flat = probability[y : height - y, x : width - x].ravel()
    k = min(k, flat.size)
    columns = flat.size // _GROUPS
    if columns > k:
        # k of the groups' maxima are >= the k-th largest maximum, so the k largest values are too.
        maxima = flat[: columns * _GROUPS].reshape(_GROUPS, columns).max(axis=0)
        flat = flat[flat >= np.partition(maxima, columns - k)[columns - k]]
    top: NDArray[np.float32] = np.partition(flat, flat.size - k)[flat.size - k :]
    return top


def find_regions(
    mask: NDArray[np.uint8],
    probability: NDArray[np.float32],
    defect_classes: NDArray[np.uint8],
    *,
    labels: Sequence[str],
    min_area_px: int = 1,
    mm_per_px: float | None = None,
) -> tuple[NDArray[np.uint8], tuple[Defect, ...]]:
    """Measure the connected regions of a mask and drop the small ones.

    Args:
        mask: (H, W) uint8, 0 or 1.
        probability: (H, W) float32, 0..1.
        defect_classes: (H, W) uint8, index into `labels` at each pixel, at least 1.
        labels: Class names by index.
        min_area_px: Regions of fewer pixels are dropped.
        mm_per_px: Scale, for the measures in mm.

    Returns:
        The mask without the dropped regions, and the defects, largest first, then in reading order.
    """
    import cv2

    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return mask, ()
    box = (slice(y, y + height), slice(x, x + width))
    parts = Parts(mask[box], probability[box], defect_classes[box], len(labels), left=x)
    keep = parts.areas >= min_area_px
    keep[0] = False
    if not keep[1:].all():
        mask = np.zeros_like(mask)
        mask[box] = keep.astype(np.uint8)[parts.drawn]
    defects = [
        Defect(**measures(*parts.sums(part, y), labels=labels, scale_mm=(mm_per_px, mm_per_px)))
        for part in np.flatnonzero(keep).tolist()
    ]
    return mask, tuple(sorted(defects, key=_largest_first))


def _largest_first(defect: Defect) -> tuple[int, int, int]:
    left, top, _, _ = defect.bbox_xyxy_px
    return -defect.area_px, top, left


class Parts:
    """The connected parts of a mask (8-connectivity), summed up from their horizontal runs.

    Attributes:
        count: One more than there are parts: part 0 is what is sound.
        drawn: (H, W) int32, the part at each pixel.
        areas: (count,) int64, pixels by part.
    """

    def __init__(
        self,
        mask: NDArray[np.uint8],
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8],
        labels: int,
        *,
        left: int = 0,
    ) -> None:
        """Find the parts and sum them up.

        Args:
            mask: (H, W) uint8, 0 or 1, not all 0.
            probability: (H, W) float32.
            classes: (H, W) uint8, at least 1 where the mask is.
            labels: How many classes there are, background included.
            left: What to add to every x.
        """
        import cv2

        self.count, drawn = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
        self.drawn: NDArray[np.int32] = np.asarray(drawn)
        y, x0, x1, class_index = _runs(mask, classes)
        lengths = x1 - x0
        part, count = self.drawn[y, x0].astype(np.intp), self.count
        self.areas = np.bincount(part, lengths, count).astype(np.int64)
        x0, x1 = x0 + left, x1 + left
        self._sum_y = np.bincount(part, y * lengths, count).astype(np.int64)
        self._sum_x2 = np.bincount(part, (x0 + x1 - 1) * lengths, count).astype(np.int64)
        values = probability[mask.view(np.bool_)]
        sums = np.add.reduceat(values, np.cumsum(lengths) - lengths)
        cells = part * labels + class_index
        self._class_sums = np.bincount(cells, sums, count * labels).reshape(count, labels)
        order = np.argsort(part, kind="stable")
        x0, x1, y = x0[order], x1[order], y[order]
        corners = np.empty((len(order), 4, 2), np.int32)
        corners[:, 0::2, 0], corners[:, 1::2, 0] = x0[:, None], x1[:, None]
        corners[:, :2, 1], corners[:, 2:, 1] = y[:, None], y[:, None] + 1
        self._corners = corners.reshape(-1, 2)
        self._ends = 4 * np.cumsum(np.bincount(part, minlength=count))

    def sums(
        self, part: int, top: int
    ) -> tuple[int, int, int, NDArray[np.float64], NDArray[np.int32], int]:
        """Return what `measures` takes of one part, `top` being the line of the first row."""
        area = int(self.areas[part])
        return (
            area,
            int(self._sum_x2[part]),
            int(self._sum_y[part]) + area * top,
            self._class_sums[part],
            self._corners[self._ends[part - 1] : self._ends[part]],
            top,
        )


def _runs(
    mask: NDArray[np.uint8], classes: NDArray[np.uint8]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]:
    """Return y, x0, x1 (exclusive) and class (R,) of the horizontal runs, in reading order."""
    height, width = mask.shape
    stride = width + 1  # one sound column ends each row's last run
    flat = np.zeros(1 + height * stride, dtype=np.uint8)
    np.multiply(mask, classes, out=flat[1:].reshape(height, stride)[:, :width])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    class_index = flat[1:][edges][:-1]
    inside = class_index > 0  # the last edge always leads back to sound
    y, x0 = np.divmod(edges[:-1][inside], stride)
    return y, x0, edges[1:][inside] - y * stride, class_index[inside]


def measures(
    area_px: int,
    sum_x2: int,
    sum_y: int,
    class_sums: NDArray[np.float64],
    corners: NDArray[np.int32] | NDArray[np.int64],
    top: int,
    *,
    labels: Sequence[str],
    scale_mm: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """Return the fields of a region's `Defect`.

    Args:
        area_px: Number of pixels.
        sum_x2: Twice the sum of their x.
        sum_y: Sum of their y, or lines of a web.
        class_sums: (K,) float64, summed probability by class index.
        corners: (P, 2) int32 or int64 corners (x, y) whose convex hull is the region's, y from
            `top` on.
        top: What to add to their y: however far down a web, the corners stay small numbers.
        labels: Class names by index.
        scale_mm: Size of a pixel, x and y, in mm; None: unknown.
    """
    left, first = corners.min(axis=0).tolist()
    right, last = corners.max(axis=0).tolist()
    sides = _sides(corners)
    x_mm, y_mm = scale_mm
    in_mm: dict[str, float] = {}
    if x_mm is not None and y_mm is not None:
        if x_mm == y_mm:
            sides_mm = (sides[0] * x_mm, sides[1] * x_mm)
        else:
            sides_mm = _sides(((corners - (left, first)) * (x_mm, y_mm)).astype(np.float32))
        in_mm = {"area_mm2": area_px * (x_mm * y_mm)}
        in_mm |= {"length_mm": sides_mm[0], "width_mm": sides_mm[1]}
    return {
        "label": labels[1 + int(class_sums[1:].argmax())],
        "score": min(1.0, float(class_sums.sum()) / area_px),
        "area_px": area_px,
        "bbox_xyxy_px": (left, top + first, right, top + last),
        "centroid_xy_px": (sum_x2 / (2 * area_px), sum_y / area_px),
        "length_px": sides[0],
        "width_px": sides[1],
        **in_mm,
    }


def _sides(
    corners: NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float32],
) -> tuple[float, float]:
    """Return the longer and the shorter side of the smallest rectangle round (P, 2) corners."""
    import cv2

    points: NDArray[Any] = corners
    if points.dtype == np.int64:  # OpenCV knows smaller numbers only
        points = points.astype(np.int32 if points.max() < 2**31 else np.float32)
    sides = cv2.minAreaRect(points)[1]
    return float(max(sides)), float(min(sides))
