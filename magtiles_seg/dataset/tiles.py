"""Physical tiles: which pictures show the same piece of metal.

The public data set holds several exposures of every tile, under running capture numbers (`num`). A
split that ignores this shows a model its own test tiles in training, so whole tiles are the unit of
every honest split.

The groups may only be too coarse, never too fine: two tiles in one group cost a little freedom, one
tile in two groups is a leak.
"""

from __future__ import annotations

from collections.abc import Sequence

GAP = 100
"""Sorted by `num`, a new run of pictures starts where the step to the next picture exceeds this."""

RECAPTURED: tuple[tuple[int, ...], ...] = (
    (85602, 85998, 88149),
    (85642, 86031, 88170),
    (85665, 86064, 88201),
    (85846, 86854),
    (85897, 86892),
    (108719, 108889),
    (108741, 108923),
    (320808, 320895),
)
"""Captures of one tile that was put under the camera again: the runs that hold these nums are one
tile."""

SAME_SURFACE: tuple[tuple[int, ...], ...] = (
    (5892, 13589),
    (8676, 10410, 10642),
    (24829, 25007),
    (37084, 37273, 37556),
    (53049, 65043),
    (75132, 75343),
    (85665, 85897, 86064),
    (136351, 136770),
    (241926, 242123),
    (249594, 249762),
    (257656, 257962),
    (293729, 293912),
    (306609, 309390),
    (348648, 348888),
    (355658, 358138),
)
"""More runs that are one tile: their pictures correlate like exposures of one surface.

Mostly a capture that paused for longer than `GAP` in the middle of a tile: exposures 1 to 3, a
step, exposures 4 to 6. Found by correlating the fine texture (grinding lines removed) of 1145
pictures over all pairs of runs: these reach .54 to 1.00, every other pair stays below .25.
"""

WHOLE_SET: dict[int, int] = {61310: 61501, 9196: 8676, 98080: 98305, 283203: 283465}
"""Runs that only the whole public set holds: {a num of the run: a num of the tile that it shows}.

Found likewise over all 1344 pictures, at .94, .91, .60 and .53. The tile keeps the id that it has
without the run, so that it stays in its committed fold (`folds.json`).
"""

SUSPECT_FREE: frozenset[int] = frozenset(
    {
        *(824, 834, 889, 937, 117030, 148923, 148952, 148998),
        *(331174, 331190, 331207, 331230, 331267, 346332, 346361),
    }
)
"""Nums of pictures filed under Free whose tile-mates are masked as defective: report with and
without them."""

SEEN_DEFECTIVE: frozenset[int] = frozenset(
    {
        *(257103, 257132, 257158, 257190, 257273, 257334),  # a chip out of the lower edge
        *(279090, 279109, 279122, 279133, 279145, 279178),  # the lower edge broken off in pieces
        *(338856, 338872, 338885, 338897, 338911, 338952),  # a grinding step with a torn rim
        *(351039, 351066, 351078, 351088, 351099, 351127),  # likewise
    }
)
"""Nums of pictures filed under Free on whose tile a defect was seen by somebody who looked through
the strongest false alarms of folds 0 to 2. Together with `SUSPECT_FREE` the audited list."""

EMPTY_MASKS: frozenset[str] = frozenset(
    {"exp3_num_45042", "exp4_num_45057", "exp4_num_124690", "exp4_num_352527"}
)
"""Ids of pictures filed under Uneven whose mask is empty: to be dropped from scoring."""


def group_tiles(nums: Sequence[int]) -> list[int]:
    """Return the physical-tile group of each capture number.

    A group's id is its smallest num, the runs of `WHOLE_SET` aside. The nums listed there, in
    `RECAPTURED` and in `SAME_SURFACE` count even when their pictures are missing, so that an
    incomplete copy of the data is joined like the whole one. (A picture that is missing in the
    middle of a run may still open a gap in it.)

    Args:
        nums: Capture numbers in any order; repeated ones are one picture.

    Returns:
        Group ids, aligned with `nums`.

    Example:
        >>> group_tiles([4727, 4841, 4750, 108889, 108719])
        [4727, 4727, 4727, 108719, 108719]
    """
    joins = (*RECAPTURED, *SAME_SURFACE)
    listed = {num for join in (*joins, *WHOLE_SET.items()) for num in join}
    run_of = _runs(sorted({*nums, *listed}))
    parent = {run: run for run in run_of.values()}

    def root(run: int) -> int:
        while parent[run] != run:
            run = parent[run]
        return run

    for join in joins:
        roots = {root(run_of[num]) for num in join}
        for run in roots:
            parent[run] = min(roots)
    for run, tile in WHOLE_SET.items():
        if root(run_of[run]) != root(run_of[tile]):
            parent[root(run_of[run])] = root(run_of[tile])
    return [root(run_of[num]) for num in nums]


def _runs(nums: Sequence[int]) -> dict[int, int]:
    """Return {num: first num of its run} for sorted nums."""
    run_of: dict[int, int] = {}
    first = previous = nums[0] if nums else 0
    for num in nums:
        if num - previous > GAP:
            first = num
        run_of[num] = first
        previous = num
    return run_of
