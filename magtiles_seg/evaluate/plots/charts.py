"""Curves as small PNG pictures, which every forge and mail program shows; no plotting package."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magtiles_seg.marking import mark_png

Points = Sequence[tuple[float, float]]

WIDTH_PX, HEIGHT_PX = 360, 240
"""Size at which a chart is meant to be shown; its file has twice as many pixels each way."""

_DENSITY = 2  # of the file: sharp on a phone
_SMOOTH = 2  # drawn so much larger, then reduced: lines without steps
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 48, 12, 44, 36
_COLORS = ("#8a8f98", "#0b6bcb", "#c2410c")
"""The older model's line is grey. All are readable on white and for the colour-blind."""
_TEXT, _GRID, _FRAME = "#1f2328", "#e5e7eb", "#555555"


@dataclass(frozen=True)
class Axis:
    """The range of an axis and where its values stand.

    Attributes:
        low: Least value.
        high: Greatest value.
        start_px: Where `low` is drawn.
        end_px: Where `high` is drawn.
    """

    low: float
    high: float
    start_px: float
    end_px: float

    def place(self, value: float) -> float:
        """Return where a value is drawn, in px."""
        share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self) -> list[float]:
        """Return four to seven round values within the range."""
        raw = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(raw))
        step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(size - raw))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]


