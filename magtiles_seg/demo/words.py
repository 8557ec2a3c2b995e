"""The demo's words: verdict, tables and notices as HTML, the table of many pictures as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from magtiles_seg.labels import BACKGROUND, color_rgb
from magtiles_seg.names import as_cell, counted
from magtiles_seg.regions import DEFECT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from magtiles_seg.linescan.defects import WebDefect
    from magtiles_seg.linescan.report import WebReport
    from magtiles_seg.regions import Defect
    from magtiles_seg.result import Segmentation
    from magtiles_seg.tile import TileResult

_WORDS = {"accept": "Accept", "review": "Review", "reject": "Reject"}
_SHOWN = 30
_CSV_HEADER = (
    "picture",
    "verdict",
    "picture_score",
    "defects",
    "defect",
    *DEFECT_COLUMNS,
    "error",
    "tile_verdict",
    "tile_score",
    "doubt",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one of many pictures.

    Attributes:
        name: The file's name.
        result: None where the picture could not be read.
        error: Why not.
        doubt: Why the picture may be none of a tile.
    """

    name: str
    result: Segmentation | None = None
    error: str = ""
    doubt: str = ""


def verdict_card(result: Segmentation) -> str:
    """Return the verdict in large letters and, in one sentence, why."""
    count = len(result.defects)
    found = counted(count, "defect") if count else "no defect"
    score, side, limit = _compared(result.score, result.decision.reject_score)
    why = f"Score {score}, {side} the reject score {limit}"
    return (
        f'<div class="verdict {result.verdict}" role="status"><b>{_WORDS[result.verdict]}</b>'
        f"<span><i>{found}</i>{why}</span></div>"
    )


def tile_card(tile: TileResult) -> str:
    """Return the one verdict of several exposures, and how it came about."""
    scores = ", ".join(f"{one.score:.3g}" for one in tile.exposures)
    score, side, limit = _compared(tile.score, tile.decision.tile_threshold)
    why = f"Score {score} ({scores} together), {side} the reject score {limit}"
    count = len(tile.exposures)
    return (
        f'<div class="verdict {tile.verdict}" role="status"><b>{_WORDS[tile.verdict]}</b>'
        f"<span><i>One tile, {count} picture{'s' * (count > 1)}</i>{why}</span></div>"
    )


def _compared(score: float, limit: float) -> tuple[str, str, str]:
    """Return a score, how it lies to a limit, and the limit, in digits that show it."""
    for digits in (3, 4, 6, 17):
        shown = f"{score:.{digits}g}", f"{limit:.{digits}g}"
        if score == limit or shown[0] != shown[1]:
            break
    return shown[0], "at or above" if score >= limit else "below", shown[1]


def doubt_card(doubt: str) -> str:
    """Return a warning that a picture may be none of a tile; nothing without a doubt."""
    return f'<p class="doubt" role="note"><b>Is this a tile?</b> {escape(doubt)}</p>' * bool(doubt)


def model_line(text: str) -> str:
    """Return which model answered, and how fast."""
    return f'<p class="empty">{escape(text)}</p>'


def about_model(name: str, labels: Sequence[str]) -> str:
    """Return what the model is, and what it is not."""
    kinds = ", ".join(label for label in labels if label != BACKGROUND)
    return (
        f'<p class="about"><b>{escape(name)}</b> marks what looks like {escape(kinds)} on grey '
        "pictures of ground magnetic tiles. It knows no other part, no other surface, and no light "
        "but that of its training pictures; it misses defects and condemns sound tiles. Before it "
        "decides about anything, try it on tiles of your own.</p>"
    )


def notice_card(title: str, text: str) -> str:
    """Return a message in the place of a verdict."""
    return (
        f'<div class="verdict notice" role="status"><b>{escape(title)}</b>'
        f"<span>{escape(text)}</span></div>"
    )


