from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magtiles_seg.dataset.augment import NO_AUGMENTATION, Augmentation, CopyPaste, View
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.train.data import (
    BalancedSampler,
    Batch,
    BatchPlan,
    TrainingSet,
    epoch_batches,
    stack,
)
from magtiles_seg.train.views import (
    DeviceViews,
    Pictures,
    _Draws,
    _gathered,
    _linear,
    _source_xy,
    draw_views,
    fits_on,
    stack_views,
)

CPU = torch.device("cpu")
SHOWN = ("blowhole", None, "break", None, "uneven", None, None)


def _view(seed: int, defect: str | None, size_hw: tuple[int, int]) -> View:
    tile = synthetic_tile(seed, defect=defect, exposure=3, size_hw=size_hw)
    index = LABELS.index(tile.label) if defect else 0
    return View(tile.image, tile.mask * np.uint8(255), tile.mask * np.uint8(index))


@pytest.fixture(scope="module")
def shown() -> TrainingSet:
    """Pictures of unequal sizes, sound and defective, with defects to paste."""
    views = [
        _view(seed, label, (150 + 9 * seed, 190 - 7 * seed)) for seed, label in enumerate(SHOWN)
    ]
    path = Path("none.jpg")
    samples = [Sample(str(n), label or FREE, path, path, n) for n, label in enumerate(SHOWN)]
    return TrainingSet(views, BalancedSampler(samples, free_fraction=0.5), CopyPaste(views, LABELS))


def _plan(**changes: object) -> BatchPlan:
    plan = BatchPlan(3, 8, 96, 2, Augmentation(), copy_paste_fraction=0.4)
    return replace(plan, **changes)  # type: ignore[arg-type]


def _joined(batches: list[Batch]) -> Batch:
    parts = (
        [getattr(batch, name) for batch in batches] for name in ("image", "target", "class_target")
    )
    return Batch(*(torch.cat(part) for part in parts))


def _warped(pixels: NDArray[np.uint8], matrix: NDArray[np.float64], how: int) -> NDArray[np.uint8]:
    border = cv2.BORDER_REFLECT_101
    return cv2.warpAffine(pixels, matrix, (64, 64), flags=how, borderMode=border).astype(np.uint8)


def test_gathered_pixels_are_those_of_opencv_warps() -> None:
    rng = np.random.default_rng(0)
    small, large = _view(1, "blowhole", (90, 70)), _view(2, "uneven", (64, 130))
    views, chosen = [large, small], [1, 0, 1]
    linear = np.stack([np.eye(2) * 1.2, [[0.8, -0.3], [0.2, 0.9]], [[-1, 0.1], [0.1, 1.1]]])
    focus = rng.uniform(20, 60, (3, 2))
    x, y = _source_xy(torch.tensor(linear), torch.tensor(focus), 64)
    ours = _gathered(Pictures.of(views, CPU), torch.tensor(chosen), x, y)
    for index, picture in enumerate(chosen):
        offset = 31.5 - linear[index] @ focus[index]
        matrix = np.hstack([linear[index], offset[:, None]])

        view = views[picture]
        for mine, pixels in ((ours[0], view.image), (ours[1], view.mask)):
            difference = np.abs(mine[index].numpy() - _warped(pixels, matrix, cv2.INTER_LINEAR))
            assert np.quantile(difference, 0.99) <= 5  # OpenCV knows 32 places between two pixels
            assert difference.mean() < 0.6
        classes = _warped(view.classes, matrix, cv2.INTER_NEAREST)
        assert (ours[2][index].numpy() == classes).mean() > 0.98


def test_linear_turns_what_it_has_mirrored_and_scaled() -> None:
    bounds = Augmentation(aspect=1.6)
    linear, scale = _linear(_Draws(200, torch.Generator().manual_seed(0)), bounds, 0.5)
    across, down = linear[:, :, 0], linear[:, :, 1]
    torch.testing.assert_close((across * down).sum(1), torch.zeros(200), atol=1e-6, rtol=0)
    lengths = across.norm(dim=1), down.norm(dim=1)
    torch.testing.assert_close(lengths[0] * lengths[1], scale**2)
    stretch = (lengths[0] / scale) ** 2
    assert 1 / 1.6 <= stretch.min() < 0.8
    assert 1.25 < stretch.max() <= 1.6
    assert scale.max() <= 0.5 * bounds.scale
    turned = torch.rad2deg(torch.atan(linear[:, 1, 0] / linear[:, 0, 0])).abs()
    assert 0.9 * bounds.rotation_deg < turned.max() <= bounds.rotation_deg


