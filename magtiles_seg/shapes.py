"""Outlines, masks and run lengths of regions, and how one becomes the other.

Coordinates are those of pixel edges: the pixel in column x and row y covers x..x+1, y..y+1, and is
in an outline when its centre is. A mask's own outline therefore gives the same mask again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import ConfigError, DataError

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]


def fill(polygons: Sequence[Points], height: int, width: int) -> Mask:
    """Return which pixels lie in any of some polygons, (H, W) bool.

    Within one polygon the even-odd rule holds. One so thin that no pixel centre lies in it marks
    the pixels that its outline passes: no region vanishes.

    Args:
        polygons: (P, 2) x, y each, in px; parts outside of the picture are cut off.
        height: Of the picture.
        width: Of the picture.
    """
    mask = np.zeros((height, width), np.bool_)
    for points in polygons:
        filled = _even_odd(points, height, width)
        if not filled.any():
            line = np.zeros((height, width), np.uint8)
            cv2.polylines(line, [np.floor(points).astype(np.int32)], True, 1)
            filled = line > 0
        mask |= filled
    return mask


def _even_odd(points: Points, height: int, width: int) -> Mask:
    """Count for each pixel centre the edges to its left, and keep the odd ones."""
    ahead = np.roll(points, -1, axis=0)
    down = (points[:, 1] <= ahead[:, 1])[:, None]  # an edge that is run both ways cancels out
    start, end = np.where(down, points, ahead), np.where(down, ahead, points)
    first = np.clip(np.ceil(start[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(end[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    rise = end[edge, 1] - start[edge, 1]
    share = (rows + 0.5 - start[edge, 1]) / rise
    x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), np.int32)
    np.add.at(crossings, (rows, columns), 1)
    return np.asarray(np.cumsum(crossings, axis=1)[:, :width] % 2 == 1)


def area_of(points: Points) -> float:
    """Return the area that a polygon encloses, in px², by the shoelace formula."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def clip(points: Points, height: int, width: int) -> Points:
    """Return the part of a polygon that lies in the picture; (0, 2) where none does.

    Source: Sutherland, Hodgman, "Reentrant polygon clipping", 1974.
    """
    for axis, bound, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        inside = sign * (points[:, axis] - bound) >= 0
        if inside.all():
            continue
        kept = list[npt.NDArray[np.float64]]()
        for index in range(len(points)):
            here, before = points[index], points[index - 1]
            if inside[index] != inside[index - 1]:
                share = (bound - before[axis]) / (here[axis] - before[axis])
                kept.append(before + share * (here - before))
            if inside[index]:
                kept.append(here)
        points = np.array(kept, np.float64).reshape(-1, 2)
    return np.clip(points, 0, (width, height))  # a cut may be off by a rounding


def check_tolerance(tolerance_px: float) -> None:
    """Refuse a tolerance of outlines that is no number of pixels from 0 on.

    Raises:
        ConfigError: It is negative, or no finite number.
    """
    if not 0 <= tolerance_px < math.inf:
        raise ConfigError(f"tolerance_px is {tolerance_px}; expected a number of pixels from 0 on")


def outlines(mask: Mask, *, tolerance_px: float = 0.0) -> list[Points]:
    """Return the polygons of a mask along its pixels' edges, one for each connected region.

    Holes are reached by a slit of no width, so that tools whose polygons know no holes read them.
    With a tolerance of 0 `fill` gives exactly the mask again.

    Args:
        mask: (H, W) bool.
        tolerance_px: How far a simplified outline may stray from the pixels' edges.
    """
    found = list[Points]()
    count, regions, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    for index in range(1, count):
        x, y, width, height = (int(value) for value in stats[index, :4])
        part = regions[y : y + height, x : x + width] == index
        rings = sorted(_rings(part), key=lambda ring: -area_of(ring))
        if tolerance_px:
            rings = [simplified(ring, tolerance_px) for ring in rings]
        outer = rings[0]
        for hole in rings[1:]:
            outer = _joined(outer, hole)
        found.append(np.add(outer, (x, y)))
    return found


def simplified(points: Points, tolerance_px: float) -> Points:
    """Return a polygon of fewer points within a tolerance; as it is where no polygon would stay."""
    fewer = cv2.approxPolyDP(points.astype(np.float32)[:, None], tolerance_px, True)[:, 0]
    return fewer.astype(np.float64) if len(fewer) > 2 else points


