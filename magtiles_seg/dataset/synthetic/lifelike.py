"""Draws the defects of a synthetic tile as the public pictures show them.

A crack is thin, very dark, jagged and tapered; a break is a shell with a dark rim and the ripples
of brittle fracture, or a slash; uneven grinding ends line by line. Blowholes and frays are those of
`defects`, whose other painters training draws from: its figures were measured with them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.dataset.synthetic.defects import draw_defect
from magtiles_seg.dataset.synthetic.shapes import (
    DefectLayer,
    blob,
    filled,
    log_uniform,
    matte,
    point_inside,
    point_on_edge,
    stroke,
)
from magtiles_seg.dataset.synthetic.textures import (
    FloatImage,
    Surface,
    as_float,
    grinding_lines,
    smooth_noise,
)


def draw_lifelike(rng: np.random.Generator, surface: Surface, label: str) -> DefectLayer:
    """Draw one defect of the class `label`; it never reaches beyond the tile's body."""
    painter = _PAINTERS.get(label)
    if painter is None:
        return draw_defect(rng, surface, label)
    layer = painter(rng, surface)
    return DefectLayer(alpha=layer.alpha * surface.body, brightness=layer.brightness)


def _crack(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    length_px = min(log_uniform(rng, 36, 210), 0.85 * h)
    widest_px = float(rng.uniform(1.6, 3.4))
    path = _crack_path(rng, surface, length_px)
    along = np.linspace(0, 1, len(path) - 1)
    taper = np.clip(1.15 - along**2, 0.3, 1) * np.exp(rng.normal(0, 0.18, along.size))
    zone, core = np.zeros((h, w), dtype=np.uint8), np.zeros((h, w), dtype=np.uint8)
    for index, share in enumerate(taper.tolist()):
        piece, width_px = path[index : index + 2], max(1.0, widest_px * share)
        stroke(core, piece, width_px)
        stroke(zone, piece, width_px + 1.8)
    dark = as_float(cv2.GaussianBlur(core, (3, 3), 0.55)) / 255
    depth = float(rng.uniform(0.6, 0.8))
    sound = surface.shade * (1 + surface.texture)
    alpha = as_float(as_float(cv2.GaussianBlur(zone, (3, 3), 0.5)) / 255)
    return DefectLayer(alpha, as_float(sound * (0.95 - depth * dark)))


def _crack_path(
    rng: np.random.Generator, surface: Surface, length_px: float
) -> NDArray[np.float64]:
    """Return a jagged line, (n, 2) float64 of (x, y) in 3 px steps, mostly from an end inwards."""
    h, w = surface.shade.shape
    x, y = point_inside(rng, surface, margin_px=max(12, w // 8))
    heading = float(rng.normal(np.pi / 2, 0.12 if rng.random() < 0.75 else 0.5))
    start = rng.random()
    if start < 0.45:
        y = float(surface.inset_px[1])
    elif start < 0.85:
        y, heading = float(h - 1 - surface.inset_px[3]), -heading
    else:
        y = min(y, max(12.0, h - 12 - length_px))
    count = max(6, int(length_px / 3))
    drift = np.cumsum(rng.normal(0, 0.05, count))
    angle = heading + drift + rng.normal(0, 0.32, count)
    steps = 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.cumsum(np.vstack([(x, y), steps]), axis=0)


def _break(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    return (_slash if rng.random() < 0.1 else _shell)(rng, surface)


def _slash(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    """Draw a slender gash inside the face, oblique, one flank lit."""
    area_px = log_uniform(rng, 200, 500)
    centre = point_inside(rng, surface, margin_px=28)
    turn = float(rng.uniform(0.5, 1.1)) * (1 if rng.random() < 0.5 else -1)
    shape = blob(rng, centre, area_px, stretch=3.5, roughness=0.16, turn=turn)
    alpha = filled(surface.shade.shape, shape, blur=0.6)
    gain = float(rng.uniform(0.4, 0.6)) * (1 - 0.35 * _slope(alpha, turn + np.pi / 2, 1.2))
    return DefectLayer(alpha, matte(rng, surface, as_float(gain), contrast=0.06, lines=0.1))


def _shell(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    """Draw a chip at a side, an end or a corner: rim, ripples around where it broke off."""
    h, w = surface.shade.shape
    corner = rng.random() < 0.45
    x, y = point_on_edge(rng, surface, corner=corner)
    on_side = min(x, w - 1 - x) < min(y, h - 1 - y)
    area_px = log_uniform(rng, 400, max(600.0, (0.02 if rng.random() < 0.7 else 0.06) * h * w))
    stretch = float(rng.uniform(2.0, 4.0) if on_side and not corner else rng.uniform(1.0, 1.6))
    turn = np.pi / 2 + float(rng.normal(0, 0.15))
    whole_px = area_px * (4 if corner else 2)
    shape = blob(rng, (x, y), whole_px, stretch=stretch, roughness=0.1, turn=turn)
    alpha = filled((h, w), shape, blur=0.6)
    gain = float(rng.uniform(1.05, 1.3) if rng.random() < 0.1 else rng.uniform(0.5, 0.75))
    relief = gain * (1 + _ripples(rng, (x, y), shape, (h, w)))
    relief *= 1 + 0.1 * smooth_noise(rng, (h, w), (2 + h // 25, 2 + w // 25))
    relief *= 1 - 0.8 * _rim(alpha) * float(rng.uniform(0.7, 1.0))
    relief *= 1 + 0.25 * _slope(alpha, float(rng.uniform(0, 2 * np.pi)), 2.0)
    return DefectLayer(alpha, matte(rng, surface, as_float(relief), contrast=0.09, lines=0.1))


def _ripples(
    rng: np.random.Generator,
    centre_xy: tuple[float, float],
    outline: NDArray[np.float32],
    size_hw: tuple[int, int],
) -> FloatImage:
    """Return the arcs of a brittle fracture around a point, (H, W) float32 around 0."""
    h, w = size_hw
    reach = np.maximum(np.abs(outline - np.asarray(centre_xy, np.float32)).max(axis=0), 4)
    x = (np.arange(w, dtype=np.float32) - np.float32(centre_xy[0])) / reach[0]
    y = (np.arange(h, dtype=np.float32) - np.float32(centre_xy[1])) / reach[1]
    radius = np.sqrt(np.square(x)[None, :] + np.square(y)[:, None])
    bent = radius + 0.06 * smooth_noise(rng, size_hw, (2 + h // 40, 2 + w // 40))
    waves = np.sin(bent * np.float32(rng.uniform(9, 18)) + np.float32(rng.uniform(0, 6.3)))
    return as_float(np.float32(rng.uniform(0.1, 0.2)) * waves)


def _rim(alpha: FloatImage) -> FloatImage:
    """Return where a layer ends, (H, W) float32 in [0, 1]: a line of about 2 px inside its edge."""
    inner = as_float(cv2.GaussianBlur(alpha, (9, 9), 1.6))
    return as_float(np.clip(2.2 * (1 - inner), 0, 1) * alpha)


def _slope(alpha: FloatImage, angle: float, sigma: float) -> FloatImage:
    """Return how a layer's edge faces a lamp, (H, W) float32 in [-1, 1]."""
    soft = as_float(cv2.GaussianBlur(alpha, (0, 0), sigma))
    slope_x = as_float(cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.5))
    slope_y = as_float(cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=0.5))
    return as_float(np.clip(np.cos(angle) * slope_x + np.sin(angle) * slope_y, -1, 1))


def _uneven(rng: np.random.Generator, surface: Surface) -> DefectLayer:
    h, w = surface.shade.shape
    row = np.arange(h, dtype=np.float32)[:, None]
    border = 0.006 * h * smooth_noise(rng, (1, w), (1, 5))
    border += np.float32(rng.uniform(0.4, 1.6)) * rng.standard_normal((1, w), dtype=np.float32)
    border += float(rng.normal(0, 0.02)) * h * np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    depth_px = log_uniform(rng, 0.12, 0.5) * h
    from_end = row if rng.random() < 0.5 else h - 1 - row
    inside = depth_px + border - from_end
    alpha = np.clip(inside / 1.6 + 0.5, 0, 1).astype(np.float32)
    gain = float(rng.uniform(1.1, 1.32) if rng.random() < 0.85 else rng.uniform(0.74, 0.88))
    coarse = grinding_lines(rng, (h, w), contrast=float(rng.uniform(1.4, 2.2)), glitter=0.4)
    coarse = as_float(np.expm1(2 * coarse) / 2)
    brightness = surface.shade * gain * (1 + 0.4 * surface.texture + coarse)
    return DefectLayer(alpha, np.maximum(brightness, 0).astype(np.float32))


_PAINTERS = {"break": _break, "crack": _crack, "uneven": _uneven}
