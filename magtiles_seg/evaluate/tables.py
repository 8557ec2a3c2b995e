"""An evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_CLASS_COLUMNS = ("iou", "dice", "picture_dice", "class_iou", "micro_iou", "rejected")
_FOLD_COLUMNS = ("iou", "dice", "macro_picture_dice", "miou6", "auroc", "false_reject_at_95_recall")


def to_markdown(content: Mapping[str, Any]) -> str:
    """Lay out what `EvaluationResult.to_dict` gives: figures, classes, folds and notes.

    Args:
        content: The result as plain values; None is a figure without meaning.

    Returns:
        Markdown text, ending in a line feed.
    """
    parts = [
        f"## Protocol {content['protocol']}: {content['summary']}",
        f"{content['pictures']} pictures of {content['tiles']} tiles, mask rule "
        f"{content['mask_rule']}; 95 % bootstrap intervals over tiles.",
        _figure_table(content),
        _class_table(content["per_class"]),
        _fold_table(content.get("by_fold", {})),
        "".join(f"- {note}\n" for note in content["notes"]),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _figure_table(content: Mapping[str, Any]) -> str:
    variants = content["variants"]
    header = ["figure", "value", *(variant["meaning"] for variant in variants.values())]
    columns = [
        (content["figures"], content["intervals_95"]),
        *((variant["figures"], variant["intervals"]) for variant in variants.values()),
    ]
    rows = [
        [name, *(_cell(values[name], ranges.get(name)) for values, ranges in columns)]
        for name in content["figures"]
    ]
    return table(header, rows)


def _class_table(per_class: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            row["class"],
            str(row["pictures"]),
            str(row["tiles"]),
            *(_cell(row.get(name), row["intervals"].get(name)) for name in _CLASS_COLUMNS),
        ]
        for row in per_class
    ]
    return table(["class", "pictures", "tiles", *_CLASS_COLUMNS], rows)


def _fold_table(by_fold: Mapping[str, Mapping[str, float | None]]) -> str:
    names = [name for name in _FOLD_COLUMNS if any(name in row for row in by_fold.values())]
    rows = [
        [fold, *(_cell(figures[name], None) for name in names)] for fold, figures in by_fold.items()
    ]
    return table(["fold", *names], rows) if rows else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; its first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | None, limits: Sequence[float | None] | None) -> str:
    if value is None:
        return "–"
    if not limits or limits[0] is None or limits[1] is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({limits[0]:.3f}–{limits[1]:.3f})"
