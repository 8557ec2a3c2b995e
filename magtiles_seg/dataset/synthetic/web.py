"""Draws an endless web: rows of synthetic tiles as they pass under a line camera."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.synthetic import DEFECTS, MIN_SIDE_PX, SyntheticTile, synthetic_tile
from magtiles_seg.decision import count, fraction
from magtiles_seg.errors import ConfigError

_BACKDROP_GREY = 22


@dataclass(frozen=True, eq=False)
class WebRows:
    """One row of tiles and the gap below it.

    Attributes:
        image: (n, W) uint8.
        mask: (n, W) uint8, 0 sound or 1 defect, exact.
        tiles: How many tiles lie side by side.
        defects: How many of them have a defect.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    tiles: int
    defects: int


def synthetic_web(
    width_px: int,
    *,
    seed: int = 0,
    tile_hw: tuple[int, int] = (288, 220),
    gap_px: int = 12,
    defect_fraction: float = 0.1,
    distinct: int = 24,
) -> Iterator[WebRows]:
    """Yield rows of tiles without end: the same arguments always give the same web.

    Args:
        width_px: Pixels per line, room for one tile at least.
        seed: Decides the web.
        tile_hw: Height and width of a tile, each at least 64 px.
        gap_px: Backdrop between tiles, both ways.
        defect_fraction: Share of the tiles that have a defect, 0..1.
        distinct: How many sound tiles are drawn, and as many with defects; the web takes them at
            random, mirrored at random, which is far cheaper than to draw each.

    Raises:
        ConfigError: A number is invalid.

    Example:
        >>> rows = next(synthetic_web(2048, seed=3))
        >>> rows.image.shape == rows.mask.shape == (300, 2048)
        True
    """
    share = fraction("defect_fraction", defect_fraction)
    columns = (count("width_px", width_px) + gap_px) // (tile_hw[1] + gap_px) if gap_px >= 0 else 0
    if columns < 1:
        raise ConfigError(
            f"a web of {width_px} px has no room for a tile of {tile_hw[1]} px and gaps of "
            f"{gap_px} px; expected a wider web and gaps of at least 0"
        )
    if seed < 0 or min(tile_hw) < MIN_SIDE_PX:
        raise ConfigError(
            f"seed is {seed} and tile_hw {tile_hw}; expected at least 0 and {MIN_SIDE_PX} px"
        )
    return _rows(width_px, seed, tile_hw, (gap_px, columns, share, count("distinct", distinct)))


def _rows(
    width_px: int, seed: int, tile_hw: tuple[int, int], plan: tuple[int, int, float, int]
) -> Iterator[WebRows]:
    gap_px, columns, share, distinct = plan
    rng = np.random.default_rng((seed, 4))
    pools: dict[bool, list[SyntheticTile]] = {False: [], True: []}
    height, width = tile_hw
    while True:
        image = np.full((height + gap_px, width_px), _BACKDROP_GREY, dtype=np.uint8)
        mask = np.zeros_like(image)
        defective = rng.random(columns) < share
        for column in range(columns):
            pool = pools[bool(defective[column])]
            chosen = int(rng.integers(distinct))
            while len(pool) <= chosen:
                pool.append(_tile(seed, len(pool), bool(defective[column]), tile_hw))
            turn = (slice(None, None, rng.choice([-1, 1])), slice(None, None, rng.choice([-1, 1])))
            place = (slice(0, height), slice(at := column * (width + gap_px), at + width))
            image[place] = pool[chosen].image[turn]
            mask[place] = pool[chosen].mask[turn]
        yield WebRows(image, mask, columns, int(defective.sum()))


def _tile(seed: int, index: int, defective: bool, tile_hw: tuple[int, int]) -> SyntheticTile:
    defect = DEFECTS[index % len(DEFECTS)] if defective else None
    return synthetic_tile(
        1000 * seed + index, defect=defect, exposure=1 + index % 6, size_hw=tile_hw
    )
