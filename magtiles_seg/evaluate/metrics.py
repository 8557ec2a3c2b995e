"""The measures: overlap of masks, the order that a score makes, intervals over tiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]


def ratio(numerator: AnyArray, denominator: AnyArray, *, empty: float) -> FloatArray:
    """Divide elementwise, giving `empty` wherever the denominator is 0.

    Args:
        numerator: (...) counts or weights.
        denominator: (...) counts or weights, of the same shape.
        empty: What 0/0 means for this figure.

    Returns:
        (...) float64.
    """
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    quotient = np.full(top.shape, empty, np.float64)
    np.divide(top, bottom, out=quotient, where=bottom != 0)
    return quotient


def binary_counts(prediction: AnyArray, truth: AnyArray) -> IntArray:
    """Count the pixels of one pair of masks.

    Args:
        prediction: (H, W) bool or integer; non-zero is defect.
        truth: (H, W) bool or integer; non-zero is defect.

    Returns:
        (4,) int64 `[TP, FP, FN, TN]`.

    Raises:
        DataError: The two shapes differ.

    Example:
        >>> binary_counts(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])).tolist()
        [1, 1, 1, 1]
    """
    _check_shapes(prediction, truth)
    predicted, actual = _as_bool(prediction), _as_bool(truth)
    both = np.count_nonzero(predicted & actual)
    false_alarm = np.count_nonzero(predicted) - both
    missed = np.count_nonzero(actual) - both
    return np.array([both, false_alarm, missed, predicted.size - both - false_alarm - missed])


def iou(counts: AnyArray) -> FloatArray:
    """Return TP / (TP + FP + FN); 1 where both masks are empty.

    Args:
        counts: (..., 4) sums of `[TP, FP, FN, TN]`.

    Source: Jaccard 1912.
    """
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return ratio(tp, tp + fp + fn, empty=1.0)


def dice(counts: AnyArray) -> FloatArray:
    """Return 2 TP / (2 TP + FP + FN); 1 where both masks are empty, 0 for a false alarm there.

    Args:
        counts: (..., 4) sums of `[TP, FP, FN, TN]`.

    Source: Dice 1945.
    """
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return ratio(2 * tp, 2 * tp + fp + fn, empty=1.0)


def miou2(counts: AnyArray) -> FloatArray:
    """Return the mean of the defect's IoU and the background's, TN / (TN + FP + FN).

    Args:
        counts: (..., 4) sums of `[TP, FP, FN, TN]`.
    """
    return (iou(counts) + iou(np.asarray(counts)[..., ::-1])) / 2


def pixel_accuracy(counts: AnyArray) -> FloatArray:
    """Return (TP + TN) / all pixels; NaN without any pixel.

    Args:
        counts: (..., 4) sums of `[TP, FP, FN, TN]`.
    """
    array = np.asarray(counts)
    return ratio(array[..., 0] + array[..., 3], array.sum(-1), empty=np.nan)


@dataclass(eq=False)
class PooledBinary:
    """Sums `[TP, FP, FN, TN]` picture by picture, for one ratio over all pixels at the end.

    Example:
        >>> pooled = PooledBinary()
        >>> pooled.update(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]]))
        >>> round(pooled.iou, 3)
        0.333
    """

    counts: IntArray = field(default_factory=lambda: np.zeros(4, np.int64))

    def update(self, prediction: AnyArray, truth: AnyArray) -> None:
        """Add one pair of (H, W) masks, or of (N, H, W) stacks of them; non-zero is defect."""
        self.counts += binary_counts(prediction, truth)

    @property
    def iou(self) -> float:
        """Pooled IoU, 0..1; 1 when nothing was predicted and nothing was there."""
        return float(iou(self.counts))

    @property
    def dice(self) -> float:
        """Pooled Dice, 0..1; 1 when nothing was predicted and nothing was there."""
        return float(dice(self.counts))

    @property
    def miou2(self) -> float:
        """Mean of the pooled IoU of defect and of background, 0..1."""
        return float(miou2(self.counts))

    @property
    def pixel_accuracy(self) -> float:
        """Share of pixels that are right, 0..1; NaN before the first update."""
        return float(pixel_accuracy(self.counts))


def confusion_matrix(prediction: AnyArray, truth: AnyArray, labels: int) -> IntArray:
    """Count the pixels of every (true class, predicted class).

    Args:
        prediction: (H, W) unsigned integer class indices, each below `labels`.
        truth: (H, W) unsigned integer class indices, each below `labels`.
        labels: K, background included.

    Returns:
        (K, K) int64, row = truth, column = prediction.

    Raises:
        DataError: The two shapes differ, or an index is not below `labels`.
    """
    _check_shapes(prediction, truth)
    highest = int(max(prediction.max(initial=0), truth.max(initial=0)))
    if highest >= labels:
        raise DataError(
            f"A mask holds class index {highest}; expected 0..{labels - 1}. "
            "Give the evaluation the labels that the masks and the model were made with."
        )
    codes = truth.astype(np.intp) * labels + prediction
    return np.bincount(codes.ravel(), minlength=labels * labels).reshape(labels, labels)


def class_iou(confusion: AnyArray) -> FloatArray:
    """Return the IoU of each class; NaN for a class in neither truth nor prediction.

    Args:
        confusion: (..., K, K) sums, row = truth, column = prediction.

    Returns:
        (..., K) float64.
    """
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = np.sum(confusion, axis=-1) + np.sum(confusion, axis=-2) - hit
    return ratio(hit, union, empty=np.nan)


def mean_iou(confusion: AnyArray, *, background: bool = True) -> FloatArray:
    """Return the mean IoU over the classes that occur: mIoU6 with background, mIoU5 without.

    Args:
        confusion: (..., K, K) sums, row = truth, column = prediction.
        background: Whether class 0 counts as a class.
    """
    return mean_of_known(class_iou(confusion)[..., 0 if background else 1 :])


def channel_counts(prediction: AnyArray, truth: AnyArray) -> IntArray:
    """Count `[TP, FP, FN, TN]` over the pixels of all sigmoid channels together (protocol P2 a).

    Args:
        prediction: (C, H, W) bool or integer, one mask per defect class.
        truth: (C, H, W) bool or integer.

    Returns:
        (4,) int64; its `iou` is the micro IoU.
    """
    return binary_counts(prediction, truth)


def micro_counts(confusion: AnyArray) -> FloatArray:
    """Return what `channel_counts` gives for exclusive classes, from their confusion matrix.

    Every defect class is one channel. A pixel given to the wrong defect class is a false alarm in
    one channel and a miss in another.

    Args:
        confusion: (..., K, K) sums, row = truth, column = prediction.

    Returns:
        (..., 4) `[TP, FP, FN, TN]` over pixels and K - 1 channels.
    """
    matrix = np.asarray(confusion)
    tp = np.diagonal(matrix, axis1=-2, axis2=-1)[..., 1:].sum(-1)
    fp = matrix[..., :, 1:].sum((-2, -1)) - tp
    fn = matrix[..., 1:, :].sum((-2, -1)) - tp
    cells = matrix.sum((-2, -1)) * (matrix.shape[-1] - 1)
    return np.stack([tp, fp, fn, cells - tp - fp - fn], axis=-1)


def mean_of_known(values: AnyArray) -> FloatArray:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1), empty=np.nan)


def _as_bool(mask: AnyArray) -> npt.NDArray[np.bool_]:
    return mask if mask.dtype == np.bool_ else mask != 0


def _check_shapes(prediction: AnyArray, truth: AnyArray) -> None:
    if prediction.shape != truth.shape:
        raise DataError(
            f"The predicted mask has shape {prediction.shape}; expected that of the true mask, "
            f"{truth.shape}. A predictor must answer at the size of the picture it is given."
        )


_RECALL_SLACK = 1e-9
"""Keeps float error (0.07 * 100 = 7.000000000000001) from asking for one defect too many."""


class _OperatingPoints(NamedTuple):
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
    points = _operating_points(scores, is_defect, weights)
    total = points.sound.sum(-1)
    below = total[..., None] - np.cumsum(points.sound, axis=-1)
    wins = (points.defect * (below + points.sound / 2)).sum(-1)
    return ratio(wins, points.defect.sum(-1) * total, empty=np.nan)


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
    points = _operating_points(scores, is_defect, weights)
    if not points.scores.size:
        return np.full(points.defect.shape[:-1], np.nan)
    point = _point_at_recall(points, recall)
    rejected = np.take_along_axis(np.cumsum(points.sound, axis=-1), point[..., None], axis=-1)[
        ..., 0
    ]
    rate = ratio(rejected, points.sound.sum(-1), empty=np.nan)
    return np.where(points.defect.sum(-1) > 0, rate, np.nan)


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
            "a score threshold for a stated recall needs defect pictures; got none: choose "
            "thresholds on a part of the data that holds defects"
        )
    points = _operating_points(scores, is_defect, None)
    point = int(_point_at_recall(points, recall))
    return float(points.scores[point : point + 2].mean())


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


def _operating_points(
    scores: AnyArray, is_defect: AnyArray, weights: AnyArray | None
) -> _OperatingPoints:
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(scores, np.float64)[order]
    mass = np.ones(ranked.size) if weights is None else np.asarray(weights, np.float64)[..., order]
    if not ranked.size:
        return _OperatingPoints(ranked, mass, mass)
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    defect = np.where(np.asarray(is_defect, bool)[order], mass, 0.0)
    return _OperatingPoints(
        ranked[starts],
        np.add.reduceat(defect, starts, axis=-1),
        np.add.reduceat(mass - defect, starts, axis=-1),
    )


def _point_at_recall(points: _OperatingPoints, recall: float) -> AnyArray:
    if not 0 < recall <= 1:
        raise ConfigError(
            f"A recall is a share of the defects; expected 0 < recall <= 1, got {recall!r}. "
            "Give 0.95 for 95 %."
        )
    caught = np.cumsum(points.defect, axis=-1)
    enough = caught >= caught[..., -1:] * recall - _RECALL_SLACK
    point: AnyArray = np.argmax(enough, axis=-1)
    return point


BINS = 256
"""Probability bins, each 1/256 wide: a bin's lower edge is exact in binary floating point."""


def probability_bins(probability: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return the bin of each probability, `min(floor(256 p), 255)`.

    For any i in 0..255, `bin >= i` says exactly `p >= i / 256`.

    Args:
        probability: (...) float in 0..1.
    """
    bins: npt.NDArray[np.uint8] = np.minimum(probability * BINS, BINS - 1).astype(np.uint8)
    return bins


def probability_histogram(probability: AnyArray, truth: AnyArray) -> IntArray:
    """Count the pixels of one picture by truth and probability.

    Args:
        probability: (H, W) float32 in 0..1.
        truth: (H, W) bool or integer, non-zero is defect.

    Returns:
        (2, 256) int64: row 0 sound, row 1 defect. Sums of them over pictures are histograms too.
    """
    bins = probability_bins(probability)
    everything = np.bincount(bins.ravel(), minlength=BINS)
    defect = np.bincount(bins[truth != 0], minlength=BINS)
    return np.stack([everything - defect, defect])
