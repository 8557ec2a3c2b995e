"""From rows of scored pictures to figures, bootstrap intervals, and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from magtiles_seg.evaluate.metrics import (
    AnyArray,
    FloatArray,
    auroc,
    bootstrap_weights,
    class_iou,
    dice,
    false_reject_rate,
    interval,
    iou,
    mean_iou,
    mean_of_known,
    micro_counts,
    miou2,
    pixel_accuracy,
    ratio,
)
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.evaluate.tiles import recall_steps, tile_figures
from magtiles_seg.labels import FREE
from magtiles_seg.names import counted

_CLASS_COLUMNS = ("iou", "dice", "picture_dice", "class_iou", "micro_iou", "rejected")
_FOLD_COLUMNS = (
    *("iou", "dice", "macro_picture_dice", "miou6", "auroc", "false_reject_at_95_recall"),
    *("tile_auroc", "tile_false_reject_at_95_recall"),
)


def to_markdown(content: Mapping[str, Any]) -> str:
    """Lay out what `EvaluationResult.to_dict` gives: figures, classes, folds and notes.

    Args:
        content: The result as plain values; None is a figure without meaning.

    Returns:
        Markdown text, ending in a line feed.
    """
    parts = [
        f"## Protocol {content['protocol']}: {content['summary']}",
        f"{counted(content['pictures'], 'picture')} of {counted(content['tiles'], 'tile')}, mask "
        f"rule {content['mask_rule']}; 95 % bootstrap intervals over tiles.",
        _figure_table(content),
        _class_table(content["per_class"]),
        _fold_table(content.get("by_fold", {})),
        _tile_section(content["tile_verdicts"], content["protocol"])
        if content.get("tile_verdicts")
        else "",
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
        [name, *(cell(values[name], ranges.get(name)) for values, ranges in columns)]
        for name in content["figures"]
    ]
    return table(header, rows)


def _class_table(per_class: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            row["class"],
            str(row["pictures"]),
            str(row["tiles"]),
            *(cell(row.get(name), row["intervals"].get(name)) for name in _CLASS_COLUMNS),
        ]
        for row in per_class
    ]
    return table(["class", "pictures", "tiles", *_CLASS_COLUMNS], rows) if rows else ""


def _fold_table(by_fold: Mapping[str, Mapping[str, float | None]]) -> str:
    names = [name for name in _FOLD_COLUMNS if any(name in row for row in by_fold.values())]
    rows = [
        [fold, *(cell(figures[name], None) for name in names)] for fold, figures in by_fold.items()
    ]
    return table(["fold", *names], rows) if rows else ""


def _tile_section(content: Mapping[str, Any], protocol: str) -> str:
    """Lay out what `TileVerdicts.to_dict` gives, beside a protocol's figures or as its own."""
    sound = content["tiles"] - content["defective"]
    named = {"T": "### Protocol T-tile: one verdict a tile\n\n", "T-tile": ""}
    head = named.get(protocol, "### One verdict a tile\n\n")  # T-tile is of T's split alone
    head += (
        f"Tiles: {content['defective']} defective, {sound} sound. A tile's score is the mean "
        "of the log odds of its pictures' scores; it is defective if any of its pictures is."
    )
    names = list(content["figures"])
    whole = [cell(content["figures"][name], content["intervals"].get(name)) for name in names]
    rows = [["all", *whole, ""]]
    for row in reversed(content["by_exposures"]):
        cells = [cell(row["figures"][name], None) for name in names]
        rows.append([str(row["exposures"]), *cells, str(row["tiles_with_fewer"])])
    draws = content["by_exposures"][0]["draws"] if content["by_exposures"] else 0
    below = (
        f"With fewer pictures: mean over {draws} random choices; a tile that has fewer gives all "
        f"it has. {recall_steps(content['defective'])}"
    )
    grid = table(["pictures of a tile", *names, "tiles with fewer"], rows)
    return f"{head}\n\n{grid}\n\n{below}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; its first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_in_table, line))} |" for line in lines)


