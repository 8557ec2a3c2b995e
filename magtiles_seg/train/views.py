"""Training views drawn where the pictures lie: on a GPU, many at a time, no Python for each.

The same distribution as `dataset.augment.training_view` and `data.TrainingSet.draw` (a test holds
the two against each other), in other random numbers. The pictures lie end to end in one tensor,
each at its own size, and a view gathers the pixels that its warp asks for. Defects are pasted on
the CPU, a round of views ahead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from magtiles_seg.dataset.augment import Augmentation, View
from magtiles_seg.dataset.masks import DEFECT_LEVEL
from magtiles_seg.labels import IGNORED
from magtiles_seg.model.losses import IGNORED_CLASS, IGNORED_PIXEL
from magtiles_seg.train.data import Batch, BatchPlan, TrainingSet, made_ahead

_ROUND = 2048
"""Views that share one set of pasted defects; the next set is made while they are trained on."""

_AT_ONCE = 64
"""Views drawn in one go: enough to keep a GPU busy, 0.3 GB at 224 px."""

_MEMORY_SHARE = 0.25
"""Share of a GPU's memory that the pictures may take; more of them stay with the CPU."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of any sizes on a device, end to end. M pictures, P pixels, D defect pixels.

    Attributes:
        image: (P,) uint8 grey levels, each picture row by row.
        mask: (P,) uint8, 0..255: how much of the pixel is defect.
        classes: (P,) uint8, index into the labels.
        start: (M,) int64, where a picture begins.
        size_hw: (M, 2) int64.
        defect: (D,) int64, the pixels that are defect, counted from the start of their picture.
        defect_start: (M,) int64, where a picture's begin in `defect`.
        defect_count: (M,) int64.
    """

    image: Tensor
    mask: Tensor
    classes: Tensor
    start: Tensor
    size_hw: Tensor
    defect: Tensor
    defect_start: Tensor
    defect_count: Tensor

    @classmethod
    def of(cls, views: Sequence[View], device: torch.device) -> Pictures:
        """Lay pictures end to end on a device."""
        empty = [np.empty(0, np.uint8)]

        def joined(name: str) -> Tensor:
            rows = [getattr(view, name).ravel() for view in views] or empty
            return torch.from_numpy(np.concatenate(rows)).to(device)

        def numbers(values: Sequence[object], *shape: int) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device).reshape(-1, *shape)

        defects = [np.flatnonzero(view.defect) for view in views]
        sizes = [view.image.size for view in views]
        counts = [len(defect) for defect in defects]
        return cls(
            image=joined("image"),
            mask=joined("mask"),
            classes=joined("classes"),
            start=numbers([0, *np.cumsum(sizes)[:-1]] if sizes else []),
            size_hw=numbers([view.image.shape for view in views], 2),
            defect=torch.from_numpy(np.concatenate(defects or [np.empty(0, np.int64)])).to(device),
            defect_start=numbers([0, *np.cumsum(counts)[:-1]] if counts else []),
            defect_count=numbers(counts),
        )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.start)

    def and_(self, more: Pictures) -> Pictures:
        """Return these pictures and, after them, some more."""
        return Pictures(
            image=torch.cat([self.image, more.image]),
            mask=torch.cat([self.mask, more.mask]),
            classes=torch.cat([self.classes, more.classes]),
            start=torch.cat([self.start, more.start + len(self.image)]),
            size_hw=torch.cat([self.size_hw, more.size_hw]),
            defect=torch.cat([self.defect, more.defect]),
            defect_start=torch.cat([self.defect_start, more.defect_start + len(self.defect)]),
            defect_count=torch.cat([self.defect_count, more.defect_count]),
        )


def fits_on(device: torch.device, pictures: Sequence[View]) -> bool:
    """Return whether a GPU has room for all pictures beside the training."""
    if device.type != "cuda":
        return False
    needed = sum(3 * view.image.size + 8 * int(view.defect.sum()) for view in pictures)
    total: int = torch.cuda.get_device_properties(device).total_memory
    return needed <= _MEMORY_SHARE * total


class DeviceViews:
    """Draws the batches of a run on its device."""

    def __init__(self, shown: TrainingSet, device: torch.device) -> None:
        """Bring the pictures to the device."""
        self._shown, self._device = shown, device
        self._pictures = Pictures.of(shown.pictures, device)
        chances = torch.from_numpy(shown.sampler.probabilities())
        self._chances = chances.to(device, torch.float32)
        self._sound = self._pictures.defect_count == 0
        is_sound = self._sound.cpu()
        self._sound_indices = torch.nonzero(is_sound)[:, 0].numpy()
        odds = chances[is_sound].numpy()
        self._sound_share = float(odds.sum())
        self._sound_odds = odds / odds.sum() if self._sound_share else odds

    def epoch(self, plan: BatchPlan, *, epoch: int, steps: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, each on the device."""
        per_round = max(1, _ROUND // plan.batch_size)
        at_once = max(1, _AT_ONCE // plan.batch_size)
        rounds = math.ceil(steps / per_round)

        def pasted(number: int) -> list[View]:
            views = min(per_round, steps - number * per_round) * plan.batch_size
            return self._pasted(plan, [plan.seed, epoch, number], views)

        for number, more in enumerate(made_ahead(pasted, rounds)):
            pictures = self._pictures.and_(Pictures.of(more, self._device))
            first, last = number * per_round, min(steps, (number + 1) * per_round)
            for step in range(first, last, at_once):
                count = min(at_once, last - step)
                yield from self._batches(pictures, plan, [plan.seed, epoch, step], count)

    def _pasted(self, plan: BatchPlan, seed: list[int], views: int) -> list[View]:
        """Return as many sound pictures with a defect as a round shows on the average."""
        if self._shown.copy_paste is None or not self._sound_share:
            return []
        count = math.ceil(views * self._sound_share * plan.copy_paste_fraction)
        chosen = np.random.default_rng(seed).choice(self._sound_indices, count, p=self._sound_odds)
        copy_paste, pictures = self._shown.copy_paste, self._shown.pictures
        return [
            copy_paste.onto(pictures[index], np.random.default_rng([*seed, place]))
            for place, index in enumerate(chosen)
        ]

    def _batches(
        self, pictures: Pictures, plan: BatchPlan, seed: list[int], count: int
    ) -> Iterator[Batch]:
        """Yield `count` batches that are drawn together."""
        generator = torch.Generator(self._device)
        generator.manual_seed(
            int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
        )
        chosen = self._chosen(pictures, plan, generator, count * plan.batch_size)
        views = draw_views(
            pictures, chosen, generator, plan.augmentation, plan.crop_px, zoom=plan.zoom
        )
        whole = stack_views(*views, class_stride=plan.class_stride)
        places = None if plan.places is None else torch.tensor(plan.places, device=self._device)
        for batch in whole.split(count):
            yield batch if places is None else batch.take(places)

    def _chosen(
        self, pictures: Pictures, plan: BatchPlan, generator: torch.Generator, count: int
    ) -> Tensor:
        """Return the indices of the pictures to show; a defect is pasted onto some sound ones."""
        chosen = torch.multinomial(self._chances, count, replacement=True, generator=generator)
        chance, place = torch.rand((2, count), device=self._device, generator=generator)
        more = len(pictures) - len(self._pictures)
        if not more:
            return chosen
        pasted = len(self._pictures) + (place * more).long().clamp(max=more - 1)
        return torch.where(
            self._sound[chosen] & (chance < plan.copy_paste_fraction), pasted, chosen
        )


def draw_views(
    pictures: Pictures,
    chosen: Tensor,
    generator: torch.Generator,
    augmentation: Augmentation,
    crop_px: int,
    *,
    zoom: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random square of each chosen picture; past a picture's border all is mirrored.

    Args:
        pictures: What is cut from.
        chosen: (N,) int64, indices of pictures.
        generator: Where the randomness comes from, on the pictures' device.
        augmentation: Bounds of the draws.
        crop_px: Side of the squares.
        zoom: Scale that the drawn one is multiplied by.

    Returns:
        image: (N, crop_px, crop_px) float32, whole grey levels 0..255.
        mask: (N, crop_px, crop_px) float32, 0..255.
        classes: (N, crop_px, crop_px) float32, index into the labels.
    """
    draw = _Draws(len(chosen), generator)
    linear, scale = _linear(draw, augmentation, zoom)
    focus = _focus_xy(pictures, chosen, draw, crop_px / scale, augmentation.focus_fraction)
    x, y = _source_xy(linear, focus, crop_px)
    image, mask, classes = _gathered(pictures, chosen, x, y)
    return _relit(image, draw, augmentation), mask, classes


class _Draws:
    """Independent draws for each of N views, (N,) float32 on the generator's device."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator

    def unit(self) -> Tensor:
        """Return values in 0..1."""
        return torch.rand(self._count, device=self._generator.device, generator=self._generator)

    def sign(self) -> Tensor:
        """Return values in -1..1."""
        return 2 * self.unit() - 1

    def factor(self, bound: float) -> Tensor:
        """Return values in 1 / bound .. bound, their logarithm uniform."""
        return torch.exp(self.sign() * math.log(bound))

    def normal(self, like: Tensor) -> Tensor:
        """Return Gaussian values of that shape."""
        return torch.randn(like.shape, device=like.device, generator=self._generator)


def _linear(draw: _Draws, augmentation: Augmentation, zoom: float) -> tuple[Tensor, Tensor]:
    """Return what turns, mirrors and scales from picture to view, (N, 2, 2), and the scale (N,)."""
    scale = zoom * draw.factor(augmentation.scale)
    stretch = draw.factor(augmentation.aspect).sqrt()
    angle = draw.sign() * math.radians(augmentation.rotation_deg)
    across, down = (
        torch.where(draw.unit() < 0.5 * augmentation.flip, -scale, scale) for _ in range(2)
    )
    across, down = across * stretch, down / stretch
    cosine, sine = angle.cos(), angle.sin()
    rows = [cosine * across, -sine * down, sine * across, cosine * down]
    return torch.stack(rows, dim=1).reshape(-1, 2, 2), scale


def _focus_xy(
    pictures: Pictures, chosen: Tensor, draw: _Draws, span_px: Tensor, focus_fraction: float
) -> Tensor:
    """Return the picture points (x, y) that become the views' centres, (N, 2)."""
    size = pictures.size_hw[chosen].flip(1).float()
    count = pictures.defect_count[chosen]
    point = torch.stack([draw.unit(), draw.unit()], dim=1) * size
    jitter = torch.stack([draw.sign(), draw.sign()], dim=1) * 0.4 * span_px[:, None]
    wanted, which = draw.unit() < focus_fraction, draw.unit()
    if len(pictures.defect):
        nth = torch.minimum((which * count).long(), (count - 1).clamp(min=0))
        place = (pictures.defect_start[chosen] + nth).clamp(max=len(pictures.defect) - 1)
        pixel = pictures.defect[place]
        width = pictures.size_hw[chosen, 1]
        defect = torch.stack([pixel % width, pixel // width], dim=1).float()
        point = torch.where((wanted & (count > 0))[:, None], defect + jitter, point)
    half = torch.minimum(span_px[:, None], size) / 2
    return torch.minimum(torch.maximum(point, half), size - half) - 0.5


def _source_xy(linear: Tensor, focus: Tensor, crop_px: int) -> tuple[Tensor, Tensor]:
    """Return where each pixel of a view lies in its picture: x and y, (N, crop_px, crop_px)."""
    (a, b), (c, d) = ((row[:, 0], row[:, 1]) for row in linear.unbind(1))
    inverse = torch.stack([d, -b, -c, a], dim=1) / (a * d - b * c)[:, None]
    back = inverse.reshape(-1, 2, 2)  # torch.linalg.inv would wait for the GPU
    offset = torch.arange(crop_px, device=linear.device) - (crop_px - 1) / 2
    across, down = offset[None, None, :], offset[None, :, None]
    x, y = (
        back[:, axis, 0, None, None] * across
        + back[:, axis, 1, None, None] * down
        + focus[:, axis, None, None]
        for axis in range(2)
    )
    return x, y


def _gathered(
    pictures: Pictures, chosen: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return image and mask between their pixels, and the classes of the nearest ones."""
    start = pictures.start[chosen, None, None]
    height, width = (side[:, None, None] for side in pictures.size_hw[chosen].unbind(1))

    def index(at_x: Tensor, at_y: Tensor) -> Tensor:
        return start + _mirrored(at_y, height) * width + _mirrored(at_x, width)

    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    left, top = left.long(), top.long()
    image, mask = torch.zeros_like(x), torch.zeros_like(x)
    for down, row_share in ((0, 1 - bottom_share), (1, bottom_share)):
        for across, column_share in ((0, 1 - right_share), (1, right_share)):
            at, share = index(left + across, top + down), row_share * column_share
            image += share * pictures.image[at]
            mask += share * pictures.mask[at]
    classes = pictures.classes[index(x.round().long(), y.round().long())].float()
    return image.round(), mask.round(), classes


def _mirrored(at: Tensor, size: Tensor) -> Tensor:
    """Return coordinates mirrored at the first and last pixel into 0 .. size - 1."""
    period = (2 * (size - 1)).clamp(min=1)
    at = at.remainder(period)
    return torch.minimum(at, period - at).minimum(size - 1)


def _relit(view: Tensor, draw: _Draws, augmentation: Augmentation) -> Tensor:
    """Return the views under another light, as `augment` relights them; rounded after each step."""
    gain, gamma = draw.factor(augmentation.gain), draw.factor(augmentation.gamma)
    offset = draw.sign() * augmentation.offset
    mean = view.mean((1, 2))
    levels = (view - mean[:, None, None]) * gain[:, None, None]
    levels = ((levels + (mean + offset)[:, None, None]) / 255).clamp(0, 1)
    view = (levels ** gamma[:, None, None] * 255).round()
    view = _shaded(view, draw.sign() * augmentation.shading, draw.sign() * augmentation.shading)
    blurred = draw.unit() < augmentation.blur_fraction
    view = torch.where(blurred[:, None, None], _blurred(view), view)
    sigma = draw.unit() * augmentation.noise * (draw.unit() < 0.5)
    return (view + draw.normal(view) * sigma[:, None, None]).clamp(0, 255).round()


def _shaded(view: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Return views brighter by these shares at their right and lower side, darker opposite."""
    height, width = view.shape[1:]
    x = 1 + across[:, None] * torch.linspace(-1, 1, width, device=view.device)
    y = 1 + down[:, None] * torch.linspace(-1, 1, height, device=view.device)
    return (view * y[:, :, None] * x[:, None, :]).clamp(0, 255).round()


def _blurred(view: Tensor) -> Tensor:
    padded = functional.pad(view[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return ((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16).round()


def stack_views(image: Tensor, mask: Tensor, classes: Tensor, *, class_stride: int) -> Batch:
    """Return drawn views as one batch, as `data.stack` makes it of the CPU's."""
    ignored = classes == IGNORED
    defect = ((mask >= DEFECT_LEVEL) & ~ignored).float()
    class_target = functional.max_pool2d((classes * defect)[:, None], class_stride)[:, 0].long() - 1
    class_target = torch.where(class_target < 0, IGNORED_CLASS, class_target)
    target = torch.where(ignored, IGNORED_PIXEL, defect)
    return Batch(image[:, None], target[:, None], class_target)
