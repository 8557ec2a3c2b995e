"""Random views of a tile for training, and defects put on sound ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.masks import DEFECT_LEVEL
from magtiles_seg.dataset.synthetic.defects import DRAWN_LABELS, draw_defect
from magtiles_seg.dataset.synthetic.textures import Surface
from magtiles_seg.labels import IGNORED

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """How far a training view may stray from its picture: bounds of uniform draws.

    Attributes:
        scale: Zoom in 1 / scale .. scale.
        aspect: Stretch of one axis against the other, in 1 / aspect .. aspect.
        rotation_deg: Rotation in -rotation_deg .. rotation_deg.
        flip: Mirror each axis with probability 1/2.
        gain: Contrast factor in 1 / gain .. gain, about the picture's mean.
        offset: Grey levels added, in -offset .. offset.
        gamma: Exponent in 1 / gamma .. gamma.
        shading: Another lamp: the light changes by up to this share from the centre to each side.
        noise: Largest standard deviation of added Gaussian noise, in grey levels (half of the
            views get none).
        blur_fraction: Share of the views that are blurred by a 3 x 3 kernel.
        focus_fraction: Share of the views of a defective picture that are centred on a defect
            pixel.
    """

    scale: float = 1.3
    aspect: float = 1.1
    rotation_deg: float = 12.0
    flip: bool = True
    gain: float = 1.6
    offset: float = 30.0
    gamma: float = 1.5
    shading: float = 0.2
    noise: float = 6.0
    blur_fraction: float = 0.15
    focus_fraction: float = 0.6


NO_AUGMENTATION = Augmentation(1.0, 1.0, 0.0, False, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class View:
    """A picture, or a square cut out of one, with what is known of each of its pixels.

    Attributes:
        image: (H, W) uint8 grey levels.
        mask: (H, W) uint8, 0..255: how much of the pixel is defect.
        classes: (H, W) uint8, index into the labels; 0 is background. `IGNORED` is neither trained
            on as sound nor as defect; `mask` is 0 there.
    """

    image: Grey
    mask: Grey
    classes: Grey

    @property
    def defect(self) -> NDArray[np.bool_]:
        """(H, W) bool, whether at least half of each pixel is defect."""
        return np.asarray(self.mask >= DEFECT_LEVEL)


def training_view(
    picture: View,
    crop_px: int,
    rng: np.random.Generator,
    augmentation: Augmentation | None = None,
    *,
    zoom: float = 1.0,
) -> View:
    """Return a random `crop_px` square of a picture; past the picture's border all is mirrored.

    Args:
        picture: What is cut from.
        crop_px: Side of the square.
        rng: Where the randomness comes from; the same state gives the same view.
        augmentation: Bounds of the draws; the defaults where None.
        zoom: Scale that the drawn one is multiplied by: 0.5 shows all at half its size.
    """
    augmentation = augmentation or Augmentation()
    matrix = _warp(picture.mask, crop_px, rng, augmentation, zoom)
    image = _warped(picture.image, matrix, crop_px, cv2.INTER_LINEAR)
    mask = _warped(picture.mask, matrix, crop_px, cv2.INTER_LINEAR)
    classes = _warped(picture.classes, matrix, crop_px, cv2.INTER_NEAREST)
    return View(_relight(image, rng, augmentation), mask, classes)


def _warped(pixels: Grey, matrix: NDArray[np.float64], crop_px: int, interpolation: int) -> Grey:
    size = (crop_px, crop_px)
    warped = cv2.warpAffine(
        pixels, matrix, size, flags=interpolation, borderMode=cv2.BORDER_REFLECT_101
    )
    return warped.astype(np.uint8, copy=False)


def _warp(
    mask: Grey, crop_px: int, rng: np.random.Generator, augmentation: Augmentation, zoom: float
) -> NDArray[np.float64]:
    """Return the 2 x 3 matrix from picture to crop coordinates."""
    zoom *= _log_uniform(rng, augmentation.scale)
    stretch = _log_uniform(rng, augmentation.aspect)
    angle = np.deg2rad(rng.uniform(-1, 1) * augmentation.rotation_deg)
    flips = np.where(rng.random(2) < 0.5 * augmentation.flip, -1.0, 1.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag(flips * zoom * np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)]))
    focus = _focus_xy(mask, crop_px / zoom, rng, augmentation.focus_fraction)
    offset = np.full(2, (crop_px - 1) / 2) - linear @ focus
    return np.hstack([linear, offset[:, None]])


def _focus_xy(
    mask: Grey, span_px: float, rng: np.random.Generator, focus_fraction: float
) -> NDArray[np.float64]:
    """Return the picture point (x, y) that becomes the crop's centre."""
    height, width = mask.shape
    wanted = rng.random() < focus_fraction
    jitter = rng.uniform(-0.4, 0.4, 2) * span_px
    anywhere = rng.random(2)
    defect = np.flatnonzero(mask >= DEFECT_LEVEL) if wanted else np.empty(0, dtype=np.int64)
    if defect.size:
        y, x = divmod(int(defect[int(rng.random() * defect.size)]), width)
        point = np.array([x, y], dtype=np.float64) + jitter
    else:
        point = anywhere * np.array([width, height])
    size = np.array([width, height], dtype=np.float64)
    half = np.minimum(span_px / 2, size / 2)
    return np.clip(point, half, size - half) - 0.5


