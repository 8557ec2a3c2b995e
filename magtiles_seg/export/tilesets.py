"""The tiles that an artefact is calibrated on, and those that it is proved on.

Real tiles where a data set is given, synthetic ones otherwise. No physical tile is in both sets.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import Sample, load_image
from magtiles_seg.dataset.synthetic import DEFECTS, synthetic_tile
from magtiles_seg.errors import DataError
from magtiles_seg.infer.backends.base import MIN_SIDE_PX

_PROOF_SEED, _CALIBRATION_SEED = 0, 1000
_EXPOSURES = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class TileSet:
    """Pictures and what they show.

    Attributes:
        pictures: (H, W) uint8 each.
        classes: One name a picture, `"free"` for a sound tile.
        origin: `"real"` or `"synthetic"`.
    """

    pictures: tuple[npt.NDArray[np.uint8], ...]
    classes: tuple[str, ...]
    origin: str

    def within(self, least_hw: Sequence[int], greatest_hw: Sequence[int]) -> TileSet:
        """Return the tiles mirrored on or cut to sizes that an engine takes.

        Args:
            least_hw: Least height and width, in px.
            greatest_hw: Greatest height and width, in px.
        """
        return replace(self, pictures=tuple(fit(self.pictures, least_hw, greatest_hw)))

    def __str__(self) -> str:
        """Return how many of which origin."""
        return f"{len(self.pictures)} {self.origin} tiles"


def fit(
    pictures: Iterable[npt.NDArray[np.uint8]], least_hw: Sequence[int], greatest_hw: Sequence[int]
) -> list[npt.NDArray[np.uint8]]:
    """Return pictures (H, W) uint8 mirrored on or cut to sizes that an engine takes.

    Args:
        pictures: (H, W) uint8 each.
        least_hw: Least height and width, in px.
        greatest_hw: Greatest height and width, in px.
    """
    fitted = []
    for picture in pictures:
        missing = [max(0, low - side) for low, side in zip(least_hw, picture.shape, strict=True)]
        padded = np.pad(picture, [(0, more) for more in missing], mode="symmetric")
        fitted.append(np.ascontiguousarray(padded[: greatest_hw[0], : greatest_hw[1]]))
    return fitted


def real_tiles(samples: Iterable[Sample], per_class: int, *, seed: int = 0) -> TileSet:
    """Return at most so many pictures of each class, chosen at random.

    Args:
        samples: What to choose from.
        per_class: Most pictures of a class.
        seed: Of the choice.

    Raises:
        DataError: No picture is left; those with a side of less than 32 px do not count.
    """
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    chooser = random.Random(seed)
    chosen = [
        sample
        for _, group in sorted(by_class.items())
        for sample in chooser.sample(group, min(per_class, len(group)))
    ]
    read = [(load_image(sample), sample.label) for sample in chosen]
    kept = [(image, label) for image, label in read if min(image.shape) >= MIN_SIDE_PX]
    if not kept:
        raise DataError(
            f"there is no tile to compare on: expected pictures of at least {MIN_SIDE_PX} px a "
            f"side, got {len(read)} of which none is; name another data set"
        )
    return TileSet(
        pictures=tuple(image for image, _ in kept),
        classes=tuple(label for _, label in kept),
        origin="real",
    )


def synthetic_tiles(per_class: int, *, calibration: bool = False) -> TileSet:
    """Return so many synthetic tiles of each class, the same ones every time.

    Args:
        per_class: Pictures of a class.
        calibration: Whether to draw those for calibration, of which none is in the other set.
    """
    first = _CALIBRATION_SEED if calibration else _PROOF_SEED
    wanted = [(kind, index) for kind in (None, *DEFECTS) for index in range(per_class)]
    tiles = [
        synthetic_tile(first + seed, defect=kind, exposure=index % _EXPOSURES + 1)
        for seed, (kind, index) in enumerate(wanted)
    ]
    return TileSet(
        pictures=tuple(tile.image for tile in tiles),
        classes=tuple(tile.label for tile in tiles),
        origin="synthetic",
    )


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return a data set in two halves, for calibration and for proof, by whole physical tiles."""
    sets: tuple[list[Sample], list[Sample]] = ([], [])
    counts: dict[str, dict[int, int]] = {}
    for sample in samples:
        tiles = counts.setdefault(sample.label, {})
        tiles.setdefault(sample.group, len(tiles))
    side: dict[int, int] = {}
    for tiles in counts.values():
        for group, number in tiles.items():
            side.setdefault(group, number % 2)
    for sample in samples:
        sets[side[sample.group]].append(sample)
    return sets
