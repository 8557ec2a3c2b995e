"""Parts of a web's width that did not come: filler there has no say, and what touches it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Hole", "without_holes"]


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
