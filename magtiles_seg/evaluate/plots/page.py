"""An evaluation as one self-contained HTML page: figures, curves, confusion, the worst pictures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from magtiles_seg.evaluate.calibration import reliability
from magtiles_seg.evaluate.plots.charts import WIDTH_PX, line_chart, matrix_chart
from magtiles_seg.evaluate.plots.curves import curves
from magtiles_seg.evaluate.plots.gallery import LEGEND, Gallery
from magtiles_seg.evaluate.report import EvaluationResult
from magtiles_seg.files import write
from magtiles_seg.labels import FREE
from magtiles_seg.names import counted

_CURVES = {
    "precision_recall": ("Pixels, precision and recall", "recall", "precision"),
    "roc": ("Pictures, found and falsely rejected", "false_reject_rate", "recall"),
    "thresholds": ("Pooled Dice by pixel threshold", "threshold", "dice"),
}
_MOST_CLASSES = 16  # more cells cannot be read

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1.5em auto; max-width: 75em; padding: 0 1em }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
td, th {{ padding: .25em .7em; border-bottom: 1px solid #8885; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
.charts {{ display: flex; flex-wrap: wrap; gap: 1em }}
.charts img {{ width: {width}px; max-width: 100%; height: auto; background: #fff }}
figure {{ margin: 0 0 2em }} figure img {{ max-width: 100%; border: 1px solid #8888 }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def charts(result: EvaluationResult) -> dict[str, bytes]:
    """Return the charts as PNG files by name; one without a point is left out.

    They are `precision_recall`, `roc`, `thresholds`, `reliability_pictures` and `confusion`.
    """
    records, rows = result.records, curves(result)
    found: dict[str, bytes | None] = {}
    for name, (title, x, y) in _CURVES.items():
        line = [(row[x], row[y]) for row in rows[name]]
        found[name] = line_chart(title, {"": line}, x_label=x.replace("_", " "), y_label=y)
    cells, error = reliability(records.score, ~records.is_defect, records.is_defect)
    lines = {
        "says true": [(0.0, 0.0), (1.0, 1.0)],
        "pictures": [(cell["confidence"], cell["observed"]) for cell in cells],
    }
    title = f"Reliability of pictures (ECE {error:.3f})"
    found["reliability_pictures"] = line_chart(
        title, lines, x_label="confidence", y_label="observed"
    )
    if len(records.labels) <= _MOST_CLASSES:
        names = [str(label) for label in records.labels]
        found["confusion"] = matrix_chart(
            "Pixels, truth (rows) and prediction, share of the row",
            records.confusion.sum(axis=0),
            names,
        )
    return {name: png for name, png in found.items() if png is not None}


def save_page(
    result: EvaluationResult,
    directory: Path,
    *,
    worst: Gallery | None = None,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the charts as `charts/*.png`, the worst pictures, and all of it as `report.html`.

    Args:
        result: The evaluation.
        directory: Where to write; made when missing.
        worst: Pictures to show, written as PNG into `triptychs` too; None or empty shows none.
        more: Further charts, PNG by name, which are on disk already.

    Returns:
        Path of the page. It asks for no other file.
    """
    drawn = charts(result)
    for name, png in drawn.items():
        write(directory / "charts" / f"{name}.png", png)
    images = "\n".join(_image(png, name) for name, png in {**(more or {}), **drawn}.items())
    title = f"Evaluation, protocol {result.protocol.name}"
    parts = [_about(result), _figures(result), "<h2>Curves</h2>"]
    parts += [
        f'<div class="charts">{images}</div>',
        "<h2>Verdicts by class</h2>",
        _verdicts(result),
    ]
    if worst is not None and worst.figures():
        worst.save(directory / "triptychs", title="Worst pictures", lead="The lowest Dice first.")
        parts += ["<h2>Worst pictures</h2>", f"<p>Picture, truth, prediction ({LEGEND}).</p>"]
        parts += [
            f"<figure><figcaption>{place}. {escape(caption)}</figcaption>"
            f"{_image(png, name)}</figure>"
            for place, (name, caption, png) in enumerate(worst.figures(), start=1)
        ]
    text = _PAGE.format(title=escape(title), width=WIDTH_PX, body="\n".join(parts))
    page = directory / "report.html"
    write(page, text)
    return page


def _image(png: bytes, name: str) -> str:
    data = b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(name)}">'


def _about(result: EvaluationResult) -> str:
    tiles = len(np.unique(result.records.group))
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    summary = result.protocol.summary
    scored = f"{counted(len(result.records), 'picture')} of {counted(tiles, 'tile')}"
    about = f"{summary[:1].upper()}{summary[1:]}: {scored}."
    return f"<p>{escape(about)}</p><ul>{notes}</ul>"


def _figures(result: EvaluationResult) -> str:
    rows = []
    for name, value in result.figures.items():
        if np.isnan(value):
            continue
        low, high = result.intervals.get(name, (np.nan, np.nan))
        span = "" if np.isnan(low) or np.isnan(high) else f"{low:.3f} to {high:.3f}"
        rows.append((name, f"{value:.3f}", span))
    return _table(("figure", "value", "95 % interval"), rows)


def _verdicts(result: EvaluationResult) -> str:
    """Return how many pictures of each class were accepted, reviewed and rejected."""
    records = result.records
    verdicts = ("accept", "review", "reject")
    rows = []
    for index, name in enumerate([FREE, *map(str, records.labels[1:])]):
        mine = records.verdict[records.label == index]
        if mine.size:
            rows.append((name, *(str(int((mine == verdict).sum())) for verdict in verdicts)))
    return _table(("class", *verdicts), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
