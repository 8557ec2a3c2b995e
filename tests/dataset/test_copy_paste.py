from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.dataset.augment import CopyPaste, View, donors, draw_onto, transplant
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.dataset.synthetic.defects import DRAWN_LABELS
from magtiles_seg.labels import LABELS

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


@settings(max_examples=25, deadline=None)
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