def _rings(part: Mask) -> Iterator[Points]:
    """Yield the closed edges between mask and not, corners alone; holes run the other way round."""
    padded = np.pad(part, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for shift, start, end in (  # the mask lies to the right of each edge
        ((1, 0), (0, 0), (1, 0)),
        ((-1, 0), (1, 1), (0, 1)),
        ((0, 1), (0, 1), (0, 0)),
        ((0, -1), (1, 0), (1, 1)),
    ):
        neighbour = np.roll(padded, shift, axis=(0, 1))
        for row, column in np.argwhere(padded & ~neighbour):
            x, y = int(column) - 1, int(row) - 1
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    while following:
        ring = [next(iter(following))]
        before = (0, 0)
        while True:
            here = ring[-1]
            choices = following[here]
            step = _turn(before, here, choices)
            choices.remove(step)
            if not choices:
                del following[here]
            if step == ring[0]:
                break
            before = here
            ring.append(step)
        yield _corners(np.array(ring, np.float64))


def _turn(
    before: tuple[int, int], here: tuple[int, int], choices: list[tuple[int, int]]
) -> tuple[int, int]:
    """Return the next corner; where two regions touch by a corner, the one that parts them."""
    if len(choices) == 1:
        return choices[0]
    dx, dy = here[0] - before[0], here[1] - before[1]
    right = (here[0] - dy, here[1] + dx)
    return right if right in choices else choices[0]


def _corners(ring: Points) -> Points:
    """Return a ring without the points on its straight runs."""
    ahead, behind = np.roll(ring, -1, axis=0) - ring, ring - np.roll(ring, 1, axis=0)
    corners: Points = ring[(ahead != behind).any(axis=1)]
    return corners


def _joined(outer: Points, hole: Points) -> Points:
    """Return an outline that goes to a hole, around it and back on the same way."""
    distance = np.linalg.norm(outer[:, None] - hole[None], axis=2)
    at, to = np.unravel_index(int(distance.argmin()), distance.shape)
    around = np.roll(hole, -int(to), axis=0)
    back = [outer[at : at + 1], outer[at + 1 :]]
    return np.concatenate([outer[: at + 1], around, around[:1], *back])


def crop(mask: Mask) -> tuple[Mask, int, int]:
    """Return the smallest box of a mask that holds all of it, its left and its top."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return mask[:1, :1], 0, 0
    top, left = int(rows[0]), int(columns[0])
    return mask[top : rows[-1] + 1, left : columns[-1] + 1], left, top


def encode_rle(mask: Mask) -> npt.NDArray[np.int64]:
    """Return the lengths of runs of 0, 1, 0 … of a mask read column by column, as COCO counts."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], ends])).astype(np.int64)


def decode_rle(counts: npt.NDArray[np.int64], height: int, width: int) -> Mask:
    """Return the mask of column-wise run lengths, (H, W) bool.

    Raises:
        DataError: A run is negative, or together they are not the picture's pixels.
    """
    pixels = height * width
    total = sum(counts.tolist())  # in Python's numbers, which do not wrap
    if (counts < 0).any() or total != pixels:
        raise DataError(
            f"run lengths of {total} px; expected {pixels}, of a picture of {width} x {height} px"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T.copy()


def rle_to_text(counts: npt.NDArray[np.int64]) -> str:
    """Return run lengths as COCO's text: differences to the run before last, six bits a letter.

    Source: pycocotools, `rleToString` in maskApi.c.
    """
    letters = bytearray()
    for index, count in enumerate(counts.tolist()):
        value = count - (int(counts[index - 2]) if index > 2 else 0)
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            letters.append((bits | 0x20 if more else bits) + 48)
    return letters.decode("ascii")


def rle_from_text(text: str) -> npt.NDArray[np.int64]:
    """Return the run lengths of COCO's text.

    Source: pycocotools, `rleFrString` in maskApi.c.

    Raises:
        DataError: It is no such text.
    """
    counts, position = list[int](), 0
    while position < len(text):
        value, place, more = 0, 0, True
        while more:
            if position >= len(text) or not 48 <= ord(text[position]) < 48 + 64 or place > 12:
                raise DataError(f"no run lengths in COCO's form: {text[:40]!r}")
            bits = ord(text[position]) - 48
            value |= (bits & 0x1F) << (5 * place)
            more = bool(bits & 0x20)
            position, place = position + 1, place + 1
            if not more and bits & 0x10:
                value |= -1 << (5 * place)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    try:
        return np.array(counts, np.int64)
    except OverflowError:
        raise DataError(f"no run lengths in COCO's form: {text[:40]!r}") from None


def labelme_content(
    shapes: list[dict[str, Any]], image_path: str, height: int, width: int
) -> dict[str, Any]:
    """Return the content of a LabelMe file for shapes on a picture of a size in px."""
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def labelme_shape(label: str, kind: str, points: list[list[float]]) -> dict[str, Any]:
    """Return a shape of LabelMe: its class, kind, and points x, y in px."""
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }
