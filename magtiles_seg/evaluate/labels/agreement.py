"""How far the labels agree with themselves: one exposure's mask as the answer to another's.

The exposures of a physical tile show one surface and one defect, and were masked one by one. Where
two of them are laid over each other, the overlap of their masks says what the labels can tell at
all: an answer that reaches it is as good as an annotator, and one that passes it has learnt how
single pictures were masked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import MaskRule, Sample, load_image, load_mask
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.metrics import (
    FloatArray,
    binary_counts,
    bootstrap_weights,
    dice,
    interval,
    iou,
)
from magtiles_seg.evaluate.summary import table
from magtiles_seg.registration import find_shift, fine_texture, move

_FIGURES = {"pooled IoU": iou, "pooled Dice": dice}


@dataclass(frozen=True, eq=False)
class Agreement:
    """What the masks of tile-mates say of each other, one row per picture.

    Attributes:
        label: (N,) str, the class that each picture is filed under.
        group: (N,) int64, the physical tile.
        counts: (N, 4) float64 `[TP, FP, FN, TN]`, mean over its mates' masks as the answer.
        majority: (N, 4) float64 likewise, of the pixels that at least half of its mates' masks hold
            as the answer.
    """

    label: npt.NDArray[np.str_]
    group: npt.NDArray[np.int64]
    counts: FloatArray
    majority: FloatArray

    def to_markdown(self, *, resamples: int = 1000) -> str:
        """Return pooled IoU and Dice, in all and by class, with 95 % intervals over tiles."""
        defective = self.label != "free"
        rows = {"defective and sound": np.ones_like(defective), "defective": defective}
        rows |= {name: self.label == name for name in np.unique(self.label[defective])}
        cells = [[name, *self._row(keep, resamples)] for name, keep in rows.items()]
        figures = [f"{whose}, {name}" for whose in ("one mask", "majority") for name in _FIGURES]
        return table(["pictures filed as", "pictures", "tiles", *figures], cells)

    def _row(self, keep: npt.NDArray[np.bool_], resamples: int) -> list[str]:
        group = self.group[keep]
        weights = bootstrap_weights(group, resamples=resamples)
        cells = [str(len(group)), str(len(np.unique(group)))]
        for counts in (self.counts[keep], self.majority[keep]):
            for figure in _FIGURES.values():
                low, high = interval(figure(weights @ counts))
                cells.append(f"{float(figure(counts.sum(0))):.3f} ({low:.3f}–{high:.3f})")
        return cells


def agreement(
    samples: Sequence[Sample],
    *,
    rule: MaskRule = "ge128",
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compare the masks of all exposures of each tile of which any picture is masked.

    Two pictures are laid over each other by the phase correlation of their fine texture; a pair
    whose texture then does not correlate is left out, and so is a picture without any such mate.

    Args:
        samples: A data set whose groups are physical tiles.
        rule: From which grey level on a mask pixel is a defect.
        progress: Told after each tile.

    Raises:
        DataError: No two pictures of a masked tile can be laid over each other.
    """
    tiles = defaultdict(list)
    for sample in samples:
        tiles[sample.group].append(sample)
    rows = []
    for done, mates in enumerate(tiles.values(), start=1):
        rows += [
            (mates[index].label, mates[index].group, *counts)
            for index, counts in _compared(mates, rule)
        ]
        if progress:
            progress(done, len(tiles))
    if not rows:
        raise DataError(
            "no two pictures of one masked tile show the same surface; expected several exposures "
            "of a tile: give the pictures of each tile one group"
        )
    return Agreement(*(np.array(column) for column in zip(*rows, strict=True)))


def _compared(
    mates: Sequence[Sample], rule: MaskRule
) -> Iterator[tuple[int, tuple[FloatArray, FloatArray]]]:
    """Yield each picture of a tile that has mates over it: mean counts, counts of the majority."""
    masks = [load_mask(sample, rule=rule) for sample in mates]
    if not any(mask.any() for mask in masks):
        return
    grains = [fine_texture(load_image(sample)) for sample in mates]
    for here, truth in enumerate(masks):
        answers = []
        votes, voters = np.zeros(truth.shape), np.zeros(truth.shape)
        for there, mask in enumerate(masks):
            shift = None if there == here else find_shift(grains[here], grains[there])
            if shift is not None:
                known = move(np.ones_like(mask), shift, truth.shape) > 0
                laid = move(mask, shift, truth.shape)
                answers.append(binary_counts(laid[known], truth[known]))
                votes += laid
                voters += known
        if answers:
            known = voters > 0
            majority = binary_counts(votes[known] >= voters[known] / 2, truth[known])
            yield here, (np.mean(answers, axis=0), majority.astype(np.float64))
