"""Score and verdict: what calibration makes of the largest probabilities, and both limits."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.decision import scale
from magtiles_seg.errors import ConfigError
from magtiles_seg.result import Decision

chances = st.floats(0, 1)


def test_score_without_calibration_is_the_mean_itself() -> None:
    assert Decision().score(0.123) == 0.123


def test_score_calibrated_hand_worked() -> None:
    decision = Decision(score_scale=2, score_bias=math.log(3))
    assert decision.score(0.5) == pytest.approx(3 / 4)
    assert decision.score(0.25) == pytest.approx((3 / 9) / (1 + 3 / 9))
    assert (decision.score(0.0), decision.score(1.0)) == (0.0, 1.0)


@given(chances, chances, st.floats(0.1, 10), st.floats(-10, 10))
def test_score_any_calibration_keeps_the_order(
    low: float, high: float, scale: float, bias: float
) -> None:
    decision = Decision(score_scale=scale, score_bias=bias)
    low, high = sorted((low, high))
    assert 0 <= decision.score(low) <= decision.score(high) <= 1


def test_score_of_a_picture_leaves_its_margin_out_and_takes_the_largest_of_the_rest() -> None:
    probability = np.zeros((8, 8), np.float32)
    probability[0], probability[4, 3:5] = 0.9, 0.5
    decision = Decision(score_top_k_px=4, score_margin_px=1)
    assert decision.score_of(probability) == 0.25
    assert dataclasses.replace(decision, score_margin_px=0).score_of(probability) == pytest.approx(
        0.9
    )


@pytest.mark.parametrize(
    ("score", "verdict"), [(0.2, "accept"), (0.3, "review"), (0.59, "review"), (0.6, "reject")]
)
def test_verdict_follows_score_and_both_limits(score: float, verdict: str) -> None:
    assert Decision(reject_score=0.6, review_score=0.3).verdict(score) == verdict
    assert Decision(reject_score=0.6).verdict(score) == verdict.replace("review", "accept")


def test_verdict_on_a_score_that_is_no_number_is_never_accept() -> None:
    decision = Decision(reject_score=0.6, tile_reject_score=0.7)
    assert decision.verdict(math.nan) == decision.tile_verdict(math.nan) == "reject"


@pytest.mark.parametrize("values", [{"score_scale": 0}, {"score_bias": math.inf}])
def test_score_of_a_senseless_calibration_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Decision(**values)  # type: ignore[arg-type]  # a float for an int is the mistake at hand


WRONG = {
    "huge": 10**400,
    "negative": -(10**400),
    "unprintable": 10**5000,
    "fraction": Fraction(10**400),
    "nan": math.nan,
    "float32": np.float32("nan"),
    "complex": 1j,
    "bool": True,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Decision)])
@pytest.mark.parametrize("kind", WRONG)
def test_decision_of_any_wrong_number_is_a_config_error_that_names_it(name: str, kind: str) -> None:
    values: dict[str, Any] = {name: WRONG[kind]}
    with pytest.raises(ConfigError, match=name):
        Decision(**values)


SENSELESS = {
    "huge": 10**400,
    "tiny": Fraction(1, 10**400),
    "unprintable": 10**5000,
    "area_is_infinite": 1e200,
    "area_is_0": 1e-200,
    "infinite": math.inf,
    "nan": math.nan,
}


@pytest.mark.parametrize("kind", SENSELESS)
def test_scale_whose_areas_would_be_no_numbers_is_a_config_error(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"mm_per_px is .*; expected a positive number"):
        scale(cast("float", SENSELESS[kind]))


def test_decision_reads_as_words_with_what_is_set() -> None:
    plain = "defect from probability 0.500, regions from 1 px; reject from score 0.500"
    assert str(Decision()) == plain
    full = Decision(reject_score=0.6, review_score=0.25, tile_reject_score=0.1771, min_area_px=12)
    assert str(full) == (
        "defect from probability 0.500, regions from 12 px; reject from score 0.600, review from "
        "0.250; a tile of several pictures from 0.177"
    )
