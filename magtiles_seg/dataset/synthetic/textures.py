"""Draws sound ground magnet surfaces: grinding lines, grain, curved shading, chamfers, stains.

The figures were fitted to the public magnetic-tile pictures: contrast of the fine texture 0.05 to
0.11 of the local brightness, correlation along the lines 0.74 at one pixel and 0.31 at 32, across
them 0.24 at one pixel and none at two; sides and ends darker than the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]

_SKEW: Final = 2.5
_BACKDROP: Final = 0.22  # brightness of what lies behind the tile, against the tile's mean


@dataclass(frozen=True, eq=False, kw_only=True)
class Surface:
    """One sound tile before it is photographed.

    Attributes:
        shade: (H, W) float32, slowly varying brightness, mean about 1.
        texture: (H, W) float32, relative grinding lines, grain and stains around 0.
        body: (H, W) float32 in [0, 1]: 1 on the tile, 0 on the backdrop, soft between.
        inset_px: Widths of the backdrop at the left, top, right and bottom.
    """

    shade: FloatImage
    texture: FloatImage
    body: FloatImage
    inset_px: tuple[int, int, int, int]


def draw_surface(rng: np.random.Generator, size_hw: tuple[int, int]) -> Surface:
    """Draw one sound tile; the generator's state decides everything about it."""
    body, inset_px = _outline(rng, size_hw)
    shade = _shading(rng, size_hw)
    shade *= _facets(rng, size_hw, inset_px)
    shade /= shade.mean()
    texture = grinding_lines(
        rng, size_hw, contrast=float(rng.uniform(0.65, 1.1)), glitter=0.8, patchy=0.2
    )
    texture = as_float(np.expm1(_SKEW * texture) / _SKEW)  # lines shine more than they darken
    texture += _mottle(rng, size_hw)
    texture -= _marks(rng, size_hw)
    np.maximum(texture, -0.9, out=texture)
    shade = as_float(_BACKDROP + body * (shade - _BACKDROP))
    return Surface(
        shade=shade, texture=texture * (0.25 + 0.75 * body), body=body, inset_px=inset_px
    )


def as_float(values: NDArray[Any]) -> FloatImage:
    """Return the values as float32: one precision throughout, whatever a scalar promoted to."""
    return np.asarray(values, dtype=np.float32)


def smooth_noise(
    rng: np.random.Generator, size_hw: tuple[int, int], knots_hw: tuple[int, int]
) -> FloatImage:
    """Return (H, W) float32 noise around 0: deviation about 1 at its knots, cubic between them."""
    knots = rng.standard_normal((max(1, knots_hw[0]), max(1, knots_hw[1])), dtype=np.float32)
    return resized(knots, size_hw, cv2.INTER_CUBIC)


def resized(image: FloatImage, size_hw: tuple[int, int], interpolation: int) -> FloatImage:
    """Return `image` at another size, (H, W) float32."""
    out = cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=interpolation)
    return as_float(out).reshape(size_hw)


def grain(rng: np.random.Generator, size_hw: tuple[int, int], contrast: float) -> FloatImage:
    """Return the isotropic grain of an unground, matte surface, (H, W) float32 around 0."""
    noise = rng.standard_normal(size_hw, dtype=np.float32)
    fine = as_float(cv2.GaussianBlur(noise, (3, 3), 0.6))
    return as_float(fine * np.float32(contrast / 0.55))


