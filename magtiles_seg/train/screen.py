"""Trains a screen: which cells of a picture hold a defect, or what a model takes for one.

A screen is small, and so is its training: minutes on one core. What it learns are the training
pictures' masks and the regions that the model finds there, together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from magtiles_seg.dataset.augment import Augmentation, CopyPaste, View
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.decision import Decision
from magtiles_seg.errors import DataError
from magtiles_seg.infer.backends.base import BackendSpec
from magtiles_seg.model.card import ModelCard
from magtiles_seg.model.cells import CELL_PX
from magtiles_seg.model.losses import IGNORED_PIXEL
from magtiles_seg.model.screen import ScreenGraph, ScreenNetwork
from magtiles_seg.names import counted
from magtiles_seg.train.data import BalancedSampler, Batch, BatchPlan, TrainingSet, epoch_batches

_BATCH_SIZE, _CROP_PX = 16, 224
_STEPS = 40
"""Batches of an epoch."""

_LEARNING_RATE, _WEIGHT_DECAY = 4e-3, 1e-2
_FREE_FRACTION, _COPY_PASTE_FRACTION = 0.5, 0.35
_WARM_UP = 0.1

_LEAST_DEFECT_PX = 4
"""A cell holds something from this many pixels on."""

_MOST_THRESHOLD = 0.5
WrapEpochs = Callable[[Iterable[int], int, str], Iterable[int]]
"""Wraps the numbers of the epochs, given how many and a title, to show how far it is."""

Finder = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Returns a model's mask, (H, W) uint8 of 0 and 1, of a picture (H, W) uint8."""


