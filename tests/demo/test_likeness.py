from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from magtiles_seg.dataset.synthetic import DEFECTS, synthetic_tile
from magtiles_seg.demo.likeness import doubt_of, grain

RANDOM = np.random.default_rng(0)


def noise(sigma: float) -> Any:  # noqa: ANN401  (OpenCV does not say what it returns)
    """Return grey noise whose spots are some `sigma` px wide."""
    drawn = RANDOM.normal(0, 1, (200, 240)).astype(np.float32)
    smooth = cv2.GaussianBlur(drawn, (0, 0), sigma) if sigma else drawn
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def test_grain_of_a_2_x_2_picture_is_the_ratio_of_its_differences() -> None:
    assert grain(np.array([[0, 6], [2, 8]], np.uint8)) == 3
    assert grain(np.array([[8, 6], [2, 0]], np.uint8)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("defect", [None, *DEFECTS])
@pytest.mark.parametrize("exposure", [1, 3, 6])
def test_tile_raises_no_doubt(defect: str | None, exposure: int) -> None:
    assert not doubt_of(synthetic_tile(7, defect=defect, exposure=exposure).image)


@pytest.mark.parametrize("sigma", [0, 1, 2, 4])
def test_noise_is_doubted(sigma: float) -> None:
    assert "no upright grain" in doubt_of(noise(sigma))


@pytest.mark.parametrize("picture", [np.full((90, 90), 7), np.mgrid[:90, :90][0]])
def test_empty_or_sloping_picture_is_doubted(picture: Any) -> None:  # noqa: ANN401
    assert doubt_of(picture.astype(np.uint8))


def test_tile_that_lies_on_its_side_is_to_be_turned() -> None:
    assert "turn the picture" in doubt_of(synthetic_tile(7).image.T)


def test_picture_too_small_to_tell_raises_no_doubt() -> None:
    assert not doubt_of(noise(0)[:32, :32])


def test_picture_of_one_grey_is_doubted_however_small() -> None:
    assert "no upright grain" in doubt_of(np.zeros((3, 3), np.uint8))
