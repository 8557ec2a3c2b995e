"""report.md: what an experiment changed, for the people who decide on its pull request.

Only files are read, of two Git revisions or of the working directory, so the text is the same
whoever posts it. The pictures need the data and the model; where these are missing, it says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.config import GateParams, check_fields, raise_if_any
from magtiles_seg.delivery.revisions import Revision, flatten
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.compare import Change, Comparison, compare, read_pictures
from magtiles_seg.evaluate.plots import charts
from magtiles_seg.evaluate.plots import gallery as pictures
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.evaluate.summary import table
from magtiles_seg.files import write
from magtiles_seg.writing import encode_result

SHOWN_PICTURES = 20
_PICTURES = "results/pictures.csv"
_METRICS = "results/metrics.json"
_TABLES = {"results/parity.json": "Parity", "results/bench.json": "Speed"}
_CURVES = (
    ("Precision and recall of pixels", "results/plots/precision_recall.csv", "recall", "precision"),
    ("Found defects, false rejects", "results/plots/roc.csv", "false_reject_rate", "recall"),
    ("Pooled Dice by threshold", "results/plots/thresholds.csv", "threshold", "dice"),
    ("Training loss", "results/training/plots/metrics/loss.tsv", "step", "loss"),
)
_SIGNS = {"better": "▲ better", "worse": "▼ worse", "unclear": ""}

ShowPicture = Callable[[str], "NDArray[np.uint8]"]
"""Gives the triptych of a picture's id."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether an experiment may be merged without a person.

    Attributes:
        improved: One of the figures that must improve does, and none of the gate's is worse.
        reason: In one sentence.
    """

    improved: bool
    reason: str


class Report:
    """What changed between two states of the project.

    Attributes:
        comparison: The two models on common pictures; None where there is nothing to compare.
        decision: Whether the change may be merged without a person.
        protocol: Of the figures.
    """

    def __init__(self, base: Revision, here: Revision) -> None:
        """Read and compare, by the rule that `gate` of the base's params.yaml gives.

        Args:
            base: The state to compare with.
            here: The state that is reported.

        Raises:
            DataError: `here` has no scored pictures, or a file is damaged.
        """
        self._base, self._here = base, here
        scored = here.read(_PICTURES)
        if scored is None:
            raise DataError(
                f"{here} has no {_PICTURES}; expected the output of the stage `evaluate`: "
                "run `dvc repro` first"
            )
        self._records = read_pictures(scored)
        self._metrics = here.mapping(_METRICS)
        self._old_metrics = base.mapping(_METRICS)
        self.protocol = str(self._metrics.get("protocol", "unknown"))
        self.comparison, obstacle = self._compare()
        self.decision = _decide(self.comparison, rule_of(base), obstacle)

    def write(self, directory: Path, *, show: ShowPicture | None = None, note: str = "") -> Path:
        """Write report.md and its pictures, and return its path.

        Args:
            directory: Where to write; made when missing.
            show: Gives the triptychs; None leaves them out.
            note: Why there are none.
        """
        sections = [
            f"## Experiment: {self._here} against {self._base}",
            self._headline(),
            self._figures(),
            self._classes(),
            self._parameters(),
            self._curves(directory),
            self._triptychs(directory, show) if show else note,
            *(self._table(path, title) for path, title in _TABLES.items()),
        ]
        path = directory / "report.md"
        text = "\n\n".join(section.strip() for section in sections if section)
        write(path, f"{text}\n")
        return path

    def _compare(self) -> tuple[Comparison | None, str]:
        """Return the comparison, or None and why there is none."""
        before = self._base.read(_PICTURES)
        if before is None:
            return None, f"{self._base} has no scored pictures to compare with"
        protocol = self._old_metrics.get("protocol", "unknown")
        if protocol != self.protocol:
            return None, f"protocol {self.protocol} here, {protocol} at {self._base}"
        try:
            return compare(read_pictures(before), self._records), ""
        except DataError as error:
            return None, str(error)

    def _headline(self) -> str:
        mark = "✅ **Improved.**" if self.decision.improved else "⏸ **Not shown to be better.**"
        text = f"{mark} {self.decision.reason}"
        if self.comparison:
            text += (
                f" Compared on {self.comparison.pictures} test pictures of "
                f"{self.comparison.tiles} tiles, protocol {self.protocol}; differences with their "
                "95 % bootstrap interval over tiles, the same draws for both."
            )
        return text

    def _figures(self) -> str:
        """Return the figures with their differences, then those that have no paired interval."""
        changes = self.comparison.figures if self.comparison else ()
        rows = [_row(change) for change in changes]
        known = {change.name for change in changes}
        for name, value in self._metrics.items():
            if isinstance(value, float) and name not in known:
                rows.append([name, _number(self._old_metrics.get(name)), f"{value:.3f}", "", ""])
        return "### Figures\n\n" + table(
            ["figure", "base", "here", "difference", "beyond chance"], rows
        )

    def _classes(self) -> str:
        if self.comparison:
            rows = [_row(change) for change in self.comparison.classes]
            header = ["class", "base", "here", "difference", "beyond chance"]
        else:
            values = self._metrics.get("iou_by_class", {})
            header, rows = ["class", "IoU"], [[k, _number(v)] for k, v in values.items()]
        return "### Pooled IoU by class\n\n" + table(header, rows) if rows else ""

    def _parameters(self) -> str:
        old, new = (flatten(state.mapping("params.yaml")) for state in (self._base, self._here))
        rows = [
            [f"`{name}`", _value(old, name), _value(new, name)]
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        return "### Parameters\n\n" + (
            table(["parameter", "base", "here"], rows) if rows else "No parameter changed."
        )

    def _curves(self, directory: Path) -> str:
        lines = []
        for number, (title, path, x, y) in enumerate(_CURVES):
            states = {"base": self._base, "here": self._here}
            drawn = {name: charts.read_points(s.read(path), x, y) for name, s in states.items()}
            drawn = {name: points for name, points in drawn.items() if points}
            chart = charts.line_chart(title, drawn, x_label=x, y_label=y)
            if chart is not None:
                name = f"curve_{number}.svg"
                write(directory / name, chart)
                lines.append(f"![{title}]({name})")
        return "### Curves\n\n" + "\n".join(lines) if lines else ""

    def _triptychs(self, directory: Path, show: ShowPicture) -> str:
        newly = self.comparison.newly_wrong if self.comparison else ()
        text = ["### Test pictures", f"Picture, truth, answer ({pictures.LEGEND})."]
        number = 0
        for group, ids in pictures.select_pictures(
            self._records, newly, count=SHOWN_PICTURES
        ).items():
            shown = []
            for picture in ids:
                name = f"picture_{number:02}.png"
                write(directory / name, encode_result(show(picture)))
                shown.append(f"{_caption(self._records, picture)}\n\n![{picture}]({name})")
                number += 1
            if shown:
                body = "\n\n".join(shown)
                title = f"<summary>{len(shown)} {group}</summary>"
                text.append(f"<details>{title}\n\n{body}\n\n</details>")
        return "\n\n".join(text)

    def _table(self, path: str, title: str) -> str:
        """Return a flat JSON file as a table; empty where there is no such file."""
        rows = [[f"`{k}`", _plain(v)] for k, v in flatten(self._here.mapping(path)).items()]
        return f"### {title}\n\n" + table(["", "here"], rows) if rows else ""


def rule_of(base: Revision) -> GateParams:
    """Return by which figures a state wants experiments judged.

    Raises:
        ConfigError: Its section `gate` is at fault; names every mistake.
    """
    found, values = check_fields(GateParams, "gate", base.mapping("params.yaml").get("gate") or {})
    raise_if_any(found, f"params.yaml of {base}")
    return GateParams(**values)


def _decide(comparison: Comparison | None, rule: GateParams, obstacle: str) -> Decision:
    if comparison is None:
        return Decision(improved=False, reason=f"Nothing to compare: {obstacle}.")
    judged = comparison.judge(rule)
    return Decision(improved=judged.improved, reason=f"{judged.reason} {judged.power}")


def _row(change: Change) -> list[str]:
    values = (change.name, f"{change.base:.3f}", f"{change.here:.3f}")
    return [*values, _difference(change), _SIGNS[change.outcome]]


def _difference(change: Change) -> str:
    low, high = change.difference_95
    if math.isnan(low):
        return f"{change.difference:+.3f}"
    return f"{change.difference:+.3f} ({low:+.3f} to {high:+.3f})"


def _caption(records: Records, picture: str) -> str:
    row = int(np.flatnonzero(records.ids == picture)[0])
    filed = str(records.labels[records.label[row]]) if records.label[row] else "sound"
    tp, fp, fn, _ = records.counts[row].tolist()
    return (
        f"`{picture}`, {filed}: {records.verdict[row]}, score {records.score[row]:.3f}, "
        f"{tp} px found, {fn} missed, {fp} false"
    )


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def _value(values: Mapping[str, Any], name: str) -> str:
    return f"`{values[name]}`" if name in values else "–"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        ", ".join(map(str, value))
        if isinstance(value, Iterable) and not isinstance(value, str)
        else str(value)
    )
