"""Which pictures an epoch shows: balanced over kinds of defect and over physical tiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import DataError
from magtiles_seg.labels import FREE


class BalancedSampler:
    """Draws pictures: sound or not, then the kind, then the tile, then one of the tile's pictures.

    A kind's share is the square root of its number of pictures, so that rare kinds are seen more
    often than they occur without being learnt by heart. Within a kind every tile has the same
    share, however many exposures it has.
    """

    def __init__(self, samples: Sequence[Sample], *, free_fraction: float) -> None:
        """Sort the samples by kind and tile.

        Args:
            samples: Those to draw from.
            free_fraction: Share of sound pictures; without effect when there are only sound ones,
                or none.

        Raises:
            DataError: There are no samples.
        """
        if not samples:
            raise DataError("no pictures to train on: the split's training part is empty")
        by_kind: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, sample in enumerate(samples):
            by_kind[sample.label][sample.group].append(index)
        self._tiles = {kind: list(tiles.values()) for kind, tiles in sorted(by_kind.items())}
        self._kinds = list(self._tiles)
        roots = {
            kind: sum(map(len, tiles)) ** 0.5 for kind, tiles in self._tiles.items() if kind != FREE
        }
        total = sum(roots.values())
        free = free_fraction if roots and FREE in self._tiles else float(FREE in self._tiles)
        self._shares = [
            free if kind == FREE else (1 - free) * roots[kind] / total for kind in self._kinds
        ]

    def draw(self, rng: np.random.Generator) -> int:
        """Return the index of one sample."""
        tiles = self._tiles[self._kinds[int(rng.choice(len(self._kinds), p=self._shares))]]
        pictures = tiles[int(rng.integers(len(tiles)))]
        return pictures[int(rng.integers(len(pictures)))]
