"""Overlap formulas: hand-worked 4x4 cases, a naive reference, and laws for any masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from magtiles_seg.errors import DataError
from magtiles_seg.evaluate import metrics

Array = npt.NDArray[Any]

TRUTH = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
GUESS = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], np.uint8)
NOTHING = np.zeros((4, 4), np.uint8)

masks = array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 3))] * 2)
)


def naive_counts(guess: Array, truth: Array) -> list[int]:
    tp = fp = fn = tn = 0
    for p, t in zip(guess.ravel(), truth.ravel(), strict=True):
        tp += bool(p) and bool(t)
        fp += bool(p) and not t
        fn += not p and bool(t)
        tn += not p and not t
    return [tp, fp, fn, tn]


def test_binary_counts_hand_worked_gives_each_quadrant() -> None:
    assert metrics.binary_counts(GUESS, TRUTH).tolist() == [2, 3, 2, 9]


def test_figures_hand_worked_follow_from_the_counts() -> None:
    counts = metrics.binary_counts(GUESS, TRUTH)
    assert metrics.iou(counts) == pytest.approx(2 / 7)
    assert metrics.dice(counts) == pytest.approx(4 / 9)
    assert metrics.miou2(counts) == pytest.approx((2 / 7 + 9 / 14) / 2)
    assert metrics.pixel_accuracy(counts) == pytest.approx(11 / 16)


def test_dice_both_masks_empty_is_one() -> None:
    assert metrics.dice(metrics.binary_counts(NOTHING, NOTHING)) == 1
    assert metrics.iou(metrics.binary_counts(NOTHING, NOTHING)) == 1


def test_dice_false_alarm_on_an_empty_mask_is_zero() -> None:
    assert metrics.dice(metrics.binary_counts(GUESS, NOTHING)) == 0


def test_binary_counts_other_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(2, 2\).*true mask, \(4, 4\)"):
        metrics.binary_counts(GUESS[:2, :2], TRUTH)


def test_pooled_binary_two_pictures_is_one_ratio_and_no_mean_of_ratios() -> None:
    pooled = metrics.PooledBinary()
    pooled.update(GUESS, TRUTH)
    pooled.update(TRUTH, TRUTH)
    assert pooled.counts.tolist() == [6, 3, 2, 21]
    assert pooled.iou == pytest.approx(6 / 11)
    assert pooled.dice == pytest.approx(12 / 17)
    assert pooled.miou2 == pytest.approx((6 / 11 + 21 / 26) / 2)
    assert pooled.pixel_accuracy == pytest.approx(27 / 32)


def test_confusion_matrix_hand_worked_has_truth_in_rows() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 0]], np.uint8)
    guess = np.array([[0, 1, 1, 2], [2, 2, 0, 0]], np.uint8)
    matrix = metrics.confusion_matrix(guess, truth, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert metrics.class_iou(matrix)[:3].tolist() == pytest.approx([2 / 4, 1 / 3, 2 / 4])
    assert np.isnan(metrics.class_iou(matrix)[3])
    assert metrics.mean_iou(matrix) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert metrics.mean_iou(matrix, background=False) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_confusion_matrix_unknown_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"class index 6; expected 0\.\.5"):
        metrics.confusion_matrix(np.array([[6]], np.uint8), np.array([[0]], np.uint8), 6)
    with pytest.raises(DataError, match=r"class index 7; expected 0\.\.5"):
        metrics.confusion_matrix(np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), 6)


def test_mean_iou_no_class_known_is_nan() -> None:
    assert np.isnan(metrics.mean_iou(np.zeros((3, 3))))


@given(masks)
def test_binary_counts_any_masks_equal_a_loop_over_pixels(pair: tuple[Array, Array]) -> None:
    assert metrics.binary_counts(*pair).tolist() == naive_counts(*pair)


@given(masks)
def test_confusion_matrix_any_masks_equals_a_loop_over_pixels(pair: tuple[Array, Array]) -> None:
    guess, truth = pair
    expected = np.zeros((4, 4), int)
    for p, t in zip(guess.ravel(), truth.ravel(), strict=True):
        expected[t, p] += 1
    assert np.array_equal(metrics.confusion_matrix(guess, truth, 4), expected)


@given(masks)
def test_micro_counts_any_masks_equal_the_counts_over_one_hot_channels(
    pair: tuple[Array, Array],
) -> None:
    guess, truth = pair
    channels = [np.stack([mask == k for k in (1, 2, 3)]) for mask in pair]
    from_confusion = metrics.micro_counts(metrics.confusion_matrix(guess, truth, 4))
    assert from_confusion.tolist() == metrics.channel_counts(*channels).tolist()
    assert metrics.channel_counts(*channels).tolist() == naive_counts(*channels)


@given(masks)
def test_dice_any_masks_is_two_iou_over_one_plus_iou(pair: tuple[Array, Array]) -> None:
    counts = metrics.binary_counts(*pair)
    overlap = metrics.iou(counts)
    assert metrics.dice(counts) == pytest.approx(2 * overlap / (1 + overlap))


@given(st.lists(masks, min_size=1, max_size=4))
def test_figures_of_stacked_counts_are_those_of_each(pairs: list[tuple[Array, Array]]) -> None:
    stacked = np.stack([metrics.binary_counts(*pair) for pair in pairs])
    for figure in (metrics.iou, metrics.dice, metrics.miou2, metrics.pixel_accuracy):
        assert figure(stacked).tolist() == [float(figure(row)) for row in stacked]