def fit_screen(
    samples: Sequence[Sample],
    pictures: Sequence[View],
    find: Finder,
    *,
    labels: tuple[str, ...],
    epochs: int,
    seed: int,
    progress: WrapEpochs | None = None,
) -> ScreenNetwork:
    """Train a screen.

    Args:
        samples: The training pictures' samples.
        pictures: The pictures, in the same order.
        find: The model that the screen is to stand before.
        labels: Class names by index, background first.
        epochs: Of 640 crops each.
        seed: Of every random choice.
        progress: Shows the epochs.

    Returns:
        The network, in evaluation mode.

    Raises:
        DataError: There are no pictures.
    """
    torch.manual_seed(seed)
    network = ScreenNetwork()
    taught = [_with_findings(picture, find(picture.image)) for picture in pictures]
    shown = TrainingSet(
        taught,
        BalancedSampler(samples, free_fraction=_FREE_FRACTION),
        CopyPaste(pictures, labels),
    )
    plan = BatchPlan(seed, _BATCH_SIZE, _CROP_PX, CELL_PX, Augmentation(), _COPY_PASTE_FRACTION)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=epochs * _STEPS, pct_start=_WARM_UP
    )
    numbers: Iterable[int] = range(epochs)
    for epoch in progress(numbers, epochs, "screen") if progress else numbers:
        for batch in epoch_batches(shown, plan, epoch=epoch, steps=_STEPS):
            optimizer.zero_grad()
            _loss(network, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


@dataclass(frozen=True)
class ScreenChoice:
    """A screen's operating point, and what it means on pictures that the screen has not seen.

    Attributes:
        threshold: A cell of at least this probability is passed on, and so are its neighbours.
        kept: Share of the labelled defects that the model finds which stay found, in [0, 1].
        kept_all: The same of all that the model finds, false alarms among it.
        passed: Share of the sound pictures' cells that are passed on.
    """

    threshold: float
    kept: float
    kept_all: float
    passed: float


def findings(pictures: Sequence[View], find: Finder) -> list[NDArray[np.uint8]]:
    """Return what a model finds on the pictures to choose a threshold on, (H, W) uint8 each.

    Raises:
        DataError: No labelled defect is among it.
    """
    found = [find(picture.image) for picture in pictures]
    masks = zip(pictures, found, strict=True)
    if not any(picture.defect[mask > 0].any() for picture, mask in masks):
        raise DataError(
            f"on {counted(len(pictures), 'picture')} to choose a threshold on, the model finds no "
            "labelled defect: expected some in the split's validation part"
        )
    return found


def choose_threshold(
    network: ScreenNetwork,
    pictures: Sequence[View],
    found: Sequence[NDArray[np.uint8]],
    *,
    kept: float,
    threshold: float | None = None,
) -> ScreenChoice:
    """Choose the highest threshold that keeps a share of what the model finds.

    A region of the model's mask stays found where at least half of its pixels are passed on. On few
    regions the highest threshold would be one that unseen defects do not reach: it is never above
    .5, so that a cell which rather holds something than not is always passed on.

    Args:
        network: In evaluation mode.
        pictures: Such as neither screen nor model was trained on.
        found: What the model finds on each, as of `findings`.
        kept: Share of the found regions that touch a labelled defect, in (0, 1].
        threshold: Is taken instead of a chosen one.
    """
    levels: list[float] = []
    labelled: list[bool] = []
    sound: list[NDArray[np.float32]] = []
    for picture, mask in zip(pictures, found, strict=True):
        cells = _cells(network, picture.image)
        passed = np.asarray(cv2.dilate(cells, np.ones((3, 3))), dtype=np.float32)
        rows, columns = picture.image.shape
        level = passed.repeat(CELL_PX, 0).repeat(CELL_PX, 1)[:rows, :columns]
        count, regions = cv2.connectedComponents(mask)
        for region in range(1, count):
            inside = regions == region
            levels.append(float(np.median(level[inside])))
            labelled.append(bool(picture.defect[inside].any()))
        if not picture.mask.any():
            sound.append(passed.ravel())
    reached, true = np.array(levels), np.array(labelled, dtype=bool)
    if threshold is None:
        lowest = float(np.quantile(reached[true], 1 - kept, method="lower"))
        threshold = min(lowest, _MOST_THRESHOLD)
    shares = np.concatenate(sound) >= threshold if sound else np.ones(1, bool)
    return ScreenChoice(
        threshold=threshold,
        kept=float((reached[true] >= threshold).mean()),
        kept_all=float((reached >= threshold).mean()),
        passed=float(shares.mean()),
    )


def screen_card(
    network: ScreenNetwork, choice: ScreenChoice, model: BackendSpec, *, epochs: int
) -> ModelCard:
    """Return what a screen's file says about itself.

    Args:
        network: The screen.
        choice: Its operating point.
        model: What it was trained to stand before.
        epochs: Of its training.
    """
    figures = {name: value for name, value in asdict(choice).items() if name != "threshold"}
    return ModelCard(
        name=f"{model.card.name}-screen",
        architecture="screen",
        labels=model.card.labels,
        stride=CELL_PX,
        decision=Decision(threshold=choice.threshold),
        receptive_field_px=network.receptive_field_px,
        training={
            "model_sha256": model.sha256,
            "model_weights_sha256": model.card.weights_sha256,
            "epochs": epochs,
            "pictures_per_epoch": _STEPS * _BATCH_SIZE,
        },
        metrics=({"protocol": "screen-validation", "figures": figures},),
        licence=model.card.licence,
    )


def _cells(network: ScreenNetwork, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return ScreenGraph(network).cells(image)


def _with_findings(picture: View, found: NDArray[np.uint8]) -> View:
    """Return a picture whose mask also holds what the model finds."""
    mask = np.maximum(picture.mask, found * np.uint8(255))
    return View(picture.image, mask, picture.classes)


def _loss(network: ScreenNetwork, batch: Batch) -> Tensor:
    halved = functional.avg_pool2d(batch.image, 2).round()
    share = functional.avg_pool2d((batch.target > 0).float(), CELL_PX) * CELL_PX**2
    known = functional.max_pool2d((batch.target != IGNORED_PIXEL).float(), CELL_PX)
    target = (share >= _LEAST_DEFECT_PX).float()
    logit = network(halved)
    loss = functional.binary_cross_entropy_with_logits(logit, target, known, reduction="sum")
    return loss / known.sum().clamp(min=1)
