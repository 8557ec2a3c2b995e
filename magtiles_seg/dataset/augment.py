"""Random views of a tile for training: one warp to the crop, then another light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

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
        classes: (H, W) uint8, index into the labels; 0 is background.
    """

    image: Grey
    mask: Grey
    classes: Grey


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
    defect = np.flatnonzero(mask >= 128) if wanted else np.empty(0, dtype=np.int64)
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
