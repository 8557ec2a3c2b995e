"""What people see: one colour a region, numbers, a legend, and why a region is lacking."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from magtiles_seg.drawing import draw_panel, hatch, region_classes
from magtiles_seg.labels import LABELS, color_rgb
from magtiles_seg.result import Decision, Segmentation


def answer(
    probability: NDArray[np.float32], classes: NDArray[np.uint8], **decision: float
) -> Segmentation:
    image = np.full(probability.shape, 100, np.uint8)
    return Segmentation.from_prediction(
        image,
        probability,
        classes,
        decision=Decision(**decision),  # type: ignore[arg-type]
    )


def two_regions() -> Segmentation:
    """Return a region of crack with a few pixels of blowhole, and a smaller one of fray."""
    probability = np.zeros((200, 160), np.float32)
    classes = np.full((200, 160), 3, np.uint8)
    probability[20:60, 40:44] = 0.9
    classes[20:24, 40:44] = 1
    probability[150:153, 100:103] = 0.9
    classes[140:] = 4
    return answer(probability, classes)


def colors_of(picture: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    return set(map(tuple, picture.reshape(-1, 3).tolist()))


def test_region_of_two_classes_has_the_colour_of_its_own_class() -> None:
    result = two_regions()
    assert [defect.label for defect in result.defects] == ["crack", "fray"]
    drawn = region_classes(result)
    assert set(np.unique(drawn[20:60, 40:44])) == {LABELS.index("crack")}
    assert set(np.unique(drawn[150:153, 100:103])) == {LABELS.index("fray")}
    assert np.array_equal(drawn > 0, result.mask > 0)
    assert colors_of(result.overlay(1)[20:60, 40:44]) == {color_rgb(3)}


def test_regions_of_one_area_keep_their_own_classes() -> None:
    probability = np.zeros((30, 30), np.float32)
    classes = np.full((30, 30), 1, np.uint8)
    for index, (top, left) in enumerate(((2, 20), (2, 2), (20, 10)), start=1):
        probability[top : top + 4, left : left + 4] = 1
        classes[top : top + 4, left : left + 4] = index
    result = answer(probability, classes)
    drawn = region_classes(result)
    assert (drawn[2, 20], drawn[2, 2], drawn[20, 10]) == (1, 2, 3)


def test_panel_shows_input_and_answer_with_a_legend_in_the_classes_colours() -> None:
    result = two_regions()
    panel = draw_panel(result)
    assert panel.dtype == np.uint8
    assert panel.shape[1] > 2 * result.image.shape[1]
    assert {color_rgb(3), color_rgb(4)} <= colors_of(panel)
    assert color_rgb(1) not in colors_of(panel)


@pytest.mark.parametrize(("theme", "ground"), [("light", 255), ("dark", 13)])
def test_panel_has_the_ground_of_its_theme(theme: str, ground: int) -> None:
    assert draw_panel(two_regions(), theme=theme)[0, 0, 0] == ground


def test_rejected_panel_without_region_shows_where_the_score_comes_from() -> None:
    probability = np.zeros((200, 200), np.float32)
    probability[60:80, 60:80] = 0.4
    classes = np.full((200, 200), 3, np.uint8)
    rejected = answer(probability, classes, reject_score=0.1)
    accepted = answer(probability, classes, reject_score=0.9)
    assert not rejected.defects
    assert rejected.verdict == "reject"
    spread = draw_panel(rejected).astype(int)
    assert (np.ptp(spread, axis=2) > 60).sum() > 10 * 20 * 20 / 4  # colours of heat
    calm = np.ptp(draw_panel(accepted)[60:-60].astype(int), axis=2)
    assert (calm > 60).sum() == 0


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 900), (900, 3), (2000, 1500)])
def test_panel_of_any_size_is_bounded(size_hw: tuple[int, int]) -> None:
    probability = np.zeros(size_hw, np.float32)
    probability[0, 0] = 1
    panel = draw_panel(answer(probability, np.full(size_hw, 2, np.uint8)))
    assert max(panel.shape) < 1700


def test_hatch_leaves_no_pixel_as_it_was_and_takes_an_empty_part() -> None:
    picture = np.full((40, 60, 3), 200, np.uint8)
    hatch(picture[:, 20:], (255, 0, 0), text="no verdict yet")
    assert (picture[:, :20] == 200).all()
    assert (picture[:, 20:] != 200).any(axis=2).all()
    hatch(picture[:, :0], (255, 0, 0))
