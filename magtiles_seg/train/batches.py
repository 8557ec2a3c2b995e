"""Batches: drawn, augmented and stacked ahead of the network; a seed gives always the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from magtiles_seg.dataset.augment import Augmentation, View, training_view
from magtiles_seg.dataset.grafts import Grafts
from magtiles_seg.model.losses import IGNORED_KIND
from magtiles_seg.train.sampling import BalancedSampler

_LEVEL = 128
"""A warped mask pixel that is at least half defect is defect."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step trains on.

    Attributes:
        image: (N, 1, H, W) float32, 0..255.
        target: (N, 1, H, W) float32, 0 or 1.
        kind: (N, h, w) int64, 0..K-2 or `IGNORED_KIND`.
    """

    image: Tensor
    target: Tensor
    kind: Tensor

    def split(self, pieces: int) -> list[Batch]:
        """Return the batch in pieces of equal size."""
        parts = (tensor.chunk(pieces) for tensor in (self.image, self.target, self.kind))
        return [Batch(*piece) for piece in zip(*parts, strict=True)]


@dataclass(frozen=True)
class BatchPlan:
    """What makes batches what they are: with the same plan and pictures come the same batches.

    `places` are those pictures of a batch that are made; None: all. `zoom` is the scale at which
    they are shown.
    """

    seed: int
    batch_size: int
    crop_px: int
    kind_stride: int
    augmentation: Augmentation
    graft_fraction: float = 0.0
    places: tuple[int, ...] | None = None
    zoom: float = 1.0

    def coarse(self, stride: int) -> BatchPlan:
        """Return the plan at half the size, in crops of a multiple of `stride`."""
        crop_px = math.ceil(self.crop_px / 2 / stride) * stride
        return replace(self, crop_px=crop_px, zoom=self.zoom / 2)


def epoch_batches(
    pictures: Sequence[View],
    sampler: BalancedSampler,
    plan: BatchPlan,
    *,
    epoch: int,
    steps: int,
    grafts: Grafts | None = None,
) -> Iterator[Batch]:
    """Yield the batches of one epoch, each made while the network works on the one before.

    With `grafts`, `plan.graft_fraction` of the sound pictures that are drawn get a defect.
    """

    def drawn(rng: np.random.Generator) -> View:
        picture = pictures[sampler.draw(rng)]
        if grafts and not picture.mask.any() and rng.random() < plan.graft_fraction:
            picture = grafts.onto(picture, rng)
        return picture

    def make(step: int) -> Batch:
        rngs = [
            np.random.default_rng([plan.seed, epoch, step, index])
            for index in (range(plan.batch_size) if plan.places is None else plan.places)
        ]
        views = [
            training_view(drawn(rng), plan.crop_px, rng, plan.augmentation, zoom=plan.zoom)
            for rng in rngs
        ]
        return stack(views, kind_stride=plan.kind_stride)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        pending = pool.submit(make, 0)
        for step in range(steps):
            batch = pending.result()
            if step + 1 < steps:
                pending = pool.submit(make, step + 1)
            yield batch


def stack(views: Sequence[View], *, kind_stride: int) -> Batch:
    """Return views of equal size as one batch.

    A kind is asked for once per `kind_stride` square of pixels: the one that stands in it, where
    there is any.
    """
    image = torch.from_numpy(np.stack([view.image for view in views]))[:, None].float()
    defect = np.stack([view.mask for view in views]) >= _LEVEL
    classes = np.stack([view.classes for view in views]) * defect
    count, height, width = classes.shape
    blocks = classes.reshape(
        count, height // kind_stride, kind_stride, width // kind_stride, kind_stride
    )
    kind = torch.from_numpy(blocks.max(axis=(2, 4)).astype(np.int64)) - 1
    kind[kind < 0] = IGNORED_KIND
    return Batch(image, torch.from_numpy(defect.astype(np.float32))[:, None], kind)
