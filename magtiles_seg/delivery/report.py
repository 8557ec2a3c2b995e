"""report.md: what an experiment changed, for the people who decide on its pull request.

Only files are read, of two Git revisions or of the working directory, so the text is the same
whoever posts it. The pictures need the data and the model; where these are missing, it says so.
What a person must know to decide comes first, and a section that would be empty is not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.config import GateParams, check_fields, raise_if_any
from magtiles_seg.delivery.revisions import Revision
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.compare import Change, Comparison, compare, read_pictures
from magtiles_seg.evaluate.plots import charts
from magtiles_seg.evaluate.plots import gallery as pictures
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.evaluate.summary import table
from magtiles_seg.files import write
from magtiles_seg.jsontext import flatten

SHOWN_PICTURES = 20
CURVE = "curve_"
"""Begins the name of a curve's file; the other pictures show test tiles."""

KEY = f"Picture, truth, answer ({pictures.LEGEND})."
"""Says what those show."""

_LISTED_TILES = 30
_PICTURES = "results/pictures.csv"
_METRICS = "results/metrics.json"
_TABLES = {"results/parity.json": "Parity", "results/bench.json": "Speed"}
_CURVES = (
    ("Precision and recall of pixels", "results/plots/precision_recall.csv", "recall", "precision"),
    ("Found defects, false rejects", "results/plots/roc.csv", "false_reject_rate", "recall"),
    ("Pooled Dice by threshold", "results/plots/thresholds.csv", "threshold", "dice"),
    ("Training loss", "results/training/plots/metrics/loss.tsv", "step", "loss"),
)
_HEADER = ["figure", "base", "here", "difference (95 % interval)"]
_MISSES = "new misses"
_SIGNS = {"better": "▲ ", "worse": "▼ ", "unclear": ""}
_SIGNS_MEAN = "▲ better, ▼ worse than the choice of test tiles explains."

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


@dataclass(frozen=True, kw_only=True)
class LostTile:
    """A tile's defective pictures that the base found and this state accepts.

    Attributes:
        tile: Its number.
        label: Its defect class.
        pictures: Their ids, the greatest loss of score first.
        scores: Of each, at the base and here.
        whole: No picture of the tile is found any more.
    """

    tile: int
    label: str
    pictures: tuple[str, ...]
    scores: tuple[tuple[float, float], ...]
    whole: bool


def new_misses(base: Records, here: Records) -> list[LostTile]:
    """Return the tiles with new misses; those first that are lost whole, then by their number.

    Args:
        base: The older model's pictures.
        here: The newer model's; what is defective, and the tiles, are taken from these.
    """
    _, old, new = np.intersect1d(base.ids, here.ids, return_indices=True)
    found = here.is_defect[new] & (base.verdict[old] != "accept")
    missed = here.verdict[new] == "accept"
    before, after, tiles = base.score[old], here.score[new], here.group[new]
    lost = []
    for tile in np.unique(tiles[found & missed]):
        mine = (tiles == tile) & here.is_defect[new]
        rows = np.flatnonzero(mine & found & missed)
        rows = rows[np.argsort(after[rows] - before[rows], kind="stable")]
        lost.append(
            LostTile(
                tile=int(tile),
                label=str(here.labels[here.label[new[rows[0]]]]),
                pictures=tuple(here.ids[new[rows]].tolist()),
                scores=tuple(zip(before[rows].tolist(), after[rows].tolist(), strict=True)),
                whole=bool(missed[mine].all()),
            )
        )
    return sorted(lost, key=lambda one: (not one.whole, -len(one.pictures), one.tile))


