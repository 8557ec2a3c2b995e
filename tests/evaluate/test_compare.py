from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.config import GateParams
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.evaluate.compare import Change, compare, read_pictures
from magtiles_seg.evaluate.scoring import Records

IOU = GateParams(improve=("+iou",), guard=("+dice",))
BOTH = GateParams(improve=("+iou",), guard=("+auroc",))
HEADER = "picture,class,tile,tp,fp,fn,tn,score,verdict\n"


def scored(rows: list[str]) -> Records:
    return read_pictures(HEADER + "\n".join(rows) + "\n")


def tiles(found: list[int], *, size: int = 10) -> Records:
    """Two pictures per tile: a crack of `size` px of which some are found, and a sound one."""
    rows = []
    for tile, hit in enumerate(found):
        verdict = "reject" if 2 * hit >= size else "accept"
        rows.append(f"c{tile},crack,{tile},{hit},0,{size - hit},90,{hit / size},{verdict}")
        rows.append(f"f{tile},free,{tile},0,0,0,100,0.01,accept")
    return scored(rows)


def test_read_pictures_of_a_written_table_gives_the_records_back() -> None:
    records = scored(["b,free,7,0,2,0,98,0.25,reject", "a,crack,3,5,1,4,90,0.75,review"])
    assert records.ids.tolist() == ["b", "a"]
    assert records.labels.tolist() == ["background", "crack"]
    assert records.label.tolist() == [0, 1]
    assert records.group.tolist() == [7, 3]
    assert records.counts.tolist() == [[0, 2, 0, 98], [5, 1, 4, 90]]
    assert records.score.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no table"),
        ("id,dice\na,1\n", "expected the columns picture"),
        (HEADER + "a,crack,x,1,1,1,1,0.5,reject\n", "damaged"),
        (HEADER + "a,crack,1,1\n", "damaged"),
        (HEADER + '"' + "a" * 200_000, "damaged: field larger"),
        (HEADER + "a,crack,1,1,1,1,1,971,reject\n", "row 2: score '971'"),  # was 0,971
        (HEADER + "a,crack,1,1,1,1,1,nan,reject\n", "row 2: score 'nan'"),
        (HEADER + "a,crack,1,1,1,1,1,0.5.1,reject\n", "damaged"),
        (HEADER + "a,crack,1,-1,1,1,1,0.5,reject\n", "row 2: tp '-1'"),
        (HEADER + "a,crack,1,1,1,1,1,0.5,Reject\n", "row 2: verdict 'Reject'"),
        (HEADER + "b,free,2,0,0,0,9,1e-05,accept\n" * 2, "row 3: 'b' stands in row 2 already"),
    ],
)
def test_read_pictures_of_something_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_pictures(text)


def test_compare_gives_the_pooled_difference_worked_by_hand() -> None:
    found = compare(tiles([5, 5]), tiles([10, 5]))
    iou = next(change for change in found.figures if change.name == "iou")
    assert (iou.base, iou.here) == (0.5, 0.75)
    assert iou.difference == 0.25
    assert iou.difference_95[0] == 0.0  # a draw may hold the second tile twice
    assert iou.outcome == "unclear"
    assert [(c.name, c.base, c.here) for c in found.classes] == [("crack", 0.5, 0.75)]


def test_compare_joins_the_pictures_by_their_ids_in_any_order_and_number() -> None:
    found, base = tiles([10, 5]), tiles([5, 5, 9]).where(np.array([4, 3, 2, 5, 0, 1]))
    result = compare(base, found)
    expected = compare(tiles([5, 5]), tiles([10, 5]))
    assert (result.figures, result.classes) == (expected.figures, expected.classes)


def test_compare_of_a_class_of_one_picture_is_known() -> None:
    base, here = ([f"a,crack,1,{hit},0,{10 - hit},90,0.9,reject"] for hit in (5, 8))
    (change,) = compare(scored(base), scored(here)).classes
    assert (change.name, change.base, change.here) == ("crack", 0.5, 0.8)


