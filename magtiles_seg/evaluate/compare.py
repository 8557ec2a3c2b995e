"""Whether one model is better than another, beyond what the choice of test tiles explains.

Both scored the same pictures. The tiles are drawn again a thousand times, the same draw for both,
and the difference of each figure gets a 95 % interval. Tiles that are hard for both models cancel
out, so the interval is far narrower than the difference of two separate ones.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from magtiles_seg.config import GateParams
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.evaluate.metrics import bootstrap_weights, dice, interval, iou
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.evaluate.summary import figures
from magtiles_seg.files import read_text
from magtiles_seg.labels import BACKGROUND, FREE

Outcome: TypeAlias = Literal["better", "worse", "unclear"]

_WORDS = {"better": "better by", "worse": "worse by", "unclear": "not shown to differ:"}
_FAMILIES = ("binary", "pictures", "verdict")
_COUNTS = ("tp", "fp", "fn", "tn")
_COLUMNS = ("picture", "class", "tile", *_COUNTS, "score", "verdict")
_ANY, _WHOLE = re.compile(r"(?s).+"), re.compile(r"[0-9]{1,18}")
_FORMS = {
    **{"picture": _ANY, "class": _ANY, "tile": re.compile(r"-?[0-9]{1,18}")},
    **dict.fromkeys(_COUNTS, _WHOLE),
    "score": re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]{1,3})?"),
    "verdict": re.compile("accept|review|reject"),
}
"""What a cell of `pictures.csv` looks like, by its column."""
_AGAIN = "write it again with `magtiles-seg evaluate --out`"
_DETECTED = 1.96 + 0.84
"""Standard errors of a difference that a 95 % interval clears of 0 in 80 % of all draws."""

_DICE_DROP = 0.2
"""A picture that loses this much Dice is newly wrong even if its verdict stays."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of two models.

    Attributes:
        name: Of the figure or class.
        base: Of the older model.
        here: Of the newer one.
        difference_95: 95 % bootstrap interval of `here - base` over tiles; NaN where unknown.
        error: Standard error of `here - base`, by the same bootstrap; NaN where unknown.
    """

    name: str
    base: float
    here: float
    difference_95: tuple[float, float]
    error: float = math.nan

    @property
    def difference(self) -> float:
        """`here - base`."""
        return self.here - self.base

    @property
    def detectable(self) -> float:
        """The least true difference that as many tiles show beyond chance four times in five.

        Source: Cohen 1988, power .80 at a two-sided .05; the two models' own spread over tiles.
        """
        return _DETECTED * self.error

    @property
    def outcome(self) -> Outcome:
        """`better` or `worse` where the whole interval is on one side of 0."""
        return self.toward("-" if self.name.startswith("false_reject") else "+")

    def toward(self, sign: str) -> Outcome:
        """Return the outcome where more (`"+"`) or less (`"-"`) of the figure is better."""
        low, high = self.difference_95
        if sign == "-":
            low, high = -high, -low
        return "better" if low > 0 else "worse" if high < 0 else "unclear"

    def __str__(self) -> str:
        """Return the difference with its interval, where one is known."""
        low, high = self.difference_95
        if math.isnan(low):
            return f"{self.difference:+.3f}"
        return f"{self.difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether a model is better by a rule.

    Attributes:
        improved: One of the figures that must improve does, and none is worse.
        reason: The figures of the rule with their intervals, in a sentence.
        power: What difference these tiles could have shown, in a sentence.
    """

    improved: bool
    reason: str
    power: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the pictures that both scored.

    Attributes:
        pictures: How many.
        tiles: Of how many tiles.
        figures: The figures over all pictures.
        classes: Pooled IoU over the pictures of each defect class.
        newly_wrong: Ids whose verdict was right and is wrong, or whose Dice fell by 0.2 or more;
            the greatest loss first.
    """

    pictures: int
    tiles: int
    figures: tuple[Change, ...]
    classes: tuple[Change, ...]
    newly_wrong: tuple[str, ...]

    def judge(self, rule: GateParams) -> Judgement:
        """Tell whether one of the rule's figures is better and none of them worse.

        Raises:
            ConfigError: A figure of the rule was not compared.
        """
        changes = {change.name: change for change in self.figures}
        unknown = [name for name in (*rule.improve, *rule.guard) if name[1:] not in changes]
        if unknown:
            raise ConfigError(
                f"gate: {', '.join(unknown)} was not compared; known: {', '.join(changes)}"
            )
        outcomes = {
            name: changes[name[1:]].toward(name[0]) for name in (*rule.improve, *rule.guard)
        }
        words = [f"`{n[1:]}` is {_WORDS[o]} {changes[n[1:]]}" for n, o in outcomes.items()]
        better = any(outcomes[name] == "better" for name in rule.improve)
        return Judgement(
            improved=better and "worse" not in outcomes.values(),
            reason=f"{'; '.join(words)}.",
            power=self._power([changes[name[1:]] for name in outcomes]),
        )

    def _power(self, changes: Sequence[Change]) -> str:
        seen = [f"{one.detectable:.3f} in `{one.name}`" for one in changes if one.error > 0]
        if not seen:
            return f"On these {self.tiles} tiles the two models do not differ."
        return (
            f"{self.tiles} tiles show a true difference of {', '.join(seen)} four times in five; "
            "a smaller one often stays unseen."
        )


def compare(base: Records, here: Records, *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compare two models picture by picture.

    Args:
        base: The older model's pictures.
        here: The newer model's; classes and tiles are taken from these.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Raises:
        DataError: No picture was scored by both.
    """
    _, old, new = np.intersect1d(base.ids, here.ids, return_indices=True)
    if not len(new):
        raise DataError(
            "the two models have no test picture in common; expected the same split: "
            "compare runs of the same `data_split` parameters"
        )
    base, here = base.where(old), here.where(new)  # type: ignore[arg-type]  # indices order the rows too
    base = replace(base, label=here.label, labels=here.labels, group=here.group)
    drawn = bootstrap_weights(here.group, resamples=resamples, seed=seed)
    weights = np.concatenate([np.ones((1, len(here))), drawn])
    before, after = (figures(records, _FAMILIES, weights) for records in (base, here))
    return Comparison(
        pictures=len(here),
        tiles=len(np.unique(here.group)),
        figures=tuple(
            _change(name, before[name], after[name])
            for name in after
            if not math.isnan(before[name][0] - after[name][0])
        ),
        classes=tuple(_class_change(base, here, weights, index) for index in _defects(here)),
        newly_wrong=_newly_wrong(base, here),
    )


