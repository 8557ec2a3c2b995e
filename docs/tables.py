"""Puts the figures of docs/figures/*.json between the markers of a page: `python docs/tables.py`.

A marker names a file that `magtiles-seg evaluate --json` wrote, or several to compare; what stands
between it and the next `<!-- end -->` is made anew from them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from magtiles_seg.evaluate.folds import repeats_to_markdown
from magtiles_seg.evaluate.summary import cell, to_markdown
from magtiles_seg.labels import FREE

DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"
_SECTION = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COMPARED = re.compile(r"(<!-- compared: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_ROWS = {
    "auroc": "picture-level AUROC",
    "false_reject_at_95_recall": "sound pictures rejected at 95 % recall",
    "iou": "pooled IoU",
    "macro_picture_dice": "mean of the classes' per-picture Dice",
}


def fill(text: str) -> str:
    """Return a page's text with the tables of its figures made anew."""
    text = _SECTION.sub(lambda found: f"{found[1]}\n{_table(DOCS / found[2])}\n{found[3]}", text)
    return _COMPARED.sub(lambda found: f"{found[1]}\n{_compared(found[2])}\n{found[3]}", text)


def _compared(words: str) -> str:
    """Return evaluations beside each other, as in `small=figures/T-small.json`, as Markdown."""
    pairs = [word.split("=") for word in words.split()]
    read = [json.loads((DOCS / path).read_text(encoding="utf-8")) for _, path in pairs]
    rows = [["", *(f"`{name}`" for name, _ in pairs)], ["---", *("---:" for _ in pairs)]]
    for key, title in _ROWS.items():
        cells = [cell(one["figures"][key], one["intervals_95"][key]) for one in read]
        rows.append([title, *cells])
    for index, row in enumerate(read[0]["per_class"]):
        if row["class"] != FREE:
            cells = [f"{one['per_class'][index]['picture_dice']:.3f}" for one in read]
            rows.append([f"per-picture Dice of {row['class']}", *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _table(path: Path) -> str:
    """Return an evaluation, or repeats of one, as Markdown without its heading."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "runs" in content:
        names = content["mean"].keys()
        spread = {key: (content["mean"][key], content["standard_deviation"][key]) for key in names}
        text = repeats_to_markdown(content["protocol"], content["runs"], spread)
    else:
        text = to_markdown(content)
    return text.partition("\n\n")[2]


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
