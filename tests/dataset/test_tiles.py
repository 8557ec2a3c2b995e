from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.dataset.splits import committed_folds
from magtiles_seg.dataset.tiles import GAP, RECAPTURED, SAME_SURFACE, WHOLE_SET, group_tiles

NUMS = st.lists(st.integers(0, 400_000), max_size=60)


def test_group_tiles_gap_of_exactly_100_stays_one_tile() -> None:
    assert group_tiles([1000, 1100, 1201]) == [1000, 1000, 1201]


def test_group_tiles_shuffled_input_keeps_the_order_of_the_input() -> None:
    assert group_tiles([4841, 9000, 4727, 4750, 4841]) == [4727, 9000, 4727, 4727, 4727]


def test_group_tiles_nothing_gives_nothing() -> None:
    assert group_tiles([]) == []


def test_group_tiles_every_listed_tile_is_one_group() -> None:
    for nums in (*RECAPTURED, *SAME_SURFACE):
        assert len(set(group_tiles(nums))) == 1


def test_group_tiles_runs_of_the_whole_set_join_the_tile_and_take_its_id() -> None:
    for run, tile in WHOLE_SET.items():
        assert group_tiles([tile]) == [tile]  # as folds.json names it
        assert group_tiles([run, tile]) == [tile, tile]
        assert group_tiles([run]) == [tile]


def test_group_tiles_of_the_whole_set_keep_their_committed_folds() -> None:
    assert set(WHOLE_SET.values()) <= committed_folds().keys()


def test_group_tiles_recaptured_crack_tile_is_one_group_over_all_five_runs() -> None:
    assert set(group_tiles([85602, 85781, 85998, 86828, 88149])) == {85602}


def test_group_tiles_listed_picture_missing_leaves_the_groups_of_the_others() -> None:
    whole = [10380, 10410, 10448, 10642, 10714, 10790]
    groups = dict(zip(whole, group_tiles(whole), strict=True))
    assert groups[10448] == groups[10790]
    for lost in (10410, 10642):
        rest = [num for num in whole if num != lost]
        assert group_tiles(rest) == [groups[num] for num in rest]


@given(NUMS)
def test_group_tiles_any_nums_joins_at_least_what_lies_within_the_gap(nums: list[int]) -> None:
    groups = dict(zip(nums, group_tiles(nums), strict=True))
    ordered = sorted(set(nums))
    for left, right in pairwise(ordered):
        if right - left <= GAP:
            assert groups[left] == groups[right]


@given(NUMS, st.randoms(use_true_random=False))
def test_group_tiles_any_order_gives_the_same_groups(nums: list[int], rng: object) -> None:
    shuffled = list(nums)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    expected = dict(zip(nums, group_tiles(nums), strict=True))
    assert dict(zip(shuffled, group_tiles(shuffled), strict=True)) == expected


@given(st.lists(st.integers(400_000, 10**6), max_size=40))
def test_group_tiles_far_nums_are_grouped_by_the_gap_alone(nums: list[int]) -> None:
    first = previous = None
    for num, group in sorted(zip(nums, group_tiles(nums), strict=True)):
        if previous is None or num - previous > GAP:
            first = num
        assert group == first
        previous = num
