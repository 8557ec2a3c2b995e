"""What defects are drawn of: outlines, strokes, unground surface, and places on a tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.synthetic.textures import FloatImage, Surface, as_float, grain

_SUBPIXEL_BITS: Final = 4


@dataclass(frozen=True, eq=False)
class DefectLayer:
    """A defect as a layer over a sound surface.

    Attributes:
        alpha: (H, W) float32 in [0, 1], how far the layer covers; its 0.5 contour is the mask's.
        brightness: (H, W) float32, what the layer shows.
    """

    alpha: FloatImage
    brightness: FloatImage


def matte(
    rng: np.random.Generator,
    surface: Surface,
    gain: float | FloatImage,
    *,
    contrast: float,
    lines: float,
    flatness: float = 0.3,
) -> FloatImage:
    """Return an unground surface: `gain` times the light, grain instead of most of the lines."""
    light = (1 - flatness) * surface.shade + flatness
    texture = lines * surface.texture + grain(rng, (light.shape[0], light.shape[1]), contrast)
    return as_float(gain * light * (1 + texture))


def blob(
    rng: np.random.Generator,
    centre_xy: tuple[float, float],
    area_px: float,
    *,
    stretch: float,
    roughness: float,
    turn: float | None = None,
) -> NDArray[np.float32]:
    """Return a closed irregular outline, (64, 2) float32 of (x, y), of about the given area."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angle)
    for wave in range(2, 16):
        size = roughness * (2.0 / wave) ** 1.6
        radius += size * rng.normal() * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.3)
    radius *= np.sqrt(area_px / np.pi / np.mean(np.square(radius)))
    x, y = radius * np.cos(angle) * np.sqrt(stretch), radius * np.sin(angle) / np.sqrt(stretch)
    turn = float(rng.uniform(0, 2 * np.pi)) if turn is None else turn
    cos, sin = np.cos(turn), np.sin(turn)
    outline = np.stack([x * cos - y * sin, x * sin + y * cos], axis=1) + np.asarray(centre_xy)
    return as_float(outline)


def filled(size_hw: tuple[int, ...], outline: NDArray[np.float32], *, blur: float) -> FloatImage:
    """Return the inside of an outline, (H, W) float32 in [0, 1], with an edge of about 1 px."""
    canvas = np.zeros(size_hw, dtype=np.uint8)
    points = np.round(outline * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    soft = cv2.GaussianBlur(canvas, (5, 5), blur)
    return as_float(as_float(soft) / 255)


def stroke(canvas: NDArray[np.uint8], path: NDArray[np.float64], width_px: float) -> None:
    """Draw an open line of a fractional width into an 8-bit canvas: a mix of two whole widths."""
    points = np.round(path * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    low = int(width_px)
    wide = np.zeros_like(canvas)
    cv2.polylines(wide, [points], False, 255, low + 1, cv2.LINE_AA, _SUBPIXEL_BITS)
    thin = np.zeros_like(canvas)
    cv2.polylines(thin, [points], False, 255, max(1, low), cv2.LINE_AA, _SUBPIXEL_BITS)
    share = width_px - low
    mix = cv2.addWeighted(wide, share, thin, 1 - share, 0)
    np.maximum(canvas, np.asarray(mix, dtype=np.uint8), out=canvas)


def walk(
    rng: np.random.Generator, start_xy: NDArray[np.float64], heading: float, length_px: float
) -> NDArray[np.float64]:
    """Return a wandering line, (n, 2) float64 of (x, y), in steps of 4 px."""
    count = max(4, int(length_px / 4))
    bend = rng.normal(rng.normal(0, 0.012), 0.09, count)
    angle = heading + np.cumsum(bend) + rng.normal(0, 0.2, count)
    steps = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([start_xy[None, :], start_xy + np.cumsum(steps, axis=0)])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number between two, each doubling as likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def point_inside(rng: np.random.Generator, surface: Surface, margin_px: int) -> tuple[float, float]:
    """Return a point (x, y) at least `margin_px` from the tile's edges, or its centre."""
    h, w = surface.shade.shape
    left, top, right, bottom = (side + margin_px for side in surface.inset_px)
    u, v = rng.random(), rng.random()
    return left + u * max(0, w - left - right), top + v * max(0, h - top - bottom)


def point_on_edge(
    rng: np.random.Generator, surface: Surface, *, corner: bool, ends_only: bool = False
) -> tuple[float, float]:
    """Return a point (x, y) on the outline of the tile's body, or at one of its corners."""
    h, w = surface.shade.shape
    left, top, right, bottom = surface.inset_px
    x = left if rng.random() < 0.5 else w - 1 - right
    y = top if rng.random() < 0.5 else h - 1 - bottom
    along = float(rng.uniform(0.1, 0.9))
    if corner:
        return float(x), float(y)
    if ends_only or rng.random() < 0.5:
        return along * w, float(y)
    return float(x), along * h
