"""Curves as small SVG pictures: text that any browser and forge draws, and no plotting package."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH_PX, _HEIGHT_PX = 360, 240
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 48, 12, 40, 36
_COLORS = ("#8a8f98", "#0b6bcb", "#c2410c")
"""The older model's line is grey. All are readable on white and for the colour-blind."""


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


def line_chart(
    title: str, lines: Mapping[str, Points], *, x_label: str, y_label: str
) -> str | None:
    """Draw lines over one pair of axes.

    Args:
        title: Stands over the chart.
        lines: (x, y) points by the line's name; at most three lines.
        x_label: What x is.
        y_label: What y is.

    Returns:
        An SVG document; None where there is no point.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        return None
    x_axis = _axis([x for x, _ in points], _LEFT_PX, _WIDTH_PX - _RIGHT_PX)
    y_axis = _axis([y for _, y in points], _HEIGHT_PX - _BOTTOM_PX, _TOP_PX)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH_PX}" height="{_HEIGHT_PX}" '
        f'viewBox="0 0 {_WIDTH_PX} {_HEIGHT_PX}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH_PX}" height="{_HEIGHT_PX}" fill="white"/>',
        f'<text x="{_LEFT_PX}" y="14" font-size="13">{escape(title)}</text>',
        *_grid(x_axis, y_axis, x_label, y_label),
    ]
    for index, (name, line) in enumerate(lines.items()):
        color = _COLORS[index % len(_COLORS)]
        path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in line)
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>',
            f'<text x="{_LEFT_PX + 100 * index}" y="30" fill="{color}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def read_points(table: str | None, x: str, y: str) -> Points:
    """Return two columns of a CSV or TSV text as points; what is no number is left out."""
    if not table:
        return []
    rows = csv.DictReader(io.StringIO(table), delimiter="\t" if "\t" in table else ",")
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


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> list[str]:
    left, right = x_axis.start_px, x_axis.end_px
    bottom, top = y_axis.start_px, y_axis.end_px
    parts = []
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts += [
            f'<path d="M{left} {y:.1f}H{right}" stroke="#e5e7eb"/>',
            f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    for value in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>')
    middle = (top + bottom) / 2
    return [
        *parts,
        f'<path d="M{left} {top}V{bottom}H{right}" stroke="#555" fill="none"/>',
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 30}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