class _Canvas:
    """A white picture that is drawn on in the px of its shown size."""

    def __init__(self) -> None:
        self._scale = _DENSITY * _SMOOTH
        size = (WIDTH_PX * self._scale, HEIGHT_PX * self._scale)
        self._image = Image.new("RGB", size, "white")
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: Points, color: str, width_px: float) -> None:
        """Draw a line through points (x, y); a single one is a dot."""
        scale, width = self._scale, max(1, round(width_px * self._scale))
        scaled = [(x * scale, y * scale) for x, y in points]
        if len(scaled) == 1:
            self._draw.circle(scaled[0], 1.5 * width, fill=color)
        elif scaled:
            self._draw.line(scaled, fill=color, width=width, joint="curve")

    def text(
        self, at: tuple[float, float], text: str, *, anchor: str, size_px: float = 11, color: str
    ) -> None:
        """Write a text; `anchor` is Pillow's, as `ms`: middle of the base line."""
        font = ImageFont.load_default(size_px * self._scale)
        x, y = at
        self._draw.text(
            (x * self._scale, y * self._scale), text, fill=color, font=font, anchor=anchor
        )

    def box(self, sides: tuple[float, float, float, float], color: str) -> None:
        """Fill a rectangle: left, top, right, bottom."""
        self._draw.rectangle([side * self._scale for side in sides], fill=color)

    def upright_text(self, at: tuple[float, float], text: str) -> None:
        """Write a text from bottom to top; `at` is its middle."""
        font = ImageFont.load_default(11 * self._scale)
        left, top, right, bottom = map(math.ceil, font.getbbox(text))
        patch = Image.new("RGB", (right - left, bottom - top), "white")
        ImageDraw.Draw(patch).text((-left, -top), text, fill=_TEXT, font=font)
        turned = patch.rotate(90, expand=True)
        x, y = (round(value * self._scale) for value in at)
        self._image.paste(turned, (x - turned.width // 2, y - turned.height // 2))

    def png(self) -> bytes:
        """Return the picture as a PNG file."""
        size = (WIDTH_PX * _DENSITY, HEIGHT_PX * _DENSITY)
        buffer = io.BytesIO()
        reduced = self._image.resize(size, Image.Resampling.LANCZOS)
        reduced.quantize(64).save(buffer, "PNG", optimize=True)
        return mark_png(buffer.getvalue())


def line_chart(
    title: str, lines: Mapping[str, Points], *, x_label: str, y_label: str
) -> bytes | None:
    """Draw lines over one pair of axes.

    Args:
        title: Stands over the chart.
        lines: (x, y) points by the line's name; at most three lines.
        x_label: What x is.
        y_label: What y is.

    Returns:
        A PNG file of twice `WIDTH_PX` by twice `HEIGHT_PX`; None where there is no point.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        return None
    x_axis = _axis([x for x, _ in points], _LEFT_PX, WIDTH_PX - _RIGHT_PX)
    y_axis = _axis([y for _, y in points], HEIGHT_PX - _BOTTOM_PX, _TOP_PX)
    canvas = _Canvas()
    canvas.text((_LEFT_PX, 17), title, anchor="ls", size_px=13, color=_TEXT)
    _draw_grid(canvas, x_axis, y_axis, x_label, y_label)
    for index, (name, line) in enumerate(lines.items()):
        color = _COLORS[index % len(_COLORS)]
        canvas.line([(x_axis.place(x), y_axis.place(y)) for x, y in line], color, 2)
        canvas.text((_LEFT_PX + 100 * index, 34), name, anchor="ls", color=color)
    return canvas.png()


def matrix_chart(title: str, counts: NDArray[np.int64], names: Sequence[str]) -> bytes | None:
    """Draw a confusion matrix, each row as shares of its sum.

    Args:
        title: Stands over the chart.
        counts: (K, K) int64, row = truth, column = prediction.
        names: Of rows and columns.

    Returns:
        A PNG file of twice `WIDTH_PX` by twice `HEIGHT_PX`; None where nothing was counted.
    """
    if not counts.any():
        return None
    canvas = _Canvas()
    canvas.text((12, 17), title, anchor="ls", size_px=12, color=_TEXT)
    left, top = 84.0, 48.0
    wide, high = (WIDTH_PX - left - 8) / len(names), (HEIGHT_PX - top - 8) / len(names)
    sums = counts.sum(axis=1)
    for row, name in enumerate(names):
        y = top + row * high
        canvas.text((left - 6, y + high / 2), name, anchor="rm", color=_TEXT)
        at = (left + (row + 0.5) * wide, top - 6)
        canvas.text(at, name[:10], anchor="ms", size_px=8, color=_TEXT)
        for column in range(len(names)):
            share = float(counts[row, column] / sums[row]) if sums[row] else 0.0
            shade = tuple(round(255 + share * (tone - 255)) for tone in (11, 107, 203))
            x = left + column * wide
            canvas.box((x, y, x + wide - 1, y + high - 1), "#{:02x}{:02x}{:02x}".format(*shade))
            if sums[row]:
                ink = "#ffffff" if share > 0.5 else _TEXT
                at = (x + wide / 2, y + high / 2)
                canvas.text(at, f"{share:.2f}", anchor="mm", size_px=10, color=ink)
    return canvas.png()


def read_points(table: str | None, x: str, y: str) -> Points:
    """Return two columns of a CSV or TSV text as points; what is no number is left out."""
    if not table:
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(table), delimiter="\t" if "\t" in table else ","))
    except csv.Error:  # a damaged file
        return []
    points = []
    for row in rows:
        try:
            point = float(row[x]), float(row[y])
        except (KeyError, TypeError, ValueError):
            continue
        if all(map(math.isfinite, point)):
            points.append(point)
    return points


def _axis(values: Sequence[float], start_px: float, end_px: float) -> Axis:
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and high > 0.3:
        low, high = 0.0, 1.0
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    return Axis(low, high, start_px, end_px)


def _draw_grid(canvas: _Canvas, x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> None:
    left, right = x_axis.start_px, x_axis.end_px
    bottom, top = y_axis.start_px, y_axis.end_px
    for value in y_axis.ticks():
        y = y_axis.place(value)
        canvas.line([(left, y), (right, y)], _GRID, 1)
        canvas.text((left - 5, y), f"{value:g}", anchor="rm", color=_TEXT)
    for value in x_axis.ticks():
        canvas.text((x_axis.place(value), bottom + 5), f"{value:g}", anchor="ma", color=_TEXT)
    canvas.line([(left, top), (left, bottom), (right, bottom)], _FRAME, 1)
    canvas.text(((left + right) / 2, HEIGHT_PX - 6), x_label, anchor="ms", color=_TEXT)
    canvas.upright_text((10, (top + bottom) / 2), y_label)