class Report:
    """What changed between two states of the project.

    Attributes:
        comparison: The two models on common pictures; None where there is nothing to compare.
        decision: Whether the change may be merged without a person.
        lost: The tiles with new misses; empty where there is nothing to compare.
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
        records = scored_pictures(here)
        if records is None:
            raise DataError(
                f"{here} has no {_PICTURES}; expected the output of the stage `evaluate`: "
                "run `dvc repro` first"
            )
        self._records = records
        self._metrics = here.mapping(_METRICS)
        self._old_metrics = base.mapping(_METRICS)
        self.protocol = str(self._metrics.get("protocol", "unknown"))
        self.lost: list[LostTile] = []
        self.comparison, obstacle = self._compare()
        self.decision = _decide(self.comparison, rule_of(base), obstacle)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each test picture, as it was committed."""
        return dict(zip(self._records.ids.tolist(), self._records.score.tolist(), strict=True))

    def write(self, directory: Path, *, show: ShowPicture | None = None, note: str = "") -> Path:
        """Write report.md and its pictures, and return its path.

        Args:
            directory: Where to write; made when missing. Pictures of an older report go.
            show: Gives the triptychs; None leaves them out.
            note: Why there are none.
        """
        for old in (*directory.glob("picture_*.jpg"), *directory.glob(f"{CURVE}*.png")):
            old.unlink()
        shown = self._show(directory, show) if show else {}
        sections = [
            f"## Experiment: {self._here} against {self._base}",
            self._verdict(),
            self._basis(),
            self._misses(shown.pop(_MISSES, "")),
            self._figures(),
            self._classes(),
            self._parameters(),
            self._curves(directory),
            self._triptychs(shown) if show else note,
            *(self._table(path, title) for path, title in _TABLES.items()),
        ]
        path = directory / "report.md"
        text = "\n\n".join(section.strip() for section in sections if section)
        write(path, f"{text}\n")
        return path

    def _compare(self) -> tuple[Comparison | None, str]:
        """Return the comparison, or None and why there is none."""
        protocol = self._old_metrics.get("protocol", "unknown")
        try:
            records = scored_pictures(self._base)
            if records is None:
                return None, f"{self._base} has no scored pictures to compare with"
            if protocol != self.protocol:
                return None, f"protocol {self.protocol} here, {protocol} at {self._base}"
            comparison = compare(records, self._records)
        except DataError as error:
            return None, str(error)
        self.lost = new_misses(records, self._records)
        return comparison, ""

    def _verdict(self) -> str:
        """Return the one line for a reader in a hurry."""
        word = "⏸ **Merge? A person decides.**"
        if self.comparison:
            word = "✅ **Merge? Yes.**" if self.decision.improved else "⛔ **Merge? No.**"
        return f"{word} {self.decision.reason}"

    def _basis(self) -> str:
        if not self.comparison:
            return ""
        if not self.lost:
            text = f"No defective picture that {self._base} found is missed now."
        else:
            pictures = sum(len(one.pictures) for one in self.lost)
            text = f"**Look at {_count(pictures, 'new miss', 'new misses')} first.**"
        return (
            f"{text} Compared on {self.comparison.pictures} test pictures of "
            f"{self.comparison.tiles} tiles, protocol {self.protocol}; differences with their "
            "95 % bootstrap interval over tiles, the same draws for both."
        )

    def _misses(self, pictures: str) -> str:
        """Return what the base found and this state misses, tile by tile; empty: nothing."""
        if not self.lost:
            return ""
        rows = [
            [
                f"{one.tile}, {one.label}",
                _count(len(one.pictures), "picture", "pictures")
                + (": the tile is lost" if one.whole else ""),
                f"{one.scores[0][0]:.3f} → {one.scores[0][1]:.3f}",
            ]
            for one in self.lost[:_LISTED_TILES]
        ]
        header = ["tile", "newly missed", "score of the worst"]
        more = len(self.lost) - _LISTED_TILES
        parts = [
            "### New misses",
            f"{_count(len(self.lost), 'tile has', 'tiles have')} defective pictures that "
            f"{self._base} found and this state accepts.",
            table(header, rows),
            f"… and {more} tiles more." if more > 0 else "",
            pictures,
        ]
        return "\n\n".join(part for part in parts if part)

    def _figures(self) -> str:
        """Return the figures with their differences, then those that have no paired interval."""
        changes = self.comparison.figures if self.comparison else ()
        rows = [_row(change) for change in changes]
        known = {change.name for change in changes}
        for name, value in self._metrics.items():
            if isinstance(value, float) and name not in known:
                old = self._old_metrics.get(name)
                difference = "–"
                if self.comparison and isinstance(old, float):
                    difference = f"{value - old:+.3f}"
                rows.append([name, _number(old), f"{value:.3f}", difference])
        lead = f"{_SIGNS_MEAN}\n\n" if changes else ""
        return f"### Figures\n\n{lead}{table(_HEADER, rows)}" if rows else ""

    def _classes(self) -> str:
        if self.comparison:
            rows = [_row(change) for change in self.comparison.classes]
            header = ["class", *_HEADER[1:]]
        else:
            values = self._metrics.get("iou_by_class")
            known = values.items() if isinstance(values, dict) else ()
            header, rows = ["class", "IoU"], [[k, _number(v)] for k, v in known]
        return "### Pooled IoU by class\n\n" + table(header, rows) if rows else ""

    def _parameters(self) -> str:
        old, new = (flatten(state.mapping("params.yaml")) for state in (self._base, self._here))
        rows = [
            [f"`{name}`", _value(old, name), _value(new, name)]
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        return "### Parameters\n\n" + table(["parameter", "base", "here"], rows) if rows else ""

    def _curves(self, directory: Path) -> str:
        shown = []
        for number, (title, path, x, y) in enumerate(_CURVES):
            states = {"base": self._base, "here": self._here}
            drawn = {name: charts.read_points(s.read(path), x, y) for name, s in states.items()}
            drawn = {name: points for name, points in drawn.items() if points}
            labels = {"x_label": x.replace("_", " "), "y_label": y}
            chart = charts.line_chart(title, drawn, **labels)
            if chart is not None:
                name = f"{CURVE}{number}.png"
                write(directory / name, chart)
                shown.append(_picture(title, name))
        return "### Curves\n\n" + " ".join(shown) if shown else ""

    def _show(self, directory: Path, show: ShowPicture) -> dict[str, str]:
        """Write the pictures that are worth a look; return a foldable list of each group."""
        first = {
            _MISSES: [picture for one in self.lost for picture in one.pictures],
            "newly wrong": list(self.comparison.newly_wrong) if self.comparison else [],
        }
        groups = pictures.select_pictures(self._records, first, count=SHOWN_PICTURES)
        texts, number = {}, 0
        for group, ids in groups.items():
            shown = []
            for picture in ids:
                name = f"picture_{number:02}.jpg"
                write(directory / name, _as_jpeg(show(picture)))
                shown.append(f"{_caption(self._records, picture)}\n\n{_picture(picture, name)}")
                number += 1
            if shown:
                shown.insert(0, KEY)
                texts[group] = _foldable(f"{len(ids)} {group}", shown, is_open=group == _MISSES)
        return texts

    def _triptychs(self, shown: Mapping[str, str]) -> str:
        return "\n\n".join(["### Test pictures", *shown.values()]) if shown else ""

    def _table(self, path: str, title: str) -> str:
        """Return a flat JSON file as a table; empty where there is no such file."""
        rows = [[f"`{k}`", _plain(v)] for k, v in flatten(self._here.mapping(path)).items()]
        return _foldable(title, [table(["figure", "here"], rows)]) if rows else ""


def scored_pictures(state: Revision) -> Records | None:
    """Return the pictures that a state scored; None where it has none.

    Raises:
        DataError: Their table is damaged; the message names the state.
    """
    text = state.read(_PICTURES)
    try:
        return None if text is None else read_pictures(text)
    except DataError as error:
        raise DataError(f"{_PICTURES} of {state}: {error}") from error


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
    name = f"{_SIGNS[change.outcome]}{change.name}"
    return [name, f"{change.base:.3f}", f"{change.here:.3f}", _difference(change)]


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


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _picture(title: str, name: str) -> str:
    """Return the Markdown of a picture; a title's brackets would end it."""
    return f"![{re.sub(r'[][]', '_', title)}]({name})"


def _as_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Return an RGB picture (H, W, 3) uint8 as a JPEG file: a fifth of a PNG's size, in each PR."""
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    options = [cv2.IMWRITE_JPEG_QUALITY, 88, *sampling]
    return cv2.imencode(".jpg", picture[:, :, ::-1], options)[1].tobytes()


def _foldable(title: str, parts: Iterable[str], *, is_open: bool = False) -> str:
    body = "\n\n".join(parts)
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{title}</summary>\n\n{body}\n\n</details>"


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
