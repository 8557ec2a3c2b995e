"""Mask, defects and verdict, against a naive flood fill."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from predictions import LEVELS, predictions, segment

from magtiles_seg.errors import ConfigError
from magtiles_seg.labels import LABELS
from magtiles_seg.regions import top_values
from magtiles_seg.result import Decision


def flood_fill(mask: NDArray[Any]) -> list[list[tuple[int, int]]]:
    """The 8-connected regions of a mask, each as its pixels (y, x), one pixel at a time."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, ahead = [], [left.pop()]
        while ahead:
            y, x = ahead.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            ahead.extend(near)
        regions.append(sorted(region))
    return regions


# ---- mask and defects


@given(predictions(), st.sampled_from(LEVELS), st.integers(1, 4))
def test_defects_of_any_prediction_are_those_of_a_flood_fill(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]], threshold: float, min_area_px: int
) -> None:
    probability, classes = prediction
    result = segment(probability, classes, threshold=threshold, min_area_px=min_area_px)
    regions = [
        region for region in flood_fill(probability >= threshold) if len(region) >= min_area_px
    ]
    mask = np.zeros(probability.shape, np.uint8)
    expected: list[dict[str, Any]] = []
    for region in regions:
        y, x = np.array(region).T
        mask[y, x] = 1
        by_class = np.bincount(classes[y, x], probability[y, x], len(LABELS))
        expected.append(
            {
                "label": LABELS[1 + int(by_class[1:].argmax())],
                "score": pytest.approx(probability[y, x].mean()),
                "area_px": len(region),
                "bbox_xyxy_px": (x.min(), y.min(), x.max() + 1, y.max() + 1),
                "centroid_xy_px": pytest.approx((x.mean(), y.mean())),
            }
        )
    assert np.array_equal(result.mask, mask)
    assert np.array_equal(result.classes, mask * classes)
    found = [{key: getattr(one, key) for key in expected[0]} for one in result.defects]
    order = [(-one.area_px, one.bbox_xyxy_px[1], one.bbox_xyxy_px[0]) for one in result.defects]
    assert order == sorted(order)
    assert len(found) == len(expected)
    for one in expected:
        assert one in found


def test_defects_of_equal_area_come_in_reading_order_behind_larger_ones() -> None:
    probability = np.zeros((9, 9), np.float32)
    probability[1, 7] = probability[5, 1] = probability[5, 5] = probability[8, 4:6] = 1
    result = segment(probability, np.ones((9, 9), np.uint8))
    corners = [one.bbox_xyxy_px[:2] for one in result.defects]
    assert corners == [(4, 8), (7, 1), (1, 5), (5, 5)]


@given(predictions())
def test_rotated_size_of_any_defect_encloses_its_pixels(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]],
) -> None:
    for defect in segment(*prediction).defects:
        x0, y0, x1, y1 = defect.bbox_xyxy_px
        assert 1 - 1e-4 <= defect.width_px <= defect.length_px
        assert defect.area_px <= defect.length_px * defect.width_px * (1 + 1e-4)
        assert defect.length_px * defect.width_px <= (x1 - x0) * (y1 - y0) * (1 + 1e-4)


def test_defects_of_hand_worked_picture_are_measured() -> None:
    result = segment(
        [[0.9, 0.7, 0.1, 0.0], [0.1, 0.1, 0.1, 0.0], [0.1, 0.1, 0.1, 0.6], [0.1, 0.1, 0.1, 0.4]],
        np.array([[1, 3, 1, 1], [1, 1, 1, 1], [1, 1, 1, 4], [1, 1, 1, 4]]),
        mm_per_px=0.5,
    )
    large, dot = result.defects
    assert (large.label, dot.label) == ("blowhole", "fray")
    assert large.score == pytest.approx(0.8)
    assert (large.area_px, large.bbox_xyxy_px) == (2, (0, 0, 2, 1))
    assert large.centroid_xy_px == (0.5, 0.0)
    assert (large.length_px, large.width_px) == pytest.approx((2, 1))
    assert (large.area_mm2, large.length_mm, large.width_mm) == pytest.approx((0.5, 1, 0.5))
    assert dot.bbox_xyxy_px == (3, 2, 4, 3)
    assert (dot.length_px, dot.width_px) == pytest.approx((1, 1))
    assert result.mask.tolist() == [[1, 1, 0, 0], [0] * 4, [0, 0, 0, 1], [0] * 4]
    assert result.classes.tolist() == [[1, 3, 0, 0], [0] * 4, [0, 0, 0, 4], [0] * 4]


def test_length_of_diagonal_line_is_measured_along_it() -> None:
    (line,) = segment(np.eye(20)).defects
    assert line.length_px == pytest.approx(20 * 2**0.5, rel=1e-3)
    assert line.width_px == pytest.approx(2**0.5, rel=1e-3)


def test_defects_without_scale_have_no_mm() -> None:
    (defect,) = segment([[1.0]]).defects
    assert (defect.area_mm2, defect.length_mm, defect.width_mm) == (None, None, None)


def test_probability_equal_to_threshold_is_defect() -> None:
    assert segment([[0.3, 0.29]], threshold=0.3).mask.tolist() == [[1, 0]]