def test_compare_of_a_class_leaves_the_draws_out_that_hold_none_of_it() -> None:
    hole = "c9,blowhole,9,{},0,{},90,0.9,reject"
    base, here = (
        scored([*(f"f{i},free,{i},0,0,0,100,0.01,accept" for i in range(3)), hole.format(*hits)])
        for hits in ((2, 8), (8, 2))
    )
    (change,) = compare(base, here).classes
    assert change.difference_95 == pytest.approx((0.6, 0.6))  # in none of them it would be 0
    assert change.error == pytest.approx(0)


def test_compare_where_every_tile_gains_improves() -> None:
    found = compare(tiles([2, 5, 3, 4]), tiles([8, 9, 7, 9]))
    assert found.judge(IOU).improved
    assert (found.pictures, found.tiles) == (8, 4)


def test_compare_where_one_figure_gains_and_another_loses_does_not_improve() -> None:
    base = tiles([2, 5, 3, 4])
    here = tiles([8, 9, 7, 9])
    here.score[here.label == 0] = 0.95  # sound tiles now score above every defect
    found = compare(base, here)
    assert {c.name: c.outcome for c in found.figures}["auroc"] == "worse"
    assert not found.judge(BOTH).improved
    assert found.judge(IOU).improved  # which does not ask for the other


def test_judge_where_a_guarded_figure_alone_gains_does_not_improve() -> None:
    found = compare(tiles([2, 5, 3, 4]), tiles([8, 9, 7, 9]))
    assert {c.name: c.outcome for c in found.figures}["auroc"] == "unclear"
    assert not found.judge(GateParams(improve=("+auroc",), guard=("+iou",))).improved


@given(st.lists(st.integers(0, 10), min_size=1, max_size=8))
def test_compare_with_itself_never_improves(found: list[int]) -> None:
    result = compare(tiles(found), tiles(found))
    assert not result.judge(IOU).improved
    assert result.newly_wrong == ()
    assert all(change.difference == 0 for change in result.figures)


@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=2, max_size=8),
)
def test_compare_the_other_way_round_turns_the_sign(pairs: list[tuple[int, int]]) -> None:
    old, new = tiles([a for a, _ in pairs]), tiles([b for _, b in pairs])
    there = {c.name: c for c in compare(old, new).figures}
    back = {c.name: c for c in compare(new, old).figures}
    for name, change in there.items():
        assert change.difference == pytest.approx(-back[name].difference)
        low, high = back[name].difference_95
        assert change.difference_95 == pytest.approx((-high, -low), nan_ok=True)


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        ((-0.4, -0.1), "better"),
        ((-0.4, 0.1), "unclear"),
        ((-0.1, 0.4), "unclear"),
        ((0.1, 0.4), "worse"),
    ],
)
def test_outcome_of_a_rate_of_false_rejects_is_better_when_all_of_its_interval_falls(
    limits: tuple[float, float], outcome: str
) -> None:
    name = "false_reject_at_95_recall"
    assert Change(name=name, base=0.5, here=0.4, difference_95=limits).outcome == outcome


def test_class_of_one_tile_is_compared_on_those_draws_alone_that_hold_it() -> None:
    sound = [f"f{tile},free,{tile},0,0,0,100,0.01,accept" for tile in range(1, 6)]
    base, here = (
        scored([f"c0,crack,0,{hit},0,{10 - hit},90,0.9,reject", *sound]) for hit in (5, 8)
    )
    (crack,) = compare(base, here).classes
    assert crack.difference_95 == pytest.approx((0.3, 0.3))


def test_outcome_without_interval_is_unclear() -> None:
    nan = (math.nan, math.nan)
    assert Change(name="iou", base=0.1, here=0.9, difference_95=nan).outcome == "unclear"


def test_compare_uses_common_pictures_alone_in_any_order() -> None:
    base = tiles([5, 5, 0])
    here = tiles([10, 10]).where(np.array([2, 0, 3, 1]))
    found = compare(base, here)
    assert found.pictures == 4
    assert next(c for c in found.figures if c.name == "iou").base == 0.5


