"""Fits a patch classifier: the second opinion of a network, or one that answers alone.

Patches of 8 x 8 px are drawn from every training picture and mirrored views of it, as many
defective ones as sound ones, and two small layers are fitted to their frozen features. It takes
minutes, and sees the training pictures alone. One that answers alone also sees defects that are put
on the sound pictures, so that it needs no defective one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from magtiles_seg.dataset.augment import CopyPaste, View
from magtiles_seg.errors import DataError
from magtiles_seg.labels import IGNORED
from magtiles_seg.model.ensemble import Member
from magtiles_seg.model.network import (
    GREY_CENTRE,
    GREY_SCALE,
    PATCH_PX,
    PatchClassifier,
    SegmentationNetwork,
    enlarged,
)
from magtiles_seg.model.patch_network import PatchNetwork

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
_LEAST_STEPS = 1000
"""Of one that answers alone: from few pictures, so many more epochs are made."""
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.05
_DROPOUT = (0.2, 0.3)
_DEFECT_PRIOR = 0.01
"""Share of the patches that are taken to be defective where a classifier answers alone."""

_MOST_OF_CLASSES, _CLASS_STEPS = 20_000, 40


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
    rng = np.random.default_rng(seed)
    found = list(_drawn(network, patches, [(picture, None) for picture in pictures], rng))
    if found:
        features, classes = (torch.cat(part) for part in zip(*found, strict=True))
        _fit(patches, features, (classes > 0).float(), seed)
    network.patch_share.fill_(share)


def fit_alone(
    network: PatchNetwork, pictures: Sequence[View], copy_paste: CopyPaste, *, seed: int
) -> None:
    """Fit a patch classifier that answers alone, and what tells the classes apart.

    Args:
        network: Is changed in place; its features stay.
        pictures: The training pictures, of any sizes.
        copy_paste: Puts a defect on each mirrored view of the sound ones.
        seed: Of every random choice.

    Raises:
        DataError: No picture has a defect, and none could be put on one.
    """
    rng = np.random.default_rng(seed)
    shown = [(picture, None if picture.mask.any() else copy_paste) for picture in pictures]
    found = list(_drawn(network, network.patches, shown, rng))
    features, classes = (torch.cat(part) for part in zip(*found, strict=True))
    if not classes.any() or classes.all():
        side = "sound" if classes.all() else "defective"
        raise DataError(f"nothing to learn from: not one patch of the training pictures is {side}")
    _fit(network.patches, features, (classes > 0).float(), seed, _LEAST_STEPS)
    with torch.no_grad():  # as many defective patches as sound ones were drawn, and few are
        network.patches.answer.bias.add_(math.log(_DEFECT_PRIOR / (1 - _DEFECT_PRIOR)))  # type: ignore[union-attr]
    if len(network.labels) > 2:
        defective = classes > 0
        _fit_classes(network, features[defective], classes[defective] - 1, seed)


def _drawn(
    network: Member,
    patches: PatchClassifier,
    shown: Sequence[tuple[View, CopyPaste | None]],
    rng: np.random.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the patches of each view, on which a defect is put where that is asked for.

    They are (P, C) float16 features and (P,) int64 classes, 0 for sound.
    """
    device = network.class_head.weight.device
    count = _views([picture for picture, _ in shown])
    each = min(_PER_CLASS, max(1, _MOST // (2 * max(1, len(shown) * count))))
    for picture, copy_paste in shown:
        for dims in _mirrored(count, rng):
            view = picture if copy_paste is None else copy_paste.onto(picture, rng)
            size = [-(-side // network.stride) * network.stride for side in view.image.shape]
            grey = _padded(view.image, size, mode="reflect").to(device)
            defect, known = _shares(view, size)
            chosen = _choose(defect, known, each, rng)
            with torch.inference_mode():
                flipped = torch.flip((grey - GREY_CENTRE) / GREY_SCALE, dims)
                fine, coarse = patches.features(network.encoder(flipped))
                features = torch.flip(torch.cat([fine, enlarged(coarse, 2)], dim=1), dims)
            rows = features[0].flatten(1)[:, torch.from_numpy(chosen)]
            yield rows.T.half().cpu(), torch.from_numpy(_classes(view, size)[chosen])


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
    defect = _padded(picture.defect.astype(np.uint8), size, mode="constant")
    pooled = (functional.avg_pool2d(part, PATCH_PX).ravel().numpy() for part in (defect, inside))
    defect_share, known = pooled
    return defect_share, known


def _classes(picture: View, size: Sequence[int]) -> NDArray[np.int64]:
    """Return the class in each patch, in reading order; 0 where there is no defect."""
    solid = picture.defect & (picture.classes != IGNORED)
    classes = _padded(picture.classes * solid, size, mode="constant")
    return functional.max_pool2d(classes, PATCH_PX).ravel().numpy().astype(np.int64)


def _choose(
    defect: NDArray[np.float32],
    known: NDArray[np.float32],
    each: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the indices of up to `each` defective and `each` sound patches."""
    defective, sound = defect > _LEAST_DEFECT, (defect == 0) & (known == 1)
    return np.concatenate([rng.permutation(np.flatnonzero(m))[:each] for m in (defective, sound)])


def _fit(
    patches: PatchClassifier,
    features: Tensor,
    defective: Tensor,
    seed: int,
    least_steps: int = 0,
) -> None:
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
        _descend(layers, features, (mean, spread), defective, generator, least_steps)
    with torch.no_grad():  # the features' normalization goes into the first layer
        weight = (hidden.weight / spread)[:, :, None, None]
        fine = patches.hidden_fine.in_channels
        patches.hidden_fine.weight.copy_(weight[:, :fine])
        patches.hidden_coarse.weight.copy_(weight[:, fine:])
        patches.hidden_fine.bias.copy_(hidden.bias - weight[:, :, 0, 0] @ mean)  # type: ignore[union-attr]
        patches.answer.weight.copy_(answer.weight[:, :, None, None])
        patches.answer.bias.copy_(answer.bias)  # type: ignore[union-attr]


def _fit_classes(network: PatchNetwork, features: Tensor, classes: Tensor, seed: int) -> None:
    """Fit what names the class of a defective patch, every class alike, by what the answer sees."""
    patches, head = network.patches, network.class_head
    generator = torch.Generator().manual_seed(seed)
    few = torch.randperm(len(features), generator=generator)[:_MOST_OF_CLASSES]
    parts = (patches.hidden_fine.weight, patches.hidden_coarse.weight)
    weight, bias = torch.cat(parts, dim=1)[:, :, 0, 0].cpu(), patches.hidden_fine.bias
    hidden = functional.relu(functional.linear(features[few].float(), weight, bias.cpu()))  # type: ignore[union-attr]
    counts = torch.bincount(classes[few], minlength=head.out_channels).clamp(min=1)
    fitted = nn.Linear(head.in_channels, head.out_channels)
    nn.init.zeros_(fitted.weight)
    nn.init.zeros_(fitted.bias)
    optimizer = torch.optim.LBFGS(fitted.parameters(), max_iter=_CLASS_STEPS)

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = functional.cross_entropy(fitted(hidden), classes[few], weight=1 / counts)
        error.backward()  # type: ignore[no-untyped-call]
        return error

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        head.weight.copy_(fitted.weight[:, :, None, None])
        head.bias.copy_(fitted.bias)  # type: ignore[union-attr]


def _descend(
    layers: nn.Sequential,
    features: Tensor,
    scale: tuple[Tensor, Tensor],
    defective: Tensor,
    generator: torch.Generator,
    least_steps: int,
) -> None:
    mean, spread = scale
    optimizer = torch.optim.AdamW(
        layers.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    each = -(-len(features) // _BATCH_SIZE)
    epochs = max(_EPOCHS, -(-least_steps // each))
    steps = epochs * each
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator)
        for batch in torch.split(order, _BATCH_SIZE):
            logits = layers((features[batch].float() - mean) / spread)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits, defective[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
