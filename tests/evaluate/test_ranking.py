"""Ranking figures and the bootstrap: hand-worked cases, a naive reference, and laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate import metrics as ranking

Array = npt.NDArray[Any]

pictures = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=1, max_size=20
)


def naive_auroc(scores: Array, is_defect: Array) -> float:
    pairs = [
        1.0 if d > s else 0.5 if d == s else 0.0
        for d in scores[is_defect]
        for s in scores[~is_defect]
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan


def naive_false_reject(scores: Array, is_defect: Array, recall: float) -> float:
    defects, sound = scores[is_defect], scores[~is_defect]
    if not len(defects) or not len(sound):
        return math.nan
    for threshold in sorted(set(scores.tolist()), reverse=True):
        if np.mean(defects >= threshold) >= recall - 1e-12:
            return float(np.mean(sound >= threshold))
    raise AssertionError


def columns(rows: list[tuple[int, bool, int]]) -> tuple[Array, Array, Array]:
    scores, is_defect, weights = zip(*rows, strict=True)
    return np.array(scores) / 6, np.array(is_defect), np.array(weights)


def test_auroc_ties_count_half() -> None:
    scores, is_defect = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert ranking.auroc(scores, is_defect) == pytest.approx(3.5 / 4)


def test_auroc_all_scores_equal_is_half() -> None:
    assert ranking.auroc(np.ones(5), np.array([True, False, True, False, False])) == 0.5


def test_auroc_one_kind_only_is_nan() -> None:
    assert np.isnan(ranking.auroc(np.ones(3), np.ones(3, bool)))
    assert np.isnan(ranking.auroc(np.zeros(0), np.zeros(0, bool)))


def test_false_reject_rate_hand_worked_takes_the_highest_sufficient_threshold() -> None:
    defects, sound = [0.9, 0.8, 0.6, 0.2], [0.7, 0.5, 0.1, 0.1, 0.1]
    scores, is_defect = np.array(defects + sound), np.array([True] * 4 + [False] * 5)
    assert ranking.false_reject_rate(scores, is_defect, recall=0.5) == 0
    assert ranking.false_reject_rate(scores, is_defect, recall=0.75) == pytest.approx(1 / 5)
    assert ranking.false_reject_rate(scores, is_defect, recall=0.76) == pytest.approx(2 / 5)
    assert ranking.false_reject_rate(scores, is_defect, recall=1.0) == pytest.approx(2 / 5)


def test_false_reject_rate_tie_with_a_defect_is_rejected() -> None:
    scores, is_defect = np.array([0.5, 0.5, 0.1]), np.array([True, False, False])
    assert ranking.false_reject_rate(scores, is_defect, recall=0.95) == pytest.approx(1 / 2)


def test_score_at_recall_twenty_defects_at_95_percent_lets_one_go() -> None:
    scores = np.arange(20) / 20
    assert ranking.score_at_recall(scores, np.ones(20, bool), recall=0.95) == 0.5 / 20


def test_score_at_recall_float_error_does_not_ask_for_one_more() -> None:
    scores = np.arange(100) / 100
    assert ranking.score_at_recall(scores, np.ones(100, bool), recall=0.07) == pytest.approx(
        92.5 / 100
    )


def test_score_at_recall_lies_between_what_it_divides() -> None:
    scores, is_defect = np.array([0.01, 0.03, 0.97, 0.99]), np.array([False, False, True, True])
    assert ranking.score_at_recall(scores, is_defect, recall=0.95) == pytest.approx(0.5)
    assert ranking.score_at_recall(scores[2:], is_defect[2:], recall=1.0) == 0.97


@given(pictures, st.sampled_from([0.3, 0.5, 0.95, 1.0]))
def test_score_at_recall_rejects_what_its_recall_needs_and_no_sound_picture_more(
    rows: list[tuple[int, bool, int]], recall: float
) -> None:
    scores, is_defect, _ = columns(rows)
    if not is_defect.any():
        return
    rejected = scores >= ranking.score_at_recall(scores, is_defect, recall=recall)
    assert rejected[is_defect].mean() >= recall - 1e-9
    if not is_defect.all():
        expected = naive_false_reject(scores, is_defect, recall)
        assert rejected[~is_defect].mean() == pytest.approx(expected)


def test_score_at_recall_without_defects_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs defect pictures; got none"):
        ranking.score_at_recall(np.ones(3), np.zeros(3, bool), recall=0.9)


def test_recall_as_percent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0 < recall <= 1, got 95"):
        ranking.false_reject_rate(np.ones(2), np.array([True, False]), recall=95)


@given(pictures)
def test_auroc_any_scores_equals_counting_pairs(rows: list[tuple[int, bool, int]]) -> None:
    scores, is_defect, _ = columns(rows)
    expected = naive_auroc(scores, is_defect)
    assert ranking.auroc(scores, is_defect) == pytest.approx(expected, nan_ok=True)


@given(pictures, st.sampled_from([0.3, 0.5, 0.95, 0.99, 1.0]))
def test_false_reject_rate_any_scores_equals_trying_thresholds(
    rows: list[tuple[int, bool, int]], recall: float
) -> None:
    scores, is_defect, _ = columns(rows)
    expected = naive_false_reject(scores, is_defect, recall)
    got = ranking.false_reject_rate(scores, is_defect, recall=recall)
    assert got == pytest.approx(expected, nan_ok=True)


@given(pictures, st.sampled_from([0.5, 0.95]))
def test_weights_any_whole_numbers_equal_repeated_pictures(
    rows: list[tuple[int, bool, int]], recall: float
) -> None:
    scores, is_defect, weights = columns(rows)
    often, kind = np.repeat(scores, weights), np.repeat(is_defect, weights)
    stacked = np.stack([weights, np.ones_like(weights)])
    area = ranking.auroc(scores, is_defect, stacked)[0]
    rate = ranking.false_reject_rate(scores, is_defect, recall=recall, weights=stacked)[0]
    assert area == pytest.approx(naive_auroc(often, kind), nan_ok=True)
    assert rate == pytest.approx(naive_false_reject(often, kind, recall), nan_ok=True)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_bootstrap_weights_draw_whole_groups(groups: list[int]) -> None:
    drawn = ranking.bootstrap_weights(np.array(groups), resamples=20, seed=1)
    assert drawn.shape == (20, len(groups))
    _, first = np.unique(groups, return_index=True)
    assert (drawn[:, first].sum(1) == len(first)).all()
    for group in set(groups):
        columns_of_group = drawn[:, np.array(groups) == group]
        assert (columns_of_group == columns_of_group[:, :1]).all()


def test_bootstrap_weights_same_seed_draw_the_same() -> None:
    groups = np.arange(9)
    one, two, other = (ranking.bootstrap_weights(groups, resamples=5, seed=s) for s in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(size=400)
    drawn = ranking.bootstrap_weights(np.arange(400), resamples=2000, seed=0)
    low, high = ranking.interval(drawn @ values / 400)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_interval_unknown_resamples_are_left_out() -> None:
    assert ranking.interval(np.array([np.nan, 2.0, 2.0])) == (2, 2)
    assert all(np.isnan(ranking.interval(np.array([np.nan]))))
