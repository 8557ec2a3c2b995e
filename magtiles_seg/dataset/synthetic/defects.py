"""Draws the five classes of defect into a sound surface, each with its exact region.

Sizes and contrasts follow the public magnetic-tile pictures: a blowhole is a pit of 45 to 250 px, a
crack a dark line of 1 to 4 px, a break a chip at an edge or a slash, a fray a matte patch that the
grinder never reached or a worn edge, and uneven a zone of coarser, mostly brighter lines.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.synthetic.shapes import (
    DefectLayer,
    blob,
    filled,
    log_uniform,
    matte,
    point_inside,
    point_on_edge,
    stroke,
    walk,
)
from magtiles_seg.dataset.synthetic.textures import (
    FloatImage,
    Surface,
    as_float,
    grinding_lines,
    smooth_noise,
)


def draw_defect(rng: np.random.Generator, surface: Surface, label: str) -> DefectLayer:
    """Draw one defect of the class `label`; it never reaches beyond the tile's body."""
    layer = _PAINTERS[label](rng, surface)
    return DefectLayer(alpha=layer.alpha * surface.body, brightness=layer.brightness)


def _blowhole(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    area_px = log_uniform(rng, 45, 210)
    centre = point_inside(rng, surface, margin_px=9)
    stretch = float(rng.uniform(1.0, 2.6))
    shape = blob(rng, centre, area_px, stretch=stretch, roughness=0.14)
    alpha = filled(surface.shade.shape, shape, blur=0.6)
    core = as_float(cv2.GaussianBlur(alpha, (7, 7), 1.8))
    depth = float(rng.uniform(0.38, 0.62))
    gain = as_float(depth * (0.85 + float(rng.uniform(0.0, 0.4)) * np.square(core)))
    return DefectLayer(alpha, matte(rng, surface, gain, contrast=0.05, lines=0.2))


def _crack(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    length_px = min(log_uniform(rng, 32, 210), 0.85 * h)
    path = _crack_path(rng, surface, length_px)
    width_px = float(rng.uniform(1.2, 3.0))
    zone, core = np.zeros((h, w), dtype=np.uint8), np.zeros((h, w), dtype=np.uint8)
    branches = [(path, width_px), (path[: len(path) // 2], width_px + 0.8)]
    if length_px > 70 and rng.random() < 0.4:
        fork = len(path) // 2
        ahead = path[fork + 1] - path[fork]
        heading = float(np.arctan2(ahead[1], ahead[0]) + rng.choice([-0.7, 0.7]))
        branches.append((walk(rng, path[fork], heading, 0.3 * length_px), max(1.0, width_px - 1)))
    for branch, branch_px in branches:
        stroke(core, branch, branch_px)
        stroke(zone, branch, branch_px + 1.8)
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
        area_px = log_uniform(rng, 90, 400)
        shape = blob(
            rng, point_inside(rng, surface, margin_px=14), area_px, stretch=4.0, roughness=0.06
        )
    else:  # a chip at an edge or a corner, half or three quarters of it off the tile
        share = 0.03 if kind < 0.8 else 0.2
        area_px = log_uniform(rng, 150, max(200.0, share * h * w))
        corner = rng.random() < 0.45
        centre = point_on_edge(rng, surface, corner=corner)
        stretch = float(rng.uniform(1.0, 1.8))
        whole_px = area_px * (4 if corner else 2)
        shape = blob(rng, centre, whole_px, stretch=stretch, roughness=0.13)
    alpha = filled((h, w), shape, blur=0.6)
    bright = rng.random() < 0.15
    gain = float(rng.uniform(1.2, 1.6) if bright else rng.uniform(0.4, 0.75))
    relief = gain * (1 + 0.09 * smooth_noise(rng, (h, w), (2 + h // 25, 2 + w // 25)))
    relief *= 1 - _lit_edge(rng, alpha)
    return DefectLayer(alpha, matte(rng, surface, relief, contrast=0.05, lines=0.1))


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
        area_px = log_uniform(rng, 0.05, 0.33) * h * w
        centre = (w * float(rng.uniform(0.35, 0.65)), h * float(rng.uniform(0.35, 0.65)))
        shape = blob(rng, centre, area_px, stretch=float(rng.uniform(1, 1.5)), roughness=0.05)
    else:  # worn away at an edge
        area_px = max(170.0, log_uniform(rng, 0.006, 0.05) * h * w)
        centre = point_on_edge(rng, surface, corner=rng.random() < 0.5, ends_only=True)
        stretch = float(rng.uniform(1.3, 3))
        shape = blob(rng, centre, 3 * area_px, stretch=stretch, roughness=0.12, turn=0.0)
    alpha = filled((h, w), shape, blur=0.8)
    gain = float(rng.uniform(0.58, 0.78)) * (1 + 0.05 * smooth_noise(rng, (h, w), (5, 5)))
    return DefectLayer(alpha, matte(rng, surface, gain, contrast=0.035, lines=0.08, flatness=0.6))


def _uneven(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    row = np.arange(h, dtype=np.float32)[:, None]
    wave = 0.009 * h * smooth_noise(rng, (1, w), (1, 6)) + 0.4 * smooth_noise(
        rng, (1, w), (1, w // 6)
    )
    wave += float(rng.normal(0, 0.03)) * h * np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    depth_px = log_uniform(rng, 0.1, 0.5) * h
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


_PAINTERS = {
    "blowhole": _blowhole,
    "break": _break,
    "crack": _crack,
    "fray": _fray,
    "uneven": _uneven,
}

DRAWN_LABELS = tuple(_PAINTERS)
"""Defect classes that can be drawn."""


def _crack_path(
    rng: np.random.Generator, surface: Surface, length_px: float
) -> NDArray[np.float64]:
    """Return a crack from an end of the tile, or within it, mostly along the grinding lines."""
    h = surface.shade.shape[0]
    x, y = point_inside(rng, surface, margin_px=12)
    heading = float(rng.normal(np.pi / 2, 0.25 if rng.random() < 0.7 else 0.8))
    start = rng.random()
    if start < 0.4:
        y = float(surface.inset_px[1])
    elif start < 0.75:
        y, heading = float(h - 1 - surface.inset_px[3]), -heading
    else:
        y = min(y, max(12.0, h - 12 - length_px))
    return walk(rng, np.array([x, y]), heading, length_px)
