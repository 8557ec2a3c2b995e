from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from magtiles_seg.errors import ConfigError, ParityError
from magtiles_seg.export.parity import (
    ParityReport,
    Tolerance,
    check,
    compare,
    frozen_pictures,
)
from magtiles_seg.infer.backends.base import BackendSpec
from magtiles_seg.model.card import ModelCard
from magtiles_seg.result import Decision


class Fixed:
    """A backend that answers with given 4 x 4 arrays."""

    def __init__(self, probability: npt.ArrayLike, classes: npt.ArrayLike) -> None:
        self.answer = np.array([probability], np.float32), np.array([classes], np.uint8)
        labels = ("background", "crack", "fray")
        card = ModelCard(name="x", architecture="nano", labels=labels, stride=16,
                         decision=Decision(score_top_k_px=1))  # fmt: skip
        self.spec = BackendSpec(name="fixed", device="cpu", provider="", threads=1,
                                path=Path(), sha256="", card=card)  # fmt: skip

    def infer(
        self, images: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        assert images.shape == (1, 4, 4)
        return self.answer

    def close(self) -> None:
        pass


ONES = np.ones((4, 4))
PICTURE = np.zeros((4, 4), np.uint8)
LEFT = np.array([[0.9, 0.8, 0.1, 0.1]] * 4)  # mask: columns 0 and 1, 8 px


def test_compare_hand_worked_case() -> None:
    shifted = np.array([[0.9, 0.4, 0.1, 0.6]] * 4)  # mask: columns 0 and 3; column 0 in common
    classes = ONES.copy()
    classes[:1, 0] = 2  # one of the four common pixels
    report = compare(Fixed(LEFT, ONES), Fixed(shifted, classes), [PICTURE, PICTURE])
    assert report.pictures == 2
    assert report.dice == 2 * 4 / (8 + 8)
    assert report.max_abs_diff == pytest.approx(0.5)
    assert report.p999_abs_diff == pytest.approx(0.5)
    assert report.class_agreement == 3 / 4
    assert report.flipped_verdicts == 0


def test_compare_empty_masks_agree_fully() -> None:
    report = compare(Fixed(0 * ONES, ONES), Fixed(0.25 * ONES, 2 * ONES), [PICTURE])
    assert (report.dice, report.class_agreement, report.max_abs_diff) == (1, 1, 0.25)


def test_compare_counts_flipped_verdicts() -> None:
    report = compare(Fixed(0.49 * ONES, ONES), Fixed(0.51 * ONES, ONES), [PICTURE] * 3)
    assert report.flipped_verdicts == 3
    assert report.dice == 0


def test_compare_uses_the_decision_given() -> None:
    pair = Fixed(0.49 * ONES, ONES), Fixed(0.51 * ONES, ONES)
    strict = Decision(threshold=0.4, reject_score=0.4)
    report = compare(*pair, [PICTURE], decision=strict)
    assert (report.dice, report.flipped_verdicts) == (1, 0)


def test_compare_without_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one picture"):
        compare(Fixed(LEFT, ONES), Fixed(LEFT, ONES), [])


GOOD = ParityReport(
    pictures=100, dice=1, max_abs_diff=0, p999_abs_diff=0, class_agreement=1, flipped_verdicts=0
)


def report(**changes: float) -> ParityReport:
    return ParityReport(**{**GOOD.to_dict(), **changes})


def test_check_at_the_tolerance_passes() -> None:
    tolerance = Tolerance(min_dice=0.9, max_abs_diff=0.1, max_flipped_fraction=0.02)
    check(report(dice=0.9, max_abs_diff=0.1, flipped_verdicts=2), tolerance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dice": 0.998}, "Dice 0.998, expected >= 0.999"),
        ({"max_abs_diff": 0.03}, "0.03, expected <= 0.02"),
        ({"max_abs_diff": float("nan")}, "nan, expected <= 0.02"),
        ({"flipped_verdicts": 1}, "flipped verdicts 1, expected <= 0 of 100"),
        ({"dice": 0.5, "flipped_verdicts": 7}, "Dice 0.5.*flipped verdicts 7"),
    ],
)
def test_check_beyond_the_tolerance_gives_the_figures(
    changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        check(report(**changes), Tolerance())


def test_frozen_pictures_are_the_same_each_time_and_fit_no_stride() -> None:
    first, second = frozen_pictures(), frozen_pictures()
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert {image.dtype for image in first} == {np.dtype(np.uint8)}
    assert any(image.shape[0] % 16 and image.shape[1] % 16 for image in first)
    assert min(min(image.shape) for image in first) == 32