def test_prediction_in_other_memory_order_gives_the_same_result() -> None:
    probability = np.random.default_rng(1).random((9, 14)).astype(np.float32)
    expected = segment(probability)
    for other in (np.asfortranarray(probability), np.repeat(probability, 2, 1)[:, ::2]):
        assert segment(other).defects == expected.defects


# ---- score and verdict


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 30) | st.integers(1, 2000),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_top_values_of_any_picture_are_those_of_a_full_sort(
    height: int, width: int, k: int, seed: int, coarse: bool
) -> None:
    probability = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    if coarse:  # many equal values
        probability = np.round(probability, 1)
    expected = np.sort(probability.ravel())[::-1][:k]
    assert np.array_equal(np.sort(top_values(probability, k))[::-1], expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50), st.integers(0, 2**32))
def test_margin_leaves_out_a_strip_but_never_the_middle_half(
    height: int, width: int, margin_px: int, seed: int
) -> None:
    probability = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    y, x = min(margin_px, height // 4), min(margin_px, width // 4)
    middle = [probability[i, j] for i in range(y, height - y) for j in range(x, width - x)]
    assert sorted(top_values(probability, 10**6, margin_px)) == sorted(middle)
    assert len(middle) >= height * width / 4


def test_defect_in_the_margin_is_in_the_mask_and_not_in_the_score() -> None:
    probability = np.zeros((12, 12))
    probability[:2] = 0.9
    result = segment(probability, score_top_k_px=4, score_margin_px=2)
    assert (result.mask.sum(), result.score) == (24, 0.0)
    assert result.redecide(score_margin_px=1).score == pytest.approx(0.9)


@given(predictions(), st.sampled_from(LEVELS), st.sampled_from(LEVELS))
def test_higher_threshold_never_adds_to_the_mask_nor_changes_the_score(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]], one: float, other: float
) -> None:
    low = segment(*prediction, threshold=min(one, other))
    high = low.redecide(threshold=max(one, other))
    assert (high.mask <= low.mask).all()
    assert high.score == low.score


@given(
    predictions(),
    st.sampled_from(LEVELS),
    st.integers(1, 4),
    st.integers(1, 50),
    st.integers(0, 3),
)
def test_redecide_equals_a_decision_made_from_the_start(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]],
    threshold: float,
    min_area_px: int,
    score_top_k_px: int,
    score_margin_px: int,
) -> None:
    changes: dict[str, Any] = {
        "threshold": threshold,
        "min_area_px": min_area_px,
        "score_top_k_px": score_top_k_px,
        "score_margin_px": score_margin_px,
        "reject_score": 0.7,
        "review_score": 0.2,
    }
    changed = segment(*prediction, mm_per_px=0.1, source="a.png").redecide(**changes)
    fresh = segment(*prediction, mm_per_px=0.1, source="a.png", **changes)
    assert changed.to_dict() == fresh.to_dict()
    for name in ("image", "probability", "classes", "mask"):
        assert np.array_equal(getattr(changed, name), getattr(fresh, name))


def test_redecide_lower_after_higher_finds_the_defect_and_its_class_again() -> None:
    result = segment([[0.4, 0.1]], 3, threshold=0.9)
    assert result.defects == ()
    (defect,) = result.redecide(threshold=0.9).redecide(threshold=0.4).defects
    assert defect.label == "crack"


def test_redecide_of_the_reject_score_means_tiles_as_well() -> None:
    result = segment([[0.4]]).redecide(tile_reject_score=0.3)
    assert result.redecide(threshold=0.2).decision.tile_threshold == 0.3
    assert result.redecide(reject_score=0.6).decision.tile_threshold == 0.6
    assert result.redecide(reject_score=0.6, tile_reject_score=0.7).decision.tile_threshold == 0.7


def test_redecide_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'treshold'; did you mean 'threshold'"):
        segment([[0.4]]).redecide(treshold=0.3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", -0.1),
        ("threshold", 1.1),
        ("threshold", float("nan")),
        ("threshold", "0.5"),
        ("threshold", None),
        ("threshold", True),
        ("min_area_px", 0),
        ("min_area_px", 2.5),
        ("score_top_k_px", 0),
        ("score_margin_px", -1),
        ("reject_score", 2),
        ("review_score", 0.6),
        ("review_score", -1),
    ],
)
def test_decision_without_sense_is_a_config_error(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is .*; expected"):
        Decision(**{name: value})  # type: ignore[arg-type]


def test_decision_of_numpy_numbers_holds_plain_ones() -> None:
    decision = Decision(threshold=np.float32(0.25), min_area_px=np.int64(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(dataclasses.asdict(decision)))["min_area_px"] == 3
    assert type(decision.threshold) is float


@pytest.mark.parametrize(
    "again", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy]
)
def test_result_pickled_or_copied_is_the_same_and_read_only(again: Callable[[Any], Any]) -> None:
    result = segment(np.full((4, 5), 0.9, np.float32))
    other = again(result)
    assert other.to_json() == result.to_json()
    for name in ("image", "probability", "classes", "mask", "_defect_classes"):
        array = getattr(other, name)
        np.testing.assert_array_equal(array, getattr(result, name))
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
