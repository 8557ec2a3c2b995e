from __future__ import annotations

import math
from typing import cast

import numpy as np

from magtiles_seg.evaluate.calibration import LOGITS, fit, logit
from magtiles_seg.evaluate.decide import (
    MARGINS_PX,
    CalibrationCounts,
    Choice,
    DecisionSearch,
    choose_for_all_folds,
)
from magtiles_seg.evaluate.metrics import score_at_recall
from magtiles_seg.result import Decision


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


def test_choose_tile_score_catches_the_recall_of_tiles_by_their_medians() -> None:
    counts = [count(0), count(1)]
    choice = choose_for_all_folds(cast("DecisionSearch", Chosen()), counts, recall=0.9, tiles=20)
    scores = np.concatenate([one.scores(choice.pixel, 0) for one in counts])
    groups = np.concatenate([one.group for one in counts])
    defect = np.concatenate([one.is_defect for one in counts])
    picture = fit(logit(scores), ~defect, defect)(scores)
    medians = [np.median(picture[groups == group]) for group in np.unique(groups[defect])]
    tile_reject_score = choice.decision.tile_reject_score
    assert tile_reject_score is not None
    assert sum(median >= tile_reject_score for median in medians) == 9  # of 10
    assert tile_reject_score != choice.decision.reject_score
    assert Choice.from_json(choice.to_json()) == choice


def test_choose_without_exposures_leaves_tiles_to_the_picture_s_score() -> None:
    one = count(0)
    one.group = [-1] * len(one.group)
    choice = choose_for_all_folds(cast("DecisionSearch", Chosen()), [one], recall=0.9, tiles=40)
    assert choice.decision.tile_reject_score is None
