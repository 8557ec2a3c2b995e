from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import DataError
from magtiles_seg.train.sampling import BalancedSampler


def _sample(label: str, group: int, number: int) -> Sample:
    path = Path("none.jpg")
    return Sample(f"{label}_{group}_{number}", label, path, path, group)


def _drawn(samples: list[Sample], free_fraction: float, draws: int = 4000) -> list[Sample]:
    sampler = BalancedSampler(samples, free_fraction=free_fraction)
    rng = np.random.default_rng(0)
    return [samples[sampler.draw(rng)] for _ in range(draws)]


def test_sampler_keeps_the_share_of_sound_pictures() -> None:
    samples = [_sample("free", n, 0) for n in range(50)] + [_sample("crack", 99, 0)]
    share = Counter(sample.label for sample in _drawn(samples, 0.35))["free"] / 4000
    assert share == pytest.approx(0.35, abs=0.03)


def test_sampler_draws_kinds_by_the_root_of_their_number() -> None:
    samples = [_sample("crack", n, 0) for n in range(4)]
    samples += [_sample("break", n, 0) for n in range(100, 136)]
    count = Counter(sample.label for sample in _drawn(samples, 0.35))
    assert count["break"] / count["crack"] == pytest.approx(3, rel=0.15)


def test_sampler_gives_every_tile_the_same_share_however_many_pictures_it_has() -> None:
    samples = [_sample("crack", 1, n) for n in range(9)] + [_sample("crack", 2, 0)]
    count = Counter(sample.group for sample in _drawn(samples, 0.0))
    assert count[1] / count[2] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("label", ["free", "crack"])
def test_sampler_with_one_sort_of_pictures_draws_them_all(label: str) -> None:
    samples = [_sample(label, n, 0) for n in range(5)]
    assert len({sample.id for sample in _drawn(samples, 0.35, 200)}) == 5


def test_sampler_without_pictures_says_so() -> None:
    with pytest.raises(DataError, match="training part is empty"):
        BalancedSampler([], free_fraction=0.3)
