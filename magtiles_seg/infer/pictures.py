"""Pictures on their way to a model: read, mirrored up to the least size, grouped by size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.image import ImageSource, read_image
from magtiles_seg.infer.backends.base import MIN_SIDE_PX

_BATCH_PX = 2_000_000  # About 30 tiles: more at once gains no speed on a CPU and costs memory.


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture.

    Attributes:
        pixels: (H, W) uint8, as read.
        padded: The same, mirrored at bottom and right where a side is shorter than a model takes.
        source: Path of the file; None: it came from elsewhere.
    """

    pixels: NDArray[np.uint8]
    padded: NDArray[np.uint8]
    source: str | None

    @classmethod
    def read(cls, image: ImageSource) -> Picture:
        """Read a picture.

        Raises:
            FileNotFoundError: There is no such file.
            ImageError: It is not a picture that can be segmented.
            TypeError: It is of another Python type.
        """
        pixels = read_image(image)
        missing = [(0, max(0, MIN_SIDE_PX - side)) for side in pixels.shape]
        padded = (
            np.pad(pixels, missing, mode="reflect") if min(pixels.shape) < MIN_SIDE_PX else pixels
        )
        source = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        return cls(pixels, padded, source)


def groups(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    """Yield indices of pictures of one size, as many at a time as one inference should take."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(picture.padded.shape, []).append(index)
    for (height, width), indices in by_size.items():
        step = max(1, _BATCH_PX // (height * width))
        for start in range(0, len(indices), step):
            yield indices[start : start + step]
