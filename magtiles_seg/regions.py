"""From probabilities to a mask, its connected regions, and the picture's score.

All measures of shape come from the mask's horizontal runs: they are few, they carry area, centroid
and extent, and their ends are all that a rotated rectangle needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Defect", "find_regions", "top_values"]

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


class _Runs(NamedTuple):
    """Horizontal runs of one class in reading order, each array (R,): `x1` is exclusive."""

    y: NDArray[np.intp]
    x0: NDArray[np.intp]
    x1: NDArray[np.intp]
    class_index: NDArray[np.intp]
    probability_sum: NDArray[np.float64]


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
    count, regions = cv2.connectedComponents(mask[box], connectivity=8, ltype=cv2.CV_32S)
    runs = _find_runs(mask[box] * defect_classes[box], probability[box])
    region = np.asarray(regions)[runs.y, runs.x0].astype(np.intp)
    areas = np.bincount(region, runs.x1 - runs.x0, count).astype(np.intp)
    keep = areas >= min_area_px
    keep[0] = False
    if not keep[1:].all():
        mask = np.zeros_like(mask)
        mask[box] = keep.astype(np.uint8)[regions]
    runs = runs._replace(x0=runs.x0 + x, x1=runs.x1 + x, y=runs.y + y)
    defects = _measure(runs, region, areas, keep=keep, labels=labels, mm_per_px=mm_per_px)
    return mask, tuple(sorted(defects, key=_largest_first))


def _largest_first(defect: Defect) -> tuple[int, int, int]:
    left, top, _, _ = defect.bbox_xyxy_px
    return -defect.area_px, top, left


def _find_runs(classes: NDArray[np.uint8], probability: NDArray[np.float32]) -> _Runs:
    height, width = classes.shape
    stride = width + 1  # one sound column ends each row's last run
    flat = np.zeros(1 + height * stride, dtype=np.uint8)
    flat[1:].reshape(height, stride)[:, :width] = classes
    padded = np.zeros((height, stride), dtype=np.float32)
    padded[:, :width] = probability
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    class_index = flat[1:][edges]
    inside = class_index[:-1] > 0  # the last edge always leads back to sound
    sums = np.add.reduceat(padded.ravel(), edges)[:-1][inside].astype(np.float64)
    y, x0 = np.divmod(edges[:-1][inside], stride)
    x1 = edges[1:][inside] - y * stride
    return _Runs(y, x0, x1, class_index[:-1][inside].astype(np.intp), sums)


def _measure(
    runs: _Runs,
    region: NDArray[np.intp],
    areas: NDArray[np.intp],
    *,
    keep: NDArray[np.bool_],
    labels: Sequence[str],
    mm_per_px: float | None,
) -> list[Defect]:
    """Measure the kept regions; `region` (R,) is each run's, `areas` and `keep` are by region."""
    import cv2

    count, lengths = len(areas), runs.x1 - runs.x0
    sum_x = np.bincount(region, (runs.x0 + runs.x1 - 1) * 0.5 * lengths, count)
    sum_y = np.bincount(region, runs.y * lengths, count)
    cells = region * len(labels) + runs.class_index
    by_class = np.bincount(cells, runs.probability_sum, count * len(labels))
    by_class = by_class.reshape(count, len(labels))
    corners, ends = _corners(runs, region, count)
    defects = []
    for index in np.flatnonzero(keep).tolist():
        points = corners[:, ends[index - 1] : ends[index]]
        left, top, right, bottom = (int(value) for value in (*points.min(1), *points.max(1)))
        sides = cv2.minAreaRect(points.T)[1]
        area = int(areas[index])
        defects.append(
            Defect(
                label=labels[1 + int(by_class[index, 1:].argmax())],
                score=min(1.0, float(by_class[index].sum()) / area),
                area_px=area,
                bbox_xyxy_px=(left, top, right, bottom),
                centroid_xy_px=(float(sum_x[index]) / area, float(sum_y[index]) / area),
                length_px=float(max(sides)),
                width_px=float(min(sides)),
                **_in_mm(area, sides, mm_per_px),
            )
        )
    return defects


def _corners(
    runs: _Runs, region: NDArray[np.intp], count: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return the corners (x, y) of the regions' runs as (2, P) by region, and each region's end."""
    touching = (runs.y[1:] == runs.y[:-1]) & (runs.x0[1:] == runs.x1[:-1])  # the class changes here
    first, last = np.r_[True, ~touching], np.r_[~touching, True]
    region = region[first]
    order = np.argsort(region, kind="stable")
    x0, x1, y0 = runs.x0[first][order], runs.x1[last][order], runs.y[first][order]
    y1 = y0 + 1
    corners = np.empty((2, len(order), 4), dtype=np.float32)
    corners[0] = np.stack([x0, x1, x0, x1], axis=1)
    corners[1] = np.stack([y0, y0, y1, y1], axis=1)
    return corners.reshape(2, -1), 4 * np.cumsum(np.bincount(region, minlength=count))


def _in_mm(area_px: int, sides_px: Sequence[float], mm_per_px: float | None) -> dict[str, float]:
    if mm_per_px is None:
        return {}
    return {
        "area_mm2": area_px * mm_per_px**2,
        "length_mm": max(sides_px) * mm_per_px,
        "width_mm": min(sides_px) * mm_per_px,
    }
