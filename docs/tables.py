"""Puts the figures of docs/figures/*.json between the markers of a page: `python docs/tables.py`.

A marker names a file that `magtiles-seg evaluate --json` wrote; what stands between it and the next
`<!-- end -->` is made anew from that file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from magtiles_seg.evaluate.folds import repeats_to_markdown
from magtiles_seg.evaluate.summary import to_markdown

DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"
_SECTION = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """Return a page's text with the tables of its figures made anew."""
    return _SECTION.sub(lambda found: f"{found[1]}\n{_table(DOCS / found[2])}\n{found[3]}", text)


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