def grinding_lines(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    contrast: float,
    glitter: float = 1.0,
    patchy: float = 0.4,
) -> FloatImage:
    """Return vertical grinding lines with their glitter, (H, W) float32 around 0.

    Args:
        rng: Source of the pattern.
        size_hw: Size of the result.
        contrast: 1 is the median of the real pictures (a deviation of 0.07).
        glitter: Share of the fine grain among the lines; 1 is that of a sound surface.
        patchy: How much stronger the lines are here than there, as the deviation of a logarithm.
    """
    h, w = size_hw
    long = resized(
        rng.standard_normal((2 + h // 70, w), dtype=np.float32), size_hw, cv2.INTER_LINEAR
    )
    long += rng.standard_normal((1, w), dtype=np.float32) * np.float32(0.45)
    short = resized(
        rng.standard_normal((2 + h // 6, w), dtype=np.float32), size_hw, cv2.INTER_LINEAR
    )
    fine = as_float(cv2.blur(rng.standard_normal(size_hw, dtype=np.float32), (1, 2)))
    lines = 0.054 * long + 0.006 * np.square(long) - 0.006
    lines += 0.028 * short
    lines *= np.exp(patchy * smooth_noise(rng, size_hw, (3, 5)))
    lines += _bright_lines(rng, size_hw)
    lines += glitter * (0.073 + 0.2 * np.maximum(lines, 0)) * fine
    kernel = np.array([[0.12, 0.76, 0.12]], dtype=np.float32)
    blurred = as_float(cv2.filter2D(lines, -1, kernel))
    return as_float(blurred * np.float32(contrast))


def _bright_lines(rng: np.random.Generator, size_hw: tuple[int, int]) -> FloatImage:
    """Return the few columns that shine, each over its own part of the height."""
    h, w = size_hw
    knots = np.zeros((2 + h // 50, w), dtype=np.float32)
    count = int(rng.integers(w // 40, w // 12 + 2))
    columns = rng.integers(0, w, count)
    strength = rng.exponential(0.12, count).astype(np.float32)
    knots[:, columns] = strength * rng.random((knots.shape[0], count), dtype=np.float32)
    return resized(knots, size_hw, cv2.INTER_LINEAR)


def _shading(rng: np.random.Generator, size_hw: tuple[int, int]) -> FloatImage:
    """Return the light on a curved tile, (H, W) float32 about 1: bands, clouds and a glow below."""
    h, w = size_hw
    x = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    across = 0.11 * smooth_noise(rng, (1, w), (1, 6)) + 0.05 * smooth_noise(rng, (1, w), (1, 14))
    across -= np.float32(rng.uniform(0.0, 0.55)) * np.square(x - np.float32(rng.normal(0, 0.3)))
    along = np.float32(rng.normal(0.0, 0.05)) * y + 0.03 * smooth_noise(rng, (h, 1), (4, 1))
    clouds = 0.09 * smooth_noise(rng, size_hw, (4, 4)) + 0.03 * smooth_noise(rng, size_hw, (9, 9))
    centre, width = rng.normal(0, 0.35), rng.uniform(0.2, 0.6)
    glow = np.exp(-np.square((x - np.float32(centre)) / np.float32(width)))
    glow = glow * np.exp(-(1 - y) * np.float32(rng.uniform(2.0, 5.0)))
    light = np.exp(across + along + clouds) + np.float32(max(0.0, rng.uniform(-0.3, 0.18))) * glow
    return as_float(light)


def _facets(
    rng: np.random.Generator, size_hw: tuple[int, int], inset_px: tuple[int, int, int, int]
) -> FloatImage:
    """Return the factor of both sides, (1, W): a chamfer of another brightness or a fall-off."""
    w = size_hw[1]
    factor = np.ones(w, dtype=np.float32)
    distance = np.arange(w, dtype=np.float32)
    kind = rng.random()
    for depth in (distance - inset_px[0], (w - 1 - distance) - inset_px[2]):
        width = float(rng.uniform(0.03, 0.15)) * min(w, 350)
        if kind < 0.4:  # a chamfer: its own brightness behind a dark crease
            edge = 1 / (1 + np.exp(np.clip((depth - width) / 1.2, -30, 30)))
            crease = np.exp(-np.square((depth - width) / 2.5))
            factor *= 1 + edge * np.float32(rng.uniform(-0.35, 0.6)) - 0.25 * crease
        elif kind < 0.85:
            fall = np.exp(-np.square(np.maximum(depth, 0) / np.float32(1.5 * width)))
            factor *= 1 - np.float32(rng.uniform(0.2, 0.7)) * fall
    return factor[None, :]


def _outline(
    rng: np.random.Generator, size_hw: tuple[int, int]
) -> tuple[FloatImage, tuple[int, int, int, int]]:
    """Return the body of the tile, (H, W) in [0, 1], and its inset on each side."""
    h, w = size_hw
    x = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    column = np.arange(w, dtype=np.float32)[None, :]
    row = np.arange(h, dtype=np.float32)[:, None]
    body = np.ones(size_hw, dtype=np.float32)
    inset: list[int] = []
    for distance, bend, side in (
        (column, y, True),
        (row, x, False),
        (w - 1 - column, -y, True),
        (h - 1 - row, -x, False),
    ):
        scale = min(1.0, min(size_hw) / 200)
        limit = max(0.0, float(rng.normal(0.5 if side else -2.5, 3.0))) * scale
        tilt = float(rng.normal(0, 1.2)) * scale
        arc = 0.0 if side else float(rng.normal(0, 3.5)) * min(1.0, w / 300)
        border = limit - 0.8 + tilt * bend + np.float32(arc) * (np.square(bend) - 0.5)
        body *= np.clip((distance - border) / 2.2 + 0.5, 0, 1)
        inset.append(int(np.ceil(max(0.0, limit))))
    return body, (inset[0], inset[1], inset[2], inset[3])


def _marks(rng: np.random.Generator, size_hw: tuple[int, int]) -> FloatImage:
    """Return how much harmless marks darken the surface, (H, W) float32, mostly >= 0.

    Smudges, wisps of dirt that come and go along their way, specks, and now and then a bright
    scratch. None is as dark, as long and as unbroken as a crack.
    """
    h, w = size_hw
    wisps, shine = np.zeros(size_hw, dtype=np.float32), np.zeros(size_hw, dtype=np.float32)
    for _ in range(int(rng.poisson(h * w / 9000))):
        depth = float(rng.uniform(0.04, 0.16))
        cv2.polylines(wisps, [_wander(rng, size_hw)], False, depth, 1, cv2.LINE_8)
    for _ in range(int(rng.poisson(4.0))):
        speck = (int(rng.integers(0, w)), int(rng.integers(0, h)))
        cv2.circle(wisps, speck, int(rng.integers(0, 2)), float(rng.uniform(0.08, 0.2)), -1)
    come_and_go = smooth_noise(rng, size_hw, (2 + h // 6, 2 + w // 6))
    wisps *= np.clip(0.8 + 0.7 * come_and_go, 0, 1.4)
    marks = as_float(cv2.GaussianBlur(wisps, (5, 5), 0.8))
    if rng.random() < 0.12:
        cv2.polylines(shine, [_wander(rng, size_hw)], False, float(rng.uniform(0.15, 0.4)), 1)
        marks -= as_float(cv2.GaussianBlur(shine, (3, 3), 0.6))
    return marks + _smudges(rng, size_hw)


def _smudges(rng: np.random.Generator, size_hw: tuple[int, int]) -> FloatImage:
    """Return patches of dirt with frayed edges, (H, W) float32 >= 0, darkest about 0.2."""
    h, w = size_hw
    patches = np.zeros(((h + 7) // 8, (w + 7) // 8), dtype=np.float32)
    for _ in range(int(rng.poisson(1.5))):
        centre = (int(rng.integers(0, w) // 8), int(rng.integers(0, h) // 8))
        axes = (int(rng.integers(1, 7)), int(rng.integers(1, 7)))
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(patches, centre, axes, angle, 0, 360, float(rng.uniform(0.04, 0.15)), -1)
    soft = resized(as_float(cv2.GaussianBlur(patches, (5, 5), 1.2)), size_hw, cv2.INTER_CUBIC)
    ragged = smooth_noise(rng, size_hw, (2 + h // 14, 2 + w // 14))
    return as_float(np.maximum(soft, 0) * np.clip(0.8 + 0.3 * ragged, 0.2, 1.4))


def _mottle(rng: np.random.Generator, size_hw: tuple[int, int]) -> FloatImage:
    """Return the faint cloudiness of ferrite, without direction, (H, W) float32 around 0."""
    h, w = size_hw
    fine = as_float(cv2.GaussianBlur(rng.standard_normal(size_hw, dtype=np.float32), (5, 5), 1.1))
    coarse = smooth_noise(rng, size_hw, (2 + h // 9, 2 + w // 9))
    where = np.exp(0.5 * smooth_noise(rng, size_hw, (3, 4)))
    return as_float(where * (0.028 * fine + 0.009 * coarse))


def _wander(rng: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Return a gently curling path of points (x, y), (n, 2) int32."""
    count = int(rng.integers(4, 18))
    bend = rng.normal(rng.normal(0, 0.15), 0.3, count)
    turn = np.cumsum(bend) + rng.uniform(0, 2 * np.pi)
    step = rng.uniform(2, 4)
    start = rng.uniform((0, 0), (size_hw[1], size_hw[0]))
    points = start + step * np.cumsum(np.stack([np.cos(turn), np.sin(turn)], axis=1), axis=0)
    return np.round(points).astype(np.int32)
