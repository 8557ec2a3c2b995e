from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magtiles_seg.dataset.augment import NO_AUGMENTATION, Augmentation, CopyPaste, View
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import DataError
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.model.losses import IGNORED_CLASS
from magtiles_seg.train.data import (
    BalancedSampler,
    BatchPlan,
    TrainingSet,
    epoch_batches,
    made_ahead,
    stack,
)


def _views(count: int) -> list[View]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (50, 40), dtype=np.uint8) for _ in range(count)]
    return [View(image, np.zeros_like(image), np.zeros_like(image)) for image in images]


def _plan(seed: int = 0) -> BatchPlan:
    return BatchPlan(seed, batch_size=2, crop_px=32, class_stride=2, augmentation=Augmentation())


def test_epoch_batches_are_a_function_of_seed_and_epoch() -> None:
    views = _views(4)
    path = Path("none.jpg")
    samples = [Sample(str(n), FREE, path, path, n) for n in range(len(views))]
    sampler = BalancedSampler(samples, free_fraction=0.3)

    def images(seed: int, epoch: int) -> list[torch.Tensor]:
        batches = epoch_batches(TrainingSet(views, sampler), _plan(seed), epoch=epoch, steps=3)
        return [batch.image for batch in batches]

    first, again, other, later = images(0, 1), images(0, 1), images(1, 1), images(0, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], later[0])
    assert not torch.equal(first[0], first[1])


def test_epoch_batches_paste_defects_onto_their_share_of_the_sound_pictures() -> None:
    views = _views(4)
    path = Path("none.jpg")
    sampler = BalancedSampler(
        [Sample(str(n), FREE, path, path, n) for n in range(4)], free_fraction=1
    )
    plan = replace(_plan(), copy_paste_fraction=0.5, batch_size=8)
    copy_paste = CopyPaste(views, LABELS)
    batches = list(epoch_batches(TrainingSet(views, sampler, copy_paste), plan, epoch=0, steps=10))
    pasted = sum(int(batch.target.flatten(1).any(1).sum()) for batch in batches)
    assert 15 < pasted <= 55
    plain = epoch_batches(TrainingSet(views, sampler), plan, epoch=0, steps=10)
    assert not any(batch.target.any() for batch in plain)


def test_epoch_batches_of_a_coarse_plan_show_everything_at_half_its_size() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[60:140, 60:140] = 255
    view = View(mask, mask, mask // 255)
    path = Path("none.jpg")
    sampler = BalancedSampler([Sample("0", LABELS[1], path, path, 0)], free_fraction=0)
    plan = replace(_plan(), crop_px=200, augmentation=NO_AUGMENTATION)
    coarse = plan.coarse(32)
    assert coarse.crop_px == 128  # 100, up to a multiple of the stride
    fine_batch, coarse_batch = (
        next(epoch_batches(TrainingSet([view], sampler), each, epoch=0, steps=1))
        for each in (plan, coarse)
    )
    assert coarse_batch.image.shape[-2:] == (128, 128)
    assert float(fine_batch.target[0].sum()) == pytest.approx(80 * 80, rel=0.03)
    assert float(coarse_batch.target[0].sum()) == pytest.approx(40 * 40, rel=0.06)


def test_stack_asks_for_a_class_only_where_a_defect_is() -> None:
    classes = np.zeros((4, 4), np.uint8)
    classes[0, 1] = 5
    mask = np.where(classes > 0, 255, 0).astype(np.uint8)
    batch = stack([View(mask, mask, classes)], class_stride=2)
    assert batch.target.sum() == 1
    assert batch.class_target.tolist() == [[[4, IGNORED_CLASS], [IGNORED_CLASS, IGNORED_CLASS]]]


def test_stack_takes_a_half_covered_pixel_as_defect() -> None:
    mask = np.array([[127, 128], [0, 255]], np.uint8)
    batch = stack([View(mask, mask, np.ones_like(mask))], class_stride=1)
    assert batch.target.tolist() == [[[[0, 1], [0, 1]]]]


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


def test_sampler_draws_classes_by_the_root_of_their_number() -> None:
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


def test_sampler_probabilities_are_those_of_its_draws() -> None:
    samples = [_sample("crack", n, 0) for n in range(4)] + [_sample("crack", 0, 1)]
    samples += [_sample("break", n, 0) for n in range(10, 14)] + [_sample("free", 99, 0)]
    chances = BalancedSampler(samples, free_fraction=0.3).probabilities()
    count = Counter(sample.id for sample in _drawn(samples, 0.3, 20_000))
    assert chances.sum() == pytest.approx(1)
    for sample, chance in zip(samples, chances, strict=True):
        assert count[sample.id] / 20_000 == pytest.approx(chance, rel=0.15)


def test_made_ahead_keeps_the_order_and_ends_with_its_user() -> None:
    assert list(made_ahead(lambda number: number**2, 7, threads=3)) == [n**2 for n in range(7)]
    before = threading.active_count()
    items = made_ahead(lambda number: number, 100, threads=2)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_made_ahead_hands_on_what_goes_wrong() -> None:
    with pytest.raises(ZeroDivisionError):
        list(made_ahead(lambda number: 1 // (2 - number), 5))