def legend(labels: Sequence[str]) -> str:
    """Return the classes with their colours."""
    chips = (_chip(labels, label) for label in labels if label != BACKGROUND)
    return f'<div class="legend">{"".join(chips)}</div>'


def defect_table(result: Segmentation, mm_per_px: float | None) -> str:
    """Return the defects, largest first, numbered as on the overlay.

    Args:
        result: Of one picture.
        mm_per_px: Scale of the picture; None: sizes in pixels alone.
    """
    if not result.defects:
        return '<p class="empty">No region above the threshold.</p>'
    head = ["#", "class", "size", "area", "score"]
    height, width = result.mask.shape
    boxes = [
        f'tabindex="0" data-box="{",".join(map(str, (*defect.bbox_xyxy_px, width, height)))}"'
        for defect in result.defects[:_SHOWN]
    ]
    rows = [
        [
            str(number),
            _chip(result.labels, defect.label),
            _both(_size(defect, 1, "px", 0), mm_per_px and _size(defect, mm_per_px, "mm", 2)),
            _both(f"{defect.area_px} px", mm_per_px and f"{defect.area_px * mm_per_px**2:.2f} mm²"),
            f"{defect.score:.2f}",
        ]
        for number, defect in enumerate(result.defects[:_SHOWN], start=1)
    ]
    return _table(head, rows, boxes) + _more(len(result.defects))


def result_json(result: Segmentation, mm_per_px: float | None) -> str:
    """Return a result as `Segmentation.to_json`, its defects measured by the scale of the page."""
    content = {**result.to_dict(), "mm_per_px": mm_per_px}
    content["defects"] = [asdict(_scaled(defect, mm_per_px)) for defect in result.defects]
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def answer_table(answers: Sequence[Answer]) -> str:
    """Return a line per picture of many."""
    head = ["picture", "verdict", "score", "defects"]
    rows = []
    for answer in answers:
        name = f'<span class="name">{escape(answer.name)}</span>'
        if answer.result is None:
            said = f'<span class="why">{escape(answer.error)}</span>'
            rows.append([name, _pill("notice", "Not read"), "", said])
            continue
        result = answer.result
        verdict = _pill(result.verdict, _WORDS[result.verdict])
        found = _found(result)
        if answer.doubt:
            verdict += "<small>Is this a tile?</small>"
            found += f' <span class="why">{escape(answer.doubt)}</span>'
        rows.append([name, verdict, f"{result.score:.2f}", found])
    return _table(head, rows)


def _found(result: Segmentation) -> str:
    """Return a picture's largest defects in one cell; of a rejected one without any, why."""
    if not result.defects and result.verdict != "accept":
        return '<span class="why">by its score: no region above the threshold</span>'
    found = (f"{_chip(result.labels, d.label)} {d.area_px} px" for d in result.defects[:4])
    more = f" +{len(result.defects) - 4}" if len(result.defects) > 4 else ""
    return " ".join(found) + more


def answer_counts(answers: Sequence[Answer], total: int) -> str:
    """Return how many pictures came out how, as cards."""
    verdicts = [answer.result.verdict if answer.result else "notice" for answer in answers]
    counts = [("all", f"{len(answers)} of {total}", "done")]
    for kind, word in (*_WORDS.items(), ("notice", "Not read")):
        if kind in ("accept", "reject") or kind in verdicts:
            counts.append((kind, str(verdicts.count(kind)), word.lower()))
    return _cards(counts)


