"""Proposed groups: a groups.csv from what pictures show, and a page of the pairs in doubt."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.fingerprints import grey_of, sized
from magtiles_seg.dataset.groups import FILE_NAME
from magtiles_seg.dataset.layouts import name_key
from magtiles_seg.dataset.matching import Match, Matches, registered
from magtiles_seg.errors import DataError
from magtiles_seg.files import encode_png, write
from magtiles_seg.image import read_image
from magtiles_seg.names import as_line, counted

_SHOWN = 200
_GAP_PX = 4

_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Proposed groups</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }}
figure {{ margin: 0 0 2em }} figcaption {{ margin-bottom: .4em; overflow-wrap: anywhere }}
img {{ max-width: 100%; border: 1px solid #bbb }}
</style>
<h1>Proposed groups</h1>
<p>{lead}</p>
{remarks}
<h2>Pairs in doubt</h2>
<p>{doubt} Each row: the first picture, the second laid over it, and the fine texture of both. They
show one surface where scratches and grain lie in the same places of the last two.</p>
{figures}
"""


def summary_of(matches: Matches) -> str:
    """Return in a sentence how many groups there are, and how many pairs are in doubt."""
    sizes = Counter(matches.groups()).values()
    several = [size for size in sizes if size > 1]
    return (
        f"{counted(len(matches.paths), 'picture')} of {counted(len(sizes), 'surface')}; in groups "
        f"of several: {sum(several)}, the largest holds {max(sizes, default=0)}; "
        f"in doubt: {counted(len(matches.doubtful()), 'pair')}"
    )


def save_proposal(matches: Matches, directory: Path) -> tuple[Path, Path, Path]:
    """Write the proposed groups, every pair with how sure it is, and a page of those in doubt.

    Args:
        matches: Of all pictures of a data set.
        directory: Where to write; made when missing.

    Returns:
        The paths of groups.csv, pairs.csv and index.html.

    Raises:
        DataError: Two pictures share a name, which groups.csv could not tell apart.
        FileNotFoundError, ImageError: A picture is gone or damaged.
    """
    _check_names(matches.paths)
    groups, pairs, page = (directory / name for name in (FILE_NAME, "pairs.csv", "index.html"))
    write(groups, _groups_csv(matches))
    write(pairs, _pairs_csv(matches))
    write(page, _page(matches))
    return groups, pairs, page


def _check_names(paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(name_key(path.stem), path)
        if other is not path:
            raise DataError(
                f"{as_line(str(other))} and {as_line(str(path))} share a name, and {FILE_NAME} "
                "tells pictures by their names alone: rename one"
            )


def _groups_csv(matches: Matches) -> str:
    """Return a group for every picture, called after its first picture's number: `s0001`."""
    order: dict[int, int] = {}
    rows = [
        (path.name, f"s{order.setdefault(group, len(order)):06d}")
        for path, group in zip(matches.paths, matches.groups(), strict=True)
    ]
    return _csv([("image", "group"), *rows])


def _pairs_csv(matches: Matches) -> str:
    header = ("first", "second", "certainty", "relation", "points", "correlation", "overlap")
    rows = [
        (
            str(matches.paths[match.first]),
            str(matches.paths[match.second]),
            f"{match.certainty:.4f}",
            match.relation,
            str(match.inliers),
            f"{match.correlation:.3f}",
            f"{match.overlap:.2f}",
        )
        for match in matches.found
    ]
    return _csv([header, *rows])


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _page(matches: Matches) -> str:
    doubtful = matches.doubtful()
    shown = sorted(doubtful, key=lambda match: abs(match.certainty - 0.5))[:_SHOWN]
    doubt = f"{len(doubtful)} decide about a group and are not sure"
    doubt += f"; the {_SHOWN} most in doubt follow." if len(doubtful) > _SHOWN else "."
    return _PAGE.format(
        lead=escape(summary_of(matches)) + ".",
        remarks="\n".join(f"<p><b>{escape(text)}.</b></p>" for text in matches.remarks),
        doubt=doubt,
        figures="\n".join(_figure(matches, match) for match in shown),
    )


def _figure(matches: Matches, match: Match) -> str:
    first, second = (as_line(str(matches.paths[at])) for at in (match.first, match.second))
    verdict = "joined" if match.certainty >= 0.5 else "not joined"
    caption = (
        f"{first} and {second}: {verdict}, certainty {match.certainty:.2f} ({match.relation}; "
        f"{match.inliers} points, correlation {match.correlation:.2f})"
    )
    data = base64.b64encode(encode_png(picture_of(matches, match))).decode("ascii")
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(re.sub("[^ -~]", "?", first))}" src="data:image/png;base64,{data}">'
        "</figure>"
    )


def picture_of(matches: Matches, match: Match) -> npt.NDArray[np.uint8]:
    """Show a pair: the first picture, the second laid over it, and the fine texture of both.

    Returns:
        (H, 4 W + gaps) uint8, H and W those of the first at `fingerprints.SIDE_PX`.

    Raises:
        FileNotFoundError, ImageError: A picture is gone or damaged.
    """
    textures = registered(matches.paths, match)
    here, there = (sized(read_image(matches.paths[at])) for at in (match.first, match.second))
    if match.mirrored:
        there = np.ascontiguousarray(there[:, ::-1])
    matrix = np.array(match.matrix, np.float32)
    laid = np.asarray(cv2.warpAffine(there, matrix, here.shape[::-1]), np.uint8)
    grain = [grey_of(texture) for texture in textures]
    gap = np.full((here.shape[0], _GAP_PX), 255, np.uint8)
    return np.concatenate([here, gap, laid, gap, grain[0], gap, grain[1]], axis=1)
