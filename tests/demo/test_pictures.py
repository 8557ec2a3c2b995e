from __future__ import annotations

import numpy as np
import pytest

from magtiles_seg.demo.pictures import draw_heat, draw_mask, draw_numbered, draw_web
from magtiles_seg.labels import LABELS, color_rgb
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.result import Decision, Segmentation


def answer(size_hw: tuple[int, int], square: slice) -> Segmentation:
    probability = np.zeros(size_hw, np.float32)
    probability[square, square] = 1
    return Segmentation.from_prediction(
        np.full(size_hw, 100, np.uint8),
        probability,
        np.full(size_hw, 3, np.uint8),
        decision=Decision(),
    )


@pytest.mark.parametrize(("size_hw", "factor"), [((40, 60), 4), ((300, 240), 3), ((950, 1000), 1)])
def test_overlay_of_a_small_picture_is_enlarged_by_a_whole_factor(
    size_hw: tuple[int, int], factor: int
) -> None:
    drawn = draw_numbered(answer(size_hw, slice(10, 20)))
    assert drawn.shape == (factor * size_hw[0], factor * size_hw[1], 3)


def test_overlay_outlines_and_numbers_a_defect_in_its_colour_and_leaves_the_rest() -> None:
    drawn = draw_numbered(answer((100, 100), slice(60, 80)))
    outlined = (drawn == color_rgb(3)).all(axis=2)
    assert outlined[240:320, 240:320].any()
    assert outlined[:240].any()  # the number's plate, above the defect
    assert (drawn[340:] == 100).all()


def test_overlay_of_a_defect_in_the_corner_keeps_its_number_inside() -> None:
    drawn = draw_numbered(answer((100, 100), slice(0, 6)))
    assert (drawn == color_rgb(3)).all(axis=2).any()


def test_mask_is_black_and_white_and_heat_runs_from_black_to_bright() -> None:
    result = answer((40, 40), slice(10, 20))
    assert set(np.unique(draw_mask(result))) == {0, 255}
    heat = draw_heat(result)
    assert heat[0, 0].sum() < 20
    assert heat[15, 15].min() > 150


def test_web_hatches_undecided_lines_and_frames_defects_in_web_coordinates() -> None:
    defect = WebDefect(
        label="fray",
        score=0.9,
        area_px=100,
        bbox_xyxy_px=(20, 1010, 30, 1020),
        centroid_xy_px=(25, 1015),
        length_px=10,
        width_px=10,
        first_line=1010,
        last_line=1019,
    )
    lines = np.full((60, 50), 200, np.uint8)
    drawn = draw_web(lines, 1000, 1040, [defect], labels=LABELS, length_px=80)
    assert drawn.shape == (50, 80, 3)
    assert (drawn[16, 6] == color_rgb(4)).all()  # corner, 4 px outside
    assert (drawn[2, 2] == 200).all()
    assert (drawn[:, 40:60] != 200).any(axis=2).all()
    assert (drawn[:, 40:60] == (250, 204, 21)).all(axis=2).mean() > 0.1
    assert (drawn[2, 70] == 235).all()


def test_web_with_uninspected_lines_strikes_them_out_in_red() -> None:
    gap = Uninspected(first_line=1010, end_line=1030, reason="lost")
    lines = np.full((60, 50), 200, np.uint8)
    drawn = draw_web(lines, 1000, 1060, [], labels=LABELS, length_px=60, uninspected=[gap])
    struck = (drawn != 200).any(axis=2)
    assert struck[:, 10:30].all()
    assert not struck[:, :10].any()
    assert not struck[:, 30:].any()
