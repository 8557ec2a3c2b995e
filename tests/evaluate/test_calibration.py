"""Calibration against a truth that is known, its order, and reliability worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate import calibration
from magtiles_seg.evaluate.calibration import Affine
from magtiles_seg.evaluate.metrics import auroc

Array = npt.NDArray[Any]


def test_fit_distorted_logits_finds_the_map_that_distorted_them() -> None:
    true = np.linspace(-6, 6, 49)
    chance = calibration.sigmoid(true)
    fitted = calibration.fit((true + 1) * 2, 1e6 * (1 - chance), 1e6 * chance)
    assert fitted.scale == pytest.approx(0.5, abs=1e-3)
    assert fitted.bias == pytest.approx(-1, abs=1e-3)


def test_affine_hand_worked_moves_the_logit() -> None:
    moved = Affine(2, -1)(np.array([0.5, 0.75]))
    assert moved.tolist() == pytest.approx([1 / (1 + np.e), 9 / (9 + np.e)])


def test_fit_kinds_without_overlap_stays_finite() -> None:
    logits = np.array([-2.0, -1.0, 1.0, 2.0])
    fitted = calibration.fit(logits, np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
    assert 0 < fitted.scale < 10
    assert fitted.bias == pytest.approx(0, abs=1e-6)


def test_fit_of_one_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 3 and 0"):
        calibration.fit(np.zeros(3), np.ones(3), np.zeros(3))


def test_fit_of_a_model_that_tells_nothing_apart_leaves_it_as_it_is() -> None:
    everywhere = np.array([0, 5e8, 0])  # so many that Newton's matrix was singular, to the last bit
    fitted = calibration.fit(np.array([-4, -3.5, 3]), everywhere, everywhere / 317)
    assert (fitted.scale, fitted.bias) == (1, 0)


def test_fit_of_a_model_that_ranks_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not rise with defects"):
        calibration.fit(np.array([-3.0, 3.0]), np.array([1, 9]), np.array([9, 1]))


@given(
    arrays(np.float64, 12, elements=st.sampled_from([0.0, 1e-6, 0.2, 0.4, 0.7, 0.999])),
    st.floats(0.2, 3),
    st.floats(-5, 5),
)
def test_calibrated_scores_any_map_keep_the_auroc(scores: Array, scale: float, bias: float) -> None:
    is_defect = np.arange(12) % 2 == 0
    calibrated = Affine(scale, bias)(scores)
    assert auroc(calibrated, is_defect) == pytest.approx(float(auroc(scores, is_defect)))


def test_calibration_without_effect_gives_the_same_probability() -> None:
    p = np.array([1e-5, 0.1, 0.5, 0.9])
    assert Affine()(p) == pytest.approx(p)


def test_logit_histogram_counts_each_pixel_once_by_truth() -> None:
    probability = np.array([[0.0, 0.5], [0.5, 1.0]], np.float32)
    counted = calibration.logit_histogram(probability, np.array([[0, 0], [1, 1]]))
    assert counted.sum() == 4
    assert [counted[0, 0], counted[0, 128], counted[1, 128], counted[1, 256]] == [1, 1, 1, 1]
    assert calibration.LOGITS[128] == 0


def test_reliability_hand_worked() -> None:
    rows, error = calibration.reliability(
        np.array([0.1, 0.9, 0.9]), np.array([8, 1, 0]), np.array([2, 0, 3]), bins=2
    )
    assert rows == [
        {"confidence": 0.1, "observed": 0.2, "count": 10},
        {"confidence": 0.9, "observed": 0.75, "count": 4},
    ]
    assert error == pytest.approx((10 * 0.1 + 4 * 0.15) / 14)
