"""Two pictures of one surface laid over each other, by their fine texture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shift: TypeAlias = tuple[float, float]
"""(x, y) in px by which a picture must move to lie over another."""

_LEAST_CORRELATION = 0.35
"""Of the fine texture, for two pictures to count as laid over each other: strangers reach .25."""

_LEAST_OVERLAP = 0.7
_GRAIN_PX, _CONTRAST_PX = 4.0, 8.0


def fine_texture(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a picture's fine texture at equal contrast everywhere, whatever the light.

    Args:
        image: (H, W) uint8.

    Returns:
        (H, W) float32, about -2 to 2.
    """
    grey = image.astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), _GRAIN_PX)
    return np.asarray(fine / (cv2.GaussianBlur(np.abs(fine), (0, 0), _CONTRAST_PX) + 1), np.float32)


def find_shift(here: NDArray[np.float32], there: NDArray[np.float32]) -> Shift | None:
    """Return by how much the second must move to lie over the first, or None: that is unsure.

    By phase correlation; the textures must then correlate by at least .35 and share 70 % of the
    first picture.

    Args:
        here: (H, W) float32, as of `fine_texture`.
        there: Likewise, of any size.
    """
    height, width = np.maximum(here.shape, there.shape)
    padded = [
        np.pad(grain, ((0, height - grain.shape[0]), (0, width - grain.shape[1])))
        for grain in (here, there)
    ]
    if min(height, width) < 2:  # what OpenCV makes a window for
        return None
    window = cv2.createHanningWindow((int(width), int(height)), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(padded[0], padded[1], window)
    shift = (-x, -y)
    known = move(np.ones(there.shape, np.uint8), shift, here.shape) > 0
    if known.mean() < _LEAST_OVERLAP:
        return None
    ours, theirs = here[known], move(there, shift, here.shape)[known]
    if not (ours.std() and theirs.std()):  # a picture without any texture says nothing
        return None
    correlation = np.corrcoef(ours, theirs)[0, 1]
    return shift if correlation >= _LEAST_CORRELATION else None


def move(pixels: NDArray[Any], shift: Shift, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array moved by a shift and cut to (H, W) of `shape`; 0 where nothing is known.

    Args:
        pixels: (H, W) float32, which is interpolated, or uint8, of which the nearest is taken.
        shift: (x, y) in px.
        shape: Of the result.
    """
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    linear = cv2.INTER_LINEAR if pixels.dtype == np.float32 else cv2.INTER_NEAREST
    moved: NDArray[Any] = cv2.warpAffine(pixels, matrix, shape[::-1], flags=linear)
    return moved
