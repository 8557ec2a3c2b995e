"""Protocol T-tile: one verdict a physical tile, from the scores of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.evaluate.metrics import (
    AnyArray,
    FloatArray,
    IntArray,
    auroc,
    bootstrap_weights,
    false_reject_rate,
    interval,
)
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.names import counted
from magtiles_seg.tile import tile_score

EXPOSURES = (1, 2, 3, 6)
"""How many pictures of a tile are tried; one that has fewer gives all of them."""

_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class ByExposures:
    """The figures where each tile has at most so many pictures: mean over random choices.

    Attributes:
        exposures: At most so many pictures of a tile.
        tiles_with_fewer: How many tiles have fewer; all of their pictures are taken.
        draws: How many random choices the figures are the mean of.
        figures: By name.
    """

    exposures: int
    tiles_with_fewer: int
    draws: int
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TileVerdicts:
    """What one verdict a tile is worth.

    Attributes:
        tiles: How many tiles.
        defective: How many of them have a defective picture.
        figures: With all pictures of each tile, by name.
        intervals: 95 % bootstrap interval over tiles of each figure.
        by_exposures: The figures with fewer pictures, the fewest first.
    """

    tiles: int
    defective: int
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    by_exposures: tuple[ByExposures, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def has_exposures(records: Records) -> bool:
    """Tell whether any tile has several pictures."""
    return len(np.unique(records.group)) < len(records)


def tile_verdicts(records: Records, *, resamples: int, seed: int = 0) -> TileVerdicts:
    """Give each tile the score of all its pictures, and measure that.

    A tile is defective if any of its pictures is filed as defective.

    Args:
        records: Scored pictures.
        resamples: Bootstrap resamples; 0 for no intervals.
        seed: Of the resampling and of the choices of pictures.
    """
    tiles = _tiles_of(records.group)
    _, defective = tile_scores(records.score, records.is_defect, records.group)
    values = tile_figures(records, np.ones(len(records)))
    intervals = {}
    if resamples > 0:
        weights = bootstrap_weights(records.group, resamples=resamples, seed=seed)
        drawn = tile_figures(records, weights)
        intervals = {name: interval(drawn[name]) for name in drawn}
    return TileVerdicts(
        tiles=len(tiles),
        defective=int(defective.sum()),
        figures={name: float(value) for name, value in values.items()},
        intervals=intervals,
        by_exposures=tuple(
            _by_exposures(records.score, tiles, defective, most=most, seed=seed)
            for most in EXPOSURES
        ),
    )


def tile_figures(records: Records, weights: AnyArray) -> dict[str, FloatArray]:
    """Compute `tile_auroc`, `tile_false_reject_at_95_recall` and `…_99_recall`.

    Args:
        records: N scored pictures.
        weights: (..., N) how often each picture counts, alike for all pictures of a tile.

    Returns:
        (...) float64 for each figure's name; NaN where no tile is defective, or none sound.
    """
    scores, defective = tile_scores(records.score, records.is_defect, records.group)
    first = np.unique(records.group, return_index=True)[1]
    return _figures(scores, defective, np.asarray(weights, np.float64)[..., first])


def tile_scores(
    score: FloatArray, is_defect: AnyArray, group: AnyArray
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return the score of each tile, and whether it is defective, in order of group: (T,), (T,).

    Args:
        score: (N,) float, of each picture.
        is_defect: (N,) bool, whether it is filed as defective.
        group: (N,) int, its tile.
    """
    tiles = _tiles_of(group)
    together = np.array([tile_score(score[tile]) for tile in tiles])
    return together, np.array([is_defect[tile].any() for tile in tiles])


def recall_steps(defective: int) -> str:
    """Return what a recall can be promised of, where a threshold is set by so many tiles.

    Source: split-conformal prediction, as in Angelopoulos and Bates 2021, section 1: of m
    exchangeable defective tiles that set a threshold at their k-th lowest score, the next one lies
    below it with a chance of at most k / (m + 1).
    """
    step = Fraction(1, defective + 1)
    lowest = (defective + 1) // 20  # 5 % of m + 1
    text = (
        f"A recall on new tiles can only be promised in steps of 1/{step.denominator} "
        f"({100 * float(step):.1f} %): with {counted(defective, 'defective tile')}, "
        f"exchangeable with those to come, {100 * (1 - float(step)):.1f} % at most"
    )
    if lowest < 1:
        return f"{text}; 95 % cannot be promised."
    if lowest == 1:
        return f"{text}; 95 % by rejecting from the lowest defective tile's score on."
    return f"{text}; 95 % by rejecting from the score of defective tile {lowest} from below on."


def _tiles_of(group: IntArray) -> list[IntArray]:
    """Return the indices of each tile's pictures."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []


def _figures(scores: AnyArray, defective: AnyArray, weights: AnyArray) -> dict[str, FloatArray]:
    at_recall = {
        f"tile_false_reject_at_{percent}_recall": false_reject_rate(
            scores, defective, recall=percent / 100, weights=weights
        )
        for percent in (95, 99)
    }
    return {"tile_auroc": auroc(scores, defective, weights), **at_recall}


def _by_exposures(
    score: FloatArray, tiles: Sequence[IntArray], defective: AnyArray, *, most: int, seed: int
) -> ByExposures:
    generator = np.random.default_rng([seed, most])
    drawn: dict[str, list[float]] = {}
    for _ in range(_DRAWS):
        chosen = [
            generator.choice(tile, most, replace=False) if len(tile) > most else tile
            for tile in tiles
        ]
        together = np.array([tile_score(score[tile]) for tile in chosen])
        for name, value in _figures(together, defective, np.ones(len(tiles))).items():
            drawn.setdefault(name, []).append(float(value))
    return ByExposures(
        exposures=most,
        tiles_with_fewer=sum(len(tile) < most for tile in tiles),
        draws=_DRAWS,
        figures={name: float(np.mean(values)) for name, values in drawn.items()},
    )
