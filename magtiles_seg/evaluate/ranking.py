"""How well a score orders pictures, and bootstrap intervals over physical tiles. Numpy alone.

Every figure takes a weight per picture. Weights of 1 give the figure itself; the rows of
`bootstrap_weights` give its resamples, all at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate.metrics import AnyArray, FloatArray, ratio

_RECALL_SLACK = 1e-9
"""Keeps float error (0.07 * 100 = 7.000000000000001) from asking for one defect too many."""


class _Ladder(NamedTuple):
    """The distinct scores, highest first, and the weight of defect and sound pictures on each."""

    scores: FloatArray  # (U,)
    defect: FloatArray  # (..., U)
    sound: FloatArray  # (..., U)


def auroc(scores: AnyArray, is_defect: AnyArray, weights: AnyArray | None = None) -> FloatArray:
    """Return the chance that a defect picture scores above a sound one, ties counting half.

    Args:
        scores: (N,) float, higher = more likely defect.
        is_defect: (N,) bool.
        weights: (..., N) weight of each picture; all 1 when not given.

    Returns:
        (...) float64 in 0..1; NaN where either kind of picture is missing.

    Source: Mann and Whitney 1947; Fawcett 2006, section 7.

    Example:
        >>> float(auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])))
        0.875
    """
    ladder = _ladder(scores, is_defect, weights)
    total = ladder.sound.sum(-1)
    below = total[..., None] - np.cumsum(ladder.sound, axis=-1)
    wins = (ladder.defect * (below + ladder.sound / 2)).sum(-1)
    return ratio(wins, ladder.defect.sum(-1) * total, empty=np.nan)


def false_reject_rate(
    scores: AnyArray,
    is_defect: AnyArray,
    *,
    recall: float,
    weights: AnyArray | None = None,
) -> FloatArray:
    """Return the share of sound pictures rejected when `recall` of the defects must be.

    The threshold is the highest score that still rejects that share of the defects.

    Args:
        scores: (N,) float, higher = more likely defect; rejected from the threshold on (>=).
        is_defect: (N,) bool.
        recall: Share of the defect pictures that must be rejected, 0 < recall <= 1.
        weights: (..., N) weight of each picture; all 1 when not given.

    Returns:
        (...) float64 in 0..1; NaN where either kind of picture is missing.
    """
    ladder = _ladder(scores, is_defect, weights)
    if not ladder.scores.size:
        return np.full(ladder.defect.shape[:-1], np.nan)
    rung = _rung_at_recall(ladder, recall)
    rejected = np.take_along_axis(np.cumsum(ladder.sound, axis=-1), rung[..., None], axis=-1)[
        ..., 0
    ]
    rate = ratio(rejected, ladder.sound.sum(-1), empty=np.nan)
    return np.where(ladder.defect.sum(-1) > 0, rate, np.nan)


def score_at_recall(scores: AnyArray, is_defect: AnyArray, *, recall: float) -> float:
    """Return the score threshold that rejects at least `recall` of the defect pictures.

    Of all that reject the same pictures as the highest such one it is the middle: on few pictures,
    well told apart, the lowest defect would lie far above what divides the two sides.

    Args:
        scores: (N,) float.
        is_defect: (N,) bool, at least one of them true.
        recall: Share of the defect pictures, 0 < recall <= 1.

    Raises:
        ConfigError: `recall` is out of range, or no picture is a defect.
    """
    if not np.any(is_defect):
        raise ConfigError(
            "A score threshold for a stated recall needs defect pictures; got none. "
            "Choose thresholds on a part of the data that holds defects."
        )
    ladder = _ladder(scores, is_defect, None)
    rung = int(_rung_at_recall(ladder, recall))
    return float(ladder.scores[rung : rung + 2].mean())


def bootstrap_weights(groups: AnyArray, *, resamples: int = 1000, seed: int = 0) -> FloatArray:
    """Return how often each picture stands in each resample of whole groups, with replacement.

    Args:
        groups: (N,) integer id of each picture's physical tile.
        resamples: B, the number of resamples.
        seed: Of the random generator; the same seed draws the same resamples.

    Returns:
        (B, N) float64 whole numbers; all pictures of one group share a column value.

    Source: Field and Welsh 2007 (cluster bootstrap).
    """
    names, position = np.unique(groups, return_inverse=True)
    if not names.size:
        return np.zeros((resamples, 0))
    even = np.full(names.size, 1.0 / names.size)
    drawn = np.random.default_rng(seed).multinomial(names.size, even, size=resamples)
    return drawn[:, position].astype(np.float64)


def interval(values: AnyArray, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a figure's resamples, those that are NaN left out.

    Args:
        values: (B,) float, the figure in each resample.
        level: Share of the resamples inside the interval.

    Returns:
        (low, high); (NaN, NaN) when no resample knows the figure.
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ladder(scores: AnyArray, is_defect: AnyArray, weights: AnyArray | None) -> _Ladder:
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(scores, np.float64)[order]
    mass = np.ones(ranked.size) if weights is None else np.asarray(weights, np.float64)[..., order]
    if not ranked.size:
        return _Ladder(ranked, mass, mass)
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    defect = np.where(np.asarray(is_defect, bool)[order], mass, 0.0)
    return _Ladder(
        ranked[starts],
        np.add.reduceat(defect, starts, axis=-1),
        np.add.reduceat(mass - defect, starts, axis=-1),
    )


def _rung_at_recall(ladder: _Ladder, recall: float) -> AnyArray:
    if not 0 < recall <= 1:
        raise ConfigError(
            f"A recall is a share of the defects; expected 0 < recall <= 1, got {recall!r}. "
            "Give 0.95 for 95 %."
        )
    caught = np.cumsum(ladder.defect, axis=-1)
    enough = caught >= caught[..., -1:] * recall - _RECALL_SLACK
    rung: AnyArray = np.argmax(enough, axis=-1)
    return rung
