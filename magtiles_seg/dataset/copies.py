"""Pictures that are one: copies, also turned by quarters, mirrored or saved again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.matching import root
from magtiles_seg.image import read_image

_SIDE = 25
_LEAST_CORRELATION = 0.985
"""Of two thumbnails, for the pictures to be compared pixel by pixel."""

_LEAST_LIKENESS = 0.94
"""Correlation of all pixels of a picture and its copy, as JPEG and another brightness leave it."""

_ROWS = 1024
_KEPT = 512

Pixels = npt.NDArray[np.uint8]


def find_copies(
    paths: Sequence[Path], *, progress: Callable[[int, int], None] | None = None
) -> list[int]:
    """Return a number for each picture, alike for pictures that are copies of each other.

    Two pictures of one size are copies where one, as it is, turned by quarters or mirrored,
    correlates with the other by at least .94, pixel by pixel. Shifts and crops are no copies.
    Takes time by the square of their number: about a minute for 5,000.

    Args:
        paths: The pictures.
        progress: Told after each picture that was read.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: One is damaged, or of a kind that is not read.
    """
    if not paths:
        return []
    small = np.empty((len(paths), _SIDE, _SIDE), np.float32)
    for index, path in enumerate(paths):
        small[index] = cv2.resize(
            read_image(path).astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA
        )
        if progress:
            progress(index + 1, len(paths))
    parent = list(range(len(paths)))
    read = lru_cache(_KEPT)(lambda index: read_image(paths[index]))
    for here, there, view in _candidates(small):
        one, other = root(parent, here), root(parent, there)
        if one != other and _is_copy(read(here), _view(read(there), view)):
            parent[max(one, other)] = min(one, other)
    return [root(parent, index) for index in range(len(paths))]


def _candidates(small: npt.NDArray[np.float32]) -> Iterator[tuple[int, int, int]]:
    """Yield pairs whose thumbnails agree, and the view of the second in which they do."""
    whole = _as_rows(small)
    for view in range(8):
        seen = _as_rows(np.stack([_view(one, view) for one in small]))
        for start in range(0, len(whole), _ROWS):
            alike = whole[start : start + _ROWS] @ seen.T >= _LEAST_CORRELATION
            for row, column in np.argwhere(alike):
                if start + row < column:
                    yield int(start + row), int(column), view


def _as_rows(small: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (N, S * S) of mean 0 and length 1; pictures without any contrast are 0."""
    rows = small.reshape(len(small), -1)
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.where(length > 1e-3, rows / np.maximum(length, 1e-3), 0), np.float32)


def _view(pixels: npt.NDArray[np.generic], view: int) -> npt.NDArray[np.generic]:
    """Return one of the eight views of a picture: turned by `view` quarters, from 4 on mirrored."""
    turned = np.rot90(pixels, view % 4)
    return turned[:, ::-1] if view >= 4 else turned


def _is_copy(here: Pixels, there: npt.NDArray[np.generic]) -> bool:
    if here.shape != there.shape:
        return False
    one, other = (pixels.astype(np.float32).ravel() for pixels in (here, there))
    return bool(np.corrcoef(one, other)[0, 1] >= _LEAST_LIKENESS)
