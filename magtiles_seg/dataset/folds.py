"""Folds: which physical tiles are held out together, with even class counts."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import DataError


def fold_assignment(
    samples: Sequence[Sample], folds: int = 5, *, fixed: Mapping[int, int] | None = None
) -> dict[int, int]:
    """Return the fold of every group: largest first, to the fold that best evens the classes.

    Args:
        samples: The data set, in any order.
        folds: How many.
        fixed: Folds that are already decided; they stay. None: `committed_folds(folds)`.

    Raises:
        DataError: There are fewer groups than folds.
    """
    groups = len({sample.group for sample in samples})
    if groups < folds:
        raise DataError(
            f"cannot make {folds} folds of {groups} groups of pictures; lower the folds"
        )
    fixed = committed_folds(folds) if fixed is None else fixed
    return even_out(samples, [1.0] * folds, seed=0, fixed=fixed)


def committed_folds(folds: int = 5) -> dict[int, int]:
    """Return {group: fold} of the public data set's tiles as protocol T fixes them.

    The list keeps a tile in its fold whatever else changes: other pictures, or another rule to even
    the classes out. There is one for five folds; for other numbers nothing is fixed.
    """
    if folds != 5:
        return {}
    text = Path(__file__).with_name("folds.json").read_text(encoding="utf-8")
    lists: list[list[int]] = json.loads(text)["folds"]
    return {group: fold for fold, groups in enumerate(lists) for group in groups}


def even_out(
    samples: Sequence[Sample], weights: Sequence[float], *, seed: int, fixed: Mapping[int, int]
) -> dict[int, int]:
    """Return {group: bin}, greedily minimising the squared class shares over weighted bins.

    Placing a group with g_c pictures of class c (of N_c in all) into a bin of weight w that holds
    n_c already costs Σ_c ((n_c + g_c)² − n_c²) / (w N_c²); of two bins that cost the same the
    emptier one gets it. Equal groups are taken in an order that the seed shuffles.
    """
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        counts[sample.group][sample.label] += 1
    totals = Counter(sample.label for sample in samples)
    held: list[Counter[str]] = [Counter() for _ in weights]
    chosen = {group: fixed[group] for group in counts if group in fixed}
    for group, index in chosen.items():
        held[index].update(counts[group])
    order = sorted(counts.keys() - chosen.keys())
    random.Random(seed).shuffle(order)
    for group in sorted(order, key=lambda group: -counts[group].total()):
        cost = [
            sum((2 * have[c] + g) * g / (weight * totals[c] ** 2) for c, g in counts[group].items())
            for have, weight in zip(held, weights, strict=True)
        ]
        load = [have.total() / weight for have, weight in zip(held, weights, strict=True)]
        chosen[group] = min(range(len(cost)), key=list(zip(cost, load, strict=True)).__getitem__)
        held[chosen[group]].update(counts[group])
    return chosen