def _in_table(text: str) -> str:
    """Return a cell's text that ends neither column nor row: GFM splits at `|` in code, too."""
    return text.replace("|", r"\|").replace("\n", " ")


def cell(value: float | None, limits: Sequence[float | None] | None) -> str:
    """Return a figure with its interval, where it has one, as a table shows it."""
    if value is None:
        return "–"
    if not limits or limits[0] is None or limits[1] is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({limits[0]:.3f}–{limits[1]:.3f})"


Figures: TypeAlias = dict[str, FloatArray]
Table: TypeAlias = tuple[dict[str, Any], ...]


def figures(records: Records, families: Iterable[str], weights: AnyArray) -> Figures:
    """Compute the figures of some families.

    Args:
        records: N scored pictures.
        families: `"binary"` (`iou`, `dice`, `miou2`, `pixel_accuracy`, all pooled), `"pictures"`
            (`picture_dice` over all pictures, `macro_picture_dice` over the defect classes),
            `"classes"` (`miou6`, `miou5` or whatever the number of classes, and `micro_iou`, all
            pooled), `"verdict"` (`auroc`, `false_reject_at_95_recall`, `…_99_recall`), `"tiles"`
            (`tile_auroc` and so on, one score a tile).
        weights: (..., N) how often each picture counts.

    Returns:
        (...) float64 for each figure's name; NaN where a figure has no meaning.
    """
    values: Figures = {}
    for family in families:
        values |= _FAMILIES[family](records, np.asarray(weights, np.float64))
    return values


