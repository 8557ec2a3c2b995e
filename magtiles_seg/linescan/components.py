"""Connected components of an endless mask: strip by strip, each region given out when it ended.

Between strips only the regions that touch the last row are kept. A region is its sums and its
convex hull, from which every measure follows exactly; the hull of pixel corners has at most two
points a column, so that memory is bounded by the web's width and the number of open regions.

Where part of the width did not come, a hole: filler there has no say, and what touches it is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.regions import Parts

_Points: TypeAlias = NDArray[np.int64]
_INT32 = 2**31


@dataclass(frozen=True)
class Hole:
    """Pixels that did not come, in web coordinates; ends are exclusive."""

    first_line: int
    end_line: int
    x0_px: int
    x1_px: int

    def slices(self, first_line: int, *, margin: int = 0) -> tuple[slice, slice]:
        """Return the hole, `margin` px larger on each side, in rows that begin at a line."""
        return (
            slice(
                max(0, self.first_line - margin - first_line),
                max(0, self.end_line + margin - first_line),
            ),
            slice(max(0, self.x0_px - margin), self.x1_px + margin),
        )


def without_holes(
    probability: NDArray[np.float32], first_line: int, holes: Sequence[Hole]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return the probability, 0 in the holes, and where a defect borders one.

    Args:
        probability: (h, W) float32 in [0, 1]; not changed.
        first_line: Web line of its first row.
        holes: Some of them may lie elsewhere.

    Returns:
        (h, W) float32, and (h, W) bool, or None where no hole is near.
    """
    beside = np.zeros(probability.shape, np.bool_)
    for hole in holes:
        beside[hole.slices(first_line, margin=1)] = True
    if not beside.any():
        return probability, None
    seen = probability.copy()
    for hole in holes:
        seen[hole.slices(first_line)] = 0
    return seen, beside


@dataclass(eq=False)
class Region:
    """Sums over one region, in web coordinates; whole numbers do not round, however long the web.

    Attributes:
        area_px: Number of pixels.
        sum_x2: Twice the sum of their x.
        sum_y: Sum of their lines.
        class_sums: (K,) float64, summed probability by class index.
        hull: (P, 2) int64 corners (x, y) whose convex hull is the region's.
        complete: False where it borders lines that were not inspected.
    """

    area_px: int
    sum_x2: int
    sum_y: int
    class_sums: NDArray[np.float64]
    hull: _Points
    complete: bool = True

    @classmethod
    def of(cls, parts: Parts, part: int, first_line: int) -> Region:
        """Return a part of a strip whose first row is the web's `first_line`."""
        area_px, sum_x2, sum_y, class_sums, corners, _ = parts.sums(part, first_line)
        return cls(area_px, sum_x2, sum_y, class_sums, corners + np.array([0, first_line]))

    def absorb(self, other: Region) -> None:
        """Add a region that proved to be part of this one."""
        self.area_px += other.area_px
        self.sum_x2 += other.sum_x2
        self.sum_y += other.sum_y
        self.class_sums = self.class_sums + other.class_sums
        self.hull = np.concatenate([self.hull, other.hull])
        self.complete &= other.complete

    def shrink(self) -> None:
        """Keep of the points only the corners of the convex hull, or few more."""
        origin = self.hull.min(axis=0)
        local = self.hull - origin
        if local.max() < _INT32:
            hull = cv2.convexHull(local.astype(np.int32)).reshape(-1, 2).astype(np.int64)
        else:  # a day of the fastest webs: OpenCV knows no such numbers
            hull = _column_ends(local)
        self.hull = hull + origin


def _column_ends(points: _Points) -> _Points:
    """Return of (P, 2) points the first and the last of each x: their hull's corners are there."""
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    steps = np.diff(points[:, 0]) != 0
    ends: _Points = points[np.append(True, steps) | np.append(steps, True)]
    return ends


