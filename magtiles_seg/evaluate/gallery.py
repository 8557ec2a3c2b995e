"""The pictures most worth a look, kept while an evaluation passes by."""

from __future__ import annotations

import heapq
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from magtiles_seg.evaluate.pictures import LEGEND, encode_png, triptych
from magtiles_seg.result import Segmentation

_PAGE = """<!doctype html>
<meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }}
figure {{ margin: 0 0 2em }} figcaption {{ margin-bottom: .4em }}
img {{ max-width: 100%; border: 1px solid #bbb }}
</style>
<h1>{title}</h1>
<p>{lead}</p>
{figures}
"""


class Gallery:
    """Keeps the triptychs (input | truth | prediction) of the highest ranks, as PNG.

    Attributes:
        count: How many are kept.
    """

    def __init__(self, count: int) -> None:
        """Start empty."""
        self.count = count
        self._kept: list[tuple[float, str, str, bytes]] = []

    def add(
        self,
        rank: float,
        caption: str,
        result: Segmentation,
        target: npt.NDArray[np.uint8],
        *,
        name: str,
    ) -> None:
        """Offer one picture.

        Args:
            rank: The higher, the more worth a look.
            caption: One line.
            result: The answer.
            target: (H, W) uint8 class indices, 0 is sound.
            name: Of the picture's file.
        """
        if len(self._kept) == self.count and (not self.count or rank <= self._kept[0][0]):
            return
        entry = (rank, name, caption, encode_png(triptych(result, target)))
        push = heapq.heappush if len(self._kept) < self.count else heapq.heapreplace
        push(self._kept, entry)

    def save(self, directory: Path, *, title: str, lead: str) -> Path:
        """Write `index.html` and the pictures beside it, the highest rank first.

        Args:
            directory: Where to write; made when missing.
            title: Of the page.
            lead: One paragraph under the title.

        Returns:
            Path of the page.
        """
        directory.mkdir(parents=True, exist_ok=True)
        figures = []
        for place, (_, stem, caption, png) in enumerate(sorted(self._kept, reverse=True), start=1):
            name = f"{place:03d}_{stem}.png"
            (directory / name).write_bytes(png)
            figures.append(
                f"<figure><figcaption>{place}. {escape(caption)}</figcaption>"
                f'<img src="{escape(name)}" alt="{escape(stem)}"></figure>'
            )
        page = directory / "index.html"
        lead = f"{lead} Each row: picture, truth, prediction ({LEGEND})."
        text = _PAGE.format(title=escape(title), lead=escape(lead), figures="\n".join(figures))
        page.write_text(text, encoding="utf-8", errors="backslashreplace")
        return page
