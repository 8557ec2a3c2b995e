from __future__ import annotations

import math

import pytest
import torch

from magtiles_seg.model.losses import (
    IGNORED_CLASS,
    IGNORED_PIXEL,
    SMOOTHING_PX,
    class_loss,
    segmentation_loss,
    soft_dice_loss,
)


def test_soft_dice_loss_equals_the_hand_worked_case() -> None:
    probability = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 1.0]]]])
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    smooth = SMOOTHING_PX
    first, second = 1 - (2 * 1.5 + smooth) / (1.5 + 2 + smooth), 1 - smooth / (1 + smooth)
    both = 1 - (2 * 1.5 + smooth) / (2.5 + 2 + smooth)
    per_picture = float(soft_dice_loss(probability, target, per_picture=True))
    assert per_picture == pytest.approx((first + second) / 2)
    assert float(soft_dice_loss(probability, target, per_picture=False)) == pytest.approx(both)


def test_soft_dice_loss_of_a_silent_clean_picture_is_zero() -> None:
    nothing = torch.zeros(1, 1, 8, 8)
    assert float(soft_dice_loss(nothing, nothing, per_picture=True)) == 0


def test_soft_dice_loss_of_a_false_alarm_as_large_as_the_smoothing_is_a_half() -> None:
    alarm = torch.ones(1, 1, 8, int(SMOOTHING_PX) // 8)
    loss = soft_dice_loss(alarm, torch.zeros_like(alarm), per_picture=True)
    assert float(loss) == pytest.approx(0.5)


def test_segmentation_loss_without_weights_is_cross_entropy() -> None:
    logit, target = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    class_target = torch.full((1, 2, 2), IGNORED_CLASS)
    weights = {"dice_weight": 0.0, "class_weight": 1.0}
    loss = segmentation_loss(logit, torch.zeros(1, 5, 2, 2), target, class_target, **weights)
    assert float(loss) == pytest.approx(math.log(2))


def test_segmentation_loss_asks_for_the_target_and_for_nothing_where_it_is_ignored() -> None:
    target = torch.tensor([[[[1.0, 0.0], [IGNORED_PIXEL, 0.0]]]])
    class_target = torch.full((1, 1, 1), IGNORED_CLASS)
    right = torch.tensor([[[[30.0, -30.0], [30.0, -30.0]]]])

    def loss(logit: torch.Tensor) -> float:
        classes, weights = torch.zeros(1, 5, 1, 1), {"dice_weight": 1.0, "class_weight": 1.0}
        return float(segmentation_loss(logit, classes, target, class_target, **weights))

    assert loss(right) == pytest.approx(0, abs=1e-6)
    assert loss(right * torch.tensor([[1.0, 1.0], [-1.0, 1.0]])) == pytest.approx(0, abs=1e-6)
    assert loss(right * torch.tensor([[1.0, -1.0], [1.0, 1.0]])) > 7  # a quarter of 30, and Dice


def test_segmentation_loss_counts_classes_only_where_there_is_a_defect() -> None:
    logit, target = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    class_logits = torch.zeros(1, 5, 2, 2)
    class_logits[0, 3, 0, 0] = 20.0
    class_target = torch.full((1, 2, 2), IGNORED_CLASS)
    class_target[0, 0, 0] = 3
    weights = {"dice_weight": 0.0, "class_weight": 1.0}
    right = segmentation_loss(logit, class_logits, target, class_target, **weights)
    class_target[0, 0, 0] = 1
    wrong = segmentation_loss(logit, class_logits, target, class_target, **weights)
    assert float(right) == pytest.approx(math.log(2), abs=1e-4)
    assert float(wrong) == pytest.approx(math.log(2) + 20, abs=1e-3)


def test_class_loss_weighs_pictures_alike_whatever_their_defect_area() -> None:
    class_target = torch.full((3, 4, 4), IGNORED_CLASS)
    class_target[0] = 2  # a whole picture, told right
    class_target[1, 0, 0] = 1  # one pixel, told wrong
    logits = torch.zeros(3, 5, 4, 4)
    logits[:, 2] = 30.0
    assert float(class_loss(logits, class_target)) == pytest.approx(15, abs=1e-3)
    assert float(class_loss(logits, torch.full_like(class_target, IGNORED_CLASS))) == 0
