"""What training is shown: the pictures in memory, which of them are drawn, and batches of views.

A batch is a function of seed, epoch and step, whoever draws it. Those for a CPU are drawn here,
one ahead of the network; `views` draws them on a GPU.
"""

from __future__ import annotations

import functools
import math
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magtiles_seg.dataset.augment import Augmentation, CopyPaste, View, training_view
from magtiles_seg.dataset.samples import Sample, load_pair
from magtiles_seg.dataset.tiles import EMPTY_MASKS
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.protocols import Protocol, fit_image, fit_mask
from magtiles_seg.labels import FREE, IGNORED
from magtiles_seg.model.losses import IGNORED_CLASS, IGNORED_PIXEL

Item = TypeVar("Item")


def trusted(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples whose labels can be trusted; others are not trained on.

    Left out are those that are filed as sound although their tile-mates are masked as defective,
    and those that are filed as defective with an empty mask.
    """
    return [one for one in samples if not one.suspect and one.id not in EMPTY_MASKS]


def learnt_from(training: Sequence[Sample], validation: Sequence[Sample]) -> list[Sample]:
    """Return the training pictures that can be trusted.

    Raises:
        DataError: There are none, or none to validate on.
    """
    if not validation:
        raise DataError(
            "no pictures to validate on: the split's validation part is empty; raise "
            "data_split.validation_fraction and split again"
        )
    kept = trusted(training)
    if not kept:
        raise DataError("no pictures to train on: the split's training part is empty")
    return kept


def training_pictures(
    samples: Sequence[Sample], protocol: Protocol, labels: Sequence[str]
) -> list[View]:
    """Return every picture as a protocol scales it, but whole: nothing is cut off the training.

    Raises:
        DataError: A picture or mask is damaged, or they differ in size.
    """
    return [_view(sample, protocol, labels) for sample in samples]


def _view(sample: Sample, protocol: Protocol, labels: Sequence[str]) -> View:
    picture, target = load_pair(sample, labels=labels, rule=protocol.mask_rules[0])
    image = fit_image(picture, protocol.geometry, whole=True)
    classes = fit_mask(target, protocol.geometry, whole=True)
    defect = (classes > 0) & (classes != IGNORED)
    return View(image, np.where(defect, 255, 0).astype(np.uint8), classes)


class BalancedSampler:
    """Draws pictures: sound or not, then the class, then the tile, then one of the tile's pictures.

    The share of a class is the square root of its number of pictures, so that rare classes are seen
    more often than they occur without being learnt by heart. Within a class every tile has the same
    share, however many exposures it has.
    """

    def __init__(self, samples: Sequence[Sample], *, free_fraction: float) -> None:
        """Sort the samples by class and tile.

        Args:
            samples: Those to draw from.
            free_fraction: Share of sound pictures; without effect when there are only sound ones,
                or none.

        Raises:
            DataError: There are no samples.
        """
        if not samples:
            raise DataError("no pictures to train on: the split's training part is empty")
        by_label: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, sample in enumerate(samples):
            by_label[sample.label][sample.group].append(index)
        self._tiles = {label: list(tiles.values()) for label, tiles in sorted(by_label.items())}
        self._labels = list(self._tiles)
        roots = {
            label: sum(map(len, tiles)) ** 0.5
            for label, tiles in self._tiles.items()
            if label != FREE
        }
        total = sum(roots.values())
        free = free_fraction if roots and FREE in self._tiles else float(FREE in self._tiles)
        self._shares = [
            free if label == FREE else (1 - free) * roots[label] / total for label in self._labels
        ]

    def draw(self, rng: np.random.Generator) -> int:
        """Return the index of one sample."""
        tiles = self._tiles[self._labels[int(rng.choice(len(self._labels), p=self._shares))]]
        pictures = tiles[int(rng.integers(len(tiles)))]
        return pictures[int(rng.integers(len(pictures)))]

    def probabilities(self) -> NDArray[np.float64]:
        """Return how likely `draw` gives each sample: (N,) float64 that add up to 1."""
        count = sum(len(pictures) for tiles in self._tiles.values() for pictures in tiles)
        chances = np.zeros(count)
        for label, share in zip(self._labels, self._shares, strict=True):
            tiles = self._tiles[label]
            for pictures in tiles:
                chances[pictures] = share / len(tiles) / len(pictures)
        return chances


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step trains on.

    Attributes:
        image: (N, 1, H, W) float32, 0..255.
        target: (N, 1, H, W) float32, 0 or 1, or `IGNORED_PIXEL`.
        class_target: (N, h, w) int64, 0..K-2 or `IGNORED_CLASS`.
    """

    image: Tensor
    target: Tensor
    class_target: Tensor

    def split(self, pieces: int) -> list[Batch]:
        """Return the batch in pieces of equal size."""
        parts = (tensor.chunk(pieces) for tensor in (self.image, self.target, self.class_target))
        return [Batch(*piece) for piece in zip(*parts, strict=True)]

    def take(self, places: Tensor) -> Batch:
        """Return the pictures at some places of the batch, (n,) int64, as a batch."""
        return Batch(self.image[places], self.target[places], self.class_target[places])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; a copy to CUDA goes on beside the work that is there."""
        if device == self.image.device:
            return self
        parts = (self.image, self.target, self.class_target)
        return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class BatchPlan:
    """What makes batches what they are: with the same plan and pictures come the same batches.

    `places` are those pictures of a batch that are made; None: all. `zoom` is the scale at which
    they are shown.
    """

    seed: int
    batch_size: int
    crop_px: int
    class_stride: int
    augmentation: Augmentation
    copy_paste_fraction: float = 0.0
    places: tuple[int, ...] | None = None
    zoom: float = 1.0

    def coarse(self, stride: int) -> BatchPlan:
        """Return the plan at half the size, in crops of a multiple of `stride`."""
        crop_px = math.ceil(self.crop_px / 2 / stride) * stride
        return replace(self, crop_px=crop_px, zoom=self.zoom / 2)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The pictures of a run in memory, how they are drawn, and what is pasted onto sound ones."""

    pictures: Sequence[View]
    sampler: BalancedSampler
    copy_paste: CopyPaste | None = None

    def draw(self, rng: np.random.Generator, copy_paste_fraction: float) -> View:
        """Return one picture; that share of the sound ones gets a defect."""
        picture = self.pictures[self.sampler.draw(rng)]
        if self.copy_paste and not picture.mask.any() and rng.random() < copy_paste_fraction:
            picture = self.copy_paste.onto(picture, rng)
        return picture


def epoch_batches(
    shown: TrainingSet,
    plan: BatchPlan,
    *,
    epoch: int,
    steps: int,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield the batches of one epoch, drawn on the CPU while the network works on those before.

    Args:
        shown: What they are drawn of.
        plan: How.
        epoch: Number of the epoch, from 0.
        steps: How many batches.
        device: Where they are to lie; the CPU where None. A GPU is faster than one thread draws:
            it gets several.
    """
    device = device or torch.device("cpu")
    threads = 1 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 1) - 1))

    def make(step: int) -> Batch:
        rngs = [
            np.random.default_rng([plan.seed, epoch, step, index])
            for index in (range(plan.batch_size) if plan.places is None else plan.places)
        ]
        views = [
            training_view(
                shown.draw(rng, plan.copy_paste_fraction),
                plan.crop_px,
                rng,
                plan.augmentation,
                zoom=plan.zoom,
            )
            for rng in rngs
        ]
        return stack(views, class_stride=plan.class_stride)

    for batch in made_ahead(make, steps, threads=threads):
        yield batch.to(device)


def made_ahead(make: Callable[[int], Item], count: int, *, threads: int = 1) -> Iterator[Item]:
    """Yield `make(0)` to `make(count - 1)`, as many of them in work as there are threads."""
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        pending: deque[Future[Item]] = deque()
        try:
            for number in range(count):
                pending.append(pool.submit(make, number))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def stack(views: Sequence[View], *, class_stride: int) -> Batch:
    """Return views of equal size as one batch.

    A class is asked for once per `class_stride` square of pixels: the one that stands in it, where
    there is any.
    """
    image = torch.from_numpy(np.stack([view.image for view in views]))[:, None].float()
    defect = np.stack([view.defect for view in views])
    classes = np.stack([view.classes for view in views])
    ignored = classes == IGNORED
    classes = classes * (defect & ~ignored)
    rows = functools.reduce(np.maximum, (classes[:, i::class_stride] for i in range(class_stride)))
    most = functools.reduce(np.maximum, (rows[:, :, i::class_stride] for i in range(class_stride)))
    class_target = torch.from_numpy(most.astype(np.int64)) - 1
    class_target[class_target < 0] = IGNORED_CLASS
    target = np.where(ignored, np.float32(IGNORED_PIXEL), defect.astype(np.float32))
    return Batch(image, torch.from_numpy(target)[:, None], class_target)