def answers_csv(
    answers: Iterable[Answer], mm_per_px: float | None, *, tile: TileResult | None = None
) -> str:
    """Return a line per defect; a picture without one, or one that was not read, has one line.

    Names come from strangers: one that a spreadsheet would take for a formula begins with an
    apostrophe, by which spreadsheets know text.

    Args:
        answers: In the order of the pictures.
        mm_per_px: Scale of the pictures; None leaves the columns in mm empty.
        tile: What all pictures say as one, repeated in each line; None leaves its columns empty.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_CSV_HEADER)
    together = [tile.verdict, f"{tile.score:.6f}"] if tile else ["", ""]
    blank = [""] * (1 + len(DEFECT_COLUMNS))
    for answer in answers:
        if answer.result is None:
            error = as_cell(answer.error)
            rows.writerow([as_cell(answer.name), "not read", "", "", *blank, error, *together, ""])
            continue
        result = answer.result
        about = [as_cell(answer.name), result.verdict, f"{result.score:.6f}", len(result.defects)]
        for number, defect in enumerate(result.defects, start=1):
            measures = _scaled(defect, mm_per_px).row()
            rows.writerow([*about, number, *measures.values(), "", *together, answer.doubt])
        if not result.defects:
            rows.writerow([*about, *blank, "", *together, answer.doubt])
    return text.getvalue()


def web_cards(report: WebReport, line: int, line_mm: float | None, seconds: float) -> str:
    """Return where the web stands."""
    length = f"{line * line_mm / 1000:.2f} m" if line_mm else f"{line:,} lines"
    pace = f"{report.lines / seconds:,.0f}" if seconds else "0"
    return _cards(
        [
            ("all", length, "passed"),
            ("all", f"{report.lines:,}", "lines inspected"),
            ("reject" if report.defects else "accept", str(report.defects), "defects"),
            ("all", pace, "lines per second"),
        ]
    )


def web_table(defects: Sequence[WebDefect], labels: Sequence[str]) -> str:
    """Return the latest defects of a web, the newest first."""
    if not defects:
        return '<p class="empty">Nothing found yet.</p>'
    rows = [
        [
            str(number),
            _chip(labels, defect.label),
            f"{defect.first_line:,} to {defect.last_line:,}",
            _both(_size(defect, 1, "px", 0), _in_mm(defect)),
            f"{defect.score:.2f}",
        ]
        for number, defect in reversed(list(enumerate(defects, start=1)))
    ]
    head = ["#", "class", "lines", "size", "score"]
    return _table(head, rows[:_SHOWN]) + _more(len(rows))


def _scaled(defect: Defect, mm_per_px: float | None) -> Defect:
    """Return a defect measured in mm as well, where the scale is known."""
    if not mm_per_px:
        return defect
    return replace(
        defect,
        area_mm2=defect.area_px * mm_per_px**2,
        length_mm=defect.length_px * mm_per_px,
        width_mm=defect.width_px * mm_per_px,
    )


def _size(defect: Defect, scale: float, unit: str, digits: int) -> str:
    length, width = defect.length_px * scale, defect.width_px * scale
    return f"{length:.{digits}f} × {width:.{digits}f} {unit}"


def _in_mm(defect: WebDefect) -> str | None:
    if defect.length_mm is None or defect.width_mm is None:
        return None
    return f"{defect.length_mm:.1f} × {defect.width_mm:.1f} mm"


def _both(first: str, second: str | float | None) -> str:
    return f"{first}<small>{second}</small>" if second else first


def _chip(labels: Sequence[str], label: str) -> str:
    red, green, blue = color_rgb(list(labels).index(label))
    dot = f'<i style="background:rgb({red},{green},{blue})"></i>'
    return f'<span class="chip">{dot}{escape(label)}</span>'


def _pill(kind: str, word: str) -> str:
    return f'<span class="pill {kind}">{word}</span>'


def _cards(counts: Iterable[tuple[str, str, str]]) -> str:
    cards = (f'<div class="{kind}"><b>{value}</b>{word}</div>' for kind, value, word in counts)
    return f'<div class="cards">{"".join(cards)}</div>'


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] | None = None
) -> str:
    """Return a table; each of `marks`, if there are any, is what a row's tag holds besides."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join(
        f"<tr {mark}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for row, mark in zip(rows, marks or [""] * len(rows), strict=True)
    )
    return (
        f'<div class="table"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _more(count: int) -> str:
    return f'<p class="empty">and {count - _SHOWN} more</p>' if count > _SHOWN else ""
