"""What training minimises: cross-entropy and Dice for *defect or not*, and for *which class*."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMOOTHING_PX = 64.0
"""Added to both sides of the soft Dice, in px: about the area of a small blowhole."""

IGNORED_PIXEL = -1.0
"""Target of a pixel of which nobody knows whether it is defect."""

IGNORED_CLASS = -1
"""Target of a pixel whose class does not count: background, or off the picture."""


def soft_dice_loss(probability: Tensor, target: Tensor, *, per_picture: bool) -> Tensor:
    """Return 1 - Dice with probabilities in place of a mask.

    `1 - (2 Σpt + s) / (Σp + Σt + s)` with s = `SMOOTHING_PX`, so that clean pictures count too: 0
    where nothing is predicted, 1/2 for a false alarm of s pixels. A small s would make every clean
    picture cost nearly 1, however little is predicted on it, and teach nothing.

    Source: V-Net, https://arxiv.org/abs/1606.04797, equation 2 (with sums for squares).

    Args:
        probability: (N, 1, H, W) float in [0, 1].
        target: (N, 1, H, W) float in [0, 1].
        per_picture: Mean of the pictures' own losses, instead of one loss over all pixels of the
            batch.
    """
    dims = (1, 2, 3) if per_picture else (0, 1, 2, 3)
    overlap = (probability * target).sum(dims)
    total = probability.sum(dims) + target.sum(dims)
    return (1 - (2 * overlap + SMOOTHING_PX) / (total + SMOOTHING_PX)).mean()


def class_loss(class_logits: Tensor, class_target: Tensor) -> Tensor:
    """Return the cross-entropy of the class: mean over a picture's defect pixels, then pictures.

    So a blowhole of 100 pixels says as much as a grinding step of 20,000. 0 without any defect.

    Args:
        class_logits: (N, K-1, h, w) float.
        class_target: (N, h, w) int64: 0..K-2, or `IGNORED_CLASS`.
    """
    pixels = functional.cross_entropy(
        class_logits, class_target, ignore_index=IGNORED_CLASS, reduction="none"
    )
    counts = (class_target != IGNORED_CLASS).sum((1, 2))
    means = pixels.sum((1, 2)) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def segmentation_loss(
    defect_logit: Tensor,
    class_logits: Tensor,
    target: Tensor,
    class_target: Tensor,
    *,
    dice_weight: float,
    class_weight: float,
) -> Tensor:
    """Return the training loss of a batch.

    Args:
        defect_logit: (N, 1, H, W) float.
        class_logits: (N, K-1, h, w) float.
        target: (N, 1, H, W) float in [0, 1]: 1 is defect; or `IGNORED_PIXEL`, which adds nothing.
        class_target: (N, h, w) int64: 0..K-2, or `IGNORED_CLASS`.
        dice_weight: Weight of the two Dice terms (over the batch, and picture by picture) beside
            cross-entropy.
        class_weight: Weight of the class's cross-entropy.
    """
    defect_logit, class_logits = defect_logit.float(), class_logits.float()
    known = (target >= 0).float()
    target = target.clamp(min=0)
    probability = torch.sigmoid(defect_logit) * known
    loss = functional.binary_cross_entropy_with_logits(defect_logit, target, known)
    dice = soft_dice_loss(probability, target, per_picture=False) + soft_dice_loss(
        probability, target, per_picture=True
    )
    loss = loss + 0.5 * dice_weight * dice
    return loss + class_weight * class_loss(class_logits, class_target)
