"""Draws the five classes of defect into a sound surface, each with its exact region.

Sizes and contrasts follow the public magnetic-tile pictures: a blowhole is a pit of 45 to 250 px, a
crack a dark line of 1 to 4 px, a break a chip at an edge or a slash, a fray a matte patch that the
grinder never reached or a worn edge, and uneven a zone of coarser, mostly brighter lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.synthetic.textures import (
    FloatImage,
    Surface,
    as_float,
    grain,
    grinding_lines,
    smooth_noise,
)

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


def draw_defect(rng: np.random.Generator, surface: Surface, label: str) -> DefectLayer:
    """Draw one defect of the class `label`; it never reaches beyond the tile's body."""
    layer = _PAINTERS[label](rng, surface)
    return DefectLayer(alpha=layer.alpha * surface.body, brightness=layer.brightness)


def _blowhole(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    area_px = _log_uniform(rng, 45, 210)
    centre = _point_inside(rng, surface, margin_px=9)
    stretch = float(rng.uniform(1.0, 2.6))
    shape = _blob(rng, centre, area_px, stretch=stretch, roughness=0.14)
    alpha = _filled(surface.shade.shape, shape, blur=0.6)
    core = as_float(cv2.GaussianBlur(alpha, (7, 7), 1.8))
    depth = float(rng.uniform(0.38, 0.62))
    gain = as_float(depth * (0.85 + float(rng.uniform(0.0, 0.4)) * np.square(core)))
    return DefectLayer(alpha, _matte(rng, surface, gain, contrast=0.05, lines=0.2))


def _crack(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    length_px = min(_log_uniform(rng, 32, 210), 0.85 * h)
    path = _crack_path(rng, surface, length_px)
    width_px = float(rng.uniform(1.2, 3.0))
    zone, core = np.zeros((h, w), dtype=np.uint8), np.zeros((h, w), dtype=np.uint8)
    branches = [(path, width_px), (path[: len(path) // 2], width_px + 0.8)]
    if length_px > 70 and rng.random() < 0.4:
        fork = len(path) // 2
        ahead = path[fork + 1] - path[fork]
        heading = float(np.arctan2(ahead[1], ahead[0]) + rng.choice([-0.7, 0.7]))
        branches.append((_walk(rng, path[fork], heading, 0.3 * length_px), max(1.0, width_px - 1)))
    for branch, branch_px in branches:
        _stroke(core, branch, branch_px)
        _stroke(zone, branch, branch_px + 1.8)
    dark = as_float(cv2.GaussianBlur(core, (3, 3), 0.6)) / 255
    depth = float(rng.uniform(0.38, 0.62))
    sound = surface.shade * (1 + surface.texture)
    brightness = sound * (0.93 - depth * dark)
    alpha = as_float(as_float(cv2.GaussianBlur(zone, (3, 3), 0.5)) / 255)
    return DefectLayer(alpha, as_float(brightness))


def _break(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    kind = rng.random()
    if kind < 0.2:  # a slash inside the face
        area_px = _log_uniform(rng, 90, 400)
        shape = _blob(
            rng, _point_inside(rng, surface, margin_px=14), area_px, stretch=4.0, roughness=0.06
        )
    else:  # a chip at an edge or a corner, half or three quarters of it off the tile
        share = 0.03 if kind < 0.8 else 0.2
        area_px = _log_uniform(rng, 150, max(200.0, share * h * w))
        corner = rng.random() < 0.45
        centre = _point_on_edge(rng, surface, corner=corner)
        stretch = float(rng.uniform(1.0, 1.8))
        whole_px = area_px * (4 if corner else 2)
        shape = _blob(rng, centre, whole_px, stretch=stretch, roughness=0.13)
    alpha = _filled((h, w), shape, blur=0.6)
    bright = rng.random() < 0.15
    gain = float(rng.uniform(1.2, 1.6) if bright else rng.uniform(0.4, 0.75))
    relief = gain * (1 + 0.09 * smooth_noise(rng, (h, w), (2 + h // 25, 2 + w // 25)))
    relief *= 1 - _lit_edge(rng, alpha)
    return DefectLayer(alpha, _matte(rng, surface, relief, contrast=0.05, lines=0.1))


def _lit_edge(rng: np.random.Generator, alpha: FloatImage) -> FloatImage:
    """Return how much a broken edge darkens (or, turned to the lamp, brightens), (H, W) float32."""
    soft = as_float(cv2.GaussianBlur(alpha, (7, 7), 1.4))
    angle = float(rng.uniform(0, 2 * np.pi))
    slope_x = as_float(cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.25))
    slope_y = as_float(cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=0.25))
    towards = np.cos(angle) * slope_x + np.sin(angle) * slope_y
    steep = np.sqrt(np.square(slope_x) + np.square(slope_y))
    strength = float(rng.uniform(0.5, 1.4))
    return as_float(np.clip(strength * (0.6 * steep + 0.8 * towards), -0.5, 0.8))


def _fray(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    if rng.random() < 0.6:  # an island that the grinder never reached
        area_px = _log_uniform(rng, 0.05, 0.33) * h * w
        centre = (w * float(rng.uniform(0.35, 0.65)), h * float(rng.uniform(0.35, 0.65)))
        shape = _blob(rng, centre, area_px, stretch=float(rng.uniform(1, 1.5)), roughness=0.05)
    else:  # worn away at an edge
        area_px = max(170.0, _log_uniform(rng, 0.006, 0.05) * h * w)
        centre = _point_on_edge(rng, surface, corner=rng.random() < 0.5, ends_only=True)
        stretch = float(rng.uniform(1.3, 3))
        shape = _blob(rng, centre, 3 * area_px, stretch=stretch, roughness=0.12, turn=0.0)
    alpha = _filled((h, w), shape, blur=0.8)
    gain = float(rng.uniform(0.58, 0.78)) * (1 + 0.05 * smooth_noise(rng, (h, w), (5, 5)))
    return DefectLayer(alpha, _matte(rng, surface, gain, contrast=0.035, lines=0.08, flatness=0.6))


def _uneven(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    row = np.arange(h, dtype=np.float32)[:, None]
    wave = 0.009 * h * smooth_noise(rng, (1, w), (1, 6)) + 0.4 * smooth_noise(
        rng, (1, w), (1, w // 6)
    )
    wave += float(rng.normal(0, 0.03)) * h * np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    depth_px = _log_uniform(rng, 0.1, 0.5) * h
    place = rng.random()
    if place < 0.42:
        inside = depth_px + wave - row
    elif place < 0.84:
        inside = row - (h - depth_px) - wave
    else:  # a band across the middle
        middle = float(rng.uniform(0.35, 0.65)) * h
        inside = 0.4 * depth_px - np.abs(row - middle - wave)
    alpha = np.clip(inside / 2.0 + 0.5, 0, 1).astype(np.float32)
    step = np.exp(-np.square((inside - 2) / 2.0)) * np.float32(rng.uniform(-0.15, 0.2))
    gain = float(rng.uniform(1.12, 1.4) if rng.random() < 0.85 else rng.uniform(0.72, 0.86))
    coarse = grinding_lines(rng, (h, w), contrast=float(rng.uniform(1.5, 2.4)), glitter=0.35)
    brightness = surface.shade * (gain + step) * (1 + 0.5 * surface.texture + coarse)
    return DefectLayer(alpha, np.maximum(brightness, 0).astype(np.float32))


_PAINTERS: Final[Mapping[str, Callable[[np.random.Generator, Surface], DefectLayer]]] = (
    MappingProxyType(
        {
            "blowhole": _blowhole,
            "break": _break,
            "crack": _crack,
            "fray": _fray,
            "uneven": _uneven,
        }
    )
)

DRAWN_LABELS: Final[tuple[str, ...]] = tuple(_PAINTERS)
"""Defect classes that can be drawn."""


def _matte(
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


def _blob(
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


def _filled(size_hw: tuple[int, ...], outline: NDArray[np.float32], *, blur: float) -> FloatImage:
    """Return the inside of an outline, (H, W) float32 in [0, 1], with an edge of about 1 px."""
    canvas = np.zeros(size_hw, dtype=np.uint8)
    points = np.round(outline * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    soft = cv2.GaussianBlur(canvas, (5, 5), blur)
    return as_float(as_float(soft) / 255)


def _stroke(canvas: NDArray[np.uint8], path: NDArray[np.float64], width_px: float) -> None:
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


def _crack_path(
    rng: np.random.Generator, surface: Surface, length_px: float
) -> NDArray[np.float64]:
    """Return a crack from an end of the tile, or within it, mostly along the grinding lines."""
    h = surface.shade.shape[0]
    x, y = _point_inside(rng, surface, margin_px=12)
    heading = float(rng.normal(np.pi / 2, 0.25 if rng.random() < 0.7 else 0.8))
    start = rng.random()
    if start < 0.4:
        y = float(surface.inset_px[1])
    elif start < 0.75:
        y, heading = float(h - 1 - surface.inset_px[3]), -heading
    else:
        y = min(y, max(12.0, h - 12 - length_px))
    return _walk(rng, np.array([x, y]), heading, length_px)


def _walk(
    rng: np.random.Generator, start_xy: NDArray[np.float64], heading: float, length_px: float
) -> NDArray[np.float64]:
    """Return a wandering line, (n, 2) float64 of (x, y), in steps of 4 px."""
    count = max(4, int(length_px / 4))
    bend = rng.normal(rng.normal(0, 0.012), 0.09, count)
    angle = heading + np.cumsum(bend) + rng.normal(0, 0.2, count)
    steps = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([start_xy[None, :], start_xy + np.cumsum(steps, axis=0)])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _point_inside(
    rng: np.random.Generator, surface: Surface, margin_px: int
) -> tuple[float, float]:
    """Return a point (x, y) at least `margin_px` from the tile's edges, or its centre."""
    h, w = surface.shade.shape
    left, top, right, bottom = (side + margin_px for side in surface.inset_px)
    u, v = rng.random(), rng.random()
    return left + u * max(0, w - left - right), top + v * max(0, h - top - bottom)


def _point_on_edge(
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
