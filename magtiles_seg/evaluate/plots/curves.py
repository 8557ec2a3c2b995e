"""An evaluation as files: figures that two runs are compared by, and the data of their curves."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from magtiles_seg.evaluate.decide import threshold_counts
from magtiles_seg.evaluate.metrics import BINS, AnyArray, dice, iou, ratio
from magtiles_seg.evaluate.report import EvaluationResult
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.files import write, write_json
from magtiles_seg.labels import FREE

Rows: TypeAlias = list[dict[str, Any]]


def save(result: EvaluationResult, directory: Path) -> None:
    """Write `metrics.json`, `pictures.csv`, `report.md` and `plots/*.csv`, to compare runs by.

    Args:
        result: The evaluation.
        directory: Where to write; made when missing.
    """
    plots = directory / "plots"
    for name, rows in curves(result).items():
        write_csv(plots / f"{name}.csv", rows)
    write_csv(directory / "pictures.csv", pictures(result.records))
    write(directory / "report.md", result.to_markdown())
    write_json(directory / "metrics.json", metrics(result))


def metrics(result: EvaluationResult) -> dict[str, Any]:
    """Return the figures by name, each class's IoU, and the intervals; NaN is left out.

    Returns:
        JSON values. Intervals stand in lists, which DVC's tables leave out.
    """
    return {
        "protocol": result.protocol.name,
        "split_rule": result.protocol.split_rule,
        "leaky_split": result.protocol.leaky,
        "pictures": len(result.records),
        "tiles": len(np.unique(result.records.group)),
        **_known(result.figures),
        **_known(result.tile_verdicts.figures if result.tile_verdicts else {}),
        "iou_by_class": _known(
            {row["class"]: row.get("iou", math.nan) for row in result.per_class}
        ),
        "interval_95": {
            name: list(limits)
            for name, limits in result.intervals.items()
            if not any(map(math.isnan, limits))
        },
    }


def pictures(records: Records) -> Rows:
    """Return a row per picture, in order of id: what a paired comparison of two runs needs."""
    names = [FREE, *records.labels[1:]]
    return [
        {
            "picture": str(records.ids[row]),
            "class": str(names[records.label[row]]),
            "tile": int(records.group[row]),
            **dict(zip(("tp", "fp", "fn", "tn"), records.counts[row].tolist(), strict=True)),
            "score": float(records.score[row]),
            "verdict": str(records.verdict[row]),
        }
        for row in np.argsort(records.ids, kind="stable")
    ]


def curves(result: EvaluationResult) -> dict[str, Rows]:
    """Return the rows of each curve: `precision_recall`, `thresholds`, `roc`, `classes`."""
    counts = threshold_counts(result.records.histogram.sum(0, dtype=np.int64))
    thresholds = np.arange(BINS) / BINS
    tp, fp, fn = counts[:, 0], counts[:, 1], counts[:, 2]
    precision = ratio(tp, tp + fp, empty=1.0)
    recall = ratio(tp, tp + fn, empty=1.0)
    names = ("class", "pictures", "tiles", "iou", "dice", "picture_dice")
    return {
        "precision_recall": _rows(threshold=thresholds, recall=recall, precision=precision),
        "thresholds": _rows(threshold=thresholds, dice=dice(counts), iou=iou(counts)),
        "roc": _roc(result.records),
        "classes": [
            {name: row[name] for name in names} for row in result.per_class if "iou" in row
        ],
    }


def _roc(records: Records) -> Rows:
    """Return one row a distinct score, highest first: what a reject score there would do."""
    scores = np.unique(records.score)[::-1]
    defect = np.sort(records.score[records.is_defect])
    sound = np.sort(records.score[~records.is_defect])

    def rejected(part: AnyArray) -> AnyArray:
        above = part.size - np.searchsorted(part, scores)
        return ratio(above, np.asarray(part.size), empty=0.0)

    return _rows(reject_score=scores, false_reject_rate=rejected(sound), recall=rejected(defect))


def _rows(**columns: Any) -> Rows:  # noqa: ANN401  ((R,) float64 each)
    rounded = [np.round(np.asarray(column, np.float64), 6).tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*rounded, strict=True)]


def _known(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as a CSV file."""
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())
