"""One verdict for several exposures of a tile, and the overlay of all of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from predictions import segment

from magtiles_seg import Segmenter
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.decision import Decision
from magtiles_seg.errors import ConfigError, InferenceError
from magtiles_seg.marking import is_result
from magtiles_seg.registration import find_shift, fine_texture, move
from magtiles_seg.result import Segmentation
from magtiles_seg.tile import TileResult, tile_score

SURFACE = synthetic_tile(5, size_hw=(120, 140)).image


def scored(*scores: float, **decision: Any) -> TileResult:  # noqa: ANN401
    """Return a tile whose exposures have these scores."""
    return TileResult(
        exposures=tuple(
            segment(np.full((2, 3), score), score_top_k_px=1, **decision) for score in scores
        )
    )


def exposure(
    image: NDArray[np.uint8], spot_yx: tuple[int, int] | None, score: float
) -> Segmentation:
    """Return the answer to a picture with a defect of 6 x 6 px, of a given score."""
    probability = np.zeros(image.shape, np.float32)
    if spot_yx is not None:
        y, x = spot_yx
        probability[y : y + 6, x : x + 6] = 0.0625
    probability[0, 0] = score
    return Segmentation.from_prediction(
        image,
        probability,
        np.full(image.shape, 1, np.uint8),
        decision=Decision(min_area_px=2, score_top_k_px=1, threshold=0.05),
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.3,), 0.3),
        ((0.0,), 0.0),
        ((0.125, 0.875), 0.5),
        ((0.8, 0.8, 0.5), 16 ** (1 / 3) / (1 + 16 ** (1 / 3))),  # odds of 4, 4 and 1
        ((0.0, 1.0), 0.5),
        ((0.0, 0.0), 1e-4),
    ],
)
def test_tile_score_is_that_of_the_geometric_mean_of_the_odds(
    scores: tuple[float, ...], expected: float
) -> None:
    assert tile_score(scores) == pytest.approx(expected, abs=1e-12)


def test_tile_score_of_one_false_alarm_among_six_pictures_condemns_no_tile() -> None:
    assert tile_score([0.02, 0.05, 0.03, 0.999, 0.1, 0.04]) < 0.2


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_tile_score_lies_among_the_pictures_scores_whatever_their_order(
    scores: list[float],
) -> None:
    together = tile_score(scores)
    assert together == tile_score(reversed(scores))
    assert max(min(scores), 0) - 1e-4 <= together <= min(max(scores), 1) + 1e-4 + 1e-12


def test_tile_without_pictures_or_with_two_decisions_is_an_inference_error() -> None:
    with pytest.raises(InferenceError, match="no score without any picture"):
        tile_score([])
    with pytest.raises(InferenceError, match="got 0 pictures"):
        TileResult(exposures=())
    mixed = (segment([[0.5]]), segment([[0.5]], threshold=0.3))
    with pytest.raises(InferenceError, match="got 2 pictures and 2 different decisions"):
        TileResult(exposures=mixed)


def test_verdict_one_false_alarm_among_three_does_not_condemn_the_tile() -> None:
    tile = scored(0.0625, 0.9375, 0.0625, reject_score=0.5)
    assert tile.verdict == "accept"
    assert tile.score == pytest.approx(0.289, abs=1e-3)  # odds of 1/15, 15 and 1/15
    assert [one.verdict for one in tile.exposures] == ["accept", "reject", "accept"]


@pytest.mark.parametrize(
    ("decision", "verdict"),
    [
        ({"reject_score": 0.5}, "accept"),
        ({"reject_score": 0.25}, "reject"),
        ({"reject_score": 0.5, "tile_reject_score": 0.25}, "reject"),
        ({"reject_score": 0.125, "tile_reject_score": 0.5}, "accept"),
        ({"reject_score": 0.5, "review_score": 0.125}, "review"),
        ({"reject_score": 0.5, "tile_reject_score": 0.25, "review_score": 0.125}, "reject"),
    ],
)
def test_verdict_is_by_the_tile_s_own_threshold_where_there_is_one(
    decision: dict[str, float], verdict: str
) -> None:
    assert scored(0.25, **decision).verdict == verdict


def test_decision_whose_reject_score_is_overridden_holds_for_tiles_too() -> None:
    decision = Decision(reject_score=0.5, tile_reject_score=0.25)
    assert decision.overridden(reject_score=0.75).tile_threshold == 0.75
    assert decision.overridden(threshold=0.1).tile_threshold == 0.25
    assert "tile_reject_score" not in Decision().to_dict()
    assert Decision(**decision.to_dict()) == decision


def test_overlay_lays_the_defects_of_shifted_exposures_on_the_middle_one() -> None:
    here, there = SURFACE[10:110, 10:130], SURFACE[7:107, 15:135]
    tile = TileResult(
        exposures=(
            exposure(here, (40, 50), 0.25),
            exposure(there, (43, 45), 0.125),  # the same place on the surface
            exposure(there, (73, 20), 0.75),
        )
    )
    assert tile.middle == 0
    assert np.allclose(tile.shifts[1] or (), (5, -3), atol=0.3)
    marked = np.zeros(here.shape, bool)
    marked[40:46, 50:56] = marked[70:76, 25:31] = True
    assert np.array_equal(tile.classes() > 0, marked)
    assert np.array_equal((tile.overlay() != here[:, :, None]).any(2), marked)
    assert tile.overlay_dict() == {"onto": 0, "left_out": []}


def test_overlay_leaves_out_what_cannot_be_laid_over_and_says_so() -> None:
    other = synthetic_tile(99, size_hw=(120, 140)).image
    blank = np.full_like(SURFACE, 90)
    tile = TileResult(
        exposures=(
            exposure(other, (20, 20), 0.125),
            exposure(SURFACE, (40, 50), 0.25),
            exposure(blank, (60, 60), 0.75),
        )
    )
    assert tile.overlay_dict() == {"onto": 1, "left_out": [0, 2]}
    assert np.array_equal(tile.classes(), tile.exposures[1].classes)


def test_shifts_of_large_pictures_are_found_in_their_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = ((10, 8), (8, 11))
    pair = tuple(exposure(SURFACE[y : y + 100, x : x + 120], None, 0.25) for y, x in places)
    assert np.allclose(TileResult(exposures=pair).shifts[1] or (), (3, -2), atol=0.3)
    monkeypatch.setattr("magtiles_seg.tile._WINDOW_PX", 64)
    assert np.allclose(TileResult(exposures=pair).shifts[1] or (), (3, -2), atol=0.3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (5, 300)])
def test_find_shift_of_tiny_pictures_is_a_shift_or_none(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    shift = find_shift(fine_texture(image), fine_texture(image))
    assert shift is None or np.allclose(shift, (0, 0), atol=0.5)


def test_move_is_what_a_shift_of_whole_pixels_says() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    moved = move(pixels, (1.0, -1.0), (3, 5))
    assert moved.tolist() == [[0, 4, 5, 6, 7], [0, 8, 9, 10, 11], [0] * 5]


def test_to_dict_is_json_with_every_exposure() -> None:
    tile = dataclasses.replace(scored(0.25, 0.75, 0.5), name="p7")
    content = json.loads(tile.to_json())
    assert content.keys() == tile.to_dict().keys()
    assert (content["name"], content["verdict"], content["score"]) == ("p7", "reject", 0.5)
    assert (content["rule"], content["pictures"], content["reject_score"]) == (
        "mean log odds",
        3,
        0.5,
    )
    assert [one["score"] for one in content["exposures"]] == [0.25, 0.75, 0.5]
    assert repr(tile) == (
        "TileResult('p7', reject, score 0.500, mean log odds of [0.250, 0.750, 0.500])"
    )


def test_save_writes_an_overlay_that_is_never_taken_for_an_input(tmp_path: Path) -> None:
    tile = TileResult(exposures=(exposure(SURFACE, (40, 50), 0.25),), name="p7")
    for _ in range(2):  # again over its own files
        path = tile.save(tmp_path / "out", "p7")
    assert path == tmp_path / "out" / "p7.tile.json"
    assert json.loads(path.read_text())["overlay"] == {"onto": 0, "left_out": []}
    picture = path.with_suffix(".png")
    assert is_result(picture)
    assert np.array_equal(np.asarray(cv2.imread(str(picture))), tile.overlay()[:, :, ::-1])


@pytest.mark.parametrize("name", ["tile.png", "tile.json"])
def test_save_over_somebody_s_file_is_refused_and_writes_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": true}')
    with pytest.raises(ConfigError, match=f"{name} would be overwritten"):
        scored(0.5).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ConfigError, match="expected a plain file name"):
        scored(0.5).save(tmp_path, "a/b")


def test_segmenter_tile_is_that_of_single_calls_together(model: Path) -> None:
    pictures = [SURFACE, SURFACE[:90], SURFACE[:, :80], SURFACE[20:]]
    with Segmenter(model, threads=1) as segmenter:
        tile = segmenter.tile(pictures, name="p7")
        assert tile.score == tile_score(segmenter(picture).score for picture in pictures)
        assert (tile.name, len(tile.exposures)) == ("p7", 4)
        with pytest.raises(InferenceError, match="got 0 pictures"):
            segmenter.tile([])
