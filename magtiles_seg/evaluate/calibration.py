"""Probabilities that mean what they say: an affine map of the logit, fitted out-of-fold.

A calibrated p is sigmoid(scale * logit(p) + bias). With a scale above 0 it orders pixels and
pictures as before, so AUROC and precision-recall curves stay what they are. Pixels and pictures
have a map each: the pixels' goes into the network's last layer (`model.checkpoint`), the picture
score's into `Decision`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate.metrics import AnyArray, FloatArray, IntArray, ratio

_STEP = 0.125
_REACH = 16.0
LOGITS: FloatArray = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
"""(257,) the logits that pixels are rounded to when they are counted."""

_ITERATIONS = 100


@dataclass(frozen=True)
class Affine:
    """A map of probabilities: `sigmoid(scale * logit(p) + bias)`.

    Attributes:
        scale: Above 0; below 1 it takes confidence away.
        bias: Below 0 it lowers every probability.
    """

    scale: float = 1.0
    bias: float = 0.0

    def __call__(self, probability: AnyArray) -> FloatArray:
        """Return calibrated probabilities, float64, of (...) probabilities in 0..1."""
        return sigmoid(self.scale * logit(probability) + self.bias)


def logit(probability: AnyArray) -> FloatArray:
    """Return log(p / (1 - p)), (...) float64 within -16..16."""
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore"):
        clipped: FloatArray = np.clip(np.log(p) - np.log1p(-p), -_REACH, _REACH)
    return clipped


def sigmoid(value: AnyArray) -> FloatArray:
    """Return 1 / (1 + exp(-x)), (...) float64."""
    chance: FloatArray = np.exp(-np.logaddexp(0, -np.asarray(value, np.float64)))
    return chance


def logit_histogram(probability: AnyArray, truth: AnyArray) -> IntArray:
    """Count the pixels of one picture by truth and logit.

    Args:
        probability: (H, W) float32 in 0..1.
        truth: (H, W) bool or integer, non-zero is defect.

    Returns:
        (2, 257) int64: row 0 sound, row 1 defect, columns as in `LOGITS`. Sums over pictures are
        histograms too.
    """
    bins = np.rint((logit(probability) + _REACH) / _STEP).astype(np.intp)
    everything = np.bincount(bins.ravel(), minlength=LOGITS.size)
    defect = np.bincount(bins[truth != 0], minlength=LOGITS.size)
    return np.stack([everything - defect, defect])


def fit(logits: AnyArray, sound: AnyArray, defect: AnyArray) -> Affine:
    """Return the map of least log loss.

    The targets are (n + 1) / (n + 2) instead of 1, and as far from 0, so that cases without any
    overlap of the two kinds do not get an infinite scale.

    Args:
        logits: (B,) float, of the model.
        sound: (B,) how many sound pixels or pictures have each.
        defect: (B,) how many defective ones.

    Raises:
        ConfigError: One kind is missing, or higher logits do not speak for a defect.

    Source: Platt 1999; Lin, Lin and Weng 2007 (Newton's method).
    """
    logits, sound, defect = (np.asarray(values, np.float64) for values in (logits, sound, defect))
    if not (sound.sum() and defect.sum()):
        raise ConfigError(
            f"a calibration needs sound and defective cases; got {sound.sum():.0f} and "
            f"{defect.sum():.0f}: fit it on pictures of both kinds"
        )
    total = sound + defect
    if not np.ptp(logits[total > 0]):  # an untrained model tells nothing apart: it stays as it is
        return Affine(1.0, 0.0)
    high, low = (defect.sum() + 1) / (defect.sum() + 2), 1 / (sound.sum() + 2)
    wanted = defect * high + sound * low
    design = np.stack([logits, np.ones_like(logits)])
    weights = np.array([1.0, 0.0])

    def loss(at: AnyArray) -> float:
        value = at @ design
        return float((total * np.logaddexp(0, value) - wanted * value).sum())

    for _ in range(_ITERATIONS):
        expected = sigmoid(weights @ design)
        slope = design @ (total * expected - wanted)
        curvature = (design * (total * expected * (1 - expected))) @ design.T + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(curvature, slope), 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    if weights[0] <= 0:
        raise ConfigError(
            "the model's probabilities do not rise with defects, as those of a model that is no "
            "better than chance (its AUROC is about 0.5 or below): train it longer, or on more "
            "pictures"
        )
    return Affine(float(weights[0]), float(weights[1]))


def reliability(
    probability: AnyArray, sound: AnyArray, defect: AnyArray, *, bins: int = 15
) -> tuple[list[dict[str, Any]], float]:
    """Return the reliability diagram's rows, and the expected calibration error (ECE).

    Args:
        probability: (B,) float in 0..1.
        sound: (B,) how many sound cases have each.
        defect: (B,) how many defective ones.
        bins: Number of equally wide bins.

    Returns:
        Rows of `confidence` (mean probability), `observed` (share of defects) and `count`, those
        of empty bins left out; and the mean of |confidence - observed| over cases.

    Source: Naeini, Cooper and Hauskrecht 2015.
    """
    p = np.asarray(probability, np.float64)
    place = np.minimum((p * bins).astype(np.intp), bins - 1)
    total = np.asarray(sound, np.float64) + defect
    count, mass, hits = (
        np.bincount(place, weights, minlength=bins) for weights in (total, total * p, defect)
    )
    confidence, observed = ratio(mass, count, empty=np.nan), ratio(hits, count, empty=np.nan)
    rows = [
        {
            "confidence": round(float(confidence[row]), 6),
            "observed": round(float(observed[row]), 6),
            "count": int(count[row]),
        }
        for row in np.flatnonzero(count)
    ]
    known = count > 0
    error = (count * np.abs(confidence - observed))[known].sum() / count.sum()
    return rows, float(error)
