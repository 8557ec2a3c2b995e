"""The overlap of masks and of classes, in numpy alone.

Overlap is counted once per picture as `[TP, FP, FN, TN]` (or as a confusion matrix), and every
figure is a function of sums of such counts. So the same function gives the figure of one picture,
of a whole test set (pooled), and of a thousand bootstrap resamples at once: all of them work on the
last axes and keep the leading ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import DataError

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
        prediction: (C, H, W) bool or integer, one mask a defect class.
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