def estimate(
    records: Records, families: Iterable[str], *, resamples: int, seed: int = 0
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the figures, and for each its 95 % bootstrap interval over tiles.

    Args:
        records: N scored pictures.
        families: As for `figures`.
        resamples: Bootstrap resamples; 0 for no intervals.
        seed: Of the resampling.
    """
    families = tuple(families)
    values = {k: float(v) for k, v in figures(records, families, np.ones(len(records))).items()}
    if resamples < 1:
        return values, {}
    weights = bootstrap_weights(records.group, resamples=resamples, seed=seed)
    drawn = figures(records, families, weights)
    return values, {name: interval(drawn[name]) for name in values}


def class_table(records: Records, *, resamples: int, seed: int = 0) -> Table:
    """Return one row for each class that pictures are filed under, the sound ones last.

    The overlap figures of a row are over the pictures filed under the class and tell defect from
    background (`iou` and `dice` pooled, `picture_dice` the mean), except `class_iou`, which is
    over all pictures and wants the class right too. `rejected` is the share of the pictures that
    the model's own decision rejects: recall for a defect class, false alarms for sound pictures.
    """
    weights = np.ones((1, len(records)))
    if resamples > 0:
        drawn = bootstrap_weights(records.group, resamples=resamples, seed=seed)
        weights = np.concatenate([weights, drawn])
    by_class = class_iou(_pool(records.confusion, weights))
    present = [index for index in np.unique(records.label) if index > 0]
    if (records.label == 0).any():
        present.append(0)
    return tuple(_class_row(records, int(index), weights, by_class) for index in present)


def tile_table(records: Records) -> Table:
    """Return one row for each physical tile, the worst (lowest mean picture Dice) first."""
    overlap, rows = dice(records.counts), []
    order = np.argsort(records.group, kind="stable")
    for tile in np.split(order, np.flatnonzero(np.diff(records.group[order])) + 1):
        defective = records.is_defect[tile].any()
        rows.append(
            {
                "tile": int(records.group[tile[0]]),
                "classes": sorted({_name(records, int(index)) for index in records.label[tile]}),
                "pictures": len(tile),
                "iou": float(iou(records.counts[tile].sum(0))) if defective else None,
                "picture_dice": float(overlap[tile].mean()),
                "highest_score": float(records.score[tile].max()),
                "rejected": int((records.verdict[tile] == "reject").sum()),
            }
        )
    return tuple(sorted(rows, key=lambda row: (row["picture_dice"], row["tile"])))


def picture_table(records: Records) -> Table:
    """Return one row for each picture, the worst (lowest Dice) first."""
    overlap = dice(records.counts)
    return tuple(
        {
            "id": str(records.ids[row]),
            "class": _name(records, int(records.label[row])),
            "tile": int(records.group[row]),
            "dice": float(overlap[row]),
            "score": float(records.score[row]),
            "verdict": str(records.verdict[row]),
        }
        for row in np.argsort(overlap, kind="stable")
    )


def _class_row(
    records: Records, index: int, weights: FloatArray, by_class: FloatArray
) -> dict[str, Any]:
    """Make one row; `weights` (1 + B, N), `by_class` (1 + B, K): the figure, then resamples."""
    mine = records.label == index
    chosen, share = records.where(mine), weights[:, mine]
    pooled, total = share @ chosen.counts, share.sum(-1)
    columns: Figures = {
        "picture_dice": ratio(share @ dice(chosen.counts), total, empty=np.nan),
        "rejected": ratio(share @ (chosen.verdict == "reject"), total, empty=np.nan),
    }
    if index:
        nothing = np.where(total > 0, 0.0, np.nan)
        micro = micro_counts(_pool(chosen.confusion, share))
        overlap = {"iou": iou(pooled), "dice": dice(pooled), "micro_iou": iou(micro)}
        columns = {
            **{name: value + nothing for name, value in overlap.items()},
            "class_iou": by_class[:, index],
            **columns,
        }
    return {
        "class": _name(records, index),
        "pictures": len(chosen),
        "tiles": len(np.unique(chosen.group)),
        **{name: float(value[0]) for name, value in columns.items()},
        "intervals": {name: interval(value[1:]) for name, value in columns.items()}
        if len(weights) > 1
        else {},
    }


def _binary(records: Records, weights: FloatArray) -> Figures:
    pooled = _pool(records.counts, weights)
    return {
        "iou": iou(pooled),
        "dice": dice(pooled),
        "miou2": miou2(pooled),
        "pixel_accuracy": pixel_accuracy(pooled),
    }


def _pictures(records: Records, weights: FloatArray) -> Figures:
    overlap = dice(records.counts)
    of_class = [
        ratio(weights[..., mine] @ overlap[mine], weights[..., mine].sum(-1), empty=np.nan)
        for mine in (records.label == index for index in range(1, len(records.labels)))
    ]
    return {
        "picture_dice": ratio(weights @ overlap, weights.sum(-1), empty=np.nan),
        "macro_picture_dice": mean_of_known(np.stack(of_class, axis=-1)),
    }


def _classes(records: Records, weights: FloatArray) -> Figures:
    pooled, count = _pool(records.confusion, weights), len(records.labels)
    # Of three labels, "miou2" is taken: the mean of defect and background, whatever the class.
    classes = "miou_classes" if count == 3 else f"miou{count - 1}"
    return {
        f"miou{count}": mean_iou(pooled),
        classes: mean_iou(pooled, background=False),
        "micro_iou": iou(micro_counts(pooled)),
    }


def _verdict(records: Records, weights: FloatArray) -> Figures:
    score, truth = records.score, records.is_defect
    at_recall = {
        f"false_reject_at_{percent}_recall": false_reject_rate(
            score, truth, recall=percent / 100, weights=weights
        )
        for percent in (95, 99)
    }
    return {"auroc": auroc(score, truth, weights), **at_recall}


_FAMILIES: dict[str, Callable[[Records, FloatArray], Figures]] = {
    "binary": _binary,
    "pictures": _pictures,
    "classes": _classes,
    "verdict": _verdict,
    "tiles": tile_figures,
}


def _pool(per_picture: AnyArray, weights: FloatArray) -> FloatArray:
    """Sum (N, ...) over pictures by (..., N) weights."""
    flat = weights @ per_picture.reshape(len(per_picture), -1)
    return flat.reshape(*weights.shape[:-1], *per_picture.shape[1:])


def _name(records: Records, index: int) -> str:
    return str(records.labels[index]) if index else FREE
