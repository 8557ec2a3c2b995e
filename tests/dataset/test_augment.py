from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.dataset.augment import NO_AUGMENTATION, Augmentation, View, training_view


def _picture(height: int, width: int, seed: int = 0) -> View:
    """Return a picture that says of each pixel whether it is defect: bright is, dark is not."""
    classes = np.zeros((height, width), np.uint8)
    rng = np.random.default_rng(seed)
    y, x = int(rng.integers(height // 2)), int(rng.integers(width // 2))
    classes[y : y + height // 3, x : x + width // 3] = 3
    mask = np.where(classes > 0, 255, 0).astype(np.uint8)
    return View(np.where(classes > 0, 220, 30).astype(np.uint8), mask, classes)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(20, 200), st.integers(20, 200))
def test_training_view_moves_picture_mask_and_classes_together(
    seed: int, height: int, width: int
) -> None:
    still = dataclasses.replace(
        Augmentation(), gain=1, offset=0, gamma=1, shading=0, noise=0, blur_fraction=0
    )
    view = training_view(_picture(height, width, seed), 64, np.random.default_rng(seed), still)
    assert view.image.shape == view.mask.shape == view.classes.shape == (64, 64)
    expected = 30 + view.mask.astype(float) * 190 / 255
    assert np.abs(view.image - expected).max() <= 2
    sure = (view.mask == 0) | (view.mask == 255)
    assert ((view.classes > 0) == (view.mask > 127))[sure].all()
    assert set(np.unique(view.classes)) <= {0, 3}


def test_training_view_same_generator_state_gives_the_same_view() -> None:
    picture = _picture(100, 80)
    first, second = (training_view(picture, 48, np.random.default_rng([4, 2])) for _ in range(2))
    for field in ("image", "mask", "classes"):
        assert np.array_equal(getattr(first, field), getattr(second, field))
    other = training_view(picture, 48, np.random.default_rng([4, 3]))
    assert not np.array_equal(first.image, other.image)


def test_training_view_without_augmentation_is_a_cut_of_the_picture() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 70), dtype=np.uint8)
    nothing = np.zeros_like(image)
    view = training_view(View(image, nothing, nothing), 32, rng, NO_AUGMENTATION)
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32))
    differences = np.abs(windows.astype(int) - view.image).max(axis=(2, 3))
    assert differences.min() <= 128  # a half-pixel offset blends neighbours, so compare the means
    assert abs(float(view.image.mean()) - float(image.mean())) < 15


def test_training_view_focus_shows_the_defect() -> None:
    classes = np.zeros((400, 400), np.uint8)
    classes[200:204, 300:304] = 1
    mask = np.where(classes > 0, 255, 0).astype(np.uint8)
    picture = View(mask, mask, classes)
    focus = dataclasses.replace(Augmentation(), focus_fraction=1.0)
    shown = [
        training_view(picture, 64, np.random.default_rng(seed), focus).mask.any()
        for seed in range(50)
    ]
    chance = [
        training_view(picture, 64, np.random.default_rng(seed), NO_AUGMENTATION).mask.any()
        for seed in range(50)
    ]
    assert sum(shown) >= 45
    assert sum(chance) <= 10