def _relight(view: Grey, rng: np.random.Generator, augmentation: Augmentation) -> Grey:
    """Return the view under another light: one grey-level table, a slope, then blur and noise."""
    gain, gamma = _log_uniform(rng, augmentation.gain), _log_uniform(rng, augmentation.gamma)
    offset = rng.uniform(-1, 1) * augmentation.offset
    blurred, noisy = rng.random(2)
    sigma = rng.random() * augmentation.noise * (noisy < 0.5)
    levels = np.arange(256, dtype=np.float64) / 255
    mean = float(view.mean()) / 255
    levels = (levels - mean) * gain + mean + offset / 255
    table = (np.clip(levels, 0, 1) ** gamma * 255).round().astype(np.uint8)
    view = cv2.LUT(view, table).astype(np.uint8, copy=False)
    if augmentation.shading:
        view = _shaded(view, *rng.uniform(-1, 1, 2) * augmentation.shading)
    if blurred < augmentation.blur_fraction:
        view = cv2.GaussianBlur(view, (3, 3), 0).astype(np.uint8, copy=False)
    if sigma > 0:
        noise = rng.standard_normal(view.shape, dtype=np.float32) * np.float32(sigma)
        view = np.clip(view + noise, 0, 255).round().astype(np.uint8)
    return view


def _shaded(view: Grey, across: float, down: float) -> Grey:
    """Return the view brighter by these shares at its right and lower side, darker opposite."""
    height, width = view.shape
    x = np.linspace(1 - across, 1 + across, width, dtype=np.float32)
    y = np.linspace(1 - down, 1 + down, height, dtype=np.float32)
    return np.clip(view * (y[:, None] * x), 0, 255).round().astype(np.uint8)


def _log_uniform(rng: np.random.Generator, bound: float) -> float:
    return float(np.exp(rng.uniform(-1, 1) * np.log(bound)))


_AREA_PX = (12, 2500)
"""Smallest and largest defect that is carried over: a larger one is its whole surroundings."""

_RIM_PX = 6
_LEAST_CONTRAST = 0.08
"""Mean relative change of brightness below which a mask shows nothing to carry over."""

_DRAWN_SHARE = 0.4
_BORDER_SHARE, _BORDER_PX = 0.35, 14
_LARGEST_INSET_PX = 10


@dataclass(frozen=True, eq=False)
class Donor:
    """A real defect without its surface.

    Attributes:
        class_index: Index into the labels.
        gain: (h, w) float32, brightness over that of the sound surface; 1 at the patch's rim.
        mask: (h, w) uint8, 0 or 255.
    """

    class_index: int
    gain: NDArray[np.float32]
    mask: NDArray[np.uint8]


class CopyPaste:
    """Makes defective training views of sound ones: copy-paste, and drawn defects.

    Source: https://arxiv.org/abs/2012.07177.
    """

    def __init__(
        self, pictures: Sequence[View], labels: Sequence[str], *, draws_any: bool = False
    ) -> None:
        """Collect the donors.

        Args:
            pictures: Training pictures; those with small defects are donors.
            labels: Class names by index, background first; drawn are those of the magnetic tiles.
            draws_any: Whether a single class of another name is drawn as well: as each of these.
        """
        self._donors: dict[int, list[Donor]] = {}
        for picture in pictures:
            for donor in donors(picture):
                self._donors.setdefault(donor.class_index, []).append(donor)
        self._drawn = [(labels.index(label), label) for label in DRAWN_LABELS if label in labels]
        if draws_any and not self._drawn and len(labels) == 2:
            self._drawn = [(1, label) for label in DRAWN_LABELS]

    @property
    def has_any(self) -> bool:
        """Whether there is anything to put on a sound view."""
        return bool(self._drawn or self._donors)

    def onto(self, sound: View, rng: np.random.Generator) -> View:
        """Return a sound view with a defect; unchanged when there is nothing to paste."""
        draws = bool(self._drawn) and (not self._donors or rng.random() < _DRAWN_SHARE)
        if draws:
            index, label = self._drawn[int(rng.integers(len(self._drawn)))]
            return draw_onto(sound, index, label, rng)
        if not self._donors:
            return sound
        classes = sorted(self._donors)
        shares = np.sqrt([len(self._donors[index]) for index in classes])
        of_class = self._donors[int(rng.choice(classes, p=shares / shares.sum()))]
        return transplant(sound, of_class[int(rng.integers(len(of_class)))], rng)


