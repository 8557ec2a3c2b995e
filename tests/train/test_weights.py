from __future__ import annotations

import pytest
import torch

from magtiles_seg.train.weights import moving_average


@pytest.mark.parametrize(
    ("steps", "kept"),
    [(0, 1 / 10), (1, 2 / 11), (8, 9 / 18), (90, 91 / 100), (1_000_000, 0.99)],
)
def test_moving_average_follows_closely_at_first_and_slowly_later(steps: int, kept: float) -> None:
    average, current = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0])
    for count in (steps, torch.tensor(steps)):
        found = moving_average(0.99)(average, current, count)
        assert found.tolist() == pytest.approx([kept, 2 + 2 * kept])


def test_moving_average_of_a_low_decay_is_never_slower_than_it() -> None:
    found = moving_average(0.05)(torch.tensor(1.0), torch.tensor(0.0), 500)
    assert found.item() == pytest.approx(0.05)


def test_moving_average_of_a_counter_is_the_counter() -> None:
    found = moving_average(0.99)(torch.tensor(3), torch.tensor(7), 500)
    assert found.item() == 7