def test_compare_pairs_each_picture_with_itself_in_any_order() -> None:
    base, here = tiles([2, 9, 5, 8]), tiles([8, 1, 6, 7])
    turned = compare(base, here.where(np.array([7, 5, 3, 1, 6, 4, 2, 0])))
    paired = compare(base, here)
    assert turned.newly_wrong == paired.newly_wrong == ("c1",)
    assert turned.classes == paired.classes


def test_compare_of_a_picture_filed_anew_since_blames_no_model() -> None:
    rows = ["a,crack,1,9,0,1,90,0.9,reject", "b,free,2,0,0,0,100,0.1,accept"]
    refiled = "c,{},3,0,0,0,100,0.05,accept"
    base = scored([*rows, refiled.format("free")])
    here = scored([*rows, refiled.format("break")])
    assert base.labels.tolist() != here.labels.tolist()
    found = compare(base, here)
    assert {change.name: change.difference for change in found.figures}["auroc"] == 0
    assert not [change for change in found.figures if change.difference]
    assert found.newly_wrong == ()


def test_compare_without_common_picture_is_refused() -> None:
    with pytest.raises(DataError, match="no test picture in common"):
        compare(tiles([5]), scored(["z,crack,1,1,0,0,9,0.5,reject"]))


def test_newly_wrong_holds_turned_verdicts_first_then_lost_dice() -> None:
    base = scored(
        [
            "turned,crack,1,5,0,5,90,0.9,reject",
            "lost,crack,2,9,0,1,90,0.9,reject",
            "kept,crack,3,5,0,5,90,0.9,reject",
            "alarm,free,4,0,0,0,100,0.1,accept",
        ]
    )
    here = scored(
        [
            "turned,crack,1,5,0,5,90,0.9,accept",
            "lost,crack,2,3,0,7,90,0.9,reject",
            "kept,crack,3,5,0,5,90,0.9,reject",
            "alarm,free,4,0,9,0,91,0.8,reject",
        ]
    )
    assert compare(base, here).newly_wrong == ("alarm", "turned", "lost")


def test_judge_of_an_unknown_figure_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"gate: \+map was not compared; known: iou, dice"):
        compare(tiles([5]), tiles([6])).judge(GateParams(improve=("+map",)))


def test_judge_takes_the_direction_from_the_sign() -> None:
    found = compare(tiles([2, 5, 3, 4]), tiles([8, 9, 7, 9]))
    assert not found.judge(GateParams(improve=("-iou",))).improved
    assert "`iou` is worse by +0.475" in found.judge(GateParams(improve=("-iou",))).reason


def test_judge_says_every_figure_with_its_interval_and_what_could_be_seen() -> None:
    found = compare(tiles([2, 5, 3, 4]), tiles([8, 9, 7, 9]))
    judged = found.judge(BOTH)
    assert "`iou` is better by +0.475 (95 % interval +0." in judged.reason
    assert "`auroc` is not shown to differ: +0.000" in judged.reason
    iou = next(change for change in found.figures if change.name == "iou")
    assert f"4 tiles show a true difference of {iou.detectable:.3f} in `iou`" in judged.power


def test_detectable_shrinks_with_the_root_of_the_tiles() -> None:
    old, new = [2, 5, 3, 4, 8, 6, 7, 1], [4, 5, 6, 3, 9, 6, 9, 4]

    def detectable(times: int) -> float:
        changes = compare(tiles(old * times), tiles(new * times)).figures
        return next(change.detectable for change in changes if change.name == "iou")

    assert detectable(16) == pytest.approx(detectable(1) / 4, rel=0.2)


def test_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    error, count = 1.0, 20_000
    change = Change(name="x", base=0, here=0, difference_95=(0, 0), error=error)
    drawn = rng.normal(change.detectable, error, count)
    assert np.mean(drawn - 1.96 * error > 0) == pytest.approx(0.8, abs=0.01)
