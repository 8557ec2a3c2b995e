"""A benchmark's report as a table for people, and as a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from magtiles_seg.bench.run import BenchReport, BenchRow

_HEAD = (
    "| | threads | size | batch | p50 ms | p95 | p99 | pictures/s | MPix/s | x eager | x reference "
    "| own overhead | GFLOP/s | of sgemm | peak MiB |"
)
_BAR_PX, _ROW_PX, _TEXT_PX, _SIZE = 420, 26, 470, 14
_COLORS = {"candidate": "#2b6cb0", "eager": "#a0aec0", "reference": "#718096", "sgemm": "#e2e8f0"}


def as_markdown(report: BenchReport) -> str:
    """Return a heading that says where it was measured, and a table with a line per row.

    Its columns are aligned as text, too; one in which nothing was measured is left out.
    """
    cells = [[cell.strip() for cell in _HEAD.strip("|").split("|")], *map(_cells, report.rows)]
    columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        f"{report.architecture} ({report.model}), {report.machine}; {report.rounds} rounds in "
        f"turns, load {report.load:.1f}",
        "",
        *(_line(row, widths) for row in zip(*columns, strict=True)),
    ]
    rule = [f"-{'-' * width}{':' if number else '-'}" for number, width in enumerate(widths)]
    return "\n".join([*lines[:3], f"|{'|'.join(rule)}|", *lines[3:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of the table: names at the left, figures at the right."""
    first, *rest = zip(cells, widths, strict=True)
    figures = (f"{cell:>{width}}" for cell, width in rest)
    return f"| {' | '.join([f'{first[0]:<{first[1]}}', *figures])} |"


def _cells(row: BenchRow) -> tuple[str, ...]:
    of_case = row.mpix_s is not None
    return (
        row.name,
        str(row.threads),
        f"{row.height_px}x{row.width_px}" if of_case else "",
        str(row.batch) if of_case else "",
        f"{row.p50_ms:.1f}",
        f"{row.p95_ms:.1f}",
        f"{row.p99_ms:.1f}",
        _number(row.pictures_s),
        _number(row.mpix_s),
        _number(row.times_eager, 2),
        _number(row.times_reference),
        "" if row.overhead_fraction is None else f"{row.overhead_fraction:.1%}",
        _number(row.gflop_s, 0),
        "" if row.gemm_fraction is None else f"{row.gemm_fraction:.0%}",
        _number(row.peak_mib, 0),
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def draw_chart(report: BenchReport) -> Image.Image:
    """Return a bar chart: median latency of each row, and a tick at its 99th percentile."""
    rows = [row for row in report.rows if row.kind != "sgemm"]
    longest = max(row.p99_ms for row in rows)
    size = (_TEXT_PX + _BAR_PX + 130, _ROW_PX * (len(rows) + 2))
    chart = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(chart), ImageFont.load_default(_SIZE)
    title = f"latency in ms, median (tick: 99th percentile) - {report.machine}"
    pen.text((8, 6), title, "black", font)
    for index, row in enumerate(rows):
        top = _ROW_PX * (index + 1) + 8
        end, tick = (_TEXT_PX + _BAR_PX * ms / longest for ms in (row.p50_ms, row.p99_ms))
        where = f" {row.height_px}x{row.width_px} x{row.batch}" if row.mpix_s is not None else ""
        pen.text((8, top), f"{row.name}{where}, {row.threads} threads", "black", font)
        pen.rectangle((_TEXT_PX, top, end, top + _SIZE), _COLORS[row.kind])
        pen.line((end, top + _SIZE // 2, tick, top + _SIZE // 2), "black")
        pen.line((tick, top + 2, tick, top + _SIZE - 2), "black")
        pen.text((tick + 6, top), f"{row.p50_ms:.1f}", "black", font)
    return chart
