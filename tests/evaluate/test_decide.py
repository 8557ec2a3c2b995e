"""Where to cut: against trying every threshold, and on pictures made for one answer."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magtiles_seg.errors import ConfigError
from magtiles_seg.evaluate import decide, metrics
from magtiles_seg.evaluate.calibration import LOGITS, fit, logit, reliability, sigmoid
from magtiles_seg.evaluate.decide import (
    MARGINS_PX,
    CalibrationCounts,
    Choice,
    DecisionSearch,
    choose_for_all_folds,
)
from magtiles_seg.evaluate.metrics import score_at_recall
from magtiles_seg.result import Decision, Segmentation
from magtiles_seg.tile import tile_score

Array = npt.NDArray[Any]

probabilities = arrays(np.float32, (4, 4), elements=st.floats(0, 1, width=32))
truths = arrays(np.uint8, (4, 4), elements=st.integers(0, 2))


@given(probabilities, st.integers(0, 255))
def test_quantize_any_probability_is_at_least_i_exactly_when_the_bin_is(
    probability: Array, level: int
) -> None:
    assert np.array_equal(
        metrics.probability_bins(probability) >= level, probability >= level / 256
    )


@given(probabilities, truths)
def test_threshold_counts_any_picture_equal_cutting_at_each_threshold(
    probability: Array, truth: Array
) -> None:
    histogram = metrics.probability_histogram(probability, truth)
    counts = decide.threshold_counts(histogram)
    for level in range(256):
        expected = metrics.binary_counts(probability >= level / 256, truth)
        assert counts[level].tolist() == expected.tolist()


@given(probabilities, truths)
def test_best_threshold_any_picture_has_the_highest_dice(probability: Array, truth: Array) -> None:
    truth[0, 0] = 1
    chosen = decide.best_threshold(metrics.probability_histogram(probability, truth))
    every = [
        metrics.dice(metrics.binary_counts(probability >= level / 256, truth))
        for level in range(1, 256)
    ]
    assert metrics.dice(metrics.binary_counts(probability >= chosen, truth)) == max(every)


def test_best_threshold_wide_gap_is_cut_in_the_middle() -> None:
    histogram = np.zeros((2, 256), int)
    histogram[0, 64], histogram[1, 192] = 100, 10
    assert decide.best_threshold(histogram) == pytest.approx(128 / 256, abs=1 / 256)


def test_best_threshold_without_defects_is_refused() -> None:
    with pytest.raises(ConfigError, match="without any defect pixel"):
        decide.best_threshold(np.ones((2, 256), int) * [[1], [0]])


def test_dice_by_min_area_hand_worked_drops_small_regions_first() -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[0:2, 0:2] = 1
    mask = truth.copy()
    mask[5, 5] = mask[6, 6] = 1  # two diagonal pixels are one region of 2
    got = decide.dice_by_min_area(mask, truth, (1, 2, 3, 4, 5))
    assert got.tolist() == pytest.approx([8 / 10, 8 / 10, 1, 1, 0])


def test_dice_by_min_area_speck_on_a_sound_picture_pays_once_dropped() -> None:
    speck = np.zeros((8, 8), np.uint8)
    speck[3, 3:5] = 1
    got = decide.dice_by_min_area(speck, np.zeros_like(speck), (1, 2, 3))
    assert got.tolist() == [0, 0, 1]


def test_best_min_area_classes_count_alike_whatever_their_number() -> None:
    areas = len(decide.MIN_AREAS_PX)
    keeps_small, drops_small = np.zeros(areas), np.zeros(areas)
    keeps_small[0], drops_small[5] = 0.5, 0.4
    overlap = np.stack([keeps_small, *[drops_small] * 50])
    label = np.array([1, *[0] * 50])
    assert decide.best_min_area(overlap, label) == decide.MIN_AREAS_PX[0]


def test_best_margin_is_the_narrowest_of_the_highest_auroc() -> None:
    is_defect = np.array([True, True, False, False])
    helps, hurts = [0.9, 0.6, 0.5, 0.1], [0.1, 0.1, 0.5, 0.9]
    scores = np.array([[0.9, 0.3, 0.5, 0.1], helps, helps, hurts, hurts]).T
    assert decide.best_margin(scores, is_defect) == decide.MARGINS_PX[1]
    assert decide.best_margin(np.repeat(scores[:, :1], 5, axis=1), is_defect) == 0
    assert decide.best_margin(scores[:2], is_defect[:2]) == 0


def test_best_min_area_equal_ones_give_the_smallest() -> None:
    overlap = np.ones((2, len(decide.MIN_AREAS_PX)))
    assert decide.best_min_area(overlap, np.array([0, 1])) == 1


def test_search_drops_the_regions_that_its_own_threshold_leaves() -> None:
    search, where = DecisionSearch(), (slice(2, 8), slice(2, 8))
    for label in (1, 0):
        probability, truth = np.full((24, 24), 0.1, np.float32), np.zeros((24, 24), np.uint8)
        probability[20, 18:20] = 0.8  # a speck of two pixels
        if label:
            probability[where], truth[where] = 0.9, 1
        answer = Segmentation.from_prediction(
            np.zeros_like(truth), probability, np.ones_like(truth), decision=Decision()
        )
        search.add(answer, truth, label)
    chosen = search.decision(recall=1)
    assert 0.8 < chosen.threshold <= 0.9
    assert chosen.min_area_px == 1  # above the threshold there is no speck
    search._histogram[1, 128:192] += 50  # as if more pictures spoke for a lower one
    chosen = search.decision(recall=1)
    assert 0.1 < chosen.threshold < 0.8
    assert chosen.min_area_px == 3


class Chosen:
    """A search that has made up its mind."""

    def decision(self, *, recall: float) -> Decision:
        return Decision(threshold=0.5, min_area_px=4, reject_score=recall)


def count(seed: int) -> CalibrationCounts:
    """Return forty pictures, every second one defective, whose scores overlap."""
    rng, made = np.random.default_rng(seed), CalibrationCounts()
    rising = np.linspace(1, 90, LOGITS.size).astype(np.int64)
    made.pixels += np.stack([rising[::-1], rising])
    for index in range(40):
        top = np.clip(rng.normal(0.4 + 0.3 * (index % 2), 0.2, 8), 0.01, 0.99)
        for margin in MARGINS_PX:
            made.tops[margin].append(top)
        made.is_defect.append(bool(index % 2))
        made.group.append(1000 * seed + index // 8 * 2 + index % 2)  # four pictures a tile
    return made


def test_diagrams_after_calibration_are_by_the_map_of_the_other_folds_alone() -> None:
    one, other = count(1), count(2)
    other.pixels[1] *= 5  # surer of defects
    raw = sigmoid(LOGITS)
    cases = [(fit(LOGITS, *rest.pixels)(raw), own) for own, rest in ((one, other), (other, one))]
    expected = reliability(
        np.concatenate([p for p, _ in cases]),
        np.concatenate([own.pixels[0] for _, own in cases]),
        np.concatenate([own.pixels[1] for _, own in cases]),
    )
    assert decide.diagrams([one, other], MARGINS_PX[0])["pixels_after"] == expected


def test_choose_reject_score_is_rounded_down_to_a_grain() -> None:
    above_half = 0
    for seed in range(12):
        counts = [count(2 * seed), count(2 * seed + 1)]
        choice = choose_for_all_folds(cast("DecisionSearch", Chosen()), counts, recall=0.9, tiles=8)
        margin = choice.decision.score_margin_px
        scores = np.concatenate([one.scores(choice.pixel, margin) for one in counts])
        defect = np.array([flag for one in counts for flag in one.is_defect])
        picture = fit(logit(scores), ~defect, defect)
        exact = score_at_recall(picture(scores), defect, recall=0.9)
        assert 0 <= exact - choice.decision.reject_score < 1e-4
        grains = choice.decision.reject_score * 1e4
        assert math.isclose(grains, round(grains), abs_tol=1e-6)
        above_half += exact * 1e4 % 1 > 0.5
    assert above_half  # where rounding to the nearest would go up


def test_choose_tile_score_catches_the_recall_of_tiles_by_their_scores() -> None:
    counts = [count(0), count(1)]
    choice = choose_for_all_folds(cast("DecisionSearch", Chosen()), counts, recall=0.9, tiles=20)
    scores = np.concatenate([one.scores(choice.pixel, 0) for one in counts])
    groups = np.concatenate([one.group for one in counts])
    defect = np.concatenate([one.is_defect for one in counts])
    picture = fit(logit(scores), ~defect, defect)(scores)
    tiles = [tile_score(picture[groups == group]) for group in np.unique(groups[defect])]
    tile_reject_score = choice.decision.tile_reject_score
    assert tile_reject_score is not None
    assert sum(score >= tile_reject_score for score in tiles) == 9  # of 10
    assert tile_reject_score != choice.decision.reject_score
    assert Choice.from_json(choice.to_json()) == choice


def test_choose_without_exposures_leaves_tiles_to_the_picture_s_score() -> None:
    one = count(0)
    one.group = [-1] * len(one.group)
    choice = choose_for_all_folds(cast("DecisionSearch", Chosen()), [one], recall=0.9, tiles=40)
    assert choice.decision.tile_reject_score is None


def test_sound_limit_is_the_rank_that_further_pictures_rarely_exceed() -> None:
    values = np.arange(1, 20) / 20  # 19 pictures: rank ceil(0.9 * 20) = 18
    assert decide.sound_limit(values[::-1], 0.1) == 18 / 20
    assert decide.sound_limit(values, 0.05) == 19 / 20
    assert decide.sound_limit(values, 0.001) == 19 / 20, "too few pictures: the largest"
    assert decide.sound_limit(np.arange(1, 21) / 21, 0.1) == 19 / 21  # 20: ceil(0.9 * 21) = 19


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_sound_limit_of_no_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="false_reject"):
        decide.sound_limit(np.ones(3), share)


def answer_of(probability: Array) -> Segmentation:
    """Return an answer of that probability."""
    black, ones = np.zeros(probability.shape, np.uint8), np.ones(probability.shape, np.uint8)
    return Segmentation.from_prediction(
        black, probability, ones, decision=Decision(), labels=("background", "defect")
    )


def test_choose_on_sound_pictures_rejects_and_marks_no_more_than_the_share() -> None:
    search = DecisionSearch()
    answers = []
    for number in range(19):
        probability = np.full((40, 40), 0.01, np.float32)
        probability[:8, :16] = number / 20
        answers.append(answer_of(probability))
        search.add(answers[-1], np.zeros((40, 40), np.uint8), 0)
    chosen = search.decision(recall=0.95, false_reject=0.1)
    decided = [answer.redecide(**chosen.to_dict()) for answer in answers]
    assert [one.verdict for one in decided] == ["accept"] * 18 + ["reject"]
    assert [bool(one.defects) for one in decided] == [False] * 18 + [True]
    assert chosen.threshold == (int(256 * 17 / 20) + 1) / 256  # the lowest that leaves 18 alone
    assert chosen.min_area_px == decide.SOUND_AREA_PX
    assert search.is_sound


@pytest.mark.parametrize("sure_px", [100, 40])
def test_choose_on_sound_pictures_that_a_model_is_sure_are_defective_is_refused(
    sure_px: int,
) -> None:
    search = DecisionSearch()
    probability = np.zeros((40, 40), np.float32)
    probability.ravel()[:sure_px] = 1.0
    for _ in range(20):
        search.add(answer_of(probability), np.zeros((40, 40), np.uint8), 0)
    with pytest.raises(ConfigError, match=r"on 20 sound pictures the model is sure of defects"):
        search.decision(recall=0.95)


def test_choose_on_sound_pictures_a_few_of_which_the_model_is_sure_of_leaves_the_others() -> None:
    search = DecisionSearch()
    sound, sure = (answer_of(np.full((40, 40), level, np.float32)) for level in (0.98, 1.0))
    for answer in [sound] * 19 + [sure]:
        search.add(answer, np.zeros((40, 40), np.uint8), 0)
    chosen = search.decision(recall=0.95, false_reject=0.1)
    decided = sound.redecide(**chosen.to_dict())
    assert (decided.verdict, decided.defects) == ("accept", ())


def test_choose_on_no_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match="defect pixel"):
        DecisionSearch().decision(recall=0.95)