def test_stack_views_is_the_stack_of_the_cpu() -> None:
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 6, (2, 8, 8)).astype(np.uint8)
    mask = rng.integers(0, 256, (2, 8, 8)).astype(np.uint8)
    theirs = stack([View(mask[n], mask[n], classes[n]) for n in range(2)], class_stride=2)
    tensors = [torch.tensor(part).float() for part in (mask, mask, classes)]
    ours = stack_views(tensors[0], tensors[1], tensors[2], class_stride=2)
    for name in ("image", "target", "class_target"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def _statistics(batch: Batch) -> dict[str, NDArray[np.float64]]:
    """Return figures of each view: (N,) float64 each."""
    image = batch.image[:, 0].double()
    across, down = image.mean(1), image.mean(2)
    grain = image - torch.nn.functional.avg_pool2d(image[:, None], 3, 1, 1)[:, 0]
    figures = {
        "mean": image.mean((1, 2)),
        "deviation": image.std((1, 2)),
        "darkest": image.flatten(1).quantile(0.02, dim=1),
        "brightest": image.flatten(1).quantile(0.98, dim=1),
        "grain": grain[:, 2:-2, 2:-2].abs().mean((1, 2)),
        "slope across": across[:, -20:].mean(1) - across[:, :20].mean(1),
        "slope down": down[:, -20:].mean(1) - down[:, :20].mean(1),
        "defect share": batch.target.double().mean((1, 2, 3)),
        "defect in the centre": batch.target[:, 0, 40:56, 40:56].double().amax((1, 2)),
        "class_target": batch.class_target.double().amax((1, 2)),
    }
    return {name: values.numpy() for name, values in figures.items()}


@pytest.mark.parametrize("zoom", [1.0, 0.5])
def test_device_views_have_the_distribution_of_the_cpus(shown: TrainingSet, zoom: float) -> None:
    plan, steps = _plan(zoom=zoom), 80
    theirs = _statistics(_joined(list(epoch_batches(shown, plan, epoch=0, steps=steps))))
    views = DeviceViews(shown, CPU)
    ours = _statistics(_joined(list(views.epoch(plan, epoch=0, steps=steps))))
    for name, values in theirs.items():
        both = np.sort(np.concatenate([values, ours[name]]))
        below = [
            np.searchsorted(np.sort(part), both, side="right") / len(part)
            for part in (values, ours[name])
        ]
        distance = np.abs(below[0] - below[1]).max()  # Kolmogorov-Smirnov, 640 against 640
        assert distance < 0.1, f"{name}: {distance:.3f}"


def test_device_views_paste_onto_their_share_of_the_sound_pictures(shown: TrainingSet) -> None:
    sound = [view for view in shown.pictures if not view.mask.any()]
    path = Path("none.jpg")
    sampler = BalancedSampler(
        [Sample(str(n), FREE, path, path, n) for n in range(len(sound))], free_fraction=1
    )
    views = DeviceViews(TrainingSet(sound, sampler, shown.copy_paste), CPU)
    plan = _plan(augmentation=replace(Augmentation(), focus_fraction=1.0, scale=1, aspect=1))
    batch = _joined(list(views.epoch(plan, epoch=0, steps=60)))
    assert float(batch.target.amax((1, 2, 3)).mean()) == pytest.approx(0.38, abs=0.08)
    plain = DeviceViews(TrainingSet(sound, sampler), CPU).epoch(plan, epoch=0, steps=5)
    assert not any(batch.target.any() for batch in plain)


def test_device_views_are_a_function_of_seed_and_epoch(shown: TrainingSet) -> None:
    views = DeviceViews(shown, CPU)

    def images(seed: int, epoch: int) -> torch.Tensor:
        return _joined(list(views.epoch(_plan(seed=seed), epoch=epoch, steps=11))).image

    assert torch.equal(images(0, 1), images(0, 1))
    assert not torch.equal(images(0, 1), images(0, 2))
    assert not torch.equal(images(0, 1), images(1, 1))
    assert images(0, 1).shape == (88, 1, 96, 96)


def test_device_views_of_a_share_are_its_places_of_the_whole_batch(shown: TrainingSet) -> None:
    views = DeviceViews(shown, CPU)
    (whole,) = views.epoch(_plan(), epoch=0, steps=1)
    (share,) = views.epoch(_plan(places=(2, 3, 6, 7)), epoch=0, steps=1)
    assert torch.equal(share.image, whole.image[[2, 3, 6, 7]])
    assert torch.equal(share.class_target, whole.class_target[[2, 3, 6, 7]])


def test_draw_views_without_augmentation_is_a_cut_of_the_picture() -> None:
    view = _view(4, None, (90, 70))
    pictures, generator = Pictures.of([view], CPU), torch.Generator().manual_seed(0)
    image, mask, classes = draw_views(
        pictures, torch.zeros(3, dtype=torch.int64), generator, NO_AUGMENTATION, 32
    )
    windows = np.lib.stride_tricks.sliding_window_view(view.image.astype(float), (33, 33))
    means = windows.mean((2, 3))
    assert not mask.any()
    assert not classes.any()
    for cut in image:
        assert np.abs(means - float(cut.mean())).min() < 1


def test_fits_on_asks_a_gpu_alone(shown: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 1 << 20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    gpu = torch.device("cuda", 0)
    assert not fits_on(CPU, shown.pictures)
    assert fits_on(gpu, shown.pictures[:1])
    assert not fits_on(gpu, shown.pictures)  # 7 pictures of 25,000 px, 3 bytes each: over 256 KiB
