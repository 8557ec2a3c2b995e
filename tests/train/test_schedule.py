from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.train.schedule import WARM_UP, one_cycle


def test_one_cycle_rises_to_the_peak_and_falls_to_near_zero() -> None:
    assert one_cycle(0) < 0.05
    assert one_cycle(WARM_UP) == 1
    assert one_cycle(1) < 0.002


@given(st.floats(0, 1), st.floats(0, 1))
def test_one_cycle_is_monotone_on_each_flank(first: float, second: float) -> None:
    low, high = sorted((first, second))
    if high <= WARM_UP:
        assert one_cycle(low) <= one_cycle(high)
    elif low >= WARM_UP:
        assert one_cycle(low) >= one_cycle(high)
