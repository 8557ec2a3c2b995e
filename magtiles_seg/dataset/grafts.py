"""Puts defects on sound training pictures: real ones from other tiles, and drawn ones.

Few tiles have a defect, and each shows it in one place. A graft shows it elsewhere, on another
surface and in another light, where the network can learn neither the place nor the tile by heart.

Source: copy-paste augmentation, https://arxiv.org/abs/2012.07177.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.augment import View
from magtiles_seg.dataset.flaws import KINDS, draw_flaw
from magtiles_seg.dataset.textures import Surface

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
        kind: Index into the labels.
        gain: (h, w) float32, brightness over that of the sound surface; 1 at the patch's rim.
        mask: (h, w) uint8, 0 or 255.
    """

    kind: int
    gain: NDArray[np.float32]
    mask: NDArray[np.uint8]


class Grafts:
    """Makes defective training views of sound ones."""

    def __init__(self, pictures: Sequence[View], labels: Sequence[str]) -> None:
        """Collect the donors.

        Args:
            pictures: Training pictures; those with small defects are donors.
            labels: Class names by index, background first; drawn are those of the magnetic tiles.
        """
        self._donors: dict[int, list[Donor]] = {}
        for picture in pictures:
            for donor in donors(picture):
                self._donors.setdefault(donor.kind, []).append(donor)
        self._drawn = [(labels.index(kind), kind) for kind in KINDS if kind in labels]

    def onto(self, sound: View, rng: np.random.Generator) -> View:
        """Return a sound view with a defect; unchanged when there is nothing to graft."""
        draws = bool(self._drawn) and (not self._donors or rng.random() < _DRAWN_SHARE)
        if draws:
            index, kind = self._drawn[int(rng.integers(len(self._drawn)))]
            return draw_onto(sound, index, kind, rng)
        if not self._donors:
            return sound
        kinds = sorted(self._donors)
        shares = np.sqrt([len(self._donors[kind]) for kind in kinds])
        of_kind = self._donors[int(rng.choice(kinds, p=shares / shares.sum()))]
        return transplant(sound, of_kind[int(rng.integers(len(of_kind)))], rng)


def donors(picture: View) -> Iterator[Donor]:
    """Yield the defects of a picture that are small and visible."""
    solid = (picture.mask >= 128).astype(np.uint8)
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
    return _marked(image.astype(np.uint8), mask, donor.kind)


def _place(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a point (x, y) of a picture: anywhere, or by its border, where defects are missed."""
    size = np.array([width, height], dtype=np.float64)
    place: NDArray[np.float64] = rng.random(2) * size
    if rng.random() < _BORDER_SHARE:
        axis, depth = int(rng.integers(2)), float(rng.uniform(0, _BORDER_PX))
        place[axis] = depth if rng.random() < 0.5 else size[axis] - depth
    return place


def draw_onto(sound: View, index: int, kind: str, rng: np.random.Generator) -> View:
    """Return the view with a drawn defect.

    Args:
        sound: What it is drawn on.
        index: Of the kind in the labels.
        kind: One of `flaws.KINDS`.
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
    flaw = draw_flaw(rng, surface, kind)
    image = grey + flaw.alpha * (flaw.brightness * mean - grey)
    image = np.clip(image - 1, 0, 255).round()
    return _marked(image.astype(np.uint8), (flaw.alpha * 255).astype(np.uint8), index)


def _marked(image: NDArray[np.uint8], mask: NDArray[np.uint8], index: int) -> View:
    return View(image, mask, np.where(mask >= 128, index, 0).astype(np.uint8))
