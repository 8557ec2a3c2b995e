"""The pictures most worth a look: kept while an evaluation passes by, and how each is shown."""

from __future__ import annotations

import base64
import heapq
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.evaluate.metrics import binary_counts, dice
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.files import write
from magtiles_seg.marking import encode_result
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
        entry = (rank, name, caption, encode_result(triptych(result, target)))
        push = heapq.heappush if len(self._kept) < self.count else heapq.heapreplace
        push(self._kept, entry)

    def watch(self, sample: Sample, result: Segmentation, target: npt.NDArray[np.uint8]) -> None:
        """Offer a picture by how little of it was found: a `Watch` of an evaluation."""
        overlap = float(dice(binary_counts(result.mask, target)))
        what = f"{sample.id}, {sample.label}, tile {sample.group}"
        caption = f"{what}: Dice {overlap:.2f}, {result.verdict}"
        self.add(-overlap, caption, result, target, name=sample.id.replace("/", "_"))

    def figures(self) -> list[tuple[str, str, bytes]]:
        """Return name, caption and PNG of each kept picture, the highest rank first."""
        return [entry[1:] for entry in sorted(self._kept, reverse=True)]

    def save(self, directory: Path, *, title: str, lead: str, embedded: bool = False) -> Path:
        """Write `index.html` and the pictures beside or in it, the highest rank first.

        Args:
            directory: Where to write; made when missing.
            title: Of the page.
            lead: One paragraph under the title.
            embedded: Whether the page holds its pictures itself, to be sent as one file.

        Returns:
            Path of the page.
        """
        figures = []
        for place, (stem, caption, png) in enumerate(self.figures(), start=1):
            name = f"{place:03d}_{stem}.png"
            if embedded:
                name = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
            else:
                write(directory / name, png)
            figures.append(
                f"<figure><figcaption>{place}. {escape(caption)}</figcaption>"
                f'<img src="{escape(name)}" alt="{escape(stem)}"></figure>'
            )
        page = directory / "index.html"
        lead = f"{lead} Each row: picture, truth, prediction ({LEGEND})."
        text = _PAGE.format(title=escape(title), lead=escape(lead), figures="\n".join(figures))
        write(page, text)
        return page


HIT_RGB, MISSED_RGB, FALSE_ALARM_RGB = (0, 158, 115), (230, 159, 0), (204, 60, 160)
LEGEND = "green: found, orange: missed, magenta: false alarm"

_GAP_PX = 4
_WIDE = 1.5  # three such pictures side by side would be too small on a page
_TINT = 0.55


def select_pictures(
    records: Records, first: Mapping[str, Sequence[str]], *, count: int = 20, seed: int = 0
) -> dict[str, list[str]]:
    """Choose pictures: those that are named first, then the worst and random ones, half and half.

    Args:
        records: The scored pictures.
        first: Ids by the name of their group, the most important group and id first; a group gets
            at most two fifths of what is left.
        count: How many in all.
        seed: Of the random ones.

    Returns:
        Ids by the groups of `first`, `worst` and `random`; no id stands twice.
    """
    ids = records.ids.tolist()
    wrong_px = records.counts[:, 1] + records.counts[:, 2]
    worst = [ids[row] for row in np.lexsort((-wrong_px, dice(records.counts)))]
    shuffled = np.random.default_rng(seed).permutation(sorted(ids)).tolist()
    groups: dict[str, list[str]] = {}
    left = count
    for name, candidates, share in (
        *((name, named, 0.4) for name, named in first.items()),
        ("worst", worst, 0.5),
        ("random", shuffled, 1.0),
    ):
        taken = {one for group in groups.values() for one in group}
        groups[name] = [one for one in candidates if one not in taken][: round(share * left)]
        left -= len(groups[name])
    return groups


def triptych(result: Segmentation, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Show a picture, its truth, and what the answer makes of it.

    Args:
        result: The answer; its own picture is shown.
        target: (H, W) uint8 true class indices, 0 is sound.

    Returns:
        (H, 3 W + 2 gaps, 3) uint8 RGB; one below the other, (3 H + 2 gaps, W, 3), where W > 1.5 H.
        The colours of the last part are those of `LEGEND`.
    """
    truth, found = target > 0, result.mask > 0
    grey = np.repeat(result.image[:, :, None], 3, axis=2)
    marked = _tint(grey, truth, HIT_RGB)
    answer = _tint(grey, truth & found, HIT_RGB)
    answer = _tint(answer, truth & ~found, MISSED_RGB)
    answer = _tint(answer, found & ~truth, FALSE_ALARM_RGB)
    height, width = truth.shape
    axis = 0 if width > _WIDE * height else 1
    gap = np.full((_GAP_PX, width, 3) if axis == 0 else (height, _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([grey, gap, marked, gap, answer], axis=axis)


def _tint(
    picture: NDArray[np.uint8], where: NDArray[np.bool_], color: tuple[int, int, int]
) -> NDArray[np.uint8]:
    drawn = picture.copy()
    mixed = (1 - _TINT) * drawn[where] + _TINT * np.array(color)
    drawn[where] = np.rint(mixed).astype(np.uint8)
    return drawn
