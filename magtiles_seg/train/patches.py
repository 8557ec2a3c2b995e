"""A second opinion from frozen features: the patch classifier is fitted after the network is.

Patches of 8 x 8 px are drawn from every training picture and mirrored views of it, as many
defective ones as sound ones, and two small layers are fitted to their frozen features. It takes
minutes, and sees the training pictures alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from magtiles_seg.dataset.augment import View
from magtiles_seg.labels import IGNORED
from magtiles_seg.model.network import (
    GREY_CENTRE,
    GREY_SCALE,
    PATCH_PX,
    PatchClassifier,
    SegmentationNetwork,
    enlarged,
)

_PER_CLASS = 90
"""Defective patches of a view, and sound ones, that are learnt from."""

_MOST = 400_000
"""Patches in all; of many pictures, each gives fewer."""

_LEAST_DEFECT = 0.25
"""A patch is defective from this share of defect pixels on, and sound without any."""

_MOST_PX = 400_000_000
"""Of pictures and mirrored views that are looked at; of large pictures, fewer views are."""

_MIRRORED: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))
_EPOCHS, _BATCH_SIZE = 3, 512
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.05
_DROPOUT = (0.2, 0.3)


def fit_patches(
    network: SegmentationNetwork, pictures: Sequence[View], *, share: float, seed: int
) -> None:
    """Fit a network's patch classifier and give it its share of the defect logit.

    Args:
        network: Trained, with a patch classifier that is not fitted yet; is changed in place, but
            the other weights stay.
        pictures: The training pictures, of any sizes.
        share: Of the defect logit, in [0, 1].
        seed: Of every random choice.
    """
    patches = network.patches
    if patches is None:
        raise ValueError("the network has no patch classifier: add_patches comes first")
    network.eval()
    found = list(_drawn(network, patches, pictures, np.random.default_rng(seed)))
    if found:
        features, defective = (torch.cat(part) for part in zip(*found, strict=True))
        _fit(patches, features, defective, seed)
    network.patch_share.fill_(share)


def _drawn(
    network: SegmentationNetwork,
    patches: PatchClassifier,
    pictures: Sequence[View],
    rng: np.random.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each view's patches: (P, C) float16 features and (P,) float32, 1 for defective."""
    device = network.defect_head.weight.device
    count = _views(pictures)
    each = min(_PER_CLASS, max(1, _MOST // (2 * max(1, len(pictures) * count))))
    for picture in pictures:
        size = [-(-side // network.stride) * network.stride for side in picture.image.shape]
        image = _padded(picture.image, size, mode="reflect").to(device)
        defect, known = _shares(picture, size)
        grey = (image - GREY_CENTRE) / GREY_SCALE
        for dims in _mirrored(count, rng):
            chosen = _choose(defect, known, each, rng)
            with torch.inference_mode():
                fine, coarse = patches.features(network.encoder(torch.flip(grey, dims)))
                features = torch.flip(torch.cat([fine, enlarged(coarse, 2)], dim=1), dims)
            rows = features[0].flatten(1)[:, torch.from_numpy(chosen)]
            labels = torch.from_numpy((defect[chosen] > 0).astype(np.float32))
            yield rows.T.half().cpu(), labels


def _views(pictures: Sequence[View]) -> int:
    """Return in how many views each picture is looked at."""
    whole_px = sum(picture.image.size for picture in pictures)
    return min(len(_MIRRORED), max(1, _MOST_PX // max(1, whole_px)))


def _mirrored(count: int, rng: np.random.Generator) -> Sequence[tuple[int, ...]]:
    if count == len(_MIRRORED):
        return _MIRRORED
    return [_MIRRORED[index] for index in rng.permutation(len(_MIRRORED))[:count]]


def _padded(pixels: NDArray[np.uint8], size: Sequence[int], *, mode: str) -> Tensor:
    missing = [(0, wanted - side) for wanted, side in zip(size, pixels.shape, strict=True)]
    return torch.from_numpy(np.pad(pixels, missing, mode=mode).astype(np.float32))[None, None]  # type: ignore[call-overload]


def _shares(picture: View, size: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return, patch by patch in reading order, the share of defect and of known picture."""
    inside = _padded((picture.classes != IGNORED).astype(np.uint8), size, mode="constant")
    defect = _padded((picture.mask >= 128).astype(np.uint8), size, mode="constant")
    pooled = (functional.avg_pool2d(part, PATCH_PX).ravel().numpy() for part in (defect, inside))
    defect_share, known = pooled
    return defect_share, known


def _choose(
    defect: NDArray[np.float32],
    known: NDArray[np.float32],
    each: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the indices of up to `each` defective and `each` sound patches."""
    defective, sound = defect > _LEAST_DEFECT, (defect == 0) & (known == 1)
    return np.concatenate([rng.permutation(np.flatnonzero(m))[:each] for m in (defective, sound)])


def _fit(patches: PatchClassifier, features: Tensor, defective: Tensor, seed: int) -> None:
    """Fit the two layers on a CPU: they are small, and so the fit is the same everywhere."""
    mean, spread = features.float().mean(0), features.float().std(0) + 1e-3
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = nn.Linear(features.shape[1], patches.answer.in_channels)
        answer = nn.Linear(patches.answer.in_channels, 1)
        layers = nn.Sequential(
            nn.Dropout(_DROPOUT[0]), hidden, nn.ReLU(), nn.Dropout(_DROPOUT[1]), answer
        )
        _descend(layers, features, (mean, spread), defective, generator)
    with torch.no_grad():  # the features' normalization goes into the first layer
        weight = (hidden.weight / spread)[:, :, None, None]
        fine = patches.hidden_fine.in_channels
        patches.hidden_fine.weight.copy_(weight[:, :fine])
        patches.hidden_coarse.weight.copy_(weight[:, fine:])
        patches.hidden_fine.bias.copy_(hidden.bias - weight[:, :, 0, 0] @ mean)  # type: ignore[union-attr]
        patches.answer.weight.copy_(answer.weight[:, :, None, None])
        patches.answer.bias.copy_(answer.bias)  # type: ignore[union-attr]


def _descend(
    layers: nn.Sequential,
    features: Tensor,
    scale: tuple[Tensor, Tensor],
    defective: Tensor,
    generator: torch.Generator,
) -> None:
    mean, spread = scale
    optimizer = torch.optim.AdamW(
        layers.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    steps = _EPOCHS * -(-len(features) // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(features), generator=generator)
        for batch in torch.split(order, _BATCH_SIZE):
            logits = layers((features[batch].float() - mean) / spread)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits, defective[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