class OpenRegions:
    """The regions of a mask that comes in strips, top to bottom, without gaps (8-connectivity)."""

    def __init__(self, width_px: int, labels: int, min_area_px: int = 1) -> None:
        """Start with nothing open.

        Args:
            width_px: Of the web.
            labels: How many classes there are, background included.
            min_area_px: Regions of fewer pixels are not given out.
        """
        self._labels, self._min_area_px = labels, min_area_px
        self._open: list[Region] = []
        self._last_row = np.zeros(width_px, dtype=np.intp)  # 1 + index into _open; 0: sound
        self._after_gap = False

    def __len__(self) -> int:
        """How many regions are open."""
        return len(self._open)

    @property
    def first_line(self) -> int | None:
        """The first line of all open regions; None: none is open."""
        return min((int(region.hull[:, 1].min()) for region in self._open), default=None)

    def start(self, *, after_gap: bool) -> None:
        """Begin a piece of web; regions in its first row are incomplete if it follows a gap."""
        self._after_gap = after_gap

    def add(
        self,
        first_line: int,
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8],
        threshold: float,
        *,
        beside: NDArray[np.bool_] | None = None,
    ) -> list[Region]:
        """Add the next strip and return the regions that it shows to have ended.

        Args:
            first_line: Web line of the strip's first row.
            probability: (h, W) float32.
            classes: (h, W) uint8, 1..K-1.
            threshold: A pixel of at least this probability is defect.
            beside: (h, W) bool: what touches it borders pixels that did not come. None: nothing.
        """
        mask = (probability >= threshold).view(np.uint8)
        ended: list[Region] = []
        for band, defective in _bands(mask):
            if defective:
                near = None if beside is None else beside[band]
                line = first_line + band.start
                ended += self._add(line, mask[band], probability[band], classes[band], near)
            else:
                ended += self.finish(complete=True)
            self._after_gap = False
        return ended

    def _add(
        self,
        first_line: int,
        mask: NDArray[np.uint8],
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8],
        beside: NDArray[np.bool_] | None,
    ) -> list[Region]:
        """Add rows that all hold defects."""
        x, _, width, height = cv2.boundingRect(mask)
        box = (slice(None), slice(x, x + width))
        parts = Parts(mask[box], probability[box], classes[box], self._labels, left=x)
        rows = np.zeros((2, len(mask[0])), dtype=np.intp)  # parts in the first and last row
        rows[:, x : x + width] = parts.drawn[[0, height - 1]]
        cut = rows[0] if self._after_gap else np.zeros(0, np.intp)
        if beside is not None:
            cut = np.concatenate([cut, parts.drawn[beside[box]]])
        incomplete = set(cut[cut > 0].tolist())
        return self._join(parts, first_line, rows[0], rows[1], incomplete=incomplete)

    def finish(self, *, complete: bool) -> list[Region]:
        """Return what is open: the web, or this piece of it, has ended."""
        ended, self._open = self._open, []
        self._last_row[:] = 0
        for region in ended:
            region.complete &= complete
        return self._kept(ended)

    def _kept(self, regions: Iterable[Region]) -> list[Region]:
        return [region for region in regions if region.area_px >= self._min_area_px]

    def _join(
        self,
        parts: Parts,
        first_line: int,
        first_row: NDArray[np.intp],
        last_row: NDArray[np.intp],
        *,
        incomplete: set[int],
    ) -> list[Region]:
        """Join the open regions with the strip's parts; nodes are 0 (unused), open ones, parts."""
        shift = len(self._open)
        links = _links(self._last_row, first_row) + np.array([0, shift])
        roots = _union(links, shift + parts.count)
        lasting = np.zeros(len(roots), dtype=np.bool_)
        lasting[roots[shift + last_row[last_row > 0]]] = True
        small = parts.areas < self._min_area_px
        joined = np.bincount(roots, minlength=len(roots))[roots] > 1
        skip = small & ~joined[shift:] & ~lasting[roots[shift:]]
        merged: dict[int, Region] = {1 + index: one for index, one in enumerate(self._open)}
        groups: dict[int, Region] = {}
        for node, region in merged.items():
            _gather(groups, int(roots[node]), region)
        for part in (1 + np.flatnonzero(~skip[1:])).tolist():
            region = Region.of(parts, part, first_line)
            region.complete = part not in incomplete
            _gather(groups, int(roots[shift + part]), region)
        self._open = [region for root, region in groups.items() if lasting[root]]
        places = np.zeros(len(roots), dtype=np.intp)
        places[[root for root in groups if lasting[root]]] = 1 + np.arange(len(self._open))
        self._last_row = np.where(last_row > 0, places[roots[shift + last_row]], 0)
        for region in self._open:
            region.shrink()
        return self._kept(region for root, region in groups.items() if not lasting[root])


def _bands(mask: NDArray[np.uint8]) -> Iterator[tuple[slice, bool]]:
    """Yield the runs of rows with and without a defect: nothing connects two of the former."""
    found = np.asarray(mask.any(axis=1))
    edges = [0, *(1 + np.flatnonzero(np.diff(found))).tolist(), len(mask)]
    for top, bottom in pairwise(edges):
        yield slice(top, bottom), bool(found[top])


def _gather(groups: dict[int, Region], root: int, region: Region) -> None:
    if root in groups:
        groups[root].absorb(region)
    else:
        groups[root] = region


def _links(above: NDArray[np.intp], below: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the distinct pairs (L, 2) of labels that touch between two rows, corners included."""
    pairs = [
        np.stack([one, other], axis=1)[(one > 0) & (other > 0)]
        for one, other in (
            (above, below),
            (above[:-1], below[1:]),
            (above[1:], below[:-1]),
        )
    ]
    joined = np.concatenate(pairs)
    return np.unique(joined, axis=0) if len(joined) else joined


def _union(links: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return each node's root (count,): the smallest node that it is linked with."""
    parents = np.arange(count)

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = int(parents[node])
        return node

    for one, other in links.tolist():
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    for node in np.unique(links).tolist():
        parents[node] = root(node)
    return parents