def read_pictures_of(path: Path) -> Records:
    """Read a `pictures.csv`, as `read_pictures`.

    Raises:
        OSError: It cannot be read.
        DataError: It is something else; the error names it.
    """
    try:
        return read_pictures(read_text(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_pictures(text: str) -> Records:
    """Read `pictures.csv` as `evaluate` writes it.

    Returns:
        Records without confusion and histogram (zeros): enough for all overlap and verdict figures.

    Raises:
        DataError: The text is something else.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise DataError(f"the table of scored pictures is damaged: {error}; {_AGAIN}") from error
    if not rows or not set(_COLUMNS) <= set(rows[0]):
        raise DataError(
            f"no table of scored pictures; expected the columns {', '.join(_COLUMNS)}: {_AGAIN}"
        )
    _check_rows(rows)
    names = [FREE, *sorted({row["class"] for row in rows} - {FREE})]
    count = len(rows)
    return Records(
        labels=np.array([BACKGROUND, *names[1:]]),
        ids=np.array([row["picture"] for row in rows]),
        label=np.array([names.index(row["class"]) for row in rows], np.int64),
        group=np.array([int(row["tile"]) for row in rows], np.int64),
        score=np.array([float(row["score"]) for row in rows]),
        verdict=np.array([row["verdict"] for row in rows]),
        empty=np.zeros(count, bool),
        suspect=np.zeros(count, bool),
        label_issue=np.zeros(count, bool),
        counts=np.array([[int(row[name]) for name in _COUNTS] for row in rows], np.int64),
        confusion=np.zeros((count, len(names), len(names)), np.int64),
        histogram=np.zeros((count, 2, 256), np.int32),
    )


def _check_rows(rows: list[dict[str, str]]) -> None:
    """Refuse what `evaluate` never writes: a spreadsheet or a hand has changed it.

    Raises:
        DataError: A value is of another kind or out of its range, or a picture stands there twice.
    """
    first: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        wrong = [name for name in _COLUMNS if not _FORMS[name].fullmatch(row[name] or "")]
        if not wrong and not 0 <= float(row["score"]) <= 1:
            wrong = ["score"]
        if wrong:
            raise DataError(
                f"the table of scored pictures is damaged: row {number}: {wrong[0]} "
                f"{row[wrong[0]]!r:.40}; {_AGAIN}"
            )
        if first.setdefault(row["picture"], number) != number:
            raise DataError(
                f"row {number}: {row['picture']!r} stands in row {first[row['picture']]} already; "
                "expected each picture once"
            )


def _change(name: str, before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> Change:
    """Make the change of a figure (1 + B,): itself, then its resamples."""
    return Change(
        name=name,
        base=float(before[0]),
        here=float(after[0]),
        difference_95=interval(after[1:] - before[1:]),
        error=float(np.std(known)) if (known := _known(after[1:] - before[1:])).size else math.nan,
    )


def _known(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values[~np.isnan(values)]


def _class_change(
    base: Records, here: Records, weights: npt.NDArray[np.float64], index: int
) -> Change:
    mine = here.label == index
    share = weights[:, mine]
    nothing = np.where(share.sum(-1) > 0, 0.0, np.nan)
    before, after = (iou(share @ records.counts[mine]) + nothing for records in (base, here))
    return _change(str(here.labels[index]), before, after)


def _defects(records: Records) -> list[int]:
    return [int(index) for index in np.unique(records.label) if index > 0]


def _newly_wrong(base: Records, here: Records) -> tuple[str, ...]:
    loss = dice(base.counts) - dice(here.counts)
    was_right, is_right = (
        (records.verdict != "accept") == here.is_defect for records in (base, here)
    )
    turned = was_right & ~is_right
    chosen = np.flatnonzero(turned | (loss >= _DICE_DROP))
    order = chosen[np.lexsort((-loss[chosen], ~turned[chosen]))]
    return tuple(here.ids[order].tolist())
