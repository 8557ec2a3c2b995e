"""How a picture becomes what a screen takes: the same for training, export and inference."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

CELL_PX = 32
"""Side of the squares of a picture that a screen answers for, in px."""


def halved(image: NDArray[np.uint8], cell_px: int = CELL_PX) -> NDArray[np.uint8]:
    """Return a picture at half its size, mirrored at its bottom and right up to whole cells.

    Args:
        image: (H, W) uint8.
        cell_px: Side of a cell, even.

    Returns:
        (ceil(H / cell_px) * cell_px / 2, the same of W) uint8.
    """
    bottom, right = (-side % cell_px for side in image.shape)
    if bottom or right:
        border = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
        image = np.asarray(border, dtype=np.uint8)
    rows, columns = image.shape
    small = cv2.resize(image, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)