def donors(picture: View) -> Iterator[Donor]:
    """Yield the defects of a picture that are small and visible."""
    solid = picture.defect.astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(solid)
    image = np.pad(picture.image, _RIM_PX, mode="reflect")
    for index in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[index])
        if not _AREA_PX[0] <= area <= _AREA_PX[1]:
            continue
        region = (regions[y : y + height, x : x + width] == index).astype(np.uint8)
        mask = np.pad(region * np.uint8(255), _RIM_PX)
        gain = _gain(image[y : y + mask.shape[0], x : x + mask.shape[1]], mask)
        if abs(float(gain[mask > 0].mean()) - 1) >= _LEAST_CONTRAST:
            yield Donor(int(picture.classes[regions == index].max()), gain, mask)


def _gain(patch: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how much brighter the defect is than the surface that its surroundings suggest."""
    hole = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    surface = cv2.inpaint(patch, hole, 3, cv2.INPAINT_TELEA).astype(np.float32) + 1
    near = cv2.GaussianBlur(hole, (5, 5), 0).astype(np.float32) / 255
    return np.asarray(1 + near * ((patch.astype(np.float32) + 1) / surface - 1), dtype=np.float32)


def transplant(sound: View, donor: Donor, rng: np.random.Generator) -> View:
    """Return the view with a donor's defect somewhere on it: turned, flipped, scaled, paler or not.

    Args:
        sound: What it is put on.
        donor: The defect.
        rng: Where the randomness comes from.
    """
    height, width = sound.image.shape
    zoom = float(np.exp(rng.uniform(-0.35, 0.35)))
    angle = float(rng.normal(0, 0.35))
    flips = np.where(rng.random(2) < 0.5, -1.0, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = zoom * turn @ np.diag(flips)
    centre = np.array(donor.mask.shape[::-1]) / 2 - 0.5
    place = _place(width, height, rng)
    matrix = np.hstack([linear, (place - linear @ centre)[:, None]])
    gain = cv2.warpAffine(donor.gain, matrix, (width, height), borderValue=1.0)
    mask = cv2.warpAffine(donor.mask, matrix, (width, height)).astype(np.uint8, copy=False)
    gain = gain ** float(rng.uniform(0.7, 1.2))
    image = np.clip(sound.image * gain, 0, 255).round()
    return _marked(sound, image.astype(np.uint8), mask, donor.class_index)


def _place(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a point (x, y) of a picture: anywhere, or by its border, where defects are missed."""
    size = np.array([width, height], dtype=np.float64)
    place: NDArray[np.float64] = rng.random(2) * size
    if rng.random() < _BORDER_SHARE:
        axis, depth = int(rng.integers(2)), float(rng.uniform(0, _BORDER_PX))
        place[axis] = depth if rng.random() < 0.5 else size[axis] - depth
    return place


def draw_onto(sound: View, index: int, label: str, rng: np.random.Generator) -> View:
    """Return the view with a drawn defect.

    Args:
        sound: What it is drawn on.
        index: Of the class in the labels.
        label: One of `DRAWN_LABELS`.
        rng: Where the randomness comes from.
    """
    grey = sound.image.astype(np.float32) + 1
    light = cv2.blur(cv2.blur(grey, (33, 33)), (33, 33)).astype(np.float32)
    mean = float(light.mean())
    insets = [int(value) for value in rng.integers(0, _LARGEST_INSET_PX + 1, 4)]
    inset = (insets[0], insets[1], insets[2], insets[3])
    surface = Surface(
        shade=light / mean, texture=grey / light - 1, body=np.ones_like(grey), inset_px=inset
    )
    layer = draw_defect(rng, surface, label)
    image = grey + layer.alpha * (layer.brightness * mean - grey)
    image = np.clip(image - 1, 0, 255).round()
    return _marked(sound, image.astype(np.uint8), (layer.alpha * 255).astype(np.uint8), index)


def _marked(sound: View, image: NDArray[np.uint8], mask: NDArray[np.uint8], index: int) -> View:
    """Return what a defect made of a sound view; what is ignored there stays so."""
    ignored = sound.classes == IGNORED
    classes = np.where(ignored, IGNORED, np.where(mask >= DEFECT_LEVEL, index, 0))
    return View(image, np.where(ignored, 0, mask).astype(np.uint8), classes.astype(np.uint8))
