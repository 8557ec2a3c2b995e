from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.dataset.augment import (
    NO_AUGMENTATION,
    Augmentation,
    CopyPaste,
    View,
    donors,
    draw_onto,
    training_view,
    transplant,
)
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.dataset.synthetic.defects import DRAWN_LABELS
from magtiles_seg.labels import LABELS


def _picture(height: int, width: int, seed: int = 0) -> View:
    """Return a picture that says of each pixel whether it is defect: bright is, dark is not."""
    classes = np.zeros((height, width), np.uint8)
    rng = np.random.default_rng(seed)
    y, x = int(rng.integers(height // 2)), int(rng.integers(width // 2))
    classes[y : y + height // 3, x : x + width // 3] = 3
    mask = np.where(classes > 0, 255, 0).astype(np.uint8)
    return View(np.where(classes > 0, 220, 30).astype(np.uint8), mask, classes)


@settings(max_examples=40)
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


SIZE_HW = (180, 160)


def _view(seed: int, defect: str | None) -> View:
    tile = synthetic_tile(seed, defect=defect, exposure=3, size_hw=SIZE_HW)
    index = LABELS.index(tile.label) if defect else 0
    return View(tile.image, tile.mask * np.uint8(255), tile.mask * np.uint8(index))


def _changed_beyond_rim(before: View, after: View) -> int:
    """Return how many pixels further than 6 px from the mask are not what they were."""
    near = cv2.dilate(after.mask, np.ones((13, 13), np.uint8)) > 0
    return int((before.image != after.image)[~near].sum())


def test_donor_of_a_blowhole_is_dark_inside_and_nothing_at_its_rim() -> None:
    (donor,) = donors(_view(3, "blowhole"))
    assert donor.class_index == LABELS.index("blowhole")
    assert donor.gain[donor.mask > 0].mean() < 0.85
    assert (donor.gain[[0, -1]] == 1).all()
    assert (donor.gain[:, [0, -1]] == 1).all()


def test_donors_sound_or_invisible_defect_gives_none() -> None:
    assert not list(donors(_view(3, None)))
    sound = _view(3, None)
    unseen = np.zeros(SIZE_HW, np.uint8)
    unseen[50:60, 50:60] = 255
    assert not list(donors(View(sound.image, unseen, unseen // 255)))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_transplant_changes_only_what_it_marks(seed: int) -> None:
    (donor,) = donors(_view(3, "blowhole"))
    sound = _view(8, None)
    pasted = transplant(sound, donor, np.random.default_rng(seed))
    assert not _changed_beyond_rim(sound, pasted)
    assert set(np.unique(pasted.classes)) <= {0, donor.class_index}
    assert ((pasted.mask >= 128) == (pasted.classes > 0)).all()


@pytest.mark.parametrize("label", DRAWN_LABELS)
def test_draw_onto_changes_only_what_it_marks(label: str) -> None:
    sound = _view(8, None)
    index = LABELS.index(label)
    pasted = draw_onto(sound, index, label, np.random.default_rng(1))
    assert not _changed_beyond_rim(sound, pasted)
    assert set(np.unique(pasted.classes)) == {0, index}
    inside = pasted.classes > 0
    assert (pasted.image != sound.image)[inside].mean() > 0.5


def test_copy_paste_same_generator_state_gives_the_same_view() -> None:
    copy_paste = CopyPaste([_view(3, "blowhole")], LABELS)
    first, second = (copy_paste.onto(_view(8, None), np.random.default_rng(5)) for _ in range(2))
    assert (first.image == second.image).all()
    assert (first.mask == second.mask).all()


def test_copy_paste_without_donors_or_known_classes_leave_the_view_alone() -> None:
    sound = _view(8, None)
    assert (
        CopyPaste([sound], ("background", "scratch")).onto(sound, np.random.default_rng(0)) is sound
    )


def test_copy_paste_show_transplanted_and_drawn_classes() -> None:
    copy_paste = CopyPaste([_view(3, "blowhole")], LABELS)
    rng = np.random.default_rng(0)
    classes = [int(copy_paste.onto(_view(8, None), rng).classes.max()) for _ in range(60)]
    assert set(classes) - {0} == set(range(1, len(LABELS)))
    assert classes.count(LABELS.index("blowhole")) > 20
